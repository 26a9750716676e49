"""The README's walk-through works when it is pasted line by line into a shell."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nas.config import Config
from server.local_stack import LocalStack

MOST_SECONDS = 400

README = Path(__file__).parents[2] / "README.md"


def walk_through(replacements: dict[str, str]) -> str:
    """Return the README's block of shell lines with the sizes of a test."""
    (block,) = re.findall(r"^```bash\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    for old, new in replacements.items():
        assert old in block
        block = block.replace(old, new)
    return str(block)


def test_the_walk_through_ends_with_a_measured_file(tmp_path: Path) -> None:
    port = LocalStack(tmp_path).port  # free, and nothing is started on it
    quick = {
        "8000": str(port),
        '"steps": 320': '"steps": 1, "images": 8',
        '"device": "laptop", ': '"device": "laptop", "measure_seconds": 1, ',
        '"space": "heatdetr-nano"}': '"space": "heatdetr-nano", "references": 3}',
        "'$TARGET'}": "'$TARGET', \"max_rounds\": 1}",
        "measure model.onnx": "measure model.onnx --seconds 1",
    }
    lines = walk_through(quick)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    log = tmp_path / "walk.log"
    with log.open("w") as output:
        shell = subprocess.Popen(
            [str(shutil.which("bash")), "-eu"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            shell.communicate(lines, timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not done after {MOST_SECONDS} s; the output was:\n{log.read_text()}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()

    said = log.read_text()
    assert shell.returncode == 0, said
    config = json.loads((tmp_path / "config.json").read_text())
    assert Config.model_validate(config["config"]).id == config["id"]
    assert (tmp_path / "model.onnx").stat().st_size > 100_000
    assert "FPS  median of" in said
