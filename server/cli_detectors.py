"""The commands that train and score one detector, without a server."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from server.cli_options import DropBadOption, ImageOption, JsonOption, SeedOption, fail, input_size
from server.cli_training import TrainingTeller, evaluation_text, left_out_text, speed_text
from server.cli_training_options import (
    BatchOption,
    ConfigSpaceOption,
    DropPathOption,
    EmaOption,
    EpochsOption,
    LearningRateOption,
    MicroBatchOption,
    OutOption,
    PrecisionOption,
    WorkersOption,
    adjusted,
    space_of,
)


def train(
    data: Annotated[
        Path, typer.Argument(help="Folder in COCO format: train/, val/, annotations/train.json, val.json.")
    ],
    *,
    out: OutOption,
    config: Annotated[
        str,
        typer.Option(
            help="What to train: largest or smallest of the space, heatdetr-tiny, -small, -medium or -large of the "
            "spaces heatdetr and heatdetr-xca, or the config.json of an answer."
        ),
    ] = "largest",
    space: ConfigSpaceOption = None,
    image: ImageOption = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Input pixels between two predictions, where the space has a choice: 32, or 16, which sees smaller "
            "objects and costs more. Default: that of the config; the largest has 16, the smallest 32."
        ),
    ] = None,
    recipe: Annotated[
        Literal["small", "1x", "3x"],
        typer.Option(
            help="small: a few hundred images from scratch, 150 epochs in batches of 16, rate 1e-3 falling as a "
            "cosine, 100 steps of warm-up, averaged weights (0.995). 1x and 3x: the paper's, for large data and a "
            "pretrained backbone, 12 or 36 epochs in batches of 32, rate 1e-4 falling to a tenth after epochs 8 and "
            "11 or 27 and 33 (of a run with other --epochs, after the same shares), 500 steps of warm-up, drop path "
            "0.2, averaged weights (0.9998). A warm-up takes at most half of a run."
        ),
    ] = "small",
    init: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from: a backbone of `heatnas pretrain`, or a detector of `heatnas train`, of other "
            "classes too. What fits is taken; init.json in the folder of the run names it, and what did not fit.",
            show_default=False,
        ),
    ] = None,
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    micro_batch: MicroBatchOption = None,
    learning_rate: LearningRateOption = None,
    ema: EmaOption = None,
    drop_path: DropPathOption = None,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    drop_bad: DropBadOption = False,
) -> None:
    """Train a detector on a data set in COCO format.

    Leaves best.safetensors, last.safetensors, curve.csv, curve.png, TensorBoard events, and run.safetensors, from which
    the same command goes on; it is no detector to use. Under `torchrun` several processes share each batch:
    `torchrun --nproc-per-node 8 -m server.cli train ...`. On CUDA BatchNorm sees what all of them run at once
    (SyncBatchNorm), elsewhere each process its own share: give it 8 images or more; the running statistics that are
    kept are those of the first process.

    Example: `heatnas train shapes --out run --space heatdetr-nano --epochs 20`
    """
    from server.detectors import choose  # noqa: PLC0415
    from supernet.dataset import CocoDataset  # noqa: PLC0415
    from supernet.detector_training import Splits, train_detector  # noqa: PLC0415
    from supernet.faults import counted  # noqa: PLC0415
    from supernet.processes import joined  # noqa: PLC0415
    from supernet.recipe import named_recipe  # noqa: PLC0415

    chosen_recipe = adjusted(
        named_recipe(recipe),
        epochs=epochs,
        batch=batch,
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        ema=ema,
        drop_path=drop_path,
        precision=precision,
        seed=seed,
    )
    named = space_of(config, space)
    training = CocoDataset(data, "train", image=None, drop_bad=drop_bad)
    chosen_space, chosen = choose(config, named, input_size(image), stride=stride, classes=len(training.classes))
    held_out = CocoDataset(data, "val", image=chosen.image, drop_bad=drop_bad)
    if held_out.classes != training.classes:
        fail(f"{data}: val has the classes {held_out.classes}, train {training.classes}: give both the same")
    with joined() as processes:
        teller = TrainingTeller(evaluation_text, sys.stdout if processes.is_first else None)
        for split in (training, held_out):
            teller.left_out(split.split, counted(split.left_out))
        teller.begin(chosen_space, chosen, len(training), len(held_out), chosen_recipe.epochs)
        teller.schedule(chosen_recipe, len(training))
        trained = train_detector(
            chosen_space,
            chosen,
            Splits(data.resolve().name, training, held_out),
            out,
            recipe=chosen_recipe,
            init=init,
            workers=workers,
            processes=processes,
            progress=teller.progress,
            on_init=teller.transfer,
            on_epoch=teller.epoch,
        )
        teller.end(trained.best)


def evaluate(
    detector: Annotated[
        Path,
        typer.Argument(
            help="A .safetensors of `heatnas train`, an .onnx file of a detector, or the folder of `heatnas export`."
        ),
    ],
    data: Annotated[Path, typer.Argument(help="Folder in COCO format.")],
    *,
    split: Annotated[str, typer.Option(help="Split to score on.")] = "val",
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime or PyTorch.")] = 1,
    drop_bad: DropBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score a detector on a data set, as COCO does, and time it in up to 100 runs on its images.

    Times are medians, with the quartiles beside them: of preparing a decoded image, of the network alone, and of the
    network with what follows (threshold, NMS).

    Example: `heatnas eval run/best.safetensors shapes`
    """
    import time  # noqa: PLC0415

    from server.progress import Steps  # noqa: PLC0415
    from supernet.scoring import score_and_time  # noqa: PLC0415

    steps = Steps(sys.stderr)
    try:
        progress = steps.begin(f"scoring on {split}")
        found, speed = score_and_time(
            detector, data, split, clock=time.perf_counter_ns, threads=threads, drop_bad=drop_bad, progress=progress
        )
    finally:
        steps.close()
    if as_json:
        typer.echo(json.dumps({**found.model_dump(mode="json"), "speed": speed.model_dump(mode="json")}))
        return
    if found.left_out:
        typer.echo(left_out_text(split, found.left_out))
    typer.echo(f"{evaluation_text(found)}\n{speed_text(speed)}")
