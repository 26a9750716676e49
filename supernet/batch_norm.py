"""Estimate BatchNorm statistics anew: a subnet cut out of a supernet still has those of the wide mixture."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.dataset import CocoDataset, spread_evenly
from supernet.evaluation import images_to_floats

IMAGES = 128
"""Images that statistics are estimated on."""


@torch.no_grad()
def reestimate_batch_norm(
    module: nn.Module,
    data: CocoDataset,
    *,
    images: int = IMAGES,
    batch: int = 16,
    forward: Callable[[Tensor], Any] | None = None,
) -> None:
    """Replace the running statistics of the module by the mean over some batches of data; leave it in evaluation mode.

    The images are spread evenly over the split, without augmentation, so that the same split gives the same statistics;
    a data set opened with `most=IMAGES` has just these. Use training data: held-out images must not shape the network
    they judge.

    Args:
        module: what holds the BatchNorm layers.
        data: the split to look at.
        images: at most this many.
        batch: images in a forward pass.
        forward: how to run the module on images (B, 3, H, W) where its own forward wants more, such as gates.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    chosen = spread_evenly(len(data), images)
    for start in range(0, len(chosen), batch):
        pixels = np.stack([data[index].pixels for index in chosen[start : start + batch]])
        (forward or module)(torch.from_numpy(images_to_floats(pixels)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
