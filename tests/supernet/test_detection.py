from pathlib import Path

import numpy as np
import pytest

from supernet.detection import Detected, class_names, detect_objects
from supernet.loaded import LoadedDetector
from supernet.postprocess import Floats


def left_half(images: Floats) -> tuple[Floats, Floats]:
    """See one object in the left half of the input, surely, and another beyond its right edge, hardly."""
    boxes = np.array([[0, 16, 32, 64], [32, 0, 80, 64]], np.float32)
    scores = np.array([[0.9, 0.0], [0.0, 0.2]], np.float32)
    return np.stack([boxes] * len(images)), np.stack([scores] * len(images))


DETECTOR = LoadedDetector(Path("none"), (64, 64), 2, 2, ("disc", "ring"), (1, 2), left_half)


def test_boxes_are_in_pixels_of_the_image_and_within_it() -> None:
    wide, small = np.zeros((100, 400, 3), np.uint8), np.zeros((32, 16, 3), np.uint8)
    first, second = detect_objects(DETECTOR, [wide, small], min_score=0.1)
    assert [(one.box, one.label) for one in first] == [((0, 25, 200, 100), "disc"), ((200, 0, 400, 100), "ring")]
    assert second[0].box == (0, 8, 8, 32)
    assert first[0].score == pytest.approx(0.9)


def test_what_is_below_the_score_is_left_out() -> None:
    [found] = detect_objects(DETECTOR, [np.zeros((64, 64, 3), np.uint8)], min_score=0.3)
    assert found == [Detected(box=(0, 16, 32, 64), label="disc", score=found[0].score)]


def test_without_names_classes_are_numbered() -> None:
    assert class_names(LoadedDetector(Path("x"), (64, 64), 1, 2, None, None, left_half)) == ("class 0", "class 1")
