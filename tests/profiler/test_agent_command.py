import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from profiler.__main__ import default_device
from profiler.wire import DeviceDescription, Name, Timing

HEAVY = ("torch", "onnx", "sqlalchemy", "fastapi", "scipy", "optuna", "jinja2", "plotly", "PIL")


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("HEATNAS_")}
    return subprocess.run(
        [sys.executable, "-m", "profiler", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**inherited, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
    )


def test_help_names_the_commands() -> None:
    done = command("--help")
    assert done.returncode == 0
    for name in ("run", "describe", "measure"):
        assert name in done.stdout


def test_help_of_run_names_the_variables() -> None:
    said = command("run", "--help").stdout
    assert "HEATNAS_SERVER" in said
    assert "HEATNAS_TOKEN" in said


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys, runpy; sys.argv = ['heatnas-agent', '--help']\n"
        "try: runpy.run_module('profiler', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('onnxruntime', 'numpy', 'httpx2', 'pydantic', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_module_imports_what_the_base_install_has_and_nothing_else() -> None:
    code = (
        "import importlib, pkgutil, sys, profiler\n"
        "for module in pkgutil.iter_modules(profiler.__path__): importlib.import_module('profiler.' + module.name)\n"
        "import profiler.session; profiler.session.check_runtime()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_describe_prints_the_device() -> None:
    description = DeviceDescription.model_validate_json(command("describe").stdout)
    assert description.logical_cores >= 1
    assert "onnxruntime" in description.runtimes


def test_measure_prints_time_and_frames_per_second(tmp_path: Path, graph: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph)
    lines = command("measure", str(path), "--seconds", "0").stdout.splitlines()
    assert " ms  " in lines[0]
    assert " FPS  median of " in lines[0]
    assert lines[1].endswith("interval of the median")
    assert "emptied caches" in lines[2]


def test_measure_as_json_is_a_whole_measurement(tmp_path: Path, graph: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph)
    timing = Timing.model_validate_json(
        command("measure", str(path), "--seconds", "0", "--threads", "2", "--json").stdout
    )
    assert 40 <= len(timing.hot_ns) <= 400  # as a server has its answers measured
    assert timing.low_ms <= timing.hot_ms <= timing.high_ms


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {path}: No such file or directory. Name an ONNX file."),
        (b"\x07no graph", "the graph of 9 bytes is not an ONNX model"),
    ],
)
def test_measure_of_no_graph_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    done = command("measure", str(path), "--seconds", "0")
    assert done.returncode == 1
    assert message.format(path=path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_run_without_a_server_asks_for_one() -> None:
    done = command()
    assert done.returncode == 2
    assert "--server" in done.stderr


def test_run_until_nothing_is_left(server: Any, graph: bytes, token: str, tmp_path: Path) -> None:
    server.add("t", graph)
    done = command("--state", str(tmp_path), "--once", HEATNAS_SERVER=server.url, HEATNAS_TOKEN=token)
    assert done.returncode == 0, done.stderr
    assert "enrolled as agent-1" in done.stderr
    assert [task for task, _ in server.accepted] == ["t"]


def test_wrong_token_is_one_line_with_the_next_action(server: Any, tmp_path: Path) -> None:
    done = command("run", "--server", server.url, "--token", "wrong", "--state", str(tmp_path), "--once")
    assert done.returncode == 1
    assert done.stderr.startswith(f"heatnas-agent: {server.url} refuses the token (401)")
    assert "Traceback" not in done.stderr


def test_state_that_is_no_folder_is_one_line(server: Any, token: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("--server", server.url, "--token", token, "--state", str(tmp_path / "file"), "--once")
    assert done.returncode == 1
    assert "cannot open" in done.stderr
    assert "--state" in done.stderr


@pytest.mark.parametrize(
    ("host", "name"),
    [("edge-1.local", "edge-1.local"), ("Möbius' laptop", "M-bius-laptop"), ("--", "device"), ("x" * 80, "x" * 63)],
)
def test_default_name_is_the_host_name_as_the_protocol_allows_it(host: str, name: str) -> None:
    assert default_device(host) == name
    assert TypeAdapter(Name).validate_python(name) == name
