"""Stochastic depth: residual branches that are left out for some images while a network is trained."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leaves a branch out for random images in training, and makes up for it in the others.

    Attributes:
        rate: chance of leaving it out; 0 until `set_drop_path` says otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, branch: Tensor, images: int) -> Tensor:
        """Take a branch whose first axis holds the images one after another: (B, ...) or rows (B*N, C)."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(images, device=branch.device) >= self.rate
        scale = (kept / (1 - self.rate)).to(branch.dtype).repeat_interleave(len(branch) // images)
        return branch * scale.view(-1, *(1,) * (branch.dim() - 1))


def set_drop_path(blocks: Iterable[nn.Module], rate: float) -> None:
    """Set the rates of blocks in execution order: from 0 in the first that has branches to `rate` in the last."""
    branches = [[layer for layer in block.modules() if isinstance(layer, DropPath)] for block in blocks]
    deep = [layers for layers in branches if layers]
    for number, layers in enumerate(deep):
        for layer in layers:
            layer.rate = rate * number / max(1, len(deep) - 1)
