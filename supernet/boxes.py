"""Boxes in input pixels: two notations, and how much two boxes share.

Corners are (x1, y1, x2, y2); centres are (cx, cy, w, h). The last axis of every tensor holds the four numbers.
"""

import torch
from torch import Tensor


def to_centres(corners: Tensor) -> Tensor:
    """Turn x1, y1, x2, y2 into cx, cy, w, h."""
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def to_corners(centres: Tensor) -> Tensor:
    """Turn cx, cy, w, h into x1, y1, x2, y2."""
    middle, half = centres[..., :2], centres[..., 2:] / 2
    return torch.cat((middle - half, middle + half), dim=-1)


def area(corners: Tensor) -> Tensor:
    """Return the area of each box, 0 where a side is negative."""
    sides = (corners[..., 2:] - corners[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def iou_matrix(one: Tensor, other: Tensor) -> Tensor:
    """Return the intersection over union of every box of `one` (N, 4) with every box of `other` (M, 4): (N, M)."""
    shared, union = _shared_and_union(one[:, None], other[None])
    return shared / union


def paired_iou(one: Tensor, other: Tensor) -> Tensor:
    """Return the intersection over union of the k-th box of one with the k-th of the other: (K,)."""
    shared, union = _shared_and_union(one, other)
    return shared / union


def paired_giou(one: Tensor, other: Tensor) -> Tensor:
    """Return the generalised IoU of the k-th boxes, in (-1, 1]: IoU minus the empty share of the common hull."""
    shared, union = _shared_and_union(one, other)
    hull = torch.cat((torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:])), dim=-1)
    hull_area = area(hull).clamp(min=_TINY)
    return shared / union - (hull_area - union) / hull_area


def _shared_and_union(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = area(torch.cat((low, high), dim=-1))
    return shared, (area(one) + area(other) - shared).clamp(min=_TINY)


_TINY = 1e-7
"""Area of two empty boxes: keeps their quotient finite (it is 0)."""
