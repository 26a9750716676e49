"""From a deployed detector's outputs to detections, in numpy: threshold, best candidates, class-wise NMS.

Uniform matching makes up to 8 positives per object, so duplicates have to be removed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

Predictor = Callable[[Floats], tuple[Floats, Floats]]
"""Takes images (B, 3, H, W), RGB in [0, 1]; gives boxes (B, N, 4) in input pixels and scores (B, N, classes)."""

MIN_SCORE = 0.05
MAX_CANDIDATES = 1000
MAX_IOU = 0.6
MAX_DETECTIONS = 100


class Detections(NamedTuple):
    """What is seen in one image, best first.

    Attributes:
        boxes: x1, y1, x2, y2 in input pixels (K, 4).
        scores: (K,), in (0.05, 1].
        labels: class indices (K,).
    """

    boxes: Floats
    scores: Floats
    labels: Indices


def detect(boxes: Floats, scores: Floats) -> Detections:
    """Select the detections of one image from boxes (N, 4) and scores (N, classes).

    Score > 0.05, the 1000 best, NMS at IoU 0.6 within each class, the 100 best; among equal scores the lower anchor
    and class come first.
    """
    classes = scores.shape[1]
    flat = scores.reshape(-1)
    candidates = np.flatnonzero(flat > MIN_SCORE)
    candidates = candidates[np.argsort(-flat[candidates], kind="stable")][:MAX_CANDIDATES]
    found = Detections(boxes[candidates // classes], flat[candidates], candidates % classes)
    kept = nms(found.boxes, found.labels, most=MAX_DETECTIONS)
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def nms(boxes: Floats, labels: Indices, *, most: int | None = None) -> Indices:
    """Return the indices that survive non-maximum suppression within each class, or only the first `most` of them.

    Boxes (K, 4) are sorted best first; each is compared only with those that are still in question.
    """
    waiting = np.arange(len(boxes))
    kept: list[np.int64] = []
    while len(waiting) and (most is None or len(kept) < most):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        rival = (labels[waiting] == labels[best]) & (iou(boxes[best], boxes[waiting]) > MAX_IOU)
        waiting = waiting[~rival]
    return np.array(kept, dtype=np.int64)


def iou(box: Floats, boxes: Floats) -> Floats:
    """Return the IoU of one box (4,) with each of boxes (K, 4); boxes are x1, y1, x2, y2."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared, area = _area(high - low), _area(boxes[:, 2:] - boxes[:, :2])
    overlap: Floats = shared / np.maximum(_area(box[2:] - box[:2]) + area - shared, np.float32(1e-7))
    return overlap


def _area(sides: Floats) -> Floats:
    """Return the area of width and height (..., 2); a negative side counts as 0."""
    width, height = np.moveaxis(np.clip(sides, 0, None), -1, 0)
    areas: Floats = width * height
    return areas
