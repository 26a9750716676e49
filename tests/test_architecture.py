"""The house stands as drawn: imports point down, importing does nothing, and the edge install stays small."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("nas", "profiler", "lookup_tables", "supernet", "server")

CONTRACTS = {
    "floors": "Floors: imports point down only",
    "supernet": "supernet knows neither the agent nor the tables",
    "nas": "nas is arithmetic: it never measures, stores or serves",
    "profiler": "profiler runs on an edge device",
    "lookup_tables": "lookup_tables holds numbers, not networks",
    "web": "the web process reaches neither torch nor the job engine",
}

IMPORT_EVERYTHING = """
import importlib, os, pkgutil, sys

PACKAGES = sys.argv[1:]
WATCHED = ("socket.", "subprocess.", "sqlite3.", "os.mkdir", "os.rename", "os.remove", "os.chdir", "os.putenv")
touched = []
watching = False

def watch(event, arguments):
    if not watching:
        return
    if event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            touched.append(f"open {path}")
    elif event.startswith(WATCHED):
        touched.append(event)

def ours(name):
    return name.partition(".")[0] in PACKAGES

names = list(PACKAGES)
for package in PACKAGES:
    names += [found.name for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".")]
names = [name for name in names if ".migrations" not in name]
for name in names:
    importlib.import_module(name)
# What the libraries do while they are imported is theirs; ours are forgotten and watched as they come in again.
for name in [name for name in sys.modules if ours(name)]:
    del sys.modules[name]
sys.addaudithook(watch)
watching = True
for name in names:
    importlib.import_module(name)
watching = False
print(len(names))
print(*touched, sep="\\n")
"""


def python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", code, *arguments], cwd=cwd)


def run(
    command: Sequence[str | Path], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    return run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=root)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the packages in which a test may plant a violation."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_import_contracts_hold() -> None:
    result = lint_imports(ROOT)

    assert result.returncode == 0, result.stdout
    assert f"{len(CONTRACTS)} kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("nas/space.py", "import torch", "nas"),
        ("nas/space.py", "import profiler.wire", "floors"),
        ("profiler/wire.py", "import sqlalchemy", "profiler"),
        ("profiler/wire.py", "import nas.blocks", "floors"),
        ("server/routes/jobs.py", "import server.worker", "web"),
        ("supernet/errors.py", "import lookup_tables", "supernet"),
        ("lookup_tables/errors.py", "import torch", "lookup_tables"),
        ("lookup_tables/errors.py", "import server", "floors"),
    ],
)
def test_a_planted_import_breaks_its_contract(copy: Path, module: str, planted: str, broken: str) -> None:
    path = copy / module
    path.write_text(path.read_text() + f"\n\n{planted}  # planted\n")

    result = lint_imports(copy)

    assert result.returncode == 1
    assert f"{CONTRACTS[broken]} BROKEN" in result.stdout


def test_importing_every_module_opens_no_socket_and_writes_no_file() -> None:
    result = python(IMPORT_EVERYTHING, *PACKAGES)

    assert result.returncode == 0, result.stderr
    count, *touched = result.stdout.split("\n")
    assert int(count) > 30
    assert [line for line in touched if line] == []


def test_the_watch_over_imports_sees_a_module_that_writes(copy: Path) -> None:
    (copy / "nas" / "careless.py").write_text("from pathlib import Path\nPath('left_behind.txt').write_text('x')\n")

    result = python(IMPORT_EVERYTHING, "nas", cwd=copy)

    assert "open left_behind.txt" in result.stdout


def test_the_web_process_never_loads_torch(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\n"
        "from server.app import create_app\n"
        "from server.settings import Settings\n"
        "app = create_app(Settings(data=pathlib.Path(sys.argv[1])))\n"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'dbos', 'supernet')\n"
        "print(len(app.openapi()['paths']), [name for name in heavy if name in sys.modules])\n"
    )

    result = python(code, str(tmp_path))

    assert result.returncode == 0, result.stderr
    count, _, loaded = result.stdout.strip().partition(" ")
    assert int(count) > 20
    assert loaded == "[]"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment that holds the base install and nothing else."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    for command in (
        [sys.executable, "-m", "venv", venv],
        [venv / "bin" / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", ROOT],
    ):
        result = run(command)
        assert result.returncode == 0, result.stderr
    return venv / "bin"


def test_the_base_install_holds_no_server_and_no_trainer(bare: Path) -> None:
    heavy = ("torch", "onnx", "sqlalchemy", "fastapi", "scipy")
    probe = f"import importlib.util as u; print([name for name in {heavy} if u.find_spec(name)])"

    assert run([bare / "python", "-c", probe], cwd=bare).stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["heatnas-agent", "heatnas"])
def test_the_base_install_explains_its_commands(bare: Path, command: str) -> None:
    result = run([bare / command, "--help"], cwd=bare)

    assert result.returncode == 0, result.stderr
    assert "Usage: " + command in result.stdout


def test_the_base_install_measures_a_graph(bare: Path, tmp_path: Path) -> None:
    graph = tmp_path / "relu.onnx"
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    shape = [1, 8, 32, 32]
    value = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node],
            "relu",
            [value("x", onnx.TensorProto.FLOAT, shape)],
            [value("y", onnx.TensorProto.FLOAT, shape)],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    graph.write_bytes(model.SerializeToString())

    result = run([bare / "heatnas-agent", "measure", graph], cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert "ms" in result.stdout


def test_every_fork_of_the_random_numbers_says_that_it_is_of_no_gpu() -> None:
    """Without `devices` torch forks those of all GPUs, and warns at length where there are several."""
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "supernet").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fork_rng"
        if "devices" not in {keyword.arg for keyword in node.keywords}
    ]
    assert calls == []
