import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.image_augment import ImageAugmentation, changed, crop_box, cropped, erased, middle_box, mixed

SEEDS = st.integers(0, 2**32)
STILL = ImageAugmentation(area=(1, 1), aspect=(1, 1), mirror=0, light=0, erasing=0, mixup=0, cutmix=0)


@given(SEEDS, st.integers(1, 300), st.integers(1, 300))
def test_a_crop_lies_inside_and_has_the_area_asked_for(seed: int, height: int, width: int) -> None:
    how = ImageAugmentation(area=(0.3, 0.8))
    x1, y1, x2, y2 = crop_box((height, width), np.random.default_rng(seed), how, (64, 64))
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    if (x1, y1, x2, y2) != middle_box((height, width), (64, 64)) and min(height, width) > 20:
        assert 0.25 < (x2 - x1) * (y2 - y1) / (height * width) < 0.9
        assert 0.7 < (x2 - x1) / (y2 - y1) < 1.45


def test_the_middle_has_the_shape_of_the_network() -> None:
    assert middle_box((100, 200), (64, 64)) == (50, 0, 150, 100)
    assert middle_box((100, 200), (64, 128)) == (0, 0, 200, 100)
    assert middle_box((300, 100), (64, 128)) == (0, 125, 100, 175)


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(changed(pixels, np.random.default_rng(1), STILL, (32, 32)), pixels)
    mirrored = changed(pixels, np.random.default_rng(1), STILL.model_copy(update={"mirror": 1.0}), (32, 32))
    assert np.array_equal(mirrored, pixels[:, ::-1])


def test_equal_generators_change_equally() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    one, same, other = (
        changed(pixels, np.random.default_rng(seed), ImageAugmentation(), (32, 64)) for seed in (3, 3, 4)
    )
    assert one.shape == (32, 64, 3)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_crop_shows_what_it_frames() -> None:
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    pixels[5:15, 10:20] = 200
    assert (cropped(pixels, (10, 5, 20, 15), (8, 8))[1:-1, 1:] == 200).all()  # the border blends with its neighbours
    assert (cropped(pixels, (0, 5, 9, 15), (8, 8)) == 0).all()


@given(SEEDS)
def test_a_third_of_an_image_is_erased_at_most(seed: int) -> None:
    blank = np.full((60, 60, 3), 7, dtype=np.uint8)
    rows, columns = np.nonzero((erased(blank, np.random.default_rng(seed)) != 7).any(axis=2))
    framed = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert 0.01 < framed / 60**2 < 0.36
    assert len(rows) > 0.9 * framed  # noise, everywhere in the rectangle
    assert (blank == 7).all()


@settings(max_examples=50)
@given(SEEDS)
def test_the_share_of_a_mixture_is_what_its_pixels_show(seed: int) -> None:
    white, black = np.full((40, 60, 3), 200, dtype=np.uint8), np.zeros((40, 60, 3), dtype=np.uint8)
    blended, share = mixed(white, black, np.random.default_rng(seed), ImageAugmentation(cutmix=0))
    assert (blended == blended[0, 0, 0]).all()
    assert blended[0, 0, 0] == pytest.approx(200 * share, abs=0.51)
    pasted, share = mixed(white, black, np.random.default_rng(seed), ImageAugmentation(mixup=0))
    assert set(np.unique(pasted)) <= {0, 200}
    assert (pasted == 200).mean() == pytest.approx(share, abs=1e-9)
    assert (white == 200).all()
