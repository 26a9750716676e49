"""How good a trained supernet is, before anything is cut out of it."""

from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from nas.space import SearchSpace
from nas.values import Value
from supernet.batch_norm import reestimate_batch_norm
from supernet.dataset import CocoDataset
from supernet.errors import BadDataset
from supernet.evaluation import Evaluation, evaluate_module
from supernet.supernet import Gates, Supernet

STRIDE_IMAGES = 256
"""Training images on which the strides of a supernet are compared."""


class TrainMetrics(Value):
    """How good a trained supernet is on the held-out split, with BatchNorm statistics estimated anew.

    Attributes:
        ap: COCO AP of the mixture with gates p = softmax(r), without noise, at the best stride of its prediction map.
        ap50: AP50 of the same.
        path_ap50: AP50 of its most probable path at full width, cut out.
        stride_ap50: AP50 of the mixture at each stride, on training images (held-out images must not shape the network
            they judge); all 0 where none found anything, which tells them not apart; None where the space has one
            stride.
        images: held-out images.
        loss: mean of the last tenth of the steps taken by the last process.
    """

    ap: float | None
    ap50: float | None
    path_ap50: float | None
    stride_ap50: dict[int, float] | None = None
    images: int
    loss: float | None


def reestimate_mixture(supernet: Supernet, train: CocoDataset) -> None:
    """Estimate the statistics of the mixture with gates p = softmax(r) anew, at all strides of its prediction map."""
    gates = _gates(supernet)

    def all_maps(images: Tensor) -> None:
        for stride in supernet.walks:  # a block that did not run would be left without statistics
            supernet(images, gates, stride)

    reestimate_batch_norm(supernet, train, forward=all_maps)


def evaluate_mixture(supernet: Supernet, held_out: CocoDataset, *, stride: int) -> Evaluation:
    """Score the mixture with gates p = softmax(r) on a split, with the statistics that it has."""
    mixture = partial(supernet, gates=_gates(supernet), stride=stride)
    return evaluate_module(mixture, supernet.anchors(stride), held_out)


def stride_images(space: SearchSpace, data: Path) -> CocoDataset | None:
    """Return the training images on which the strides of a space are compared, or None where it has but one.

    Raises:
        BadDataset: none of them shows an object, so that no stride could find one.
    """
    if len(space.prediction_strides) == 1:
        return None
    judged = CocoDataset(data, "train", image=space.images[-1], most=STRIDE_IMAGES)
    if all(note.get("iscrowd", 0) for note in judged.ground_truth["annotations"]):
        fault = f"none of the {len(judged)} images of train on which prediction strides are compared shows an object"
        raise BadDataset(data, [fault], advice="Annotate some of them, or train a space with one stride")
    return judged


def stride_ap50(supernet: Supernet, judged: CocoDataset | None) -> dict[int, float] | None:
    """Return the AP50 of the mixture at each stride on `stride_images`, with the statistics that it has."""
    if judged is None:
        return None
    scores = {stride: evaluate_mixture(supernet, judged, stride=stride).ap50 for stride in supernet.walks}
    return cast("dict[int, float]", scores)  # defined: the images show an object


def _gates(supernet: Supernet) -> Gates:
    return {name: torch.softmax(supernet.logits_of(name).detach(), dim=0) for name in supernet.choices}
