import json
from pathlib import Path

import pytest

from supernet.checkpoint import load_detector
from supernet.procedural import SHAPES, make_dataset
from tests.server.command import heatnas
from tests.supernet.foreign_data import write_voc, write_yolo


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "shapes", images=4, size=64, seed=3, held_out=2)


@pytest.fixture
def spoilt(shapes: Path) -> Path:
    """Spoil an image and a box of train, and a box of val that can be clipped."""
    (shapes / "train" / "000001.png").write_bytes(b"no picture")
    for split, place, box in (("train", -1, [3, 3, 0, 5]), ("val", 0, [50, 50, 40, 40])):
        path = shapes / "annotations" / f"{split}.json"
        found = json.loads(path.read_text())
        found["annotations"][place]["bbox"] = box
        path.write_text(json.dumps(found))
    return shapes


def test_a_clean_data_set_is_shown_with_status_0(shapes: Path) -> None:
    done = heatnas("data", "check", shapes, "--image", "640x640")
    assert (done.returncode, done.stderr) == (0, "")
    contents, sizes, classes, *remarks, verdict = done.stdout.rstrip("\n").split("\n\n")
    assert verdict == "no faults"
    assert all(remark.startswith("remark: no image of val shows ") for remark in remarks)
    first, train, val = contents.splitlines()
    assert first.split() == ["split", "images", "usable", "without", "boxes", "boxes", "crowds", "image", "sizes"]
    boxes = [len(json.loads((shapes / "annotations" / f"{split}.json").read_text())["annotations"]) for split in SPLITS]
    assert train.split() == ["train", "4", "4", "0", str(boxes[0]), "0", "64x64"]
    assert val.split() == ["val", "2", "2", "0", str(boxes[1]), "0", "64x64"]
    assert sizes.startswith("boxes at 640x640:\nsplit  small  medium   large")
    assert sizes.splitlines()[2].split()[:3] == ["train", "0.0%", "0.0%"]  # ten times as large as drawn
    assert [line.split()[0] for line in classes.splitlines()] == ["class", *SHAPES]


SPLITS = ("train", "val")


def test_faults_are_shown_by_kind_with_status_1(spoilt: Path) -> None:
    done = heatnas("data", "check", spoilt)
    assert done.returncode == 1
    assert (
        "\n\nimage file unreadable: 1 (--drop-bad: left out with its boxes)\n  annotations/train.json: " in done.stdout
    )
    assert "\n\nbox empty: 1 (--drop-bad: left out)\n  annotations/train.json, on 000004.png: " in done.stdout
    assert "\n\nbox partly outside its image: 1 (--drop-bad: clipped)\n  annotations/val.json, on " in done.stdout
    assert done.stderr == (
        f"heatnas: {spoilt}: 3 fault(s) of 3 kind(s): correct or remove these entries, or go on without them: "
        "heatnas train --drop-bad\n"
    )


def test_faults_are_there_as_json_too(spoilt: Path) -> None:
    done = heatnas("data", "check", spoilt, "--split", "val", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [split["split"] for split in found["splits"]] == ["val"]
    (group,) = found["faults"]
    assert (group["kind"], group["count"], group["remedy"]) == ("box partly outside its image", 1, "clipped")


def test_a_training_without_bad_entries_says_so_and_writes_it_down(spoilt: Path, tmp_path: Path) -> None:
    order = ["train", spoilt, "--out", tmp_path / "run", "--space", "heatdetr-nano", "--config", "smallest"]
    done = heatnas(*order, "--batch", "3", "--epochs", "1", "--drop-bad")
    assert (done.returncode, done.stderr) == (0, "")
    train, val, what, *_ = done.stdout.splitlines()
    assert (
        train == "bad entries of train: 1 x image file unreadable (left out with its boxes), 1 x box empty (left out)"
    )
    assert val == "bad entries of val: 1 x box partly outside its image (clipped)"
    assert what.endswith("on 3 images, epochs: 1; 2 held out")
    header = load_detector(tmp_path / "run" / "last.safetensors").header
    assert header.left_out == {"image file unreadable": 1, "box empty": 1}
    assert header.metrics is not None
    assert header.metrics["left_out"] == {"box partly outside its image": 1}
    scored = heatnas("eval", tmp_path / "run" / "last.safetensors", spoilt, "--drop-bad")
    assert scored.stdout.splitlines()[0] == val
    again = heatnas("eval", tmp_path / "run" / "last.safetensors", spoilt, "--drop-bad", "--json")
    assert json.loads(again.stdout) | {"speed": None} == header.metrics | {"speed": None}


def test_a_training_on_bad_entries_is_refused_with_the_way_on(spoilt: Path, tmp_path: Path) -> None:
    done = heatnas("train", spoilt, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.startswith(f"heatnas: {spoilt}: 2 fault(s) (1 x image file unreadable, 1 x box empty): ")
    assert done.stderr.endswith("or go on without them with --drop-bad.\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_foreign_data_are_converted_and_clean(shapes: Path, tmp_path: Path, form: str) -> None:
    source = tmp_path / form
    if form == "voc":
        write_voc(shapes, source)
    else:
        write_yolo(shapes, source, names=SHAPES)
    done = heatnas("data", "convert", source, tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, f"{form} data set in {tmp_path / 'out'}, images: 4 train, 2 val\n")
    assert heatnas("data", "check", tmp_path / "out").returncode == 0
    again = heatnas("data", "convert", source, tmp_path / "out")
    assert again.returncode == 1
    assert "exists and is not an empty folder" in again.stderr
    share = heatnas("data", "convert", source, tmp_path / "other", "--val-share", "0.5")
    assert (share.returncode, share.stderr) == (
        1,
        f"heatnas: --val-share 0.5: {source} has a val split of its own; leave the option out\n",
    )


def test_faults_of_a_source_are_refused_or_left_out(shapes: Path, tmp_path: Path) -> None:
    source, out = write_yolo(shapes, tmp_path / "yolo", names=SHAPES), tmp_path / "out"
    (source / "labels" / "train" / "000001.txt").write_text("7 .5 .5 .1 .1\n")
    done = heatnas("data", "convert", source, out)
    assert done.returncode == 1
    assert done.stdout == (
        "annotation of an unknown category: 1 (--drop-bad: left out)\n"
        "  labels/train/000001.txt:1: has the class 7, names has 0 to 2\n"
    )
    assert done.stderr == (
        f"heatnas: {source}: 1 fault(s) of 1 kind(s): correct or remove these entries, or go on without them: "
        "heatnas data convert --drop-bad\n"
    )
    assert not out.exists()
    done = heatnas("data", "convert", source, out, "--drop-bad")
    assert done.returncode == 0
    assert done.stdout == (
        f"bad entries of {source}: 1 x annotation of an unknown category (left out)\n"
        f"yolo data set in {out}, images: 4 train, 2 val\n"
    )
    assert heatnas("data", "check", out).returncode == 0


def test_a_source_without_val_is_split(shapes: Path, tmp_path: Path) -> None:
    source = write_yolo(shapes, tmp_path / "yolo", names=SHAPES)
    (source / "data.yaml").write_text(f"train: images/train\nnames: {list(SHAPES)}\n")
    done = heatnas("data", "convert", source / "data.yaml", tmp_path / "out", "--val-share", "0.5", "--copy")
    assert done.stdout == f"yolo data set in {tmp_path / 'out'}, images: 2 train, 2 val\n"
    done = heatnas("data", "convert", source, tmp_path / "other", "--format", "yolo")
    assert done.stdout == f"yolo data set in {tmp_path / 'other'}, images: 3 train, 1 val\n"
