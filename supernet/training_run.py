"""One training in one folder: its epochs, what is kept of each, and how it goes on after it was killed.

Everything random in a step comes from (seed, epoch, image) or (seed, step): a run that was killed and goes on after its
last finished epoch ends with the same weights, bit by bit on the same CPU with the same number of threads.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from nas.values import Value
from supernet.checkpoint import (
    BackboneHeader,
    DetectorHeader,
    RunHeader,
    load_checkpoint,
    named_tensors,
    save_checkpoint,
)
from supernet.curves import Chart, Curves, Epoch
from supernet.errors import CheckpointMismatch, FolderInUse
from supernet.files import only_holder
from supernet.loading import Loader
from supernet.processes import ALONE, Processes
from supernet.recipe import RunRecipe
from supernet.stepping import Loss, Movable, Stepper

BEST, LAST, RUN = "best.safetensors", "last.safetensors", "run.safetensors"
"""Names in the folder of a run: two networks, and what an unfinished run needs to go on."""

_LOCK = ".run.lock"
_BEST_QUALITY = "best_quality"

B = TypeVar("B", bound=Movable)
S = TypeVar("S", bound=Value)
R = TypeVar("R", bound=Epoch)
H = TypeVar("H", DetectorHeader, BackboneHeader)


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


class Trained(NamedTuple, Generic[R]):
    """What a training leaves in its folder.

    Attributes:
        best: file of the weights that were best on the held-out split; where none could be told better than another,
            of those that were looked at last.
        last: file of the weights after the last epoch.
        rows: what was seen in each epoch.
    """

    best: Path
    last: Path
    rows: tuple[R, ...]


class Task(ABC, Generic[B, S, R]):
    """What is learned: how a batch is judged, and how the held-out split is.

    Attributes:
        prefix: of the names of the network's tensors in a checkpoint.
        chart: how its epochs are drawn.
    """

    prefix: str
    chart: Chart[R]

    def begin_step(self, done: float) -> None:
        """Prepare for a step; `done` is the share of the run before it, 0 to 1."""

    @abstractmethod
    def loss(self, output: Any, batch: B) -> Loss:  # noqa: ANN401 - whatever the network gives
        """Judge the network's output on a batch."""

    @abstractmethod
    def score(self, network: nn.Module) -> S:
        """Look at the held-out split with a network in evaluation mode."""

    @abstractmethod
    def quality(self, score: S) -> float | None:
        """Return what the best weights have most of; None where it is not defined."""

    @abstractmethod
    def row(self, epoch: Epoch, parts: tuple[float, ...], score: S | None) -> R:
        """Write down an epoch with the means of the parts of its loss and its score."""


def run_training(
    task: Task[B, S, R],
    network: nn.Module,
    loader: Loader[Any, B],
    header: H,
    out: Path,
    *,
    recipe: RunRecipe,
    processes: Processes = ALONE,
    progress: Callable[[Progress], None] = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    on_epoch: Callable[[R, S | None], None] = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> Trained[R]:
    """Train a network; leave its best and last weights and the curves in `out`.

    A run that was interrupted there goes on after its last finished epoch, a finished one is read back.

    Args:
        task: what it learns.
        network: with its first weights.
        loader: draws the batches.
        header: what its checkpoints say, but for what changes from epoch to epoch.
        out: folder of the run.
        recipe: how.
        processes: which of several processes this is; only the first writes and tells.
        progress: told after each optimiser step.
        on_start: called before the first step, unless the run only goes on.
        on_epoch: told after each epoch.
        clock: counts seconds.

    Raises:
        FolderInUse: another process trains in `out`.
        CheckpointMismatch: `out` holds another run.
        BadCurve: another program has rewritten the curve of the run in `out`.
        TrainingDiverged: the loss is no longer finite.
    """
    with _alone(out, processes):
        run = _TrainingRun(task, network, loader, header, out, recipe, processes, clock)
        run.resume()
        if run.epoch == 0 and processes.is_first:
            on_start()
        while run.epoch < recipe.epochs:
            row, score = run.train_epoch(progress)
            if processes.is_first:
                on_epoch(row, score)
        return Trained(out / BEST, out / LAST, tuple(run.curves.rows))


@contextmanager
def _alone(out: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs out of a folder; the processes of this one have it together.

    Raises:
        FolderInUse: a run of another process is under way there.
    """
    with ExitStack() as held:
        if processes.is_first:
            out.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(only_holder(out / _LOCK))
            except BlockingIOError:
                raise FolderInUse(out) from None
        yield


class _TrainingRun(Generic[B, S, R, H]):
    """One training: the network, what moves it, and where they are kept."""

    def __init__(
        self,
        task: Task[B, S, R],
        network: nn.Module,
        loader: Loader[Any, B],
        header: H,
        out: Path,
        recipe: RunRecipe,
        processes: Processes,
        clock: Callable[[], float],
    ) -> None:
        self.task, self.loader, self.out = task, loader, out
        self.header: H = header
        self.recipe, self.processes, self.clock = recipe, processes, clock
        self.stepper = Stepper(
            network, task.loss, recipe, prefix=task.prefix, epoch_steps=loader.steps, processes=processes
        )
        self.epoch = self.step = self.first_step = 0
        self.best: float | None = None
        self.curves = Curves(out, task.chart)
        self.began = clock()

    def train_epoch(self, progress: Callable[[Progress], None]) -> tuple[R, S | None]:
        """Take the steps of one epoch, look at the held-out split when it is time, and keep everything."""
        started, waited = self.clock(), 0.0
        sums: list[float] = []
        divisor = 0.0
        self.stepper.set_training()
        steps = self.loader.epoch(self.epoch)
        for _ in range(self.loader.steps):
            asked = self.clock()
            batches = next(steps)
            waited += self.clock() - asked
            self.task.begin_step(self.step / self.stepper.total)
            taken = self.stepper.take(self.step, batches)
            sums = [one + other for one, other in zip(sums or [0.0] * len(taken.parts), taken.parts, strict=True)]
            divisor += taken.divisor
            self.step += 1
            if self.processes.is_first:
                progress(self._progress(taken.loss))
        self.epoch += 1
        judged = self.clock()
        score = self.task.score(self.stepper.judged.eval()) if self._is_due() and self.processes.is_first else None
        now = self.clock()
        parts = tuple(part / max(divisor, 1) for part in sums)
        rate = self.stepper.rate(self.step - 1)
        epoch = Epoch(
            epoch=self.epoch,
            step=self.step,
            learning_rate=rate,
            loss=sum(parts),
            seconds=now - started,
            data_seconds=waited,
            evaluation_seconds=now - judged,
        )
        row = self.task.row(epoch, parts, score)
        if self.processes.is_first:
            self._keep(row, score)
        self.processes.wait()
        return row, score

    def _progress(self, loss: float) -> Progress:
        done, total = self.step - self.first_step, self.stepper.total
        left = (self.clock() - self.began) / done * (total - self.step) if done > 1 else None
        return Progress(self.epoch + 1, self.recipe.epochs, self.step, total, loss, left)

    def _is_due(self) -> bool:
        return self.epoch % self.recipe.evaluate_every == 0 or self.epoch == self.recipe.epochs

    def _keep(self, row: R, score: S | None) -> None:
        """Write the weights and the curves; what takes up the run comes last."""
        metrics = None if score is None else score.model_dump(mode="json")
        header = self.header.model_copy(update={"epoch": self.epoch, "step": self.step, "metrics": metrics})
        tensors = named_tensors(self.task.prefix, self.stepper.judged)
        save_checkpoint(self.out / LAST, tensors, header)
        if score is not None and self._is_best(score):
            self.best = self.task.quality(score)
            save_checkpoint(self.out / BEST, tensors, header)
        self.curves.add(row)
        save_checkpoint(self.out / RUN, self._state(), header)

    def _is_best(self, score: S) -> bool:
        """Tell whether no weights so far were as good; where none found anything, the latest have learned most."""
        if self.best is None or self.best == 0:
            return True
        quality = self.task.quality(score)
        return quality is not None and quality > self.best

    def _state(self) -> dict[str, Tensor]:
        best = {} if self.best is None else {_BEST_QUALITY: torch.tensor(self.best, dtype=torch.float64)}
        return self.stepper.state() | best

    def resume(self) -> None:
        """Go on after the last finished epoch, if there is one.

        Raises:
            CheckpointMismatch: the folder holds another run, finished or not.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.processes.is_first:
            for partial in self.out.glob(".*.partial"):  # what a killed process was writing
                partial.unlink(missing_ok=True)
        if not (self.out / RUN).exists():
            for left in (self.out / LAST, self.out / BEST):  # of an epoch that was not finished: of this run only
                if left.exists():
                    self._read(left)
            self.processes.wait()
            return
        tensors, header = self._read(self.out / RUN)
        self.stepper.restore(tensors)
        self.best = tensors[_BEST_QUALITY].item() if _BEST_QUALITY in tensors else None
        self.epoch, self.step, self.first_step = header.epoch, header.step, header.step
        self.curves = Curves(self.out, self.task.chart, epochs=header.epoch)

    def _read(self, path: Path) -> tuple[dict[str, Tensor], H]:
        tensors, header = load_checkpoint(path, type(self.header))
        differences = _differences(header, self.header)
        if differences:
            raise CheckpointMismatch(path, differences, otherwise=f"remove {self.out} to start over")
        return tensors, header


def _differences(found: RunHeader, wanted: RunHeader) -> list[str]:
    """Say in which settings two runs differ."""
    differences = [
        f"{name} ({getattr(found, name)}, now {getattr(wanted, name)})"
        for name in ("data_sha256", "held_out_sha256", "classes")
        if getattr(found, name) != getattr(wanted, name)
    ]
    differences += [
        f"{name} ({found.recipe.get(name)}, now {value})"
        for name, value in wanted.recipe.items()
        if found.recipe.get(name) != value
    ]
    if found.space != wanted.space or found.config != wanted.config:
        differences.append(f"config ({found.config.id}, now {wanted.config.id})")
    if _origin(found) != _origin(wanted):
        differences.append(f"first weights ({_origin(found)}, now {_origin(wanted)})")
    return differences


def _origin(header: RunHeader) -> str:
    return "drawn" if header.origin is None else f"of the file with SHA-256 {header.origin.sha256[:16]}"
