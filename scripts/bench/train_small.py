"""Train a small detector from scratch on a few hundred images, and follow its AP50 class by class.

Measures: a config of a search space (the largest of `heatdetr-edge` at 320x320 unless told otherwise) trained by the
recipe `small` of `heatnas train` on a folder in COCO format, from random weights, in at most `--minutes`: AP50 of each
class on the held-out split over the epochs, images per second, and the shares of an epoch that go into waiting for data
and into evaluation. Without `--data` on procedural shapes. Takes as long as `--minutes` says, 90 by default.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from _common import Options, note, options, report
from _training import chosen_config, epochs_in, open_splits, train_ours, training_command_line

from nas.config import Config
from nas.macs import gmacs
from nas.space import SearchSpace
from supernet.detector_training import Splits
from supernet.evaluation import Evaluation
from supernet.recipe import named_recipe


def main() -> None:
    """Train, score, print."""
    parser = training_command_line(__doc__, minutes=90.0)
    arguments = parser.parse_args()
    chosen = options(arguments)
    if chosen.quick:
        arguments.space, arguments.image, arguments.minutes = "heatdetr-nano", "192x192", 0.3
    torch.set_num_threads(arguments.threads)
    space, config = chosen_config(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        data = open_splits(arguments.data, config.image, scratch=Path(scratch), seed=chosen.seed)
        results = measure(arguments, chosen, space, config, data, chosen.out or Path(scratch))
    curve = results["curve"]
    classes = data.train.classes
    table: list[list[object]] = [["epoch", "minutes", "AP", "AP50", *classes]]
    table += [
        [*(point[key] for key in ("epoch", "minutes", "ap", "ap50")), *point["class_ap50"].values()] for point in curve
    ]
    report(chosen, results, table)


def measure(
    arguments: argparse.Namespace, chosen: Options, space: SearchSpace, config: Config, data: Splits, out: Path
) -> dict[str, object]:
    """Return what was seen."""
    recipe = named_recipe("small").model_copy(update={"seed": chosen.seed})
    # The warm-up, the cosine and the last evaluation must fit: a twentieth is left for what the trial did not see.
    epochs = epochs_in(
        0.95 * arguments.minutes, recipe, lambda trial, folder: train_ours(space, config, data, folder, trial)[0]
    )
    note(f"{epochs} epochs fit into {arguments.minutes} minutes")
    recipe = recipe.model_copy(update={"epochs": epochs})
    curve: list[dict[str, object]] = []

    def keep(minutes: float, epoch: int, score: Evaluation) -> None:
        curve.append(
            {"epoch": epoch, "minutes": minutes, "ap": score.ap, "ap50": score.ap50, "class_ap50": score.class_ap50}
        )
        note(f"epoch {epoch}, {minutes:.1f} minutes: AP50 {score.ap50}, {score.class_ap50}")

    with tempfile.TemporaryDirectory(dir=out) as folder:  # an earlier run would not be followed from its start
        trained, minutes = train_ours(space, config, data, Path(folder), recipe, keep)
        for file in (trained.best, trained.last):
            shutil.copy(file, out / file.name)
    rows = trained.rows
    seconds = sum(row.seconds for row in rows)
    return {
        "data": data.name,
        "images": len(data.train),
        "held_out": len(data.held_out),
        "space": space.name,
        "config": config.id,
        "image": config.image,
        "stride": config.prediction_stride,
        "gmacs": gmacs(space.blocks(config)),
        "threads": arguments.threads,
        "epochs": epochs,
        "minutes": minutes,
        "images_per_s": recipe.batch * rows[-1].step / seconds,
        "data_share": sum(row.data_seconds for row in rows) / seconds,
        "evaluation_share": sum(row.evaluation_seconds for row in rows) / seconds,
        "ap50": curve[-1]["ap50"],
        "class_ap50": curve[-1]["class_ap50"],
        "highest_ap50_on_the_split_that_judges": max(point["ap50"] or 0.0 for point in curve),
        "curve": curve,
    }


if __name__ == "__main__":
    main()
