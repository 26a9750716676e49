"""What the benchmarks that train share: data, a schedule that fits a time, and a run of one of our detectors."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import note

from nas.config import Config
from nas.space import SearchSpace
from supernet.curves import Row
from supernet.dataset import CocoDataset
from supernet.detector_training import Splits, TrainedDetector, train_detector
from supernet.evaluation import Evaluation
from supernet.procedural import make_dataset
from supernet.recipe import Recipe
from supernet.training_run import Progress

TRIAL_EPOCHS = 3
"""Epochs that a pace is taken from; the first is left out, it warms up."""


def open_splits(folder: Path | None, image: tuple[int, int], *, scratch: Path, seed: int) -> Splits:
    """Open a folder in COCO format, or procedural shapes where none is named."""
    if folder is None:
        folder = make_dataset(scratch / "shapes", images=64, size=image[0], seed=seed, held_out=16)
    return Splits(
        folder.resolve().name, CocoDataset(folder, "train", image=None), CocoDataset(folder, "val", image=image)
    )


def classes_of(folder: Path | None) -> int:
    """Count the classes of a folder, or of the procedural shapes."""
    return 3 if folder is None else len(CocoDataset(folder, "train", image=None).classes)


def epochs_in(minutes: float, recipe: Recipe, train: Callable[[Recipe, Path], TrainedDetector]) -> int:
    """Return the epochs that fit into so many minutes, evaluations included, by the pace of a few."""
    with tempfile.TemporaryDirectory() as scratch:
        trial = recipe.model_copy(update={"epochs": TRIAL_EPOCHS, "evaluate_every": TRIAL_EPOCHS})
        rows = train(trial, Path(scratch)).rows
    plain, evaluation = rows[1].seconds, rows[-1].evaluation_seconds
    return max(1, int(60 * minutes / (plain + evaluation / recipe.evaluate_every)))


def train_ours(
    space: SearchSpace,
    config: Config,
    data: Splits,
    out: Path,
    recipe: Recipe,
    on_score: Callable[[float, int, Evaluation], None] = lambda *_: None,
) -> tuple[TrainedDetector, float]:
    """Train one of our detectors; return it and the minutes it took.

    `on_score` is told minutes, epoch and score at each evaluation.
    """
    began = time.monotonic()
    told = began

    def progress(state: Progress) -> None:
        nonlocal told
        if time.monotonic() - told > 30:
            told = time.monotonic()
            note(f"epoch {state.epoch} of {state.epochs}, loss {state.loss:.3f}, {(told - began) / 60:.1f} minutes")

    def on_epoch(row: Row, score: Evaluation | None) -> None:
        if score is not None:
            on_score((time.monotonic() - began) / 60, row.epoch, score)

    trained = train_detector(space, config, data, out, recipe=recipe, progress=progress, on_epoch=on_epoch)
    return trained, (time.monotonic() - began) / 60


def use_threads(threads: int) -> None:
    """Compute with so many threads."""
    torch.set_num_threads(threads)
