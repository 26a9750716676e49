from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from supernet.annotations import check_annotations
from supernet.dataset import CocoDataset
from supernet.errors import BadDataset
from supernet.evaluation import score_detections
from supernet.faults import FaultKind, counted, remedied
from supernet.image_files import read_picture
from supernet.postprocess import Detections
from tests.supernet.coco_files import Coco, coco, turned, write_split

NAN = float("nan")


def faults_of(found: Coco) -> list[tuple[FaultKind, str, str]]:
    return [fault[:3] for fault in check_annotations(found, "val.json").faults]


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"bbox": [1, 2, NAN, 4]}, FaultKind.BOX, "has the box [1, 2, nan, 4], not four finite numbers"),
        ({"bbox": [1, 2, "3", 4]}, FaultKind.BOX, "has the box [1, 2, '3', 4], not four finite numbers"),
        ({"bbox": "x"}, FaultKind.BOX, "has the box x, not four finite numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, FaultKind.BOX, f"has the box [1, 2, {10**400}, 4], not four finite numbers"),
        (
            {"bbox": [9, 9, 0, 4]},
            FaultKind.EMPTY_BOX,
            "has the empty box [9, 9, 0, 4]: width and height must be positive",
        ),
        ({"bbox": [41, 9, 9, 4]}, FaultKind.BOX_OUTSIDE, "has the box [41, 9, 9, 4] outside its image of 40x20"),
        ({"bbox": [-9, 9, 9, 4]}, FaultKind.BOX_OUTSIDE, "has the box [-9, 9, 9, 4] outside its image of 40x20"),
        ({"bbox": [35, 9, 9, 4]}, FaultKind.BOX_PARTLY_OUTSIDE, "has the box [35, 9, 9, 4] outside its image of 40x20"),
        ({"area": None}, FaultKind.AREA, "has the area None, not a number"),
        ({"area": -1}, FaultKind.AREA, "has the area -1, not a number"),
        ({"iscrowd": None}, FaultKind.CROWD, "has iscrowd None, neither 0 nor 1"),
        ({"iscrowd": "0"}, FaultKind.CROWD, "has iscrowd '0', neither 0 nor 1"),
        ({"iscrowd": [1]}, FaultKind.CROWD, "has iscrowd [1], neither 0 nor 1"),
        ({"category_id": "1"}, FaultKind.UNKNOWN_CATEGORY, "has the unknown category '1'"),
        ({"id": 21}, FaultKind.ANNOTATION_ID, "has no id of its own: ids are integers that occur once"),
    ],
)
def test_a_fault_of_an_annotation_names_it_and_its_image(change: dict[str, Any], kind: FaultKind, text: str) -> None:
    found = coco()
    found["annotations"][3] |= change
    name = f"annotation {change.get('id', 22)}"
    assert faults_of(found) == [(kind, f"{name} {text}", "val.json, on 2.png")]


def test_an_annotation_of_a_string_for_an_image_belongs_to_none() -> None:
    found = coco()
    found["annotations"][0]["image_id"] = "1"
    assert faults_of(found) == [(FaultKind.UNKNOWN_IMAGE, "annotation 11 belongs to the unknown image '1'", "val.json")]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (5, "image number 2 (5) is no entry of an image"),
        ({"file_name": "2.png", "width": 4}, "image number 2 (2.png) lacks id, height"),
        (
            {"id": "2", "file_name": "2.png", "width": 4, "height": 4},
            "image number 2 (2.png) has the id '2', not an integer",
        ),
        ({"id": 2, "file_name": "", "width": 4, "height": 4}, "image number 2 () has no file name but ''"),
        (
            {"id": 2, "file_name": "2.png", "width": 0, "height": NAN},
            "image number 2 (2.png) has the size 0xnan, not two positive integers",
        ),
    ],
)
def test_an_image_entry_that_lacks_something_is_named_by_its_place(entry: object, text: str) -> None:
    found = coco()
    found["images"][1] = entry
    found["annotations"] = [note for note in found["annotations"] if note["image_id"] != 2]
    assert faults_of(found) == [(FaultKind.IMAGE_ENTRY, text, "val.json")]


def test_boxes_of_a_bad_image_entry_are_not_called_strangers() -> None:
    found = coco()
    del found["images"][1]["width"]
    assert [kind for kind, *_ in faults_of(found)] == [FaultKind.IMAGE_ENTRY]


def test_what_is_no_annotation_is_named_by_its_place() -> None:
    found = coco()
    found["annotations"] += [None, {"image_id": 1}]
    assert faults_of(found) == [
        (FaultKind.ANNOTATION, "annotation number 9 (None) is no annotation", "val.json"),
        (FaultKind.ANNOTATION, "annotation number 10 lacks category_id, bbox", "val.json, on 1.png"),
    ]


def test_categories_need_an_id_and_a_name_of_their_own() -> None:
    found = coco()
    found["categories"] += [{"id": 1, "name": "pan"}, {"id": 3, "name": "jar"}, {"id": "4", "name": "lid"}]
    assert [text for _, text, _ in faults_of(found)] == [
        "category id 1 occurs twice",
        "category name jar occurs twice",
        "category number 5 ({'id': '4', 'name': 'lid'}) needs an id that is an integer and a name",
    ]


def test_of_two_images_with_one_id_none_is_kept_since_nobody_knows_whose_the_boxes_are() -> None:
    found = coco()
    found["images"] += [{**found["images"][0]}, {**found["images"][1], "file_name": "x.png"}]
    checked = check_annotations(found, "val.json")
    assert counted(checked.faults) == {"image id repeated": 2}
    assert remedied(counted(checked.faults)) == (
        "2 x image id repeated (left out; entries that differ, all of them with their boxes)"
    )
    assert [entry["file_name"] for entry in checked.coco["images"]] == ["1.png", "3.png", "4.png"]
    assert {note["image_id"] for note in checked.coco["annotations"]} == {1, 3, 4}


def _spoil(found: Coco) -> None:
    """Spoil one annotation in every way but its image; the file of image 4 is spoilt by the caller."""
    notes = found["annotations"]
    notes[0]["bbox"] = [4, 5, 0, 9]
    notes[1]["bbox"] = [30, -5, 20, 15]
    notes[2]["id"] = notes[3]["id"]
    notes.append(dict(notes[4]))
    notes[5]["category_id"] = 7


def _repaired(found: Coco) -> None:
    """Write by hand what is left of `_spoil`."""
    notes = found["annotations"]
    notes[1] |= {"bbox": [30, 0, 10, 10]}
    found["images"] = found["images"][:3]
    found["annotations"] = [notes[place] for place in (1, 2, 3, 4)]


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    folder = write_split(tmp_path / "spoilt", "val", _spoil)
    (folder / "val" / "4.png").unlink()
    return folder


KINDS = {
    "image file missing": 1,
    "annotation repeated": 1,
    "annotation id missing or repeated": 1,
    "annotation of an unknown category": 1,
    "box empty": 1,
    "box partly outside its image": 1,
}


def test_bad_entries_are_refused_all_at_once_images_included(spoilt: Path) -> None:
    with pytest.raises(BadDataset) as caught:
        CocoDataset(spoilt, "val", image=(32, 32))
    assert len(caught.value.faults) == sum(KINDS.values())
    assert "6 fault(s) (1 x image file missing, 1 x annotation repeated, 1 x annotation id" in str(caught.value)
    assert f"`heatnas data check {spoilt}` shows them by kind" in str(caught.value)
    assert str(caught.value).endswith("or go on without them with --drop-bad.")


@pytest.mark.parametrize("memory_mib", [2048, 0])
def test_what_is_left_without_bad_entries_is_what_one_would_have_written_by_hand(
    spoilt: Path, tmp_path: Path, memory_mib: float
) -> None:
    hand = write_split(tmp_path / "hand", "val", _repaired)
    left, wanted = (
        CocoDataset(folder, "val", image=(32, 32), memory_mib=memory_mib, drop_bad=True) for folder in (spoilt, hand)
    )
    assert counted(left.left_out) == KINDS
    assert counted(wanted.left_out) == {}
    assert left.content_sha256 == wanted.content_sha256
    assert left.image_ids == wanted.image_ids == (1, 2, 3)
    assert len(left) == len(left.scales) == 3
    for one, other in zip(left, wanted, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert [note["bbox"] for note in left.ground_truth["annotations"]] == [
        note["bbox"] for note in wanted.ground_truth["annotations"]
    ]


def test_detections_are_scored_against_the_truth_without_bad_entries(spoilt: Path) -> None:
    data = CocoDataset(spoilt, "val", image=None, drop_bad=True)
    perfect = [
        Detections(sample.boxes, np.ones(len(sample.labels), dtype=np.float32), sample.labels) for sample in data
    ]
    found = score_detections(perfect, data)
    assert (found.ap, found.objects, found.images) == (pytest.approx(1), 4, 3)
    assert found.left_out == KINDS


@pytest.mark.parametrize(
    ("said", "crowds"), [(None, 0), ("0", 0), ("1", 0), (2, 0), (float("nan"), 0), (1.0, 1), (True, 1), (0.0, 0)]
)
def test_what_iscrowd_says_is_0_or_1_or_0_with_a_fault(tmp_path: Path, said: object, crowds: int) -> None:
    def mark(found: Coco) -> None:
        found["annotations"][3] |= {"iscrowd": said, "ignore": "no matter: pycocotools writes its own over it"}

    data = CocoDataset(write_split(tmp_path / "data", "val", mark), "val", image=None, drop_bad=True)
    faulty = said not in (0, 1)
    assert remedied(counted(data.left_out)) == "1 x iscrowd neither 0 nor 1 (taken as 0)" * faulty
    perfect = [
        Detections(sample.boxes, np.ones(len(sample.labels), dtype=np.float32), sample.labels) for sample in data
    ]
    found = score_detections(perfect, data)
    assert (found.ap, found.objects, sum(map(len, (sample.labels for sample in data)))) == (
        pytest.approx(1),
        8 - crowds,
        8 - crowds,
    )


def test_without_any_usable_image_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "data", "val")
    for path in (folder / "val").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(BadDataset, match=r"5 fault.*no image is left that can be used") as caught:
        CocoDataset(folder, "val", image=None, drop_bad=True)
    assert "--drop-bad" not in str(caught.value)


def test_an_image_that_breaks_behind_its_header_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "data", "val")
    path = folder / "val" / "2.png"
    Image.effect_noise((40, 20), 90).save(path)
    path.write_bytes(path.read_bytes()[:300])
    data = CocoDataset(folder, "val", image=None, memory_mib=0)
    with pytest.raises(BadDataset, match=r"1 fault\(s\): image 2\.png: .*`heatnas data check .*` reads all\."):
        list(data)


TURNED = "its EXIF orientation turns it: save it upright"


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(40, 20), (20, 40)])
@pytest.mark.parametrize("memory_mib", [2048, 0])
def test_nothing_is_trained_on_that_detection_would_see_turned(
    tmp_path: Path, orientation: int, size: tuple[int, int], memory_mib: float
) -> None:
    folder = write_split(tmp_path / "data", "val")
    turned(folder / "val" / "2.png", size, orientation)
    data = CocoDataset(folder, "val", image=None, memory_mib=memory_mib, drop_bad=True)
    assert data.image_ids == (1, 3, 4)
    is_other_size = size == (20, 40) and orientation < 5
    text = "is 20x40, its entry says 40x20" if is_other_size else TURNED
    assert [fault[:2] for fault in data.left_out] == [
        (FaultKind.IMAGE_SIZE if is_other_size else FaultKind.TURNED_IMAGE, f"image 2.png: {text}")
    ]


@pytest.mark.parametrize("name", ["0 is unknown", "turned by Pillow itself"])
def test_an_image_that_detection_leaves_as_it_is_may_be_trained_on(tmp_path: Path, name: str) -> None:
    folder = write_split(tmp_path / "data", "val", lambda found: found["images"][1].update(file_name="2.tif"))
    (size, orientation) = ((40, 20), 0) if name == "0 is unknown" else ((20, 40), 6)
    turned(folder / "val" / "2.tif", size, orientation)
    one, other = (CocoDataset(folder, "val", image=None, memory_mib=mib) for mib in (2048, 0))
    for data in (one, other):
        assert np.array_equal(data[1].pixels, read_picture(folder / "val" / "2.tif"))


def test_bad_categories_are_refused_even_so(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "data", "val", lambda found: found["categories"].append({"id": 2, "name": "lid"}))
    with pytest.raises(BadDataset, match="category id 2 occurs twice"):
        CocoDataset(folder, "val", image=None, drop_bad=True)


def test_boxes_are_not_judged_by_a_size_that_is_wrong(tmp_path: Path) -> None:
    def shrink(found: Coco) -> None:
        found["images"][0]["width"] = 3

    folder = write_split(tmp_path / "data", "val", shrink)
    data = CocoDataset(folder, "val", image=None, drop_bad=True)
    assert [fault.text for fault in data.left_out] == ["image 1.png: is 40x20, its entry says 3x20"]


def test_what_became_of_bad_entries_is_said_on_one_line() -> None:
    assert remedied({"box empty": 3, "box partly outside its image": 1}) == (
        "3 x box empty (left out), 1 x box partly outside its image (clipped)"
    )
