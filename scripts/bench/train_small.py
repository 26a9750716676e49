"""Train a small detector from scratch on a few hundred images, and follow its AP50 class by class.

Measures: a config of a search space (the largest of `heatdetr-edge` at 320x320 unless told otherwise) trained by the
recipe `small` of `heatnas train` on a folder in COCO format, from random weights, in at most `--minutes`, evaluations
included: AP50 of each class on the held-out split over the epochs, images per second, and the shares of the time that
go into waiting for data, evaluation and writing. Without `--data` on procedural shapes; on a GPU where there is one.
What counts is the last epoch: no choice among the epochs by the split that judges.

With `--peer`, D-FINE-N of the package `transformers` as well: the same data, changes of the images, input size, batch,
device, precision and time, evaluated after as many epochs (`_dfine`). Takes as long as `--minutes` says for each, 90 by
default.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import command_line, note, options, report

from nas.config import Config
from nas.macs import gmacs
from nas.space import SearchSpace
from server.cli_options import input_size
from server.detectors import choose
from supernet.checkpoint import load_detector
from supernet.curves import DetectorEpoch
from supernet.dataset import CocoDataset
from supernet.detector_training import Splits, TrainedDetector, train_detector
from supernet.evaluation import Evaluation
from supernet.procedural import make_dataset
from supernet.processes import Processes, joined
from supernet.recipe import Recipe, named_recipe
from supernet.training_run import Progress

TRIAL_EPOCHS = 3
"""Epochs that the pace is taken from; the first is left out, it warms up."""

SPARE = 0.95
"""Share of the time that epochs are planned for: the trial did not see everything."""

Point = dict[str, Any]
"""What was seen at an evaluation: epoch, minutes, ap, ap50, class_ap50."""


def main() -> None:
    """Train, score, print."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, help="folder in COCO format; default: procedural shapes")
    parser.add_argument("--space", default="heatdetr-edge", help="search space")
    parser.add_argument("--config", default="largest", help="largest, smallest, or a config.json")
    parser.add_argument("--image", default="320x320", help="input size")
    parser.add_argument("--stride", type=int, help="of the prediction map; default: that of the config")
    parser.add_argument("--minutes", type=float, default=90.0, help="a training takes at most so long")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads")
    parser.add_argument("--peer", action="store_true", help="train D-FINE-N for the same time")
    parser.add_argument("--peer-rate", type=float, default=8e-4, help="its learning rate; default: its authors'")
    arguments = parser.parse_args()
    chosen = options(arguments)
    if chosen.quick:
        arguments.config, arguments.image, arguments.minutes = "smallest", "256x256", 0.3
    torch.set_num_threads(arguments.threads)
    recipe = named_recipe("small").model_copy(update={"seed": chosen.seed})
    with joined() as processes, tempfile.TemporaryDirectory() as scratch:
        shapes = Path(scratch) / "shapes"
        folder = arguments.data or make_dataset(shapes, images=64, size=320, seed=chosen.seed, held_out=16)
        space, config, data = open_all(arguments, folder)
        ours = measure_ours(arguments, space, config, data, recipe, processes, chosen.out)
        peer = measure_peer(arguments, config, data, recipe, processes) if arguments.peer else None
    results = {
        "data": data.name,
        "images": len(data.train),
        "held_out": len(data.held_out),
        "image": config.image,
        "device": str(processes.device),
        "threads": arguments.threads,
        "seeds": [chosen.seed],
        **ours,
        "peer": peer,
    }
    report(chosen, results, table_of([ours] if peer is None else [ours, peer], data.train.classes))


def open_all(arguments: argparse.Namespace, folder: Path) -> tuple[SearchSpace, Config, Splits]:
    """Open the data, and find our config for their classes."""
    train = CocoDataset(folder, "train", image=None)
    size = input_size(arguments.image)
    space, config = choose(arguments.config, arguments.space, size, stride=arguments.stride, classes=len(train.classes))
    return space, config, Splits(folder.resolve().name, train, CocoDataset(folder, "val", image=config.image))


def measure_ours(
    arguments: argparse.Namespace,
    space: SearchSpace,
    config: Config,
    data: Splits,
    recipe: Recipe,
    processes: Processes,
    out: Path | None,
) -> dict[str, Any]:
    """Train ours with as many epochs as fit."""

    def train(fitted: Recipe, folder: Path, curve: list[Point]) -> TrainedDetector:
        told = began = time.monotonic()

        def progress(state: Progress) -> None:
            nonlocal told
            if time.monotonic() - told > 30:
                told = time.monotonic()
                note(f"epoch {state.epoch} of {state.epochs}, loss {state.loss:.3f}, {(told - began) / 60:.1f} minutes")

        def on_epoch(row: DetectorEpoch, score: Evaluation | None) -> None:
            if score is not None:
                curve.append(point(row.epoch, (time.monotonic() - began) / 60, score))

        return train_detector(
            space, config, data, folder, recipe=fitted, processes=processes, progress=progress, on_epoch=on_epoch
        )

    # A folder of its own for each: an earlier run would not be followed from its start.
    with tempfile.TemporaryDirectory() as folder:
        trial = recipe.lasting(TRIAL_EPOCHS).model_copy(update={"evaluate_every": TRIAL_EPOCHS})
        rows = train(trial, Path(folder), []).rows
    epoch_seconds = rows[1].seconds + rows[-1].evaluation_seconds / recipe.evaluate_every
    fitted = recipe.lasting(max(1, int(SPARE * 60 * arguments.minutes / epoch_seconds)))
    note(f"{fitted.epochs} epochs fit into {arguments.minutes} minutes")
    curve: list[Point] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trained = train(fitted, Path(folder), curve)
        seconds = time.monotonic() - began
        weights = load_detector(trained.last).detector.parameters()
        params_m = sum(weight.numel() for weight in weights) / 1e6
        for file in (trained.best, trained.last) if out else ():
            shutil.copy(file, out / file.name)
    rows = trained.rows
    return {
        "network": f"{space.name} {arguments.config}, stride {config.prediction_stride}",
        "config": config.id,
        "gmacs": gmacs(space.blocks(config)),
        "params_m": params_m,
        "epochs": fitted.epochs,
        "minutes": seconds / 60,
        "images_per_s": recipe.batch * rows[-1].step / seconds,
        "data_share": sum(row.data_seconds for row in rows) / seconds,
        "evaluation_share": sum(row.evaluation_seconds for row in rows) / seconds,
        "writing_share": 1 - sum(row.seconds for row in rows) / seconds,
        **last_of(curve),
    }


def measure_peer(
    arguments: argparse.Namespace, config: Config, data: Splits, recipe: Recipe, processes: Processes
) -> dict[str, Any]:
    """Train D-FINE-N until the time is over."""
    from _dfine import Training

    training = Training(data, config.image, recipe, processes.device, rate=arguments.peer_rate)
    curve: list[Point] = []
    began = time.monotonic()
    for epoch, score in training.run(60 * arguments.minutes):
        curve.append(point(epoch, (time.monotonic() - began) / 60, score))
    seconds = time.monotonic() - began
    return {
        "network": f"D-FINE-N, rate {arguments.peer_rate:g}",
        "gmacs": training.gmacs,
        "params_m": training.params_m,
        "epochs": curve[-1]["epoch"],
        "minutes": seconds / 60,
        "images_per_s": recipe.batch * training.steps / seconds,
        **last_of(curve),
    }


def point(epoch: int, minutes: float, score: Evaluation) -> Point:
    """Return a point of a curve, and tell it."""
    note(f"epoch {epoch}, {minutes:.1f} minutes: AP50 {score.ap50}, {score.class_ap50}")
    return {"epoch": epoch, "minutes": minutes, "ap": score.ap, "ap50": score.ap50, "class_ap50": score.class_ap50}


def last_of(curve: list[Point]) -> dict[str, Any]:
    """Return what the last weights reach, and the curve that led there."""
    return {**{key: curve[-1][key] for key in ("ap", "ap50", "class_ap50")}, "curve": curve}


def table_of(networks: list[dict[str, Any]], classes: tuple[str, ...]) -> list[list[object]]:
    """Return the last weights of each network, and its curve below."""
    numbers = ("gmacs", "params_m", "images_per_s", "epochs", "minutes", "ap", "ap50")
    table: list[list[object]] = [["network", *numbers, *classes]]
    for network in networks:
        by_class = [network["class_ap50"][name] for name in classes]
        table.append([network["network"], *(network[key] for key in numbers), *by_class])
        for seen in network["curve"][:-1]:
            found = [seen[key] for key in ("epoch", "minutes", "ap", "ap50")]
            table.append(["", None, None, None, *found, *(seen["class_ap50"][name] for name in classes)])
    return table


if __name__ == "__main__":
    main()
