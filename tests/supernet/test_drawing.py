import numpy as np
import pytest

from supernet.detection import Detected
from supernet.drawing import colour, draw

CLASSES = ("disc", "ring")


def drawn(size: tuple[int, int], *found: Detected) -> np.ndarray:
    width, height = size
    return np.asarray(draw(np.zeros((height, width, 3), np.uint8), found, CLASSES))


def test_a_box_is_drawn_where_it_is_in_the_colour_of_its_class() -> None:
    box = Detected(box=(100, 200, 300, 400), label="ring", score=0.875)
    pixels = drawn((640, 480), box)
    for x, y in ((100, 300), (299, 300), (200, 399)):
        assert tuple(pixels[y, x]) == colour(1)
    assert not pixels[300, 200].any()  # nothing inside
    assert not pixels[450, 200].any()


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (600, 0, 640, 30), (0, 470, 8, 480)])
def test_a_label_stays_within_the_image(box: tuple[float, float, float, float]) -> None:
    one = Detected(box=box, label="disc", score=0.5)
    with_label = (drawn((640, 480), one) == colour(0)).all(axis=-1).sum()
    perimeter = 2 * 2 * (box[2] - box[0] + box[3] - box[1])
    assert with_label > perimeter  # more than the lines of the box can be


def test_the_best_is_on_top() -> None:
    best = Detected(box=(10, 60, 200, 200), label="disc", score=0.9)
    worse = Detected(box=(10, 60, 200, 200), label="ring", score=0.4)
    assert tuple(drawn((640, 240), best, worse)[150, 10]) == colour(0)


def test_lines_grow_with_the_image() -> None:
    def line(size: int) -> int:
        one = Detected(box=(size / 4, size / 4, size / 2, size / 2), label="disc", score=0.5)
        return int((drawn((size, size), one)[size * 3 // 8] == colour(0)).all(axis=-1).sum())

    assert line(500) < line(1280) < line(4096)


def test_a_box_of_no_pixels_is_no_reason_to_stop() -> None:
    assert drawn((32, 32), Detected(box=(32, 32, 32, 32), label="disc", score=0.5)).any()


def test_a_small_image_is_enlarged_so_that_labels_can_be_read() -> None:
    pixels = drawn((96, 72), Detected(box=(40, 30, 80, 60), label="ring", score=0.5))
    assert pixels.shape == (360, 480, 3)
    assert tuple(pixels[5 * 45, 5 * 40]) == colour(1)


def test_eighty_classes_have_eighty_colours() -> None:
    assert len({colour(label) for label in range(80)}) == 80
    first = np.array([colour(label) for label in range(12)], dtype=float)
    apart = np.linalg.norm(first[:, None] - first, axis=-1) + 1e9 * np.eye(12)
    assert apart.min() > 70
