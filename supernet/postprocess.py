"""From a deployed detector's outputs to detections, in numpy: threshold, best candidates, class-wise NMS.

Uniform matching makes up to 8 positives per object, so duplicates have to be removed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

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
    kept = nms(found.boxes, found.labels)[:MAX_DETECTIONS]
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def nms(boxes: Floats, labels: Indices) -> Indices:
    """Return the indices that survive non-maximum suppression within each class; boxes (K, 4) are sorted best first."""
    rival = (labels[:, None] == labels) & (pairwise_iou(boxes) > MAX_IOU)
    alive = np.ones(len(boxes), dtype=bool)
    for best in range(len(boxes)):
        if alive[best]:
            alive[best + 1 :] &= ~rival[best, best + 1 :]
    return np.flatnonzero(alive)


def pairwise_iou(boxes: Floats) -> Floats:
    """Return the IoU of each box with each (K, K); boxes are x1, y1, x2, y2 (K, 4)."""
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared, area = _area(high - low), _area(boxes[:, 2:] - boxes[:, :2])
    iou: Floats = shared / np.maximum(area[:, None] + area - shared, np.float32(1e-7))
    return iou


def _area(sides: Floats) -> Floats:
    """Return the area of width and height (..., 2); a negative side counts as 0."""
    width, height = np.moveaxis(np.clip(sides, 0, None), -1, 0)
    areas: Floats = width * height
    return areas
