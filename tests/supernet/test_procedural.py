import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.dataset import CocoDataset
from supernet.errors import DatasetExists
from supernet.procedural import (
    LARGEST_SHARE,
    MAX_OVERLAP,
    MIN_VISIBLE,
    SHAPES,
    SMALLEST_SHARE,
    draw_image,
    make_dataset,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "shapes", images=6, size=96, seed=5, held_out=3)


def test_it_is_a_coco_data_set_with_two_splits(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["annotations", "recipe.json", "train", "val"]
    train, val = (CocoDataset(folder, split, image=(96, 96)) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 3)
    assert train.classes == val.classes == SHAPES
    assert all(1 <= len(sample.labels) <= 4 for sample in [*train, *val])
    seen = {sample.pixels.tobytes() for sample in [*train, *val]}
    assert len(seen) == 9  # no image twice, in neither split


def test_a_seed_gives_the_same_bytes_everywhere(folder: Path) -> None:
    # A change here changes every data set and every result that cites one: raise RECIPE_VERSION with it.
    found = {split: CocoDataset(folder, split, image=(96, 96)).content_sha256 for split in ("train", "val")}
    assert found == GOLDEN


def test_more_images_extend_a_data_set(folder: Path, tmp_path: Path) -> None:
    longer = make_dataset(tmp_path / "longer", images=7, size=96, seed=5, held_out=3)
    for name in ("000001.png", "000006.png"):
        assert (longer / "train" / name).read_bytes() == (folder / "train" / name).read_bytes()


def test_another_seed_is_another_data_set(folder: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", images=6, size=96, seed=6, held_out=3)
    assert (other / "val" / "000001.png").read_bytes() != (folder / "val" / "000001.png").read_bytes()


def test_a_finished_folder_is_kept(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    told: list[tuple[int, int]] = []
    again = make_dataset(
        folder, images=6, size=96, seed=5, held_out=3, progress=lambda done, total: told.append((done, total))
    )
    assert again == folder
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_recipe_in_the_folder_is_named(folder: Path) -> None:
    with pytest.raises(DatasetExists, match=r"holds the data set .*'images': 6.*, not .*'images': 9.*: remove it"):
        make_dataset(folder, images=9, size=96, seed=5, held_out=3)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(DatasetExists, match="holds no finished data set"):
        make_dataset(tmp_path, images=1, size=64, seed=0, held_out=1)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "shapes", images=3, size=64, seed=0, held_out=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_every_image_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    make_dataset(
        tmp_path / "shapes",
        images=3,
        size=64,
        seed=0,
        held_out=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("wrong", [{"images": 0}, {"held_out": 0}, {"size": 47}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    numbers = {"images": 1, "size": 64, "seed": 0, "held_out": 1, **wrong}
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"{name}={value}.* at least 1 image in each split"):
        make_dataset(tmp_path / "shapes", **numbers)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_objects_are_whole_framed_and_mostly_visible(seed: int) -> None:
    pixels, shapes = draw_image(128, np.random.default_rng(seed))
    assert pixels.shape == (128, 128, 3)
    assert pixels.dtype == np.uint8
    assert 1 <= len(shapes) <= 4
    for position, shape in enumerate(shapes):
        x, y, width, height = shape.box
        rows, columns = np.nonzero(shape.mask)
        assert (columns.min(), rows.min()) == (x, y)
        assert (columns.max() + 1, rows.max() + 1) == (x + width, y + height)
        assert 0 < x < x + width < 128
        assert 0 < y < y + height < 128
        # Turned and squeezed by up to 30 %, an outline fills its diameter and at most a diagonal more.
        assert 0.6 * SMALLEST_SHARE / 100 * 128 < max(width, height) < 1.2 * LARGEST_SHARE / 100 * 128
        covered = np.zeros_like(shape.mask)
        for later in shapes[position + 1 :]:
            covered |= later.mask
            shared = _shared(shape.box, later.box)
            assert shared <= MAX_OVERLAP * (width * height + later.box[2] * later.box[3] - shared)
        assert (shape.mask & ~covered).sum() >= MIN_VISIBLE * shape.mask.sum()


def _shared(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> int:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def test_colour_does_not_give_the_class_away() -> None:
    colours: dict[int, list[np.ndarray]] = {1: [], 2: [], 3: []}
    sizes: dict[int, list[int]] = {1: [], 2: [], 3: []}
    for seed in range(150):
        pixels, shapes = draw_image(96, np.random.default_rng(seed))
        for shape in shapes[-1:]:
            colours[shape.category].append(pixels[shape.mask].mean(axis=0))
            sizes[shape.category].append(shape.box[2])
    means = np.array([np.mean(values, axis=0) for values in colours.values()])
    spread = np.std(np.concatenate(list(colours.values())), axis=0)
    # Class means lie within 3 standard errors of a mean over some 50 draws.
    assert (np.ptp(means, axis=0) < 3 * spread * np.sqrt(2 / 40)).all()
    assert all(max(values) > 2 * min(values) for values in sizes.values())  # every class comes small and large


def test_annotations_say_how_many_pixels_an_object_has(folder: Path) -> None:
    notes = json.loads((folder / "annotations" / "train.json").read_text())["annotations"]
    assert all(0 < note["area"] <= note["bbox"][2] * note["bbox"][3] for note in notes)
    assert [note["id"] for note in notes] == list(range(1, len(notes) + 1))


GOLDEN = {
    "train": "011621ca963b9a867f43b336d3306fff6410459cdcc2946c3dc0555205902de6",
    "val": "d799374a3612150bc257d4f224982626fa1d9edadb64b8d1014efd20848b3439",
}
