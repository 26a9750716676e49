"""How networks are trained: the paper's two schedules, Swin's for the backbone, and two for small data."""

from typing import Literal, Self

import torch
from pydantic import Field

from nas.values import Value
from supernet.augment import Augmentation
from supernet.image_augment import ImageAugmentation

Precision = Literal["fp32", "bf16", "fp16"]
RecipeName = Literal["small", "1x", "3x"]
PretrainRecipeName = Literal["small", "swin"]


class RunRecipe(Value):
    """What every training of a detector or a backbone decides.

    Attributes:
        epochs: passes over the training images.
        batch: images behind one optimiser step, over all processes and micro-batches.
        micro_batch: most images that one process runs at once, their gradients being added up: its share is cut evenly
            into as few parts as that takes; None for the whole share.
        learning_rate: peak rate of AdamW.
        weight_decay: of convolutions and Linears; norms, biases and position tables have none.
        betas: of AdamW.
        schedule: after the warm-up; `steps` falls to a tenth at each milestone, `cosine` to 0.
        milestones: epochs after which `steps` falls; parts of an epoch count.
        warmup_steps: optimiser steps in which the rate climbs linearly; at most half of the run, whatever stands here.
        warmup_epochs: the same in epochs; the longer of both counts.
        clip_norm: largest norm of the gradient; None for no limit.
        ema: decay of the averaged weights, which are the ones that are evaluated and kept; 0 keeps the trained ones.
        drop_path: chance that the residual branches of the last block are left out for an image; in earlier blocks it
            is linearly less.
        precision: of convolutions and matrix products; `auto` is 16 bits where the processor computes in them.
        frozen_norm: BatchNorm uses its running statistics and leaves them as they are.
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
    milestones: tuple[float, ...] = (27.0, 33.0)
    warmup_steps: int = Field(500, ge=0)
    warmup_epochs: int = Field(0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    ema: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.2, ge=0, lt=1)
    precision: Literal["auto"] | Precision = "auto"
    frozen_norm: bool = False
    evaluate_every: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)

    def epoch_steps(self, images: int) -> int:
        """Return the optimiser steps of an epoch: whole batches, and at least one, which then repeats images."""
        return max(1, images // self.batch)

    def lasting(self, epochs: int) -> Self:
        """Return the recipe for a run of so many epochs, in which the rate falls after the same shares of it."""
        milestones = tuple(milestone * epochs / self.epochs for milestone in self.milestones)
        return self.model_copy(update={"epochs": epochs, "milestones": milestones})

    def milestone_steps(self, epoch_steps: int) -> list[int]:
        """Return the optimiser steps before which `steps` falls, where an epoch has so many steps."""
        return [round(milestone * epoch_steps) for milestone in self.milestones]

    def warmup(self, epoch_steps: int) -> int:
        """Return the steps in which the rate climbs, where an epoch has so many steps: at most half of the run."""
        return min(self.wanted_warmup(epoch_steps), self.epochs * epoch_steps // 2)

    def wanted_warmup(self, epoch_steps: int) -> int:
        """Return the steps in which the rate would climb in a run that is long enough."""
        return max(self.warmup_steps, self.warmup_epochs * epoch_steps)


class Recipe(RunRecipe):
    """How a detector is trained (specification section 5).

    Attributes:
        augmentation: random changes of the training images.
    """

    augmentation: Augmentation = Augmentation()


class PretrainRecipe(RunRecipe):
    """How a backbone is trained to tell images apart; the defaults are Swin's for ImageNet-1k, without its RandAug.

    Attributes:
        smoothing: share of each label that is spread evenly over all classes.
        augmentation: random changes of the training images.
    """

    epochs: int = Field(300, ge=1)
    batch: int = Field(1024, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["steps", "cosine"] = "cosine"
    milestones: tuple[float, ...] = ()
    warmup_steps: int = Field(0, ge=0)
    warmup_epochs: int = Field(20, ge=0)
    clip_norm: float | None = Field(5.0, gt=0)
    smoothing: float = Field(0.1, ge=0, lt=1)
    augmentation: ImageAugmentation = ImageAugmentation()


def named_recipe(name: RecipeName) -> Recipe:
    """Return a recipe: `1x` and `3x` are the paper's, for large data and a pretrained backbone.

    The network's input has one size, to which every image is stretched, so what DFFT's recipe does with sizes is done
    inside it. `1x`: mirror, and half of the images shifted by at most 32 px. `3x`: DFFT scales half of the images to a
    short side of 480 to 800 where 800 is the size of the test, which makes objects 0.6 to 1.0 times as large; of the
    others, scaled to 400 to 600, it crops 384 to 600 px and scales these to 480 to 800: 0.6 to 1.56 times as large.
    Here every image is magnified by 0.6 to 1.6, evenly drawn, at a random place, with grey beside it where it shrinks:
    the same range, but objects are enlarged more often. Both average the weights (0.9998), which the paper does not.
    """
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
            return Recipe(epochs=12, milestones=(8.0, 11.0), ema=0.9998, augmentation=still)
        case "3x":
            return Recipe(ema=0.9998, augmentation=Augmentation(zoom=(0.6, 1.6), zoom_chance=1, light=0))


def named_pretrain_recipe(name: PretrainRecipeName) -> PretrainRecipe:
    """Return a recipe: `swin` is Swin's for ImageNet-1k, `small` is for some thousand images."""
    match name:
        case "small":
            gentle = ImageAugmentation(area=(0.35, 1.0), light=0.25, mixup=0, cutmix=0, erasing=0.1)
            return PretrainRecipe(
                epochs=60, batch=64, warmup_epochs=3, ema=0.99, drop_path=0.0, augmentation=gentle, evaluate_every=5
            )
        case "swin":
            return PretrainRecipe()


def precision_on(device: torch.device, wanted: Literal["auto"] | Precision) -> Precision:
    """Return the precision that is meant on a device; where bf16 would be emulated, fp32 is faster."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return cpu_precision()


def cpu_precision() -> Literal["fp32", "bf16"]:
    """Return the fastest precision of this processor; a PyTorch that does not say computes in fp32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
