"""Does the importance of a supernet say more than its seed does?

Measures: supernets of one space (`heatdetr-nano` unless told otherwise) trained on one procedural data set with
different seeds. For every slot and closing block with a choice, p = softmax(r): how far the mean over the seeds lies
from uniform (signal) and how far the seeds lie from each other (noise, standard deviation), both as root mean squares
over the candidates. Were r nothing but noise, signal / noise would be about 1 / sqrt(seeds). Against what: uniform p,
and the same supernets before training (AP50). Also the AP50 of subnets cut out of the first supernet, with BatchNorm
statistics estimated anew, from full width to the narrowest. Takes about 3 minutes a seed on two cores.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _common import Options, command_line, note, options, report

from nas.blocks import Kind
from nas.config import Config
from nas.importance import Importance
from nas.macs import gmacs
from nas.named import SPACE_HELP, named_space
from nas.space import SearchSpace
from nas.thinning import best_path
from supernet.batch_norm import reestimate_batch_norm
from supernet.checkpoint import load_supernet
from supernet.dataset import CocoDataset
from supernet.evaluation import evaluate_module
from supernet.extraction import extract
from supernet.mixture_scores import evaluate_mixture, reestimate_mixture
from supernet.procedural import SHAPES, make_dataset
from supernet.training import (
    Progress,
    TrainedSupernet,
    TrainSettings,
    fresh_supernet,
    train_supernet,
)


def main() -> None:
    """Train the seeds, compare their importance, score some subnets."""
    parser = command_line(__doc__)
    parser.add_argument("--space", default="heatdetr-nano", help=SPACE_HELP)
    parser.add_argument("--seeds", type=int, default=3, help="supernets to train, at least 2")
    parser.add_argument("--steps", type=int, default=TrainSettings().steps, help="optimiser steps of each")
    parser.add_argument("--images", type=int, default=1200, help="training images")
    parser.add_argument("--threads", type=int, default=2, help="compute threads")
    arguments = parser.parse_args()
    chosen = options(arguments)
    if arguments.seeds < 2:
        parser.error(f"--seeds {arguments.seeds}: a spread needs at least 2")
    torch.set_num_threads(arguments.threads)
    if chosen.quick:
        arguments.seeds, arguments.steps, arguments.images = 2, 8, 32
    with tempfile.TemporaryDirectory() as scratch:
        report(chosen, *measure(arguments, chosen, chosen.out or Path(scratch)))


def measure(
    arguments: argparse.Namespace, chosen: Options, folder: Path
) -> tuple[dict[str, object], list[list[object]]]:
    """Return the results by key, and the table for people."""
    space = named_space(arguments.space, classes=len(SHAPES))
    size = space.images[-1][0]
    data = make_dataset(
        folder / f"shapes-{size}-{arguments.images}-{chosen.seed}", images=arguments.images, size=size, seed=chosen.seed
    )
    trained, minutes = [], []
    for seed in range(chosen.seed, chosen.seed + arguments.seeds):
        started = time.monotonic()
        settings = TrainSettings(steps=arguments.steps, seed=seed)
        out = folder / f"seed{seed}-{settings.id}"
        trained.append(train_supernet(space, data, out, settings=settings, progress=_teller(seed)))
        minutes.append((time.monotonic() - started) / 60)
    choices = [compare(name, values) for name, values in _probabilities(space, trained).items()]
    signal, noise = (float(np.sqrt(np.mean([choice[key] ** 2 for choice in choices]))) for key in ("signal", "noise"))
    subnets = score_subnets(space, trained[0], data)
    untrained = [score_untrained(space, data, seed=seed) for seed in range(chosen.seed, chosen.seed + arguments.seeds)]
    results: dict[str, object] = {
        "space": space.name,
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "minutes_each": minutes,
        "signal": signal,
        "noise": noise,
        "ratio": signal / noise,
        "choices": choices,
        "ap50": [one.metrics.ap50 for one in trained],
        "path_ap50": [one.metrics.path_ap50 for one in trained],
        "random_ap50": untrained,
        "subnets": subnets,
    }
    return results, _table(results, choices, subnets)


def compare(name: str, values: np.ndarray) -> dict[str, float | str]:
    """Compare the probabilities of one choice (seeds, candidates) with uniform and with each other."""
    signal = float(np.sqrt(np.mean((values.mean(axis=0) - 1 / values.shape[1]) ** 2)))
    noise = float(np.sqrt(values.var(axis=0, ddof=1).mean()))
    return {"choice": name, "signal": signal, "noise": noise, "ratio": signal / noise}


def score_untrained(space: SearchSpace, data: Path, *, seed: int) -> float | None:
    """Score the mixture that a seed begins with, before the first step."""
    train, held_out = (CocoDataset(data, split, image=space.images[-1]) for split in ("train", "val"))
    supernet = fresh_supernet(space, seed=seed)
    reestimate_mixture(supernet, train)
    return evaluate_mixture(supernet, held_out, stride=space.prediction_strides[0]).ap50


def score_subnets(space: SearchSpace, trained: TrainedSupernet, data: Path) -> list[dict[str, object]]:
    """Score the most probable path, then the same with more and more stages narrowed, then with one block a stage."""
    supernet = load_supernet(trained.checkpoint)
    config = best_path(space, trained.importance)
    train, held_out = (CocoDataset(data, split, image=config.image) for split in ("train", "val"))
    scored: list[dict[str, object]] = []
    for subnet in _narrowing(space, config, trained.importance):
        detector = extract(supernet, subnet)
        reestimate_batch_norm(detector, train)
        ap50 = evaluate_module(detector, detector.head.anchors, held_out).ap50
        depths = tuple(stage.depth for stage in subnet.stages)
        scored.append({"widths": subnet.widths, "depths": depths, "gmacs": gmacs(space.blocks(subnet)), "ap50": ap50})
        note(f"subnet {subnet.widths} {depths}: AP50 {ap50}")
    return scored


def _narrowing(space: SearchSpace, config: Config, importance: Importance) -> list[Config]:
    """List the config, the same with all stages narrowed as one by one as the rules allow, and its thinnest form."""
    path = [config]
    for number in range(4):
        narrowed = path[-1].with_stage(
            number, path[-1].stages[number].model_copy(update={"width": space.stages[number].widths[0]})
        )
        if space.contains(narrowed):
            path.append(narrowed)
    last = path[-1]
    for number, stage in enumerate(last.stages, start=1):
        best = max(range(len(stage.slots)), key=lambda slot, number=number: importance.block_importance(number, slot))
        slots = tuple(kind if slot == best else Kind.IDENTITY for slot, kind in enumerate(stage.slots))
        last = last.with_stage(number - 1, stage.model_copy(update={"slots": slots}))
    return [*path, last]


def _probabilities(space: SearchSpace, trained: list[TrainedSupernet]) -> dict[str, np.ndarray]:
    found = {}
    for number, stage in enumerate(space.stages, start=1):
        for slot in range(stage.slots):
            rows = [list(one.importance.slot_probability(number, slot).values()) for one in trained]
            found[f"stage{number}.slot{slot}"] = np.array(rows)
        if len(stage.global_kinds) > 1:
            rows = [list(one.importance.global_probability(number).values()) for one in trained]
            found[f"stage{number}.global"] = np.array(rows)
    return found


def _teller(seed: int) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if progress.step % 50 == 0:
            note(f"seed {seed}: step {progress.step} of {progress.total}, loss {progress.loss:.3f}")

    return tell


def _table(
    results: dict[str, object], choices: list[dict[str, float | str]], subnets: list[dict[str, object]]
) -> list[list[object]]:
    rows: list[list[object]] = [["choice", "signal", "noise", "ratio"]]
    rows += [[choice[key] for key in ("choice", "signal", "noise", "ratio")] for choice in choices]
    rows.append(["all", results["signal"], results["noise"], results["ratio"]])
    rows.append(["AP50 mixture / path / untrained", *_means(results, ("ap50", "path_ap50", "random_ap50"))])
    rows += [[f"AP50 subnet {one['widths']} {one['depths']}", one["ap50"], one["gmacs"], None] for one in subnets]
    return rows


def _means(results: dict[str, object], names: tuple[str, ...]) -> list[object]:
    return [float(np.mean(np.array(results[name], dtype=float))) for name in names]


if __name__ == "__main__":
    main()
