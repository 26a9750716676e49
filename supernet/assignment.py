"""Which anchors learn which object: uniform matching of YOLOF (paper section 9.2)."""

from typing import NamedTuple

import torch
from torch import Tensor

from supernet.boxes import iou_matrix, paired_iou, to_centres, to_corners

NEAREST = 4
"""Predictions, and again anchors, chosen for each object."""

IGNORED_PREDICTION_IOU = 0.7
"""A prediction that overlaps some object more than this is no background."""

WORST_ANCHOR_IOU = 0.15
"""A chosen anchor that overlaps its object less than this is out of both losses."""


class Matching(NamedTuple):
    """The roles of the N anchors of one image.

    Attributes:
        anchors: index of the anchor of each positive pair (K,); an anchor chosen twice appears twice.
        objects: index of the object of each positive pair (K,).
        ignored: anchors that are neither positive nor background (N,), bool.
    """

    anchors: Tensor
    objects: Tensor
    ignored: Tensor


@torch.no_grad()
def match(predicted: Tensor, anchors: Tensor, objects: Tensor) -> Matching:
    """Choose, for each object, the 4 nearest predictions and the 4 nearest anchors; sort out the rest.

    In this order: (1) all anchors are background; (2) predictions with IoU > 0.7 to any object are ignored; (3) the
    chosen 8 are positive for their object; (4) chosen ones whose anchor overlaps that object by less than 0.15 are
    ignored. Nearness is the L1 distance of (cx, cy, w, h) in pixels; among equals the lower index is nearer.

    Args:
        predicted: decoded boxes (N, 4), x1 y1 x2 y2.
        anchors: (N, 4), cx cy w h.
        objects: boxes of the image's objects (M, 4), x1 y1 x2 y2.
    """
    ignored = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    if len(objects) == 0:
        nothing = torch.zeros(0, dtype=torch.long, device=anchors.device)
        return Matching(nothing, nothing, ignored)
    ignored |= (iou_matrix(predicted, objects) > IGNORED_PREDICTION_IOU).any(dim=1)
    targets = to_centres(objects)
    chosen = torch.cat((_nearest(to_centres(predicted), targets), _nearest(anchors, targets)))
    owners = torch.arange(len(objects), device=anchors.device).expand_as(chosen)
    chosen, owners = chosen.flatten(), owners.flatten()
    ignored[chosen] = False
    poor = paired_iou(to_corners(anchors)[chosen], objects[owners]) < WORST_ANCHOR_IOU
    ignored[chosen[poor]] = True
    return Matching(chosen[~poor], owners[~poor], ignored)


def _nearest(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return the indices of the boxes (N, 4) nearest to each target (M, 4): (4, M), nearest first."""
    distance = torch.cdist(boxes, targets, p=1)
    return distance.sort(dim=0, stable=True).indices[:NEAREST]
