"""AdamW as every training here uses it, and the learning rate over the steps."""

import math
from collections.abc import Sequence

import torch
from torch import nn


def make_adamw(
    module: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Return AdamW over all parameters of a module; only convolutions and Linears decay, as in DFFT's recipe."""
    decayed = [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    known = {id(weight) for weight in decayed}
    others = [weight for weight in module.parameters() if id(weight) not in known]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def cosine_share(step: int, steps: int, *, warmup: int) -> float:
    """Return the learning rate at a step as a share of its peak: linear warm-up, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def stepped_share(step: int, *, milestones: Sequence[int], warmup: int) -> float:
    """Return the same for a rate that falls to a tenth at each milestone, after a linear warm-up."""
    fallen = sum(step >= milestone for milestone in milestones)
    return min(1.0, (step + 1) / max(1, warmup)) * 0.1**fallen
