"""Detect on single images: from pixels of any size to boxes in these pixels."""

from collections.abc import Sequence

import numpy as np

from nas.values import Value
from supernet.evaluation import images_to_floats
from supernet.loaded import LoadedDetector
from supernet.pictures import Pixels, stretch
from supernet.postprocess import Detections, detect


class Detected(Value):
    """One object in an image.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the image, within it.
        label: name of the class.
        score: in (0.05, 1].
    """

    box: tuple[float, float, float, float]
    label: str
    score: float


def class_names(detector: LoadedDetector) -> tuple[str, ...]:
    """Return the names of the classes; of a file without a manifest, their numbers."""
    return detector.names or tuple(f"class {label}" for label in range(detector.classes))


def detect_objects(detector: LoadedDetector, images: Sequence[Pixels], *, min_score: float) -> list[list[Detected]]:
    """Return what is seen in each of up to `batch` images, best first."""
    floats = images_to_floats(np.stack([stretch(pixels, detector.image) for pixels in images]))
    boxes, scores = detector.predict(floats)
    return [
        _detected(detector, pixels, detect(one, other), min_score)
        for pixels, one, other in zip(images, boxes, scores, strict=True)
    ]


def _detected(detector: LoadedDetector, pixels: Pixels, found: Detections, min_score: float) -> list[Detected]:
    height, width = pixels.shape[:2]
    size = np.array((width, height) * 2, dtype=np.float32)
    input_size = np.array(detector.image[::-1] * 2, dtype=np.float32)
    corners = np.clip(found.boxes * (size / input_size), 0, size)
    names = class_names(detector)
    return [
        Detected(box=(x1, y1, x2, y2), label=names[label], score=float(score))
        for (x1, y1, x2, y2), label, score in zip(corners.tolist(), found.labels, found.scores, strict=True)
        if score >= min_score
    ]
