"""What training lowers: focal loss on classes and GIoU loss on boxes, each divided by the number of positives."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from supernet.assignment import match
from supernet.boxes import paired_giou
from supernet.layers.head import RawPrediction, decode

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


class Target(NamedTuple):
    """The objects of one image.

    Attributes:
        boxes: x1, y1, x2, y2 in input pixels (M, 4), float32.
        labels: class indices (M,), int64.
    """

    boxes: Tensor
    labels: Tensor


class Losses(NamedTuple):
    """The two losses of a batch, summed over its images.

    Attributes:
        focal_sum: classification, with the implicit objectness inside.
        giou_sum: regression, 1 - GIoU.
        positives: anchors that learn an object.
    """

    focal_sum: Tensor
    giou_sum: Tensor
    positives: int

    @property
    def focal(self) -> Tensor:
        """Classification, divided by the positives."""
        return self.focal_sum / max(self.positives, 1)

    @property
    def giou(self) -> Tensor:
        """Regression, divided by the positives."""
        return self.giou_sum / max(self.positives, 1)

    @property
    def total(self) -> Tensor:
        """Both with equal weights: what a batch is to lower."""
        return self.focal + self.giou


def detection_losses(prediction: RawPrediction, anchors: Tensor, targets: Sequence[Target]) -> Losses:
    """Match every image of the batch and compare its predictions (B, N, ...) with the objects they are to learn."""
    boxes = decode(prediction.deltas, anchors)
    scores = implicit_objectness(prediction.logits, prediction.objectness)
    focal, giou, positives = scores.new_zeros(()), scores.new_zeros(()), 0
    for image, target in enumerate(targets):
        matching = match(boxes[image].detach(), anchors, target.boxes)
        wanted = torch.zeros_like(scores[image])
        # An anchor chosen for objects of two classes learns both: each class has its own sigmoid.
        wanted[matching.anchors, target.labels[matching.objects]] = 1
        wanted[matching.ignored] = 0
        kept = ~matching.ignored
        focal = focal + focal_loss(scores[image][kept], wanted[kept])
        overlap = paired_giou(boxes[image][matching.anchors], target.boxes[matching.objects])
        giou = giou + (1 - overlap).sum()
        positives += int(wanted.any(dim=1).sum())
    return Losses(focal, giou, positives)


def implicit_objectness(logits: Tensor, objectness: Tensor) -> Tensor:
    """Return the logit of sigmoid(class) * sigmoid(objectness): c + o - log(1 + e^c + e^o), shape of `logits`.

    Written as a log-sum-exp, which neither overflows nor cancels.
    """
    whole = objectness.unsqueeze(-1).expand_as(logits)
    return logits + whole - torch.stack((torch.zeros_like(logits), logits, whole)).logsumexp(dim=0)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum alpha_t (1 - p_t)^gamma * cross entropy over all elements; wanted is 0 or 1, shape of `logits`."""
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = (wanted - logits.sigmoid()).abs()
    alpha = torch.where(wanted > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return (alpha * missed**FOCAL_GAMMA * entropy).sum()
