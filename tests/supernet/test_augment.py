"""The truth of pixels: whatever is done to a picture, each box still frames the colour it was drawn around."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from supernet.augment import GREY, MIN_VISIBLE, Augmentation, augment, framed, mirror
from supernet.dataset import Sample
from supernet.recipe import named_recipe

SIZE = (60, 80)
"""Height and width of the samples."""

RED, BLUE = (255, 0, 0), (0, 0, 255)

_BOX = st.tuples(st.integers(0, 60), st.integers(0, 40), st.integers(10, 40), st.integers(10, 30)).map(
    lambda n: (n[0], n[1], min(80, n[0] + n[2]), min(60, n[1] + n[3]))
)
_SEEDS = st.integers(0, 2**32)
_IMAGES = st.tuples(st.integers(48, 128), st.integers(48, 128))

EVERYTHING = Augmentation(mirror=0.5, zoom=(0.5, 2), zoom_chance=0.9, shift_px=24, shift_chance=0.7, light=0)


def painted(*boxes: tuple[int, int, int, int]) -> Sample:
    """The first box is red, the second blue; the rest is black."""
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    for (x1, y1, x2, y2), colour in zip(boxes, (RED, BLUE), strict=False):
        pixels[y1:y2, x1:x2] = colour
    return Sample(pixels, np.array(boxes, dtype=np.float32), np.arange(len(boxes)))


def seen(pixels: NDArray[np.uint8], channel: int) -> NDArray[np.float64] | None:
    """Frame what is at least half of a colour (x1, y1, x2, y2)."""
    others = np.delete(pixels, channel, axis=2)
    rows, columns = np.nonzero((pixels[..., channel] >= 128) & (others < 64).all(axis=2))
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)


@settings(max_examples=200)
@given(_BOX, _SEEDS, _IMAGES)
def test_a_box_frames_its_pixels_after_everything_at_once(
    box: tuple[int, int, int, int], seed: int, image: tuple[int, int]
) -> None:
    changed = augment(painted(box), np.random.default_rng(seed), EVERYTHING, image=image)
    found = seen(changed.pixels, 0)
    if len(changed.boxes):
        assert found is not None
        # Half a pixel of blending and half of rounding, and as much where the colour fades into what it stands on.
        assert changed.boxes[0].tolist() == pytest.approx(found.tolist(), abs=2.01)
    elif found is not None:  # dropped: what is left of it is less than the rule asks for
        whole = (box[2] - box[0]) * (box[3] - box[1]) * image[0] * image[1] / (SIZE[0] * SIZE[1])
        visible = (found[2] - found[0]) * (found[3] - found[1])
        assert visible <= 2**2 * MIN_VISIBLE * whole + 2 * (found[2] - found[0] + found[3] - found[1]) + 4


@settings(max_examples=200)
@given(_BOX, st.floats(0.5, 2), st.floats(-1, 1), st.floats(-1, 1))
def test_an_object_stays_as_long_as_two_fifths_of_it_do(
    box: tuple[int, int, int, int], zoom: float, across: float, down: float
) -> None:
    corner = (across * 80, down * 60)
    changed = framed(painted(box), SIZE, zoom=zoom, corner=corner)
    moved = np.array(box) * zoom + np.array(corner * 2)
    inside = np.clip(moved, 0, (80, 60, 80, 60))
    share = np.prod(inside[2:] - inside[:2]) / np.prod(moved[2:] - moved[:2])
    if abs(share - MIN_VISIBLE) > 1e-3:
        assert len(changed.boxes) == len(changed.labels) == int(share > MIN_VISIBLE)
    for kept in changed.boxes:
        assert kept.tolist() == pytest.approx(inside.tolist(), abs=1e-3)


@settings(max_examples=100)
@given(_BOX, _BOX, _SEEDS, _IMAGES)
def test_labels_stay_with_their_colour(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int], seed: int, image: tuple[int, int]
) -> None:
    changed = augment(painted(one, other), np.random.default_rng(seed), EVERYTHING, image=image)
    assert len(changed.boxes) == len(changed.labels) <= 2
    for box, label in zip(changed.boxes, changed.labels, strict=True):
        found = seen(changed.pixels, (0, 2)[label])
        if found is None:
            assert label == 0  # the red one lies under the blue one
            continue
        assert (found[:2] >= box[:2] - 2.01).all()
        assert (found[2:] <= box[2:] + 2.01).all()


@given(_BOX, _BOX)
def test_a_mirror_twice_is_no_mirror(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> None:
    sample = painted(one, other)
    again = mirror(mirror(sample))
    assert all(np.array_equal(a, b) for a, b in zip(again, sample, strict=True))


@pytest.mark.parametrize("recipe", ["small", "1x", "3x"])
@settings(max_examples=70)
@given(box=_BOX, seed=_SEEDS)
def test_boxes_stay_inside_under_every_recipe(recipe: str, box: tuple[int, int, int, int], seed: int) -> None:
    how = named_recipe(recipe).augmentation  # type: ignore[arg-type]
    changed = augment(painted(box, (0, 0, 80, 60)), np.random.default_rng(seed), how, image=(96, 64))
    assert changed.pixels.shape == (96, 64, 3)
    sides = changed.boxes[:, 2:] - changed.boxes[:, :2]
    assert (sides > 0).all()
    assert (changed.boxes >= 0).all()
    assert (changed.boxes <= (64, 96, 64, 96)).all()


def test_what_is_not_covered_is_grey() -> None:
    shrunken = framed(painted((0, 0, 80, 60)), SIZE, zoom=0.5, corner=(10, 10))
    assert (shrunken.pixels[:10] == GREY).all()
    assert (shrunken.pixels[41:] == GREY).all()
    assert seen(shrunken.pixels, 0).tolist() == shrunken.boxes[0].tolist() == [10, 10, 50, 40]  # type: ignore[union-attr]
