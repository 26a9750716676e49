"""The README's walk-through works when it is pasted line by line into a shell."""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nas.config import Config
from server.cli import app
from server.local_stack import LocalStack
from tests.supernet.exported import bold_checkpoint

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


@pytest.mark.parametrize("batch", ["1", "3"])
def test_twenty_lines_of_plain_onnxruntime_see_what_heatnas_sees(batch: str, tmp_path: Path) -> None:
    (lines,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert sum(bool(line.strip()) for line in lines.splitlines()) <= 20
    imported = {
        node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(lines))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    (tmp_path / "see.py").write_text(lines)
    photo = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize((200, 150), Image.Resampling.BICUBIC).save(photo)
    checkpoint = bold_checkpoint(tmp_path / "best.safetensors")
    for order in (
        ["export", checkpoint, "--out", tmp_path / "exported", "--batch", batch],
        ["detect", photo, "--detector", tmp_path / "exported", "--out", tmp_path / "drawn", "--score", "0.05"],
    ):
        assert CliRunner().invoke(app, [str(part) for part in order]).exit_code == 0

    command = [sys.executable, "-W", "ignore", "-I", "see.py", "exported", "photo.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = [(line.split()[0], np.array(line.split()[1:], float)) for line in done.stdout.splitlines()]
    [told] = json.loads((tmp_path / "drawn" / "detections.json").read_text())["images"]
    assert len(seen) == len(told["detections"]) > 10
    for (label, numbers), wanted in zip(seen, told["detections"], strict=True):
        assert label == wanted["class"]
        assert np.allclose(numbers, [wanted["score"], *wanted["box"]], atol=0.02)
