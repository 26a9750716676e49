import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from supernet.augment import Augmentation, augment, framed, mirror, relit
from supernet.dataset import CocoDataset, Sample, spread_evenly
from supernet.errors import BadDataset


def _coco(**changes: Any) -> dict[str, Any]:
    found = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 20},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [10, 5, 20, 10], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0},
            {"id": 3, "image_id": 3, "category_id": 4, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}],
    }
    return {**found, **changes}


def _write(folder: Path, coco: Any = None, *, images: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    (folder / "annotations").mkdir()
    (folder / "val").mkdir()
    (folder / "annotations" / "val.json").write_text(json.dumps(coco or _coco()))
    for name, size in zip(("a.png", "b.png"), ((40, 20), (20, 20)), strict=True):
        if name in images:
            Image.new("RGB", size, (10, 20, 30)).save(folder / "val" / name)
    return folder


def _faults(folder: Path) -> tuple[str, ...]:
    with pytest.raises(BadDataset) as caught:
        CocoDataset(folder, "val", image=(64, 64))
    assert "Correct or remove these entries" in str(caught.value)
    return caught.value.faults


def test_images_are_stretched_to_the_network_and_boxes_with_them(tmp_path: Path) -> None:
    data = CocoDataset(_write(tmp_path), "val", image=(64, 128))
    assert len(data) == 2
    assert data.classes == ("four", "nine")
    assert data.image_ids == (7, 3)
    first, second = data
    assert first.pixels.shape == (64, 128, 3)
    assert first.pixels.dtype == np.uint8
    assert first.pixels[0, 0].tolist() == [10, 20, 30]
    assert first.boxes.tolist() == pytest.approx(np.array([[32, 16, 96, 48], [0, 0, 12.8, 12.8]]))
    assert first.labels.tolist() == [1, 0]
    assert data.scales.tolist() == pytest.approx(np.array([[40 / 128, 20 / 64], [20 / 128, 20 / 64]]))
    assert second.boxes.shape == (0, 4)  # crowds are no training objects


def test_only_as_many_images_as_asked_for_are_read(tmp_path: Path) -> None:
    data = CocoDataset(_write(tmp_path, images=("a.png",)), "val", image=(64, 128), most=1)
    assert data.image_ids == (7,)
    assert len(data) == len(data.scales) == 1
    assert [note["id"] for note in data.ground_truth["annotations"]] == [1, 2]
    assert data.classes == ("four", "nine")


def test_images_that_do_not_fit_into_memory_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    kept, read = (CocoDataset(folder, "val", image=(64, 128), memory_mib=mib) for mib in (2, 0.01))
    assert len(kept) == len(read) == 2
    for one, other in zip(kept, read, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert kept.content_sha256 != read.content_sha256
    Image.new("RGB", (40, 20), (90, 20, 30)).save(folder / "val" / "a.png")
    assert (kept[0].pixels[0, 0].tolist(), read[0].pixels[0, 0].tolist()) == ([10, 20, 30], [90, 20, 30])


def test_images_that_are_not_kept_are_checked_all_the_same(tmp_path: Path) -> None:
    folder = _write(tmp_path, images=("a.png",))
    Image.new("RGB", (9, 8)).save(folder / "val" / "b.png")
    with pytest.raises(BadDataset, match=r"image b\.png: is 9x8, its entry says 20x20"):
        CocoDataset(folder, "val", image=(64, 128), memory_mib=0)


def test_samples_keep_their_size_where_none_is_asked_for(tmp_path: Path) -> None:
    first, second = CocoDataset(_write(tmp_path), "val", image=None)
    assert (first.pixels.shape, second.pixels.shape) == ((20, 40, 3), (20, 20, 3))
    assert first.boxes.tolist() == [[10, 5, 30, 15], [0, 0, 4, 4]]


@pytest.mark.parametrize(
    ("count", "most", "chosen"),
    [(10, 3, [0, 3, 6]), (10, 4, [0, 2, 5, 7]), (3, 5, [0, 1, 2]), (3, None, [0, 1, 2]), (2, 2, [0, 1])],
)
def test_images_are_spread_over_the_split(count: int, most: int | None, chosen: list[int]) -> None:
    assert list(spread_evenly(count, most)) == chosen


@pytest.mark.parametrize("count", [100, 101, 150, 199, 200, 201, 4999])
def test_the_last_tenth_of_a_split_is_reached(count: int) -> None:
    chosen = spread_evenly(count, 100)
    assert len(set(chosen)) == 100
    assert 0.9 * count <= chosen[-1] < count
    distances = np.diff(chosen)
    assert distances.max() - distances.min() <= 1


def test_the_content_hash_depends_on_all_that_ap_depends_on(tmp_path: Path) -> None:
    """Two runs would else be one although they were judged by other crowds, or by other areas."""
    spoilt = [_coco() for _ in range(5)]
    crowd = next(note for note in spoilt[1]["annotations"] if note.get("iscrowd"))
    crowd["bbox"][0] += 1
    spoilt[2]["annotations"][0]["area"] = 150
    next(note for note in spoilt[3]["annotations"] if note.get("iscrowd"))["category_id"] = 9
    for number, note in enumerate(spoilt[4]["annotations"]):
        note["id"] = 90 + number  # says nothing about the picture
    hashes = []
    for number, found in enumerate(spoilt):
        (tmp_path / str(number)).mkdir()
        hashes.append(CocoDataset(_write(tmp_path / str(number), found), "val", image=(64, 64)).content_sha256)
    assert len(set(hashes[:4])) == 4
    assert hashes[4] == hashes[0]


def test_the_content_hash_depends_on_pixels_and_boxes_and_on_no_size_asked_for(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    one = CocoDataset(_write(tmp_path / "one"), "val", image=(64, 64))
    two = CocoDataset(_write(tmp_path / "two"), "val", image=(128, 128))
    moved = _coco()
    moved["annotations"][0]["bbox"] = [11, 5, 20, 10]
    three = CocoDataset(_write(tmp_path / "three", moved), "val", image=(64, 64))
    assert one.content_sha256 == two.content_sha256
    assert one.content_sha256 != three.content_sha256


def test_a_missing_annotation_file_is_named(tmp_path: Path) -> None:
    assert _faults(tmp_path) == ("annotations/val.json cannot be read (No such file or directory)",)


def test_what_is_no_coco_file_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "val.json"
    path.write_text("{")
    assert _faults(tmp_path)[0].startswith("annotations/val.json is not JSON")
    path.write_text('{"images": []}')
    assert _faults(tmp_path) == ("annotations/val.json lacks annotations, categories: it is not in COCO format",)


def test_every_missing_or_broken_image_is_reported_at_once(tmp_path: Path) -> None:
    folder = _write(tmp_path, images=())
    (folder / "val" / "b.png").write_bytes(b"no picture")
    first, second = _faults(folder)
    assert first == f"image a.png: {folder / 'val' / 'a.png'} is missing"
    assert second.startswith("image b.png: cannot identify image file")


def test_an_image_of_another_size_is_reported(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    Image.new("RGB", (9, 8)).save(folder / "val" / "b.png")
    assert _faults(folder) == ("image b.png: is 9x8, its entry says 20x20",)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"bbox": [5, 5, 0, 4]}, "annotation 1 has the empty box [5, 5, 0, 4]: width and height must be positive"),
        ({"bbox": [5, 5, 4, -1]}, "annotation 1 has the empty box [5, 5, 4, -1]: width and height must be positive"),
        ({"bbox": [30, 5, 12, 4]}, "annotation 1 has the box [30, 5, 12, 4] outside its image of 40x20"),
        ({"bbox": [-2, 5, 12, 4]}, "annotation 1 has the box [-2, 5, 12, 4] outside its image of 40x20"),
        ({"bbox": [1, 2, 3]}, "annotation 1 has the box [1, 2, 3], not four finite numbers"),
        ({"bbox": [1, 2, 3, None]}, "annotation 1 has the box [1, 2, 3, None], not four finite numbers"),
        ({"category_id": 5}, "annotation 1 has the unknown category 5"),
        ({"image_id": 8}, "annotation 1 belongs to the unknown image 8"),
    ],
)
def test_bad_objects_are_reported(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    coco = _coco()
    coco["annotations"][0] |= change
    assert _faults(_write(tmp_path, coco)) == (fault,)


def test_a_box_that_rounds_over_the_edge_is_clipped(tmp_path: Path) -> None:
    coco = _coco()
    coco["annotations"][0]["bbox"] = [-0.5, 5, 41, 15.5]
    data = CocoDataset(_write(tmp_path, coco), "val", image=(20, 40))
    assert data[0].boxes[0].tolist() == [0, 5, 40, 20]


def test_repeated_ids_and_empty_lists_are_reported(tmp_path: Path) -> None:
    coco = _coco()
    coco["images"][1]["id"] = 7
    coco["annotations"] = []
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert _faults(_write(tmp_path / "one", coco)) == ("image id 7 occurs twice",)
    empty = _coco(images=[], annotations=[], categories=[])
    assert _faults(_write(tmp_path / "two", empty)) == ("no image is listed", "no category is listed")


def test_a_long_list_of_faults_is_cut_in_the_message_and_kept_in_full(tmp_path: Path) -> None:
    coco = _coco()
    coco["annotations"] = [{**coco["annotations"][0], "id": i, "category_id": 5} for i in range(20)]
    faults = _faults(_write(tmp_path, coco))
    assert len(faults) == 20
    assert "20 fault(s)" in str(BadDataset(tmp_path, faults))
    assert "and 12 more" in str(BadDataset(tmp_path, faults))


def _sample(boxes: list[tuple[int, int, int, int]]) -> Sample:
    """Paint each box in a colour of its own on black."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = 100 + i
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Sample(pixels, corners, np.arange(len(boxes), dtype=np.int64))


_BOX = st.tuples(st.integers(0, 40), st.integers(0, 30), st.integers(8, 20), st.integers(8, 18)).map(
    lambda n: (n[0], n[1], n[0] + n[2], n[1] + n[3])
)


@given(_BOX)
def test_a_mirrored_box_still_frames_its_object(box: tuple[int, int, int, int]) -> None:
    sample = _sample([box])
    flipped = mirror(sample)
    x1, y1, x2, y2 = flipped.boxes[0].astype(int)
    assert (flipped.pixels[y1:y2, x1:x2] == 100).all()
    assert (flipped.pixels == 100).sum() == 3 * (x2 - x1) * (y2 - y1)
    again = mirror(flipped)
    assert np.array_equal(again.pixels, sample.pixels)
    assert np.array_equal(again.boxes, sample.boxes)


@given(_BOX, st.floats(0.75, 1.3), st.floats(0, 1), st.floats(0, 1))
def test_a_zoomed_box_still_frames_its_object(
    box: tuple[int, int, int, int], zoom: float, across: float, down: float
) -> None:
    corner = (across * (1 - zoom) * 64, down * (1 - zoom) * 48)
    changed = framed(_sample([box]), (48, 64), zoom=zoom, corner=corner)
    assert changed.pixels.shape == (48, 64, 3)
    # Grey 114 fills what comes into view: only exact object pixels, away from blended edges, are looked at.
    rows, columns = np.nonzero((changed.pixels == 100).all(axis=2))
    if len(changed.boxes):
        x1, y1, x2, y2 = changed.boxes[0]
        assert x1 - 1 <= columns.min() <= x1 + 2
        assert x2 - 3 <= columns.max() <= x2
        assert y1 - 1 <= rows.min() <= y1 + 2
        assert y2 - 3 <= rows.max() <= y2
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 48


def test_objects_that_leave_the_image_are_dropped_with_their_labels() -> None:
    sample = _sample([(0, 0, 20, 20), (40, 24, 60, 44)])
    changed = framed(sample, (48, 64), zoom=1.3, corner=(-0.3 * 64, -0.3 * 48))
    assert changed.labels.tolist() == [1]
    assert changed.boxes[0].tolist() == pytest.approx([32.8, 16.8, 58.8, 42.8], abs=1e-4)


@given(_BOX, st.integers(16, 100), st.integers(16, 100))
def test_a_stretched_box_still_frames_its_object(box: tuple[int, int, int, int], height: int, width: int) -> None:
    changed = framed(_sample([box]), (height, width))
    assert changed.pixels.shape == (height, width, 3)
    assert changed.boxes[0].tolist() == pytest.approx(
        [side * scale for side, scale in zip(box, (width / 64, height / 48) * 2, strict=True)], abs=1e-3
    )
    x1, y1, x2, y2 = changed.boxes[0]
    rows, columns = np.nonzero((changed.pixels >= 50).all(axis=2))  # half covered, or more
    assert [columns.min(), columns.max() + 1] == pytest.approx([x1, x2], abs=1.01)
    assert [rows.min(), rows.max() + 1] == pytest.approx([y1, y2], abs=1.01)


@given(_BOX, st.integers(0, 2**32))
def test_boxes_stay_inside_whatever_is_drawn(box: tuple[int, int, int, int], seed: int) -> None:
    how = Augmentation(zoom=(0.5, 2), zoom_chance=0.9, shift_px=32, shift_chance=0.9)
    changed = augment(_sample([box, (0, 0, 64, 48)]), np.random.default_rng(seed), how, image=(96, 64))
    assert changed.pixels.shape == (96, 64, 3)
    assert len(changed.boxes) == len(changed.labels)
    for x1, y1, x2, y2 in changed.boxes.tolist():
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 96


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    sample, still = _sample([(4, 4, 30, 30)]), Augmentation(mirror=0, zoom_chance=0, light=0)
    assert augment(sample, np.random.default_rng(0), still) is sample


def test_a_shifted_sample_leaves_grey_behind() -> None:
    shifted = framed(_sample([(10, 10, 30, 30)]), (48, 64), corner=(8, -4))
    assert shifted.boxes.tolist() == [[18, 6, 38, 26]]
    assert (shifted.pixels[:44, :8] == 114).all()
    assert (shifted.pixels[6:26, 18:38] == 100).all()
    assert (shifted.pixels[44:] == 114).all()


def test_a_sample_shifted_out_of_sight_is_grey() -> None:
    gone = framed(_sample([(10, 10, 30, 30)]), (48, 64), corner=(100, 0))
    assert (gone.pixels == 114).all()
    assert len(gone.boxes) == len(gone.labels) == 0


def test_light_keeps_mid_grey_and_clips() -> None:
    pixels = np.array([[[128, 128, 128], [255, 0, 64]]], dtype=np.uint8)
    assert relit(pixels, gains=np.array([1.5, 1.5, 0.5])).tolist() == [[[128, 128, 128], [255, 0, 96]]]


def test_equal_generators_augment_equally() -> None:
    sample = _sample([(4, 4, 30, 30), (30, 10, 60, 40)])
    one, same, other = (augment(sample, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(one.pixels, same.pixels)
    assert np.array_equal(one.boxes, same.boxes)
    assert not np.array_equal(one.pixels, other.pixels)
    assert sample.pixels.max() == 101  # the original is left as it is
