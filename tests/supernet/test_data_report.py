from pathlib import Path

import pytest
from PIL import Image

from supernet.data_report import EXAMPLES, FaultGroup, report_data
from tests.supernet.coco_files import Coco, turned, write_split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_split(tmp_path / "data", "train")
    return write_split(tmp_path / "data", "val", shade=1)


def test_a_clean_data_set_is_counted(folder: Path) -> None:
    def crowd(found: Coco) -> None:
        found["annotations"][0] |= {"iscrowd": 1}
        found["annotations"][1:2] = []

    write_split(folder, "test", crowd, shade=2)
    told = []
    report = report_data(folder, splits=("train", "test"), progress=lambda *step: told.append(step))
    assert (report.faults, report.remarks) == ((), ())
    train, test = report.splits
    assert train.model_dump() == {
        "split": "train",
        "listed": 4,
        "images": 4,
        "backgrounds": 0,
        "boxes": 8,
        "crowds": 0,
        "class_boxes": {"cup": 4, "jar": 4},
        "class_images": {"cup": 4, "jar": 4},
        "small": 8,
        "medium": 0,
        "large": 0,
        "side_px": (9.5, 9.5, 9.7, 10.0, 10.0),
        "image_sizes": {"40x20": 4},
    }
    assert (test.images, test.backgrounds, test.boxes, test.crowds) == (4, 1, 6, 1)
    assert told == [(split, done, 4) for split in ("train", "test") for done in (1, 2, 3, 4)]


def test_sizes_can_be_those_in_a_network(folder: Path) -> None:
    report = report_data(folder, splits=("val",), image=(200, 400))
    (val,) = report.splits
    assert (val.small, val.medium, val.large) == (0, 4, 4)  # 10x9 and 10x10 pixels, ten times as long
    assert val.side_px == (94.9, 94.9, 97.4, 100.0, 100.0)


def test_faults_are_grouped_with_their_number_and_the_first_examples(folder: Path) -> None:
    def empty(found: Coco) -> None:
        for note in found["annotations"][:7]:
            note["bbox"][2] = 0

    write_split(folder, "test", empty, shade=2)
    (folder / "val" / "1.png").unlink()
    (folder / "val" / "2.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 8)).save(folder / "val" / "3.png")
    report = report_data(folder, splits=("val", "test"))
    assert [(group.kind, group.count, group.remedy) for group in report.faults] == [
        ("image file missing", 1, "left out with its boxes"),
        ("image file unreadable", 1, "left out with its boxes"),
        ("image size other than annotated", 1, "left out with its boxes"),
        ("box empty", 7, "left out"),
    ]
    *_, size, boxes = report.faults
    assert size.examples == ("annotations/val.json: image 3.png: is 9x8, its entry says 40x20",)
    assert len(boxes.examples) == EXAMPLES
    assert boxes.examples[0].startswith("annotations/test.json, on 1.png: annotation 11 has the empty box [4, 5, 0, 9]")
    assert [(split.listed, split.images, split.boxes) for split in report.splits] == [(4, 1, 2), (4, 4, 1)]


def test_a_damaged_image_behind_a_good_header_is_found(folder: Path) -> None:
    noise = Image.effect_noise((40, 20), 90)
    noise.save(folder / "val" / "2.png")
    path = folder / "val" / "2.png"
    path.write_bytes(path.read_bytes()[:300])
    (group,) = report_data(folder).faults
    assert (group.kind, group.count) == ("image file unreadable", 1)


def test_what_training_would_refuse_behind_the_header_is_found(folder: Path) -> None:
    turned(folder / "val" / "1.png", (40, 20), 3)
    Image.new("F", (40, 20)).save(folder / "val" / "2.png", "TIFF")
    assert [(group.kind, *group.examples) for group in report_data(folder).faults] == [
        (
            "image file unreadable",
            "annotations/val.json: image 2.png: its pixels are floating-point numbers: save it with 8 or 16 bits",
        ),
        (
            "image turned by its EXIF orientation",
            "annotations/val.json: image 1.png: its EXIF orientation turns it: save it upright",
        ),
    ]


def test_a_split_that_cannot_be_read_is_a_fault_beside_those_of_the_other(tmp_path: Path) -> None:
    report = report_data(write_split(tmp_path, "val"))
    assert [split.split for split in report.splits] == ["val"]
    assert report.faults == (
        FaultGroup(
            kind="annotation file unusable",
            count=1,
            remedy=None,
            examples=("annotations/train.json cannot be read (No such file or directory)",),
        ),
    )


def test_splits_of_different_classes_are_a_fault(folder: Path) -> None:
    def rename(found: Coco) -> None:
        found["categories"][1]["name"] = "lid"

    write_split(folder, "test", rename, shade=2)
    (group,) = report_data(folder, splits=("train", "test")).faults
    assert (group.kind, group.remedy) == ("splits of different classes", None)
    assert group.examples[0].startswith(
        "annotations/test.json: test has the classes cup, lid; train has cup, jar: list"
    )


def test_classes_that_nobody_sees_and_images_in_two_splits_are_remarked(folder: Path) -> None:
    def forget(found: Coco) -> None:
        found["annotations"] = [note for note in found["annotations"] if note["category_id"] == 1]

    write_split(folder, "test", forget, shade=1)  # the shade of val: the same files
    report = report_data(folder, splits=("val", "test"))
    unseen, shared = report.remarks
    assert not report.faults
    assert unseen.startswith("no image of test shows jar: what is not seen is not learned")
    assert shared.startswith("4 image(s) of test are in val too (1.png, 2.png, 3.png, 4.png): scores")
