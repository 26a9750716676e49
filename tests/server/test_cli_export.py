import json
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from server.cli import app
from tests.supernet.exported import bold_checkpoint
from tests.supernet.tiny_space import tiny_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    tiny_data(folder / "shapes")
    bold_checkpoint(folder / "best.safetensors")
    return folder


def heatnas(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_what_is_exported_is_scored_and_timed_by_its_folder(root: Path) -> None:
    out = root / "exported"
    code, said, _ = heatnas("export", root / "best.safetensors", "--out", out, "--precision", "fp16")
    assert code == 0
    head, whole, half, *rest = said.splitlines()
    assert head.split() == ["file", "MiB", "AP", "AP", "points", "lost", "SHA-256"]
    assert whole.startswith(f"{out / 'model.onnx'} ")
    assert half.split()[2:4] == ["-", "-"]
    assert rest == [
        "opset 20, input 1x3x64x64, classes disc, ring, cross",
        "accuracy is unmeasured: name a data set with --data",
        f"manifest: {out / 'manifest.json'}",
    ]
    assert [entry.version for entry in onnx.load(out / "model.onnx").opset_import if not entry.domain] == [20]
    code, said, _ = heatnas("eval", out, root / "shapes")
    assert code == 0
    score, header, before, graph, both, note = said.splitlines()
    assert score.startswith("AP 0.")
    assert header.split() == ["median", "ms", "quartile", "quartile", "FPS"]
    assert (before.split()[0], graph.split()[0], both.split()[:3]) == (
        "preprocessing", "network", ["network", "and", "post-processing"],
    )  # fmt: skip
    assert note == "over 4 runs, threads: 1; reading and decoding files not counted"
    scored = json.loads(heatnas("eval", out / "model.fp16.onnx", root / "shapes", "--json")[1])
    assert (scored["images"], scored["speed"]["runs"]) == (4, 4)


def test_int8_without_images_is_refused_before_anything_is_written(root: Path) -> None:
    code, _, complaint = heatnas("export", root / "best.safetensors", "--out", root / "none", "--precision", "int8")
    assert (code, complaint) == (
        1,
        "heatnas: --precision int8 needs images to calibrate on: name a data set in COCO format with --data\n",
    )
    assert not (root / "none").exists()
