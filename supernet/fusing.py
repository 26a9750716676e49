"""From the training form of a module to the one that is deployed: BatchNorm folded, branches merged, boxes decoded."""

import copy
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Fusable(Protocol):
    """A layer that knows its deployed form."""

    def fused(self) -> nn.Module:
        """Return the deployed form, computing the same in evaluation."""
        ...


@torch.no_grad()
def fuse(module: M) -> nn.Module:
    """Return a deployed copy in evaluation mode; the original is left as it is.

    Every layer with a `fused` form is replaced by it: RepCNN and Conv-BN by one convolution, Linear-BN by one Linear,
    position tables by the bias they expand to, the head by one that gives boxes and scores.
    """
    deployed = copy.deepcopy(module).eval()
    with torch.random.fork_rng(devices=()):  # new layers are initialised before they get their weights
        return _deploy(deployed).requires_grad_(False)


def _deploy(module: nn.Module) -> nn.Module:
    if isinstance(module, Fusable):
        return module.fused().eval()
    for name, child in module.named_children():
        setattr(module, name, _deploy(child))
    return module
