"""One optimiser step over micro-batches and processes: gradients, learning rate, averaged weights, 16 bits."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from supernet.checkpoint import named_tensors, optimiser_tensors, restore_optimiser, tensors_below
from supernet.errors import TrainingDiverged
from supernet.optimisers import cosine_share, make_adamw, stepped_share
from supernet.processes import Processes
from supernet.recipe import RunRecipe, precision_on

_AVERAGE, _OPTIMISER = "average.", "optimiser."
_SCALE, _SCALE_AGE = "loss_scale", "loss_scale_age"

_Tensors = tuple[Tensor, ...] | list[Tensor]

_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Movable(Protocol):
    """What goes through a network at once: images (B, 3, H, W), and what is to be found in them."""

    @property
    def images(self) -> Tensor:
        """RGB in [0, 1]."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return it on a device."""
        ...


B = TypeVar("B", bound=Movable)


class Loss(NamedTuple):
    """What a batch is to lower.

    Attributes:
        parts: scalars, summed over the batch; the loss is their sum over `divisor`.
        divisor: what the mean is over, such as images or positive anchors.
    """

    parts: tuple[Tensor, ...]
    divisor: int


class Step(NamedTuple):
    """What came of a step, over all processes.

    Attributes:
        parts: of the loss, summed.
        divisor: what their mean is over.
    """

    parts: tuple[float, ...]
    divisor: float

    @property
    def loss(self) -> float:
        """Mean loss."""
        return sum(self.parts) / max(self.divisor, 1)


class Stepper(Generic[B]):
    """A network with what moves it.

    Attributes:
        module: the network, on the device of this process.
        total: optimiser steps of the whole run.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_of: Callable[[Any, B], Loss],
        recipe: RunRecipe,
        *,
        prefix: str,
        epoch_steps: int,
        processes: Processes,
    ) -> None:
        """Prepare to move a network.

        Args:
            module: the network, not yet moved.
            loss_of: judges its output on a batch.
            recipe: how it is moved.
            prefix: of the names of its tensors in a state.
            epoch_steps: optimiser steps in an epoch.
            processes: which of several processes this is.
        """
        if processes.size > 1 and processes.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        self.module = module.to(processes.device)
        self.total = recipe.epochs * epoch_steps
        self._prefix = prefix
        self._loss_of, self._recipe, self._epoch_steps, self._processes = loss_of, recipe, epoch_steps, processes
        self._parallel: nn.Module = DistributedDataParallel(self.module) if processes.size > 1 else self.module
        self._average = averaged(self.module, recipe.ema) if recipe.ema else None
        self._optimiser = make_adamw(
            self.module, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=recipe.betas
        )
        self._precision = precision_on(processes.device, recipe.precision)
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=self._precision == "fp16")

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept: the averaged one, if there is one."""
        return self.module if self._average is None else self._average.module

    def set_training(self) -> None:
        """Put the network into training mode; BatchNorm too, unless it is frozen."""
        self.module.train()
        if self._recipe.frozen_norm:
            for layer in self.module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def take(self, step: int, batches: Sequence[B]) -> Step:
        """Take the optimiser step of this number (from 0) on the micro-batches of this process.

        Raises:
            TrainingDiverged: the loss is no longer finite.
        """
        torch.manual_seed(_seed(self._recipe.seed, step, self._processes.rank))  # of the dropped paths
        self._optimiser.zero_grad()
        sums: list[float] = []
        divisor = 0
        for number, given in enumerate(batches, start=1):
            batch = given.to(self._processes.device)
            with self._gathering(is_last=number == len(batches)):
                loss = self._loss_of(self._predict(batch.images), batch)
                self._scaler.scale(torch.stack(loss.parts).sum()).backward()  # type: ignore[no-untyped-call]
            parts = torch.stack(loss.parts).tolist()
            sums = [one + other for one, other in zip(sums, parts, strict=True)] if sums else parts
            divisor += loss.divisor
        *shared, whole = self._processes.total(*sums, divisor)
        if not math.isfinite(sum(shared)):
            raise TrainingDiverged(step=step, loss=sum(shared))
        self._move(step, whole)
        return Step(tuple(shared), whole)

    def rate(self, step: int) -> float:
        """Return the learning rate of the step of this number."""
        recipe, warmup = self._recipe, self._recipe.warmup(self._epoch_steps)
        if recipe.schedule == "cosine":
            return recipe.learning_rate * cosine_share(step, self.total, warmup=warmup)
        milestones = recipe.milestone_steps(self._epoch_steps)
        return recipe.learning_rate * stepped_share(step, milestones=milestones, warmup=warmup)

    def state(self) -> dict[str, Tensor]:
        """Return what it takes to go on: weights, their average, the optimiser's moments, the scale of the loss."""
        state = named_tensors(self._prefix, self.module)
        if self._average is not None:
            state |= named_tensors(_AVERAGE, self._average)
        state |= optimiser_tensors(_OPTIMISER, self._optimiser)
        if self._scaler.is_enabled():
            found = self._scaler.state_dict()
            state |= {_SCALE: torch.tensor(found["scale"]), _SCALE_AGE: torch.tensor(found["_growth_tracker"])}
        return state

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from where `state` was asked for."""
        self.module.load_state_dict(tensors_below(self._prefix, tensors))
        if self._average is not None:
            self._average.load_state_dict(tensors_below(_AVERAGE, tensors))
        restore_optimiser(_OPTIMISER, self._optimiser, tensors)
        if self._scaler.is_enabled():
            scale, age = tensors[_SCALE].item(), int(tensors[_SCALE_AGE].item())
            self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": age})

    def _predict(self, images: Tensor) -> Any:  # noqa: ANN401 - whatever the network gives
        half = self._precision != "fp32"
        with torch.autocast(images.device.type, getattr(torch, _TORCH_NAMES[self._precision]), enabled=half):
            return self._parallel(images)

    def _move(self, step: int, divisor: float) -> None:
        """Turn the gradients of the sums into those of the mean, and step."""
        self._scaler.unscale_(self._optimiser)
        # Of several processes' gradients, DistributedDataParallel takes the mean.
        share = self._processes.size / max(divisor, 1)
        weights = [weight for weight in self.module.parameters() if weight.grad is not None]
        for weight in weights:
            weight.grad.mul_(share)  # type: ignore[union-attr]
        if self._recipe.clip_norm is not None:
            clip_grad_norm_(weights, self._recipe.clip_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate(step)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self.module)

    def _gathering(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Have the processes add up their gradients with the last micro-batch alone."""
        if isinstance(self._parallel, DistributedDataParallel) and not is_last:
            return self._parallel.no_sync()
        return contextlib.nullcontext()


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """Return averaged weights and statistics, which follow by 1 - decay in the end.

    They follow faster at first, so that they forget the start; what is counted is copied.
    """

    # All tensors of a type at once: a call for each would have a GPU wait for the counter as often.
    @torch.no_grad()
    def follow(averages: _Tensors, latest: _Tensors, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, latest, 1 - min(decay, (1 + int(count)) / (10 + int(count))))
        else:
            torch._foreach_copy_(averages, latest)

    return AveragedModel(module, multi_avg_fn=follow, use_buffers=True)


def _seed(*parts: int) -> int:
    """Mix numbers into one seed."""
    return int(np.random.SeedSequence((*parts, 3)).generate_state(1)[0])
