import json
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from nas.runtime_profile import RuntimeProfile
from server.cli import app
from server.cli_export import Profile
from supernet.errors import BadDataset
from tests.supernet.exported import bold_checkpoint
from tests.supernet.tiny_space import tiny_data

NOT_SCORED = "is for scoring, and nothing is scored without data: add --data, or leave it out"


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
        "layout tokens, activation relu",
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


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ["--calibration-images", "5", "--precision", "fp16"],
            "--calibration-images 5 is for int8 alone: add --precision int8, or leave it out",
        ),
        (["--threads", "1"], f"--threads 1 {NOT_SCORED}"),
        (["--drop-bad"], f"--drop-bad {NOT_SCORED}"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(root: Path, options: list[str], complaint: str) -> None:
    code, _, said = heatnas("export", root / "best.safetensors", "--out", root / "none", *options)
    assert (code, said) == (1, f"heatnas: {complaint}\n")
    assert not (root / "none").exists()


def test_a_detector_trained_on_tokens_is_exported_on_maps_and_keeps_its_activation(root: Path) -> None:
    assert [*map(str, Profile)] == [*map(str, RuntimeProfile)]
    code, said, _ = heatnas("export", root / "best.safetensors", "--out", root / "maps", "--profile", "cuda")
    assert code == 0
    assert said.splitlines()[3] == (
        "layout spatial for CUDA and TensorRT, activation relu stays as trained (spaces for cuda are trained with gelu)"
    )
    told = json.loads((root / "maps" / "manifest.json").read_text())
    assert (told["profile"], told["layout"], told["activation"]) == ("cuda", "spatial", "relu")


def test_what_a_detector_was_trained_without_it_can_be_exported_without(root: Path) -> None:
    data = root / "spoilt"
    for split in ("train", "val"):
        (data / "annotations").mkdir(parents=True, exist_ok=True)
        (data / split).symlink_to(root / "shapes" / split)
        truth = json.loads((root / "shapes" / "annotations" / f"{split}.json").read_text())
        truth["annotations"][0]["bbox"][2] = 0
        (data / "annotations" / f"{split}.json").write_text(json.dumps(truth))
    command = ["export", root / "best.safetensors", "--out", root / "left", "--precision", "int8", "--data", data]
    with pytest.raises(BadDataset, match=r"or go on without them with --drop-bad\.$"):
        CliRunner().invoke(app, [str(argument) for argument in command], catch_exceptions=False)
    code, said, _ = heatnas(*command, "--drop-bad", "--calibration-images", "2")
    assert code == 0
    assert [line for line in said.splitlines() if line.startswith("bad")] == [
        "bad entries of val: 1 x box empty (left out)",
        "bad entries of train: 1 x box empty (left out)",
    ]
    whole, int8 = json.loads((root / "left" / "manifest.json").read_text())["files"]
    assert whole["evaluation"]["left_out"] == int8["evaluation"]["left_out"] == {"box empty": 1}
    assert int8["calibration"]["left_out"] == {"box empty": 1}


def test_where_noise_shows_no_detection_the_float16_file_is_called_unproven(root: Path) -> None:
    path = bold_checkpoint(root / "shy.safetensors", bias=-40)
    code, said, _ = heatnas("export", path, "--out", root / "shy", "--precision", "fp16")
    assert code == 0
    assert said.splitlines()[-2] == (
        "what model.fp16.onnx detects is unproven: no score was above 0.05 on random pixels, seed 0 (best 0.000): "
        "name a data set with --data"
    )
