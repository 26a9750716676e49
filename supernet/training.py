"""Train a supernet once: weights and importance together (paper section 4.3 step 1, eq. 8).

Each step lowers the loss of the Gumbel-softmax mixture and, on the same images, that of one thinned subnet on slices of
the same weights, so that narrower answers keep their accuracy. Whatever a step draws depends on seed and step alone:
a run that is interrupted goes on with the same numbers.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nas.importance import Importance, Provenance
from nas.space import SearchSpace
from nas.values import Value
from supernet.augment import augment
from supernet.batch_norm import reestimate_batch_norm
from supernet.checkpoint import WEIGHTS, Checkpoint, read_checkpoint, weight_tensors, write_checkpoint
from supernet.dataset import CocoDataset
from supernet.errors import CheckpointMismatch, TrainingDiverged
from supernet.evaluation import evaluate_module, images_to_floats
from supernet.importance import read_importance
from supernet.losses import Target, detection_losses
from supernet.sandwich import Sandwich, sample_config
from supernet.supernet import Gates, Noise, Supernet

UNFINISHED = "unfinished.safetensors"
FINISHED = "supernet.safetensors"
OPTIMISER = "optimiser."

Rng = np.random.Generator


class TrainSettings(Value):
    """How a supernet is trained; the defaults suit `heatdetr-nano` on a CPU.

    Attributes:
        steps: optimiser steps.
        batch: images a step.
        seed: decides initialisation, order, augmentation and noise.
        noise: added to the logits, see `Supernet.sample_gates`.
        learning_rate: of the weights (AdamW), after warm-up; falls along a cosine.
        importance_rate: of the logits r (Adam, no decay).
        weight_decay: of weights with two axes or more; none on biases, BatchNorm and position tables.
        temperatures: of the gates at the first and the last step, exponentially between.
        warm_up: share of the steps over which the learning rate rises.
        frozen: share of the steps before r may move.
        clip: largest gradient norm of the weights.
        save_every: steps between two checkpoints of the unfinished run.
    """

    steps: int = Field(600, ge=1)
    batch: int = Field(8, ge=1)
    seed: int = Field(0, ge=0)
    noise: Noise = "gumbel"
    learning_rate: float = Field(3e-3, gt=0)
    importance_rate: float = Field(1e-2, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    temperatures: tuple[float, float] = (5.0, 0.5)
    warm_up: float = Field(0.05, ge=0, lt=1)
    frozen: float = Field(0.15, ge=0, lt=1)
    clip: float = Field(5.0, gt=0)
    save_every: int = Field(50, ge=1)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        rising = min(1.0, (step + 1) / max(1, round(self.warm_up * self.steps)))
        return self.learning_rate * rising * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))

    def temperature_at(self, step: int) -> float:
        """Return the temperature of the gates at a step (0-based)."""
        first, last = self.temperatures
        return first * math.exp(math.log(last / first) * step / self.steps)


class Progress(NamedTuple):
    """How far a training is; `loss` is the mean of both losses over the last steps."""

    step: int
    total: int
    loss: float
    seconds_left: float | None


class Metrics(Value):
    """What a training reports: AP on the held-out split, of the mixture with gates softmax(r)."""

    ap50: float | None
    ap: float | None
    ap50_untrained: float | None
    steps: int
    seconds: float
    loss: float
    data_sha256: str


class TrainedSupernet(NamedTuple):
    """A finished training: its checkpoint, what it says about each choice, and how good it is."""

    checkpoint: Path
    importance: Importance
    metrics: Metrics


def train_supernet(
    space: SearchSpace,
    data: Path,
    out: Path,
    *,
    settings: TrainSettings,
    progress: Callable[[Progress], None] | None = None,
    resume: bool = True,
) -> TrainedSupernet:
    """Train on `data/train`, score on `data/val`, and leave checkpoint and importance in `out`.

    Raises:
        BadDataset: the data set cannot be used.
        CheckpointMismatch: `out` holds an unfinished run with other settings, data or space.
        TrainingDiverged: the loss is no longer finite.
    """
    image = space.images[-1]
    run = _Run(space, CocoDataset(data, "train", image=image), settings)
    held_out = CocoDataset(data, "val", image=image)
    unfinished = out / UNFINISHED
    if resume and unfinished.exists():
        run.restore(read_checkpoint(unfinished), unfinished)
    else:
        run.ap50_untrained = _evaluate(run.supernet, run.data, held_out)[0]
        run.save(unfinished)
    run.train(unfinished, progress or (lambda _: None))
    ap50, ap = _evaluate(run.supernet, run.data, held_out)
    checkpoint = out / FINISHED
    notes = {"space": space.model_dump(mode="json"), "image": list(image), "settings": settings.model_dump(mode="json")}
    write_checkpoint(checkpoint, weight_tensors(run.supernet), notes)
    metrics = Metrics(
        ap50=ap50, ap=ap, ap50_untrained=run.ap50_untrained, steps=settings.steps, seconds=run.seconds,
        loss=run.loss, data_sha256=run.data.content_sha256,
    )  # fmt: skip
    return TrainedSupernet(checkpoint, read_importance(run.supernet, _provenance(run, checkpoint)), metrics)


def probable_gates(supernet: Supernet) -> Gates:
    """Return softmax(r) for each mixture, without noise."""
    return {name: torch.softmax(supernet.logits_of(name).detach(), dim=0) for name in supernet.choices}


class _Run:
    """A training between its first and its last step."""

    def __init__(self, space: SearchSpace, data: CocoDataset, settings: TrainSettings) -> None:
        self.space, self.data, self.settings = space, data, settings
        torch.manual_seed(settings.seed)
        self.supernet = Supernet(space, data.image)
        self.sandwich = Sandwich(self.supernet)
        self.anchors = self.supernet.head.anchors
        self.weights = torch.optim.AdamW(_decay_groups(self.supernet, settings), lr=settings.learning_rate)
        self.logits = torch.optim.Adam(self.supernet.architecture_parameters(), lr=settings.importance_rate)
        self.step = 0
        self.seconds = 0.0
        self.loss = math.nan
        self.ap50_untrained: float | None = None

    def train(self, unfinished: Path, progress: Callable[[Progress], None]) -> None:
        """Take the steps that are left."""
        self.supernet.train()
        started, before, first = time.perf_counter(), self.seconds, self.step
        while self.step < self.settings.steps:
            loss = self.take_step()
            self.loss = loss if math.isnan(self.loss) else 0.9 * self.loss + 0.1 * loss
            self.seconds = before + time.perf_counter() - started
            each = (time.perf_counter() - started) / (self.step - first)
            progress(Progress(self.step, self.settings.steps, self.loss, each * (self.settings.steps - self.step)))
            if self.step % self.settings.save_every == 0:
                # Channels are ranked anew where a run may be taken up, so that both go on alike.
                self.sandwich.rank()
                self.save(unfinished)

    def take_step(self) -> float:
        """Lower both losses once; return their mean."""
        settings, step = self.settings, self.step
        rng = np.random.default_rng([settings.seed, step])
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        images, targets = self.draw(rng)
        for group in self.weights.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        self.weights.zero_grad()
        self.logits.zero_grad()
        gates = self.supernet.sample_gates(settings.temperature_at(step), noise, settings.noise)
        mixture = detection_losses(self.supernet(images, gates), self.anchors, targets).total
        mixture.backward()  # type: ignore[no-untyped-call]
        config = sample_config(self.supernet, rng)
        thinned = self.sandwich.predict(config.widths, images, self.supernet.one_hot_gates(config))
        narrow = detection_losses(thinned, self.anchors, targets).total
        narrow.backward()  # type: ignore[no-untyped-call]
        loss = (mixture.item() + narrow.item()) / 2
        if not math.isfinite(loss):
            raise TrainingDiverged(step=step, loss=loss)
        nn.utils.clip_grad_norm_(self.supernet.weight_parameters(), settings.clip)
        self.weights.step()
        if step >= settings.frozen * settings.steps:
            self.logits.step()
        self.step += 1
        return loss

    def draw(self, rng: Rng) -> tuple[Tensor, list[Target]]:
        """Draw and augment a batch: images (B, 3, H, W) and what is on them."""
        chosen = rng.choice(len(self.data), size=self.settings.batch, replace=len(self.data) < self.settings.batch)
        samples = [augment(self.data[int(index)], rng) for index in chosen]
        images = torch.from_numpy(images_to_floats(np.stack([sample.pixels for sample in samples])))
        return images, [Target(torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in samples]

    def save(self, path: Path) -> None:
        """Write everything the run needs to go on."""
        tensors = weight_tensors(self.supernet) | _optimiser_tensors((self.weights, self.logits))
        notes = {
            **self.identity(),
            "step": self.step,
            "seconds": self.seconds,
            "loss": None if math.isnan(self.loss) else self.loss,
            "ap50_untrained": self.ap50_untrained,
        }
        write_checkpoint(path, tensors, notes)

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Go on where an unfinished run of the same identity was.

        Raises:
            CheckpointMismatch: it is another run.
        """
        differences = [name for name, value in self.identity().items() if checkpoint.notes.get(name) != value]
        if differences:
            raise CheckpointMismatch(path, differences)
        own = {n.removeprefix(WEIGHTS): t for n, t in checkpoint.tensors.items() if n.startswith(WEIGHTS)}
        self.supernet.load_state_dict(own)
        _restore_optimisers((self.weights, self.logits), checkpoint.tensors)
        notes = checkpoint.notes
        self.step, self.seconds = notes["step"], notes["seconds"]
        self.loss = math.nan if notes["loss"] is None else notes["loss"]
        self.ap50_untrained = notes["ap50_untrained"]

    def identity(self) -> dict[str, Any]:
        """Say what must agree for one run to go on from another's checkpoint."""
        return {
            "space": self.space.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "data_sha256": self.data.content_sha256,
        }


def _evaluate(supernet: Supernet, data: CocoDataset, held_out: CocoDataset) -> tuple[float | None, float | None]:
    """Return AP50 and AP of the mixture with gates softmax(r), BatchNorm statistics estimated for just these gates."""
    gates = probable_gates(supernet)
    reestimate_batch_norm(supernet, data, forward=lambda images: supernet(images, gates))
    found = evaluate_module(lambda images: supernet(images, gates), supernet.head.anchors, held_out)
    return found.ap50, found.ap


def _decay_groups(supernet: Supernet, settings: TrainSettings) -> list[dict[str, Any]]:
    """Split the weights into those that decay and those that do not (spec section 5)."""
    named = list(supernet.blocks.named_parameters())
    decays = [p for name, p in named if p.ndim > 1 and not name.endswith(("bias", "table", "temperature"))]
    others = {id(parameter) for parameter in decays}
    rest = [p for _, p in named if id(p) not in others]
    return [{"params": decays, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _optimiser_tensors(optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{OPTIMISER}{number}.{index}.{name}": value
        for number, optimiser in enumerate(optimisers)
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def _restore_optimisers(optimisers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    for number, optimiser in enumerate(optimisers):
        content = optimiser.state_dict()
        for key, value in tensors.items():
            parts = key.removeprefix(OPTIMISER).split(".")
            if key.startswith(OPTIMISER) and int(parts[0]) == number:
                content["state"].setdefault(int(parts[1]), {})[parts[2]] = value
        optimiser.load_state_dict(content)


def _provenance(run: _Run, checkpoint: Path) -> Provenance:
    return Provenance(
        data=f"{run.data.folder.name}:{run.data.content_sha256}",
        seed=run.settings.seed,
        steps=run.settings.steps,
        noise=run.settings.noise,
        version=version("heatnas"),
        checkpoint_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    )
