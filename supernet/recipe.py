"""How a detector is trained: the paper's two schedules, and one for a few hundred images without pretraining."""

from typing import Literal

import torch
from pydantic import Field

from nas.values import Value
from supernet.augment import Augmentation

Precision = Literal["fp32", "bf16", "fp16"]
RecipeName = Literal["small", "1x", "3x"]


class Recipe(Value):
    """One training recipe (specification section 5).

    Attributes:
        epochs: passes over the training images.
        batch: images behind one optimiser step, over all processes and micro-batches.
        micro_batch: images that one process runs at once; None for its whole share.
        learning_rate: peak rate of AdamW.
        weight_decay: of convolutions and Linears; norms, biases and position tables have none.
        betas: of AdamW.
        schedule: after the warm-up; `steps` falls to a tenth at each milestone, `cosine` to 0.
        milestones: epochs after which `steps` falls.
        warmup_steps: optimiser steps in which the rate climbs.
        clip_norm: largest norm of the gradient; None for no limit.
        ema: decay of the averaged weights, which are the ones that are evaluated and kept; 0 keeps the trained ones.
        drop_path: chance that the residual branches of the last block are left out for an image; in earlier blocks it
            is linearly less.
        precision: of convolutions and matrix products; `auto` is 16 bits where the processor computes in them.
        frozen_norm: BatchNorm uses its running statistics and leaves them as they are.
        augmentation: random changes of the training images.
        evaluate_every: epochs between two evaluations on the held-out split; the last epoch is always evaluated.
        seed: decides weights, order, changes and dropped paths.
    """

    epochs: int = Field(36, ge=1)
    batch: int = Field(32, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[int, ...] = (27, 33)
    warmup_steps: int = Field(500, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    ema: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.2, ge=0, lt=1)
    precision: Literal["auto"] | Precision = "auto"
    frozen_norm: bool = False
    augmentation: Augmentation = Augmentation()
    evaluate_every: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)


def named_recipe(name: RecipeName) -> Recipe:
    """Return a recipe: `1x` and `3x` are the paper's, for large data and a pretrained backbone."""
    match name:
        case "small":
            return Recipe(
                epochs=150,
                batch=16,
                learning_rate=1e-3,
                schedule="cosine",
                milestones=(),
                warmup_steps=100,
                clip_norm=5.0,
                ema=0.995,
                drop_path=0.0,
                augmentation=Augmentation(zoom=(0.6, 1.6), zoom_chance=0.8, light=0.25),
                evaluate_every=5,
            )
        case "1x":
            still = Augmentation(zoom_chance=0, shift_px=32, light=0)
            return Recipe(epochs=12, milestones=(8, 11), augmentation=still)
        case "3x":
            return Recipe(augmentation=Augmentation(zoom=(0.6, 2.0), zoom_chance=1, light=0))


def precision_on(device: torch.device, wanted: Literal["auto"] | Precision) -> Precision:
    """Return the precision that is meant on a device; where bf16 would be emulated, fp32 is faster."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return cpu_precision()


def cpu_precision() -> Literal["fp32", "bf16"]:
    """Return the fastest precision of this processor; a PyTorch that does not say computes in fp32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
