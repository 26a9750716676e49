"""What the benchmarks that train share: options, data, a schedule that fits a time, a run of one of our detectors."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _common import command_line, note

from nas.config import Config
from nas.space import SearchSpace
from server.cli_options import input_size
from server.detectors import choose
from supernet.curves import DetectorEpoch
from supernet.dataset import CocoDataset
from supernet.detector_training import Splits, TrainedDetector, train_detector
from supernet.evaluation import Evaluation
from supernet.procedural import make_dataset
from supernet.recipe import Recipe
from supernet.training_run import Progress

TRIAL_EPOCHS = 3
"""Epochs that a pace is taken from; the first is left out, it warms up."""


def training_command_line(doc: str | None, *, minutes: float) -> argparse.ArgumentParser:
    """Return a parser with what a benchmark that trains is asked: the data, our config, minutes and threads."""
    parser = command_line(doc)
    parser.add_argument("--data", type=Path, help="folder in COCO format; default: procedural shapes")
    parser.add_argument("--space", default="heatdetr-edge", help="search space of ours")
    parser.add_argument("--config", default="largest", help="ours: largest, smallest, or a config.json")
    parser.add_argument("--image", default="320x320", help="input size")
    parser.add_argument("--stride", type=int, help="of our prediction map; default: that of the config")
    parser.add_argument("--minutes", type=float, default=minutes, help="a training takes at most so long")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads")
    return parser


def chosen_config(arguments: argparse.Namespace) -> tuple[SearchSpace, Config]:
    """Return our config that was asked for, for the classes of the data."""
    classes = 3 if arguments.data is None else len(CocoDataset(arguments.data, "train", image=None).classes)
    size = input_size(arguments.image)
    return choose(arguments.config, arguments.space, size, stride=arguments.stride, classes=classes)


def open_splits(folder: Path | None, image: tuple[int, int], *, scratch: Path, seed: int) -> Splits:
    """Open a folder in COCO format, or procedural shapes where none is named."""
    if folder is None:
        folder = make_dataset(scratch / "shapes", images=64, size=image[0], seed=seed, held_out=16)
    return Splits(
        folder.resolve().name, CocoDataset(folder, "train", image=None), CocoDataset(folder, "val", image=image)
    )


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

    def on_epoch(row: DetectorEpoch, score: Evaluation | None) -> None:
        if score is not None:
            on_score((time.monotonic() - began) / 60, row.epoch, score)

    trained = train_detector(space, config, data, out, recipe=recipe, progress=progress, on_epoch=on_epoch)
    return trained, (time.monotonic() - began) / 60
