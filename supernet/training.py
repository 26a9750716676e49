"""Train a supernet by eq. 8: first its weights, in the Gumbel mixture and in thinned subnets; then r, on those weights.

While the weights move, r learns which candidates learn fast and how the mixture happens to balance them: trained
together over three seeds of heatdetr-nano, r differed from uniform by 0.93 times its own spread. Before r moves all
candidates are drawn alike, so that none looks important for having been trained more (FairNAS, section 3). Sparse
attention leaves out more and more tokens while the weights move, and is judged by r as it will be deployed.
"""

import math
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from nas.config import Config
from nas.importance import Importance, Provenance
from nas.space import SearchSpace
from nas.thinning import best_path
from nas.values import Value
from supernet.augment import augment
from supernet.batch_norm import reestimate_batch_norm
from supernet.checkpoint import (
    Header,
    load_checkpoint,
    load_supernet,
    optimiser_tensors,
    restore_optimiser,
    restore_supernet,
    save_checkpoint,
    supernet_tensors,
)
from supernet.dataset import CocoDataset
from supernet.errors import CheckpointMismatch, TrainingDiverged
from supernet.evaluation import evaluate_module, images_to_floats
from supernet.extraction import extract
from supernet.files import file_sha256
from supernet.importance import read_importance
from supernet.layers.global_attention import faded_sparsity
from supernet.layers.head import RawPrediction
from supernet.losses import Target, detection_losses
from supernet.mixture_scores import TrainMetrics, evaluate_mixture, reestimate_mixture, stride_ap50, stride_images
from supernet.optimisers import cosine_share, make_adamw
from supernet.recipe import cpu_precision
from supernet.sandwich import Sandwich, sample_config
from supernet.supernet import Supernet

Precision = Literal["fp32", "bf16"]

BETAS = (0.9, 0.99)
"""Of AdamW: a few hundred steps are too few for the usual 0.999."""


class TrainSettings(Value):
    """How a supernet is trained; the defaults are for `heatdetr-nano` on two cores.

    Attributes:
        steps: optimiser steps of the weights.
        batch: images a step.
        learning_rate: peak of the weights' rate (AdamW, cosine to 0 after the warm-up).
        weight_decay: of convolutions and Linears; norms, biases and position tables have none.
        warmup: share of the steps in which the rate climbs.
        clip_norm: largest norm of the weights' gradient.
        logits_share: steps of r after those of the weights, as a share of them, rounded up (over three seeds of
            heatdetr-nano r differed from uniform by 1.2 times its own spread after 112 steps, by 1.4 after 168).
        logits_learning_rate: length of a step of r, all of it together (normalised gradient descent, no decay).
        logits_temperature: tau while r moves; a low one makes the gates of an image nearly one-hot, so that r learns
            what a candidate does in a subnet (at 0.25 it repeats from seed to seed, at 0.5 and above it does not).
        temperatures: tau at the first and the last step of the weights, exponential between.
        noise: what is added to r: `gumbel`, or `uniform` as the paper prints it.
        mixture_every: each how many steps the weights are trained in the mixture; the others train one subnet with
            random widths and blocks, so that thinned subnets keep their accuracy. 1 trains the mixture alone.
        ranking_steps: steps between two rankings of the channels that narrow subnets keep, and earliest between two
            checkpoints.
        checkpoint_seconds: shortest time between two checkpoints.
        precision: of convolutions and matrix products in a step; `auto` is bf16 where the processor computes in it.
        seed: decides weights, data order, augmentation, noise and subnets.
    """

    steps: int = Field(default=320, ge=1)
    batch: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float = Field(default=5.0, gt=0)
    logits_share: float = Field(default=0.5, ge=0)
    logits_learning_rate: float = Field(default=5e-2, ge=0)
    logits_temperature: float = Field(default=0.25, gt=0)
    temperatures: tuple[float, float] = (5.0, 0.5)
    noise: Literal["gumbel", "uniform"] = "gumbel"
    mixture_every: int = Field(default=4, ge=1)
    ranking_steps: int = Field(default=25, ge=1)
    checkpoint_seconds: float = Field(default=20.0, ge=0)
    precision: Literal["auto"] | Precision = "auto"
    seed: int = Field(default=0, ge=0)

    @property
    def total_steps(self) -> int:
        """Steps of the weights and of r."""
        return self.steps + math.ceil(self.logits_share * self.steps)

    @property
    def computed_in(self) -> Precision:
        """What `precision` means on this machine; where bf16 would be emulated, fp32 is faster."""
        return cpu_precision() if self.precision == "auto" else self.precision


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        step: steps done.
        total: steps in all.
        loss: of the last step.
        seconds_left: of training, from this process's own pace; None before it is known.
    """

    step: int
    total: int
    loss: float
    seconds_left: float | None


class TrainedSupernet(NamedTuple):
    """What a training leaves.

    Attributes:
        checkpoint: path of the weights (`supernet.checkpoint.load_supernet`).
        sha256: hash of that file.
        importance: what r says, bound to the file by its hash.
        metrics: on the held-out split.
    """

    checkpoint: Path
    sha256: str
    importance: Importance
    metrics: TrainMetrics


def train_supernet(
    space: SearchSpace,
    data: Path,
    out: Path,
    *,
    settings: TrainSettings,
    progress: Callable[[Progress], None],
    resume: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> TrainedSupernet:
    """Train the supernet of a space on the `train` split of a COCO folder; leave `out/supernet.safetensors`.

    An interrupted training goes on from `out/training.safetensors` and ends with the same weights, bit by bit on the
    same CPU with the same number of threads; a finished one is read back.

    Raises:
        BadDataset: images or annotations cannot be trained on, or strides not be compared on them.
        CheckpointMismatch: `out` holds a run with other settings, space or data, and `resume` is on.
        TrainingDiverged: the loss is no longer finite.
    """
    train_split = CocoDataset(data, "train", image=space.images[-1])
    run = _Run(space, train_split, out, settings, name=data.name)
    if resume and run.finished.exists():
        return run.read_back()
    judged = stride_images(space, data)
    if resume and run.unfinished.exists():
        run.restore()
    losses = run.train(progress, clock)
    metrics = _measure(run, CocoDataset(data, "val", image=space.images[-1]), judged, losses)
    return run.finish(metrics)


class _Run:
    """One training: the supernet, its two optimisers and where they are kept."""

    def __init__(self, space: SearchSpace, data: CocoDataset, out: Path, settings: TrainSettings, *, name: str) -> None:
        self.data, self.settings, self.step = data, settings, 0
        self.header = Header(
            space=space,
            settings=settings.model_dump(mode="json"),
            data=name,
            data_sha256=data.content_sha256,
            step=0,
        )
        self.finished, self.unfinished = out / "supernet.safetensors", out / "training.safetensors"
        self.supernet = fresh_supernet(space, seed=settings.seed)
        self.computed_in = settings.computed_in
        self.sandwich = Sandwich(self.supernet)
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "weights": make_adamw(
                self.supernet.blocks,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                betas=BETAS,
            ),
            "logits": torch.optim.SGD(self.supernet.architecture_parameters(), lr=settings.logits_learning_rate),
        }

    def train(self, progress: Callable[[Progress], None], clock: Callable[[], float]) -> list[float]:
        """Take the steps that are left; return their losses."""
        total, first, started = self.settings.total_steps, self.step, clock()
        saved, losses = started, []
        self.supernet.train()
        while self.step < total:
            if self.step % self.settings.ranking_steps == 0:
                self.sandwich.rank()
                if self.step > first and clock() - saved >= self.settings.checkpoint_seconds:
                    self.save()
                    saved = clock()
            losses.append(self._take_step())
            done = self.step - first
            left = (clock() - started) / done * (total - self.step) if done > 1 else None
            progress(Progress(self.step, total, losses[-1], left))
        self.sandwich.set_sparsity(1.0)
        return losses

    def _take_step(self) -> float:
        # Everything random in a step comes from (seed, step): an interrupted run has no other state to restore.
        rng = np.random.default_rng((self.settings.seed, self.step))
        images, targets = _batch(self.data, self.settings, self.step, rng)
        settling = self.step >= self.settings.steps
        self.sandwich.set_sparsity(1.0 if settling else faded_sparsity(self.step / self.settings.steps))
        mixed = settling or self.step % self.settings.mixture_every == 0
        temperature = self.settings.logits_temperature if settling else self._temperature()
        subnet = None if mixed else self._subnet()
        stride = self._mixture_stride(settling=settling) if subnet is None else subnet.prediction_stride
        with torch.autocast("cpu", torch.bfloat16, enabled=self.computed_in == "bf16"):
            prediction = (
                self._run_mixture(images, temperature, rng, stride)
                if subnet is None
                else self.sandwich.predict(subnet.widths, images, self.supernet.one_hot_gates(subnet), stride)
            )
        whole = RawPrediction(*(part.float() for part in prediction))
        loss = detection_losses(whole, self.supernet.anchors(stride), targets).total
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingDiverged(step=self.step, loss=value)
        if settling:
            self._move_logits(loss)
        else:
            self._move_weights(loss)
        self.step += 1
        return value

    def _temperature(self) -> float:
        first, last = self.settings.temperatures
        return float(first * (last / first) ** (self.step / self.settings.steps))

    def _mixture_stride(self, *, settling: bool) -> int:
        """Return the stride of the prediction map of a step of the mixture: each in turn."""
        strides = self.supernet.space.prediction_strides
        turn = self.step if settling else self.step // self.settings.mixture_every
        return strides[turn % len(strides)]

    def _run_mixture(self, images: Tensor, temperature: float, rng: np.random.Generator, stride: int) -> RawPrediction:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        gates = self.supernet.sample_gates(temperature, generator, self.settings.noise, images=len(images))
        prediction: RawPrediction = self.supernet(images, gates, stride)
        return prediction

    def _subnet(self) -> Config:
        turn = self.step - 1 - self.step // self.settings.mixture_every  # subnet steps before this one
        return sample_config(self.supernet, turn, seed=self.settings.seed)

    def _move_weights(self, loss: Tensor) -> None:
        settings, optimiser = self.settings, self.optimisers["weights"]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.supernet.weight_parameters(), settings.clip_norm)
        warmup = max(1, round(settings.warmup * settings.steps))
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * cosine_share(self.step, settings.steps, warmup=warmup)
        optimiser.step()

    def _move_logits(self, loss: Tensor) -> None:
        logits, optimiser = list(self.supernet.architecture_parameters()), self.optimisers["logits"]
        optimiser.zero_grad()
        loss.backward(inputs=logits)  # type: ignore[no-untyped-call]
        # One scale for all of r: Adam would move a choice that hardly matters as far as one that does, and its
        # direction is chance.
        _normalise(logits)
        optimiser.step()

    def save(self) -> None:
        """Write what an interrupted training needs to go on."""
        tensors = supernet_tensors(self.supernet)
        for name, optimiser in self.optimisers.items():
            tensors |= optimiser_tensors(f"optimiser.{name}.", optimiser)
        save_checkpoint(self.unfinished, tensors, self.header.model_copy(update={"step": self.step}))

    def restore(self) -> None:
        """Go on where `save` was called."""
        tensors, header = load_checkpoint(self.unfinished, Header)
        self._check(self.unfinished, header)
        restore_supernet(self.supernet, tensors)
        for name, optimiser in self.optimisers.items():
            restore_optimiser(f"optimiser.{name}.", optimiser, tensors)
        self.step = header.step

    def finish(self, metrics: TrainMetrics) -> TrainedSupernet:
        """Write the trained supernet and drop what only an unfinished training needs."""
        update = {"step": self.step, "metrics": metrics.model_dump(mode="json")}
        sha256 = save_checkpoint(self.finished, supernet_tensors(self.supernet), self.header.model_copy(update=update))
        self.unfinished.unlink(missing_ok=True)
        return self._trained(self.supernet, sha256, metrics)

    def read_back(self) -> TrainedSupernet:
        """Return the result of a finished training from its file."""
        _, header = load_checkpoint(self.finished, Header)
        self._check(self.finished, header)
        sha256 = file_sha256(self.finished)
        return self._trained(load_supernet(self.finished), sha256, TrainMetrics.model_validate(header.metrics))

    def _trained(self, supernet: Supernet, sha256: str, metrics: TrainMetrics) -> TrainedSupernet:
        provenance = self.provenance(checkpoint_sha256=sha256)
        importance = read_importance(supernet, provenance, stride_ap50=metrics.stride_ap50)
        return TrainedSupernet(self.finished, sha256, importance, metrics)

    def provenance(self, *, checkpoint_sha256: str) -> Provenance:
        """Say where the importance of this run comes from."""
        return Provenance(
            data=f"{self.header.data} {self.header.data_sha256[:16]}",
            seed=self.settings.seed,
            steps=self.settings.steps,
            noise=self.settings.noise,
            precision=self.computed_in,
            version=version("heatnas"),
            checkpoint_sha256=checkpoint_sha256,
        )

    def _check(self, path: Path, header: Header) -> None:
        differences = [
            f"{name} ({getattr(header, name)}, now {getattr(self.header, name)})"
            for name in ("data_sha256", "settings")
            if getattr(header, name) != getattr(self.header, name)
        ]
        if header.space != self.header.space:
            differences.append(f"space ({header.space.name} {header.space.id}, now {self.header.space.id})")
        if differences:
            raise CheckpointMismatch(path, differences, otherwise="pass resume=False to start over")


def fresh_supernet(space: SearchSpace, *, seed: int) -> Supernet:
    """Return an untrained supernet; equal seeds give equal weights, and torch's own generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Supernet(space)


def _normalise(parameters: Iterable[nn.Parameter]) -> None:
    """Give all gradients together the length 1; leave them where that is 0."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if length > 0:
        for gradient in gradients:
            gradient.div_(length)


def _measure(run: _Run, held_out: CocoDataset, judged: CocoDataset | None, losses: list[float]) -> TrainMetrics:
    supernet, space = run.supernet, run.supernet.space
    reestimate_mixture(supernet, run.data)
    by_stride = stride_ap50(supernet, judged)
    importance = read_importance(supernet, run.provenance(checkpoint_sha256=""), stride_ap50=by_stride)
    config = best_path(space, importance)
    mixture = evaluate_mixture(supernet, held_out, stride=config.prediction_stride)
    path = extract(supernet, config)
    reestimate_batch_norm(path, run.data)
    last = losses[-max(1, len(losses) // 10) :]
    return TrainMetrics(
        ap=mixture.ap,
        ap50=mixture.ap50,
        path_ap50=evaluate_module(path, path.head.anchors, held_out).ap50,
        stride_ap50=by_stride,
        images=len(held_out),
        loss=float(np.mean(last)) if last else None,
    )


def _batch(
    data: CocoDataset, settings: TrainSettings, step: int, rng: np.random.Generator
) -> tuple[Tensor, list[Target]]:
    """Return images (B, 3, H, W) and objects of a step: each epoch sees every image once, in an order of its own."""
    epochs, places = np.divmod(np.arange(step * settings.batch, (step + 1) * settings.batch), len(data))
    orders = {int(epoch): np.random.default_rng((settings.seed, 1, epoch)).permutation(len(data)) for epoch in epochs}
    chosen = [orders[int(epoch)][place] for epoch, place in zip(epochs, places, strict=True)]
    samples = [augment(data[int(index)], rng) for index in chosen]
    images = images_to_floats(np.stack([sample.pixels for sample in samples]))
    targets = [Target(torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)) for sample in samples]
    return torch.from_numpy(images), targets
