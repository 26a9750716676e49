import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nas.macs import weights_mib
from nas.named import named_space
from server.cli import app, missing_module
from server.cli_options import input_size
from server.data_folder import check_free, only_worker
from server.database import JobState
from server.errors import WorkerRunning
from server.handlers.profile import profile
from server.local_stack import LocalStack
from server.parameters import ProfileParameters, TrainParameters
from tests.server.command import BARE, heatnas, heatnas_process
from tests.server.dry import DEVICE, Bench, now

BASE_INSTALL = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from server.cli import main
sys.argv[0] = "heatnas"
main()
"""

EXTRAS = (
    "sqlalchemy", "alembic", "dbos", "fastapi", "starlette", "uvicorn", "pydantic_settings", "scipy", "optuna",
    "jinja2", "plotly", "torch", "onnx", "onnxscript", "safetensors", "pycocotools", "PIL", "psycopg", "yaml",
)  # fmt: skip
"""What a base install does not have."""


def until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def on_base_install(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    code = BASE_INSTALL.format(blocked=EXTRAS)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=BARE,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["thin", "--help"],
        ["table", "--help"],
        ["data", "make", "--help"],
        ["data", "check", "--help"],
        ["data", "convert", "--help"],
    ],
)
def test_help_needs_no_extra(command: list[str]) -> None:
    done = on_base_install(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


def test_spaces_are_listed_on_a_base_install() -> None:
    done = on_base_install("spaces")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["space", "input", "sizes", "smallest", "GMACs", "largest", "GMACs", "table", "rows"]
    nano = next(line for line in lines if line.startswith("heatdetr-nano "))
    assert nano.split()[-1] == str(len(named_space("heatdetr-nano", classes=3).all_blocks()))
    built = [line.split() for line in lines[lines.index("") + 2 :]]
    assert ["heatdetr", "no", "runtime", "in", "particular", "tokens", "gelu"] in built
    assert ["heatdetr@cpu", "ONNX", "Runtime", "on", "CPUs", "tokens", "hardswish"] in built
    assert ["heatdetr@cuda", "CUDA", "and", "TensorRT", "spatial", "gelu"] in built


def test_table_3_is_counted_on_a_base_install() -> None:
    done = on_base_install("macs")
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["detector", "GMACs", "A", "GMACs", "B", "GMACs", "C", "paper", "parameters", "M"]
    assert rows[0] == ["heatdetr-tiny", "54.52", "66.94", "56.63", "67", "42.27"]
    assert [row[0] for row in rows] == ["heatdetr-tiny", "heatdetr-small", "heatdetr-medium", "heatdetr-large"]


@pytest.mark.parametrize(
    ("command", "extra"), [(["serve"], "server"), (["worker"], "server"), (["data", "make", "shapes"], "train")]
)
def test_a_command_that_lacks_its_extra_names_it(command: list[str], extra: str, tmp_path: Path) -> None:
    done = on_base_install(*command, *(["--data", tmp_path] if extra == "server" else []))
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        rf"heatnas: this command needs the extra '{extra}' \(module \w+ is missing\): "
        rf'pip install "heatnas\[{extra}\]".*\n',
        done.stderr,
    )


def test_a_module_of_no_extra_points_at_the_installation() -> None:
    error = ModuleNotFoundError("No module named 'numpy.core'", name="numpy.core")
    assert missing_module(error) == "the module numpy.core is missing: install HeatNAS again"


def test_every_command_teaches_by_an_example() -> None:
    groups = [group.typer_instance for group in app.registered_groups if group.typer_instance is not None]
    commands = [*app.registered_commands, *(one for group in groups for one in group.registered_commands)]
    for command in commands:
        assert command.callback is not None
        assert "Example: `heatnas " in (command.callback.__doc__ or ""), command.callback.__name__


def test_a_data_set_is_made_and_another_in_its_place_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    made = heatnas("data", "make", folder, "--images", "2", "--held-out", "1", "--size", "64")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.strip().endswith(f"2 training and 1 validation images in {folder}")
    again = heatnas("data", "make", folder, "--images", "3", "--held-out", "1", "--size", "64")
    assert again.returncode == 1
    assert again.stderr.startswith(f"heatnas: {folder} exists and holds the data set ")


def test_a_database_file_that_is_none_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "heatnas.sqlite").write_bytes(b"not a database " * 500)
    for command in (["serve", "--port", "50998"], ["worker"]):
        done = heatnas_process(*command, "--data", tmp_path)
        assert done.returncode == 1
        assert re.fullmatch(
            r"heatnas: .*heatnas.sqlite is no database that can be read \(.*\): restore it from a backup, "
            r"or choose another data folder\n",
            done.stderr,
        ), done.stderr


def test_a_folder_has_one_worker(tmp_path: Path) -> None:
    with only_worker(tmp_path):
        done = heatnas_process("worker", "--data", tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"heatnas: another worker runs the jobs of {tmp_path}: `heatnas serve` starts one by itself; "
            "stop it, or use another data folder\n"
        )
        with pytest.raises(WorkerRunning, match="another worker runs the jobs of"):
            check_free(tmp_path, patience_seconds=0.3)
    check_free(tmp_path, patience_seconds=0)


def test_a_detector_is_trained_scored_and_taken_up(tmp_path: Path) -> None:
    data, run = tmp_path / "shapes", tmp_path / "run"
    made = heatnas("data", "make", data, "--images", "8", "--held-out", "2", "--size", "64")
    assert made.returncode == 0
    order = ["train", data, "--out", run, "--space", "heatdetr-nano", "--config", "smallest", "--batch", "4"]
    done = heatnas_process(*order, "--epochs", "1")
    assert (done.returncode, done.stderr) == (0, "")
    first, *_ = done.stdout.splitlines()
    what = r"training config \w{16} of heatdetr-nano, 0\.08 GMACs at 192x192, on 8 images, epochs: 1; 2 held out"
    assert re.fullmatch(what, first), first
    assert re.search(r"\nepoch 1: loss \d\.\d+, AP 0\.\d+, AP50 ", done.stdout)
    assert done.stdout.endswith(f"best weights: {run / 'best.safetensors'}\ncurves: {run / 'curve.png'}\n")
    assert (run / "curve.png").stat().st_size > 10_000
    scored = heatnas("eval", run / "best.safetensors", data, "--json")
    assert json.loads(scored.stdout)["images"] == 2
    other = heatnas(*order, "--epochs", "2")
    assert other.returncode == 1
    assert "belongs to a run that differs in epochs (1, now 2)" in other.stderr


def test_a_detector_starts_from_a_pretrained_backbone(tmp_path: Path) -> None:
    data, photos, backbone = tmp_path / "shapes", tmp_path / "photos", tmp_path / "backbone"
    assert heatnas("data", "make", data, "--images", "4", "--held-out", "1", "--size", "64").returncode == 0
    for label, picture in enumerate(sorted((data / "train").iterdir())):
        (photos / "train" / "ab"[label % 2]).mkdir(parents=True, exist_ok=True)
        (photos / "train" / "ab"[label % 2] / picture.name).write_bytes(picture.read_bytes())
    small = ("--space", "heatdetr-nano", "--config", "smallest", "--batch", "2", "--epochs", "1")
    done = heatnas("pretrain", photos, "--out", backbone, *small, "--image", "128x128")
    assert (done.returncode, done.stderr) == (0, "")
    what, cut, scored, *_ = done.stdout.splitlines()
    assert re.fullmatch(
        r"pretraining the backbone of config \w{16} of heatdetr-nano, 0\.0\d GMACs at 128x128, "
        r"on 2 images of 2 classes, epochs: 1; 2 held out",
        what,
    ), what
    assert cut == "warm-up: 0 steps, half of this run, instead of the recipe's 3"
    assert re.fullmatch(r"epoch 1: loss \d\.\d+, top 1 (0\.[05]00|1\.000), top 5 1\.000 on 2 images", scored), scored
    done = heatnas("train", data, "--out", tmp_path / "run", "--init", backbone / "best.safetensors", *small)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\nweights of best\.safetensors: \d+ tensors taken \(stem \d+, stage1 \d+, ", done.stdout)
    assert re.search(r"\n\d+ not in the file, drawn anew \(sam4 \d+, scm \d+, tcm \d+, head \d+\)\n", done.stdout)
    assert "\n2 of the file left over (classify 2)\n" in done.stdout
    refused = heatnas("train", data, "--out", tmp_path / "run", *small)
    assert refused.returncode == 1
    assert "belongs to a run that differs in first weights (of the file with SHA-256 " in refused.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--config", "huge"], "config 'huge' is unknown: choose one of largest, smallest, heatdetr-tiny"),
        (
            ["--config", "no.json"],
            "no.json cannot be read (No such file or directory): name the config.json of an answer",
        ),
        (["--stride", "8"], "stride 8 is not in heatdetr-edge: choose 16 or 32, or another space"),
        (
            ["--space", "heatdetr@gpu"],
            "space 'heatdetr@gpu' asks for the unknown runtime profile 'gpu': choose one of heatdetr@cpu",
        ),
        (["--image", "100x100"], "input size 100x100 is not in heatdetr-edge: choose one of 256x256"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_line(command: list[str], message: str, shapes: Path) -> None:
    done = heatnas("train", shapes, "--out", shapes / "run", *command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"heatnas: {message}")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "shapes"
    assert heatnas("data", "make", folder, "--images", "1", "--held-out", "1", "--size", "64").returncode == 0
    return folder


def test_without_a_token_it_says_where_one_is(tmp_path: Path) -> None:
    done = heatnas("jobs", "--data", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"heatnas: no token: {tmp_path / 'token'} cannot be read (No such file or directory). Give --token (or "
        "HEATNAS_TOKEN), or --data with the folder of a server on this machine\n"
    )


def test_a_table_format_is_told_by_the_name(tmp_path: Path) -> None:
    done = heatnas("table", "export", "e1", "--out", tmp_path / "table.xlsx", "--token", "any")
    assert done.returncode == 1
    assert done.stderr.endswith("table.xlsx: end its name in .json or .csv\n")


@pytest.mark.parametrize(
    ("command", "environment", "code", "message"),
    [
        (["thin", "--device", "d", "--target-fps", "nan"], {}, 2, "nan is no number: write digits, such as 25 or 0.5"),
        (["profile", "--device", "d", "--measure-seconds", "inf"], {}, 2, "inf is no number"),
        (["jobs", "--token", "é"], {}, 1, "heatnas: the token '\\xe9' has characters that no token has: copy it again"),
        (["jobs", "--token", "t", "--server", "http://[::"], {}, 1, "heatnas: 'http://[::' is no address"),
        (
            ["serve", "--data", "/dev/null/x", "--port", "50999"], {}, 1,
            "heatnas: the data folder /dev/null/x cannot be written (Not a directory): choose another with --data",
        ),
        (["worker", "--data", "/dev/null/x"], {}, 1, "heatnas: the data folder /dev/null/x cannot be written (Not a"),
        (["jobs", "--token", "t", "--server", "localhost:80"], {}, 1, "heatnas: --server 'localhost:80' is no address"),
        (
            ["table", "show", "0", "--token", "t", "--kind", "zzz"], {}, 1,
            "heatnas: --kind zzz is no kind of block: choose one of stem, entry, rep_cnn",
        ),
        (
            ["worker"], {"HEATNAS_LEASE_SECONDS": "abc"}, 1,
            "heatnas: HEATNAS_LEASE_SECONDS=abc: Input should be a valid number, unable to parse string as a number:",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(command: list[str], environment: dict[str, str], code: int, message: str) -> None:
    done = heatnas(*command, environment=environment)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in " ".join(done.stderr.replace("│", " ").split()) + "\n"
    assert code == 2 or done.stderr.count("\n") == 1


def test_a_file_with_a_number_that_is_none_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"sha256": NaN}')
    done = heatnas("table", "import", tmp_path / "t.json", "--token", "t")
    assert done.returncode == 1
    assert done.stderr == (
        f"heatnas: {tmp_path / 't.json'} is not JSON (NaN is no JSON number): import what `heatnas table export --out "
        "FILE.json` wrote\n"
    )


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = heatnas_process("serve", "--data", tmp_path / "data", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"heatnas: cannot listen on 127.0.0.1:{port} (Address already in use): "
        "stop what runs there, or choose another --port (or --host)\n"
    )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A server with a table and a supernet that were not measured or trained, but made by the product's own steps."""
    stack = LocalStack(tmp_path_factory.mktemp("stack"))
    bench = Bench.open(stack.data)
    parameters = ProfileParameters(device=DEVICE, references=3)
    with bench.agent():
        job = bench.submit("profile", parameters)
        bench.jobs.succeed(job, profile(bench.context(job), parameters), now=bench.context(job).now())
    bench.plant_supernet()
    bench.database.dispose()
    with stack:
        stack.serve()
        yield stack


@contextmanager
def asking(stack: LocalStack) -> Iterator[Callable[..., str]]:
    """Run commands against the server; each must succeed."""

    def ask(*arguments: str | Path) -> str:
        done = heatnas(*arguments, "--server", stack.url, "--data", stack.data)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    yield ask


def test_the_token_is_printed_at_the_first_start_alone(stack: LocalStack) -> None:
    log = stack.child("server").log.read_text()
    assert f"HeatNAS on {stack.url}, data in {stack.data}" in log
    assert f"token: {stack.token}" in log


def test_a_thinning_is_followed_shown_and_saved(stack: LocalStack, tmp_path: Path) -> None:
    with asking(stack) as ask:
        target = 0.5 * fastest_fps(stack)
        told = ask("thin", "--device", DEVICE, "--target-fps", f"{target:.3f}", "--no-verify")
        job = told.split()[2]
        shown = ask("show", job, "--save", tmp_path / "answer")
        result = json.loads(ask("show", job, "--json"))
        listed = ask("jobs", "--state", "succeeded")
    assert told.startswith(f"thin job {job}\nthin job submitted\na worker has taken the job\nround 1: ")
    assert f"target {target:.2f} FPS predicted to hold; not measured\n" in told
    assert shown.splitlines()[-2:] == [
        f"saved {tmp_path / 'answer' / 'config.json'}",
        f"saved {tmp_path / 'answer' / 'evidence.json'}",
    ]
    assert json.loads((tmp_path / "answer" / "evidence.json").read_text()) == result
    assert re.search(rf"^{job} +thin +succeeded +100%$", listed, re.MULTILINE)


def test_a_table_is_shown_exported_and_imported(stack: LocalStack, tmp_path: Path) -> None:
    with stack.client() as client:
        (edition,) = client.editions(device=DEVICE)
    identity = edition["edition"]
    with asking(stack) as ask:
        shown = ask("table", "show", identity, "--kind", "stem")
        ask("table", "export", identity, "--out", tmp_path / "table.json")
        ask("table", "export", identity, "--out", tmp_path / "table.csv")
        imported = ask("table", "import", tmp_path / "table.json")
    assert shown.splitlines()[0].split() == ["block", "ms", "FPS", "hot", "ms", "cold", "ms"]
    assert all(line.startswith("stem ") for line in shown.splitlines()[1:])
    assert (tmp_path / "table.csv").read_text().count("\n") == edition["rows"] + 1
    assert imported == f"edition {identity} is here\n"


def test_a_refusal_is_one_line_with_the_next_action(stack: LocalStack) -> None:
    done = heatnas("thin", "--device", "nowhere", "--target-fps", "5", "--server", stack.url, "--data", stack.data)
    assert done.returncode == 1
    assert done.stderr.startswith("heatnas: device 'nowhere' is unknown: register it")
    assert done.stderr.count("\n") == 1


def test_an_input_size_is_read_as_height_by_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert (input_size(None), input_size("192x256")) == (None, (192, 256))
    for mistake in ("192", "192x", "0x192", "192x192x3", "axb"):
        with pytest.raises(SystemExit):
            input_size(mistake)
        assert capsys.readouterr().err == (
            f"heatnas: --image {mistake} is not an input size: write height x width in pixels, such as 320x320\n"
        )


def test_a_thinning_outside_the_input_sizes_is_refused_with_those_there_are(stack: LocalStack) -> None:
    given = ("thin", "--device", DEVICE, "--target-fps", "5", "--image", "320x256")
    done = heatnas(*given, "--server", stack.url, "--data", stack.data)
    assert done.returncode == 1
    assert done.stderr == "heatnas: input size 320x256 is not in heatdetr-nano: choose one of 192x192\n"


def test_a_job_that_failed_is_shown_with_its_files(stack: LocalStack, tmp_path: Path) -> None:
    bench = Bench.open(stack.data)
    job = bench.submit("train", TrainParameters())
    bench.context(job).save("log.txt", b"what happened", "text/plain")
    bench.jobs.fail(job, kind="ChildFailed", message="the machine is too small: use a larger one", now=now())
    bench.database.dispose()
    where = ("--server", stack.url, "--data", stack.data)
    for options in (["--follow"], ["--follow", "--json"]):
        done = heatnas("show", job, *options, "--save", tmp_path / "files", *where)
        assert done.returncode == 1
        assert done.stderr.endswith(f"heatnas: train job {job} failed: the machine is too small: use a larger one\n")
        assert (tmp_path / "files" / "log.txt").read_bytes() == b"what happened"


def test_waiting_for_json_prints_json_alone(stack: LocalStack) -> None:
    bench = Bench.open(stack.data)
    job = bench.submit("train", TrainParameters())
    bench.jobs.mark(job, JobState.RUNNING, now=now())
    refused = heatnas("show", job, "--json", "--server", stack.url, "--data", stack.data)
    assert refused.stderr == (
        f"heatnas: train job {job} is running and has no result yet: wait for it, `heatnas show {job} --follow`\n"
    )
    timer = threading.Timer(2, bench.jobs.succeed, (job, {"supernet": job}), {"now": now()})
    timer.start()
    done = heatnas("show", job, "--json", "--follow", "--server", stack.url, "--data", stack.data)
    timer.join()
    bench.database.dispose()
    assert json.loads(done.stdout) == {"supernet": job}
    assert "a worker has taken the job" in done.stderr


def test_a_table_goes_where_a_file_can_be(stack: LocalStack, tmp_path: Path) -> None:
    with stack.client() as client:
        (edition,) = client.editions(device=DEVICE)
    out = tmp_path / "missing" / "x.json"
    done = heatnas("table", "export", edition["edition"], "--out", out, "--server", stack.url, "--data", stack.data)
    assert done.stderr == (
        f"heatnas: {out} cannot be used (No such file or directory): see that the path exists, is yours to write and "
        "has space left\n"
    )


def test_a_job_that_nobody_measures_is_cancelled(stack: LocalStack) -> None:
    with stack.client() as client:
        client.register_device("silent")
    with asking(stack) as ask:
        told = ask("profile", "--device", "silent", "--detach")
        job = told.split()[2]
        assert told == f"profile job {job}\n"
        assert ask("cancel", job) == f"job {job} is cancelled\n"


def test_a_worker_that_is_killed_is_started_again(stack: LocalStack) -> None:
    (worker,) = workers(stack)
    worker.kill()
    until(lambda: any(other.pid != worker.pid for other in workers(stack)))
    with asking(stack) as ask:
        target = f"{0.5 * fastest_fps(stack):.3f}"
        assert "predicted to hold" in ask("thin", "--device", DEVICE, "--target-fps", target, "--no-verify")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_that_stops_takes_its_worker_along(stack: LocalStack, tmp_path: Path, number: signal.Signals) -> None:
    other = LocalStack(tmp_path)
    shutil.copytree(stack.data, other.data, ignore=shutil.ignore_patterns("*.lock"))
    with other:
        other.serve()
        until(lambda: len(workers(other)) == 1)
        (worker,) = workers(other)
        server = other.child("server").process
        server.send_signal(number)
        code = server.wait(30)
        until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    assert code == (-number if number is signal.SIGKILL else 0)


def workers(stack: LocalStack) -> list[psutil.Process]:
    server = psutil.Process(stack.child("server").process.pid)
    alive = [child for child in server.children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "worker" in child.cmdline()]


def fastest_fps(stack: LocalStack) -> float:
    with stack.client() as client:
        (edition,) = client.editions(device=DEVICE)
        rows = {row["block_key"]: row["latency_ms"] for row in client.rows(edition["edition"])}
    space = named_space("heatdetr-nano", classes=3)
    blocks = space.blocks(space.smallest())
    calibration = edition["calibration"]
    sum_ms = sum(rows[block.key] for block in blocks) + calibration["fetch_ms_per_mib"] * weights_mib(blocks)
    return float(1000 / (calibration["slope"] * sum_ms))
