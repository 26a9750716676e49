"""Train one detector on a data set in COCO format (paper section 9.2, specification section 5).

Everything random in a step comes from (seed, epoch, image) or (seed, step): a run that was killed and goes on after its
last finished epoch ends with the same weights, bit by bit on the same CPU with the same number of threads.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from nas.config import Config
from nas.space import SearchSpace
from supernet.checkpoint import (
    DETECTOR,
    DetectorHeader,
    detector_tensors,
    load_checkpoint,
    save_checkpoint,
)
from supernet.curves import Curves, Row
from supernet.dataset import CocoDataset
from supernet.detector import HeatDETR
from supernet.errors import CheckpointMismatch, TrainingDiverged
from supernet.evaluation import Evaluation, evaluate_module
from supernet.faults import counted
from supernet.layers.drop_path import set_drop_path
from supernet.layers.head import RawPrediction
from supernet.loading import Batch, Loader
from supernet.losses import detection_losses
from supernet.optimisers import cosine_share, make_adamw, stepped_share
from supernet.processes import ALONE, Processes
from supernet.recipe import Recipe, precision_on

BEST, LAST, RUN = "best.safetensors", "last.safetensors", "run.safetensors"
"""Names in the folder of a run: two detectors, and what an unfinished run needs to go on."""

_AVERAGE, _OPTIMISER, _SCALE, _BEST_AP = "average.", "optimiser.", "loss_scale", "best_ap"


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        epoch: the epoch under way, from 1.
        epochs: in all.
        step: optimiser steps done.
        total: optimiser steps in all.
        loss: of the last step.
        seconds_left: at the pace of this process so far; None before it is known.
    """

    epoch: int
    epochs: int
    step: int
    total: int
    loss: float
    seconds_left: float | None


class TrainedDetector(NamedTuple):
    """What a training leaves in its folder.

    Attributes:
        best: file of the weights with the highest AP on the held-out split.
        last: file of the weights after the last epoch.
        rows: what was seen in each epoch.
    """

    best: Path
    last: Path
    rows: tuple[Row, ...]


class Splits(NamedTuple):
    """What a detector is trained on, and judged on.

    Attributes:
        name: of the data set.
        train: samples at any size.
        held_out: samples at the size of the network.
    """

    name: str
    train: CocoDataset
    held_out: CocoDataset


def train_detector(
    space: SearchSpace,
    config: Config,
    data: Splits,
    out: Path,
    *,
    recipe: Recipe,
    start: Callable[[HeatDETR], None] = lambda _: None,
    workers: int = 0,
    processes: Processes = ALONE,
    progress: Callable[[Progress], None] = lambda _: None,
    on_epoch: Callable[[Row, Evaluation | None], None] = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainedDetector:
    """Train a detector; leave its best and last weights and the curves in `out`.

    A run that was interrupted there goes on after its last finished epoch, a finished one is read back.

    Args:
        space: of the config.
        config: what to train.
        data: what to train and judge it on.
        out: folder of the run.
        recipe: how.
        start: gives the fresh detector pretrained weights.
        workers: child processes that read and change samples.
        processes: which of several processes this is; only the first writes and tells.
        progress: told after each optimiser step.
        on_epoch: told after each epoch.
        clock: counts seconds.

    Raises:
        CheckpointMismatch: `out` holds a run with another config, recipe or data.
        TrainingDiverged: the loss is no longer finite.
    """
    run = _Run(space, config, data, out, recipe, start, workers, processes, clock)
    run.resume()
    while run.epoch < recipe.epochs:
        row, evaluation = run.train_epoch(progress)
        if processes.is_first:
            on_epoch(row, evaluation)
    return TrainedDetector(out / BEST, out / LAST, tuple(run.curves.rows))


class _Run:
    """One training: the detector, its optimiser, and where they are kept."""

    def __init__(
        self,
        space: SearchSpace,
        config: Config,
        data: Splits,
        out: Path,
        recipe: Recipe,
        start: Callable[[HeatDETR], None],
        workers: int,
        processes: Processes,
        clock: Callable[[], float],
    ) -> None:
        self.data, self.out, self.recipe, self.processes, self.clock = data, out, recipe, processes, clock
        out.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            detector = HeatDETR(space, config)
        start(detector)
        set_drop_path(detector.blocks.values(), recipe.drop_path)
        if processes.size > 1 and processes.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(detector)  # type: ignore[no-untyped-call]
        self.detector = detector.to(processes.device)
        self.parallel: nn.Module = DistributedDataParallel(self.detector) if processes.size > 1 else self.detector
        self.average = AveragedModel(self.detector, avg_fn=_ema(recipe.ema), use_buffers=True) if recipe.ema else None
        self.optimiser = make_adamw(
            self.detector, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=recipe.betas
        )
        self.precision = precision_on(processes.device, recipe.precision)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.precision == "fp16")
        self.loader = Loader(
            data.train,
            image=config.image,
            batch=recipe.batch,
            micro_batch=recipe.micro_batch,
            augmentation=recipe.augmentation,
            seed=recipe.seed,
            workers=workers,
            processes=processes,
        )
        self.epoch = self.step = 0
        self.total = recipe.epochs * self.loader.steps
        self.best_ap = -1.0
        self.curves = Curves(out)
        self.began = clock()
        self.first_step = 0
        self.header = DetectorHeader(
            space=space,
            config=config,
            classes=data.train.classes,
            category_ids=data.train.category_ids,
            recipe=recipe.model_dump(mode="json"),
            data=data.name,
            data_sha256=data.train.content_sha256,
            left_out=counted(data.train.left_out),
            version=version("heatnas"),
            epoch=0,
            step=0,
        )

    def train_epoch(self, progress: Callable[[Progress], None]) -> tuple[Row, Evaluation | None]:
        """Take the steps of one epoch, look at the held-out split when it is time, and keep everything."""
        started, waited = self.clock(), 0.0
        sums = [0.0, 0.0, 0.0]
        self._set_training()
        steps = self.loader.epoch(self.epoch)
        for _ in range(self.loader.steps):
            asked = self.clock()
            batches = next(steps)
            waited += self.clock() - asked
            focal, giou, positives = self._take_step(batches)
            sums = [total + value for total, value in zip(sums, (focal, giou, positives), strict=True)]
            self.step += 1
            if self.processes.is_first:
                progress(self._progress((focal + giou) / max(positives, 1)))
        self.epoch += 1
        judged = self.clock()
        evaluation = self._evaluate() if self._is_due() and self.processes.is_first else None
        now, divisor = self.clock(), max(sums[2], 1)
        row = Row(
            epoch=self.epoch,
            step=self.step,
            learning_rate=self._rate(self.step - 1),
            loss=(sums[0] + sums[1]) / divisor,
            focal=sums[0] / divisor,
            giou=sums[1] / divisor,
            seconds=now - started,
            data_seconds=waited,
            evaluation_seconds=now - judged,
            ap=None if evaluation is None else evaluation.ap,
            ap50=None if evaluation is None else evaluation.ap50,
            ap75=None if evaluation is None else evaluation.ap75,
        )
        if self.processes.is_first:
            self._keep(row, evaluation)
        self.processes.wait()
        return row, evaluation

    def _take_step(self, batches: Sequence[Batch]) -> tuple[float, float, float]:
        """Take one optimiser step; return both losses, summed over all processes, and the anchors they count."""
        torch.manual_seed(_seed(self.recipe.seed, self.step, self.processes.rank))  # of the dropped paths
        self.optimiser.zero_grad()
        focal, giou, positives = 0.0, 0.0, 0
        for number, given in enumerate(batches, start=1):
            batch = given.to(self.processes.device)
            with self._gathering(is_last=number == len(batches)):
                losses = detection_losses(*self._predict(batch.images), batch.targets)
                self.scaler.scale(losses.focal_sum + losses.giou_sum).backward()  # type: ignore[no-untyped-call]
            focal, giou = focal + losses.focal_sum.item(), giou + losses.giou_sum.item()
            positives += losses.positives
        focal, giou, count = self.processes.total(focal, giou, positives)
        if not math.isfinite(focal + giou):
            raise TrainingDiverged(step=self.step, loss=focal + giou)
        self._move(count)
        return focal, giou, count

    def _predict(self, images: Tensor) -> tuple[RawPrediction, Tensor]:
        half = self.precision != "fp32"
        with torch.autocast(images.device.type, getattr(torch, _TORCH_NAMES[self.precision]), enabled=half):
            prediction = self.parallel(images)
        return RawPrediction(*(part.float() for part in prediction)), self.detector.head.anchors

    def _move(self, positives: float) -> None:
        """Turn the gradients of the sums into those of the mean over all positives, and step."""
        self.scaler.unscale_(self.optimiser)
        # Of several processes' gradients, DistributedDataParallel takes the mean.
        share = self.processes.size / max(positives, 1)
        weights = [weight for weight in self.detector.parameters() if weight.grad is not None]
        for weight in weights:
            weight.grad.mul_(share)  # type: ignore[union-attr]
        if self.recipe.clip_norm is not None:
            clip_grad_norm_(weights, self.recipe.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(self.step)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.detector)

    def _gathering(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Have the processes add up their gradients with the last micro-batch alone."""
        if isinstance(self.parallel, DistributedDataParallel) and not is_last:
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    def _rate(self, step: int) -> float:
        recipe = self.recipe
        warmup = min(recipe.warmup_steps, self.total // 2)
        if recipe.schedule == "cosine":
            return recipe.learning_rate * cosine_share(step, self.total, warmup=warmup)
        milestones = [epoch * self.loader.steps for epoch in recipe.milestones]
        return recipe.learning_rate * stepped_share(step, milestones=milestones, warmup=warmup)

    def _set_training(self) -> None:
        self.detector.train()
        if self.recipe.frozen_norm:
            for layer in self.detector.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def _progress(self, loss: float) -> Progress:
        done = self.step - self.first_step
        left = (self.clock() - self.began) / done * (self.total - self.step) if done > 1 else None
        return Progress(self.epoch + 1, self.recipe.epochs, self.step, self.total, loss, left)

    def _is_due(self) -> bool:
        return self.epoch % self.recipe.evaluate_every == 0 or self.epoch == self.recipe.epochs

    @property
    def judged(self) -> HeatDETR:
        """The detector that is evaluated and kept: the averaged one, if there is one."""
        if self.average is None:
            return self.detector
        return cast("HeatDETR", self.average.module)

    def _evaluate(self) -> Evaluation:
        judged = self.judged.eval()
        return evaluate_module(judged, judged.head.anchors, self.data.held_out)

    def _keep(self, row: Row, evaluation: Evaluation | None) -> None:
        """Write the weights and the curves; what takes up the run comes last."""
        metrics = None if evaluation is None else evaluation.model_dump(mode="json")
        header = self.header.model_copy(update={"epoch": self.epoch, "step": self.step, "metrics": metrics})
        tensors = detector_tensors(self.judged)
        save_checkpoint(self.out / LAST, tensors, header)
        if evaluation is not None and (evaluation.ap or 0.0) > self.best_ap:
            self.best_ap = evaluation.ap or 0.0
            save_checkpoint(self.out / BEST, tensors, header)
        self.curves.add(row)
        save_checkpoint(self.out / RUN, self._state(), header)

    def _state(self) -> dict[str, Tensor]:
        """Return what it takes to go on: weights, their average, the optimiser's moments."""
        state = detector_tensors(self.detector)
        if self.average is not None:
            state |= {_AVERAGE + name: tensor for name, tensor in self.average.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            state |= {f"{_OPTIMISER}{number}.{name}": tensor for name, tensor in moments.items()}
        if self.scaler.is_enabled():
            state[_SCALE] = torch.tensor(self.scaler.get_scale())
        state[_BEST_AP] = torch.tensor(self.best_ap, dtype=torch.float64)
        return state

    def resume(self) -> None:
        """Go on after the last finished epoch, if there is one."""
        if not (self.out / RUN).exists():
            return
        tensors, header = load_checkpoint(self.out / RUN, DetectorHeader)
        self._check(header)
        self.detector.load_state_dict(_below(DETECTOR, tensors))
        if self.average is not None:
            self.average.load_state_dict(_below(_AVERAGE, tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(_OPTIMISER, tensors).items():
            number, _, kind = name.partition(".")
            state.setdefault(int(number), {})[kind] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": tensors[_SCALE].item()})
        self.best_ap = tensors[_BEST_AP].item()
        self.epoch, self.step, self.first_step = header.epoch, header.step, header.step
        self.curves = Curves(self.out, epochs=header.epoch)

    def _check(self, found: DetectorHeader) -> None:
        differences = [
            f"{name} ({getattr(found, name)}, now {getattr(self.header, name)})"
            for name in ("data_sha256", "classes")
            if getattr(found, name) != getattr(self.header, name)
        ]
        differences += [
            f"{name} ({found.recipe.get(name)}, now {value})"
            for name, value in self.header.recipe.items()
            if found.recipe.get(name) != value
        ]
        if found.space != self.header.space or found.config != self.header.config:
            differences.append(f"config ({found.config.id}, now {self.header.config.id})")
        if differences:
            raise CheckpointMismatch(self.out / RUN, differences)


def _ema(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return how an averaged tensor follows: by 1 - decay in the end, faster at first, so that it forgets the start."""

    def follow(average: Tensor, latest: Tensor, count: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return latest
        return average.lerp(latest, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return follow


_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _seed(*parts: int) -> int:
    """Mix numbers into one seed."""
    return int(np.random.SeedSequence((*parts, 3)).generate_state(1)[0])
