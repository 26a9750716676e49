"""How good a trained supernet is, before anything is cut out of it."""

from functools import partial

import torch
from torch import Tensor

from nas.values import Value
from supernet.batch_norm import reestimate_batch_norm
from supernet.dataset import CocoDataset
from supernet.evaluation import Evaluation, evaluate_module
from supernet.supernet import Supernet


class TrainMetrics(Value):
    """How good a trained supernet is on the held-out split, with BatchNorm statistics estimated anew.

    Attributes:
        ap: COCO AP of the mixture with gates p = softmax(r), without noise, at the best stride of its prediction map.
        ap50: AP50 of the same.
        path_ap50: AP50 of its most probable path at full width, cut out.
        stride_ap50: AP50 of the mixture at each stride, on training images (held-out images must not shape the network
            they judge); None where the space has one stride.
        images: held-out images.
        loss: mean of the last tenth of the steps taken by the last process.
    """

    ap: float | None
    ap50: float | None
    path_ap50: float | None
    stride_ap50: dict[int, float] | None = None
    images: int
    loss: float | None


def evaluate_mixture(supernet: Supernet, train: CocoDataset, held_out: CocoDataset, *, stride: int) -> Evaluation:
    """Score the mixture with gates p = softmax(r) on the held-out split; its statistics are estimated anew on train."""
    gates = {name: torch.softmax(supernet.logits_of(name).detach(), dim=0) for name in supernet.choices}

    def all_maps(images: Tensor) -> None:
        for each in supernet.walks:  # a block that did not run would be left without statistics
            supernet(images, gates, each)

    reestimate_batch_norm(supernet, train, forward=all_maps)
    return evaluate_module(partial(supernet, gates=gates, stride=stride), supernet.anchors(stride), held_out)


def stride_ap50(supernet: Supernet, train: CocoDataset, judged: CocoDataset) -> dict[int, float] | None:
    """Return the AP50 of the mixture at each stride of its prediction map, or None where there is but one."""
    if len(supernet.walks) == 1:
        return None
    return {stride: evaluate_mixture(supernet, train, judged, stride=stride).ap50 or 0.0 for stride in supernet.walks}
