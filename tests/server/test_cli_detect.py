import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from server.cli import app
from supernet.dataset import CocoDataset
from tests.supernet.exported import bold_checkpoint
from tests.supernet.tiny_space import tiny_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    tiny_data(folder / "shapes")
    bold_checkpoint(folder / "best.safetensors")
    return folder


def detect(root: Path, *arguments: str | Path) -> tuple[int, str, str]:
    order = ["detect", *map(str, arguments), "--detector", str(root / "best.safetensors"), "--score", "0.2"]
    done = CliRunner().invoke(app, order)
    return done.exit_code, done.stdout, done.stderr


def test_a_folder_is_drawn_and_its_boxes_are_in_original_pixels(root: Path, tmp_path: Path) -> None:
    pixels = CocoDataset(root / "shapes", "val", image=None)[0].pixels
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "small.png")
    Image.fromarray(pixels).resize((640, 320), Image.Resampling.NEAREST).save(tmp_path / "in" / "wide.bmp")
    code, said, _ = detect(root, tmp_path / "in", "--out", tmp_path / "out")
    assert code == 0
    told = json.loads((tmp_path / "out" / "detections.json").read_text())
    small, wide = told["images"]
    assert (small["width"], small["height"], wide["width"], wide["height"]) == (64, 64, 640, 320)
    assert (small["drawn"], wide["drawn"], told["unreadable"]) == ("small.png", "wide.bmp.png", [])
    assert 0 < len(small["detections"]) <= 100
    assert {"box", "class", "category_id", "score"} == small["detections"][0].keys()
    for entry in told["images"]:
        boxes = np.array([one["box"] for one in entry["detections"]])
        assert (boxes >= 0).all()
        assert (boxes <= (entry["width"], entry["height"]) * 2).all()
    assert np.array([one["box"] for one in wide["detections"]])[:, 2].max() > 64
    drawn = np.asarray(Image.open(tmp_path / "out" / "small.png"))
    assert drawn.shape == (512, 512, 3)  # enlarged, so that labels can be read
    assert (drawn[::8, ::8] != pixels).any()
    count = sum(len(entry["detections"]) for entry in told["images"])
    assert said == f"{count} detections in 2 images: {tmp_path / 'out' / 'detections.json'}\n"


def test_files_that_cannot_be_read_are_named_and_the_rest_goes_on(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    code, _, complaint = detect(
        root, root / "shapes" / "val", tmp_path / "bad.jpg", tmp_path / "none.png", "--out", tmp_path / "out"
    )
    assert code == 1
    assert f"heatnas: {tmp_path / 'bad.jpg'} is no image that can be read: cannot identify" in complaint
    assert f"heatnas: {tmp_path / 'none.png'} is no image that can be read: it does not exist" in complaint
    told = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(told["images"]) == 4
    assert [Path(one["file"]).name for one in told["unreadable"]] == ["bad.jpg", "none.png"]


def test_inputs_are_never_overwritten(root: Path, tmp_path: Path) -> None:
    source = next((root / "shapes" / "val").iterdir())
    photo = tmp_path / "photo.png"
    photo.write_bytes(source.read_bytes())
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link"):
        code, _, complaint = detect(root, photo, "--out", out)
        assert code == 1
        assert complaint == (
            f"heatnas: --out {out}: the drawing would overwrite {out / 'photo.png'}, an image to look at. "
            "Name another folder\n"
        )
    assert photo.read_bytes() == source.read_bytes()


def test_equal_names_are_numbered_globs_are_expanded_and_no_file_is_looked_at_twice(root: Path, tmp_path: Path) -> None:
    source = next((root / "shapes" / "val").iterdir())
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.png").write_bytes(source.read_bytes())
    code, _, _ = detect(root, tmp_path / "*" / "same.png", tmp_path / "a" / "same.png", "--out", tmp_path / "out")
    assert code == 0
    told = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [entry["drawn"] for entry in told["images"]] == ["same.png", "same-2.png"]
    assert told["images"][0]["detections"] == told["images"][1]["detections"]


def test_a_folder_without_images_is_a_mistake(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, complaint = detect(root, tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 1
    assert complaint.startswith(f"heatnas: {tmp_path / 'empty'} holds no image: name files, a folder with .bmp")
