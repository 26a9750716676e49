"""The command that pretrains a backbone by classification."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from server.cli_options import SeedOption, fail, finite, input_size
from server.cli_training import TrainingTeller, accuracy_text
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

HELD_OUT = 0.1
"""Share of each class that is held out where a folder has no val."""


def pretrain(
    images: Annotated[
        Path,
        typer.Argument(
            help="Folder with train/CLASS/ and val/CLASS/, each with images: "
            "files that end in .jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff, .gif or .ppm."
        ),
    ],
    *,
    out: OutOption,
    config: Annotated[
        str,
        typer.Option(
            help="Whose backbone: largest or smallest of the space, heatdetr-tiny, -small, -medium or -large of the "
            "space heatdetr, or the config.json of an answer."
        ),
    ] = "largest",
    space: ConfigSpaceOption = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Input size, any whose sides are multiples of 64: 256x256 stands for Swin's 224x224. Default: the "
            "largest of the space.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Literal["small", "swin"],
        typer.Option(
            help="small: some thousand images, 60 epochs in batches of 64, averaged weights, gentle changes. swin: "
            "ImageNet, 300 epochs in batches of 1024 at rate 1e-3, 20 of them warm-up, mixup 0.8, cutmix 1, erasing "
            "0.25, label smoothing 0.1 (Swin's recipe without its RandAug)."
        ),
    ] = "small",
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    micro_batch: MicroBatchOption = None,
    learning_rate: LearningRateOption = None,
    ema: EmaOption = None,
    drop_path: DropPathOption = None,
    precision: PrecisionOption = "auto",
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.9,
            callback=finite,
            help="Share of each class that is held out, for a folder without val; default: 0.1.",
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Pretrain the backbone of a detector by telling images apart, for `heatnas train --init`.

    The backbone is what the last map of the stages depends on; its mean goes through one Linear onto the classes.
    Leaves best.safetensors, last.safetensors, curve.csv, curve.png, TensorBoard events, and run.safetensors, from which
    the same command goes on after the last finished epoch. Images that cannot be read are named before anything starts;
    where all of them do not fit into memory, only their headers are looked at then. Several processes share each batch
    under `torchrun`, as with `heatnas train`.

    Example: `heatnas pretrain photos --out backbone --space heatdetr-edge --image 256x256`
    """
    from server.detectors import choose_backbone  # noqa: PLC0415
    from supernet.image_folder import open_image_folder  # noqa: PLC0415
    from supernet.pretraining import pretrain_backbone  # noqa: PLC0415
    from supernet.processes import joined  # noqa: PLC0415
    from supernet.recipe import named_pretrain_recipe  # noqa: PLC0415

    if held_out is not None and (images / "val").is_dir():
        fail(f"--held-out {held_out:g}: {images} has a folder val of its own; leave the option out")
    chosen_recipe = adjusted(
        named_pretrain_recipe(recipe),
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
    data = open_image_folder(images, held_out=held_out or HELD_OUT, seed=seed)
    train, judged = data
    chosen_space, chosen = choose_backbone(config, named, input_size(image), classes=len(train.classes))
    with joined() as processes:
        teller = TrainingTeller(accuracy_text, sys.stdout if processes.is_first else None)
        teller.begin_backbone(chosen_space, chosen, len(train), len(judged), len(train.classes), chosen_recipe.epochs)
        teller.schedule(chosen_recipe, len(train))
        trained = pretrain_backbone(
            chosen_space,
            chosen,
            data,
            out,
            recipe=chosen_recipe,
            workers=workers,
            processes=processes,
            progress=teller.progress,
            on_epoch=teller.epoch,
        )
        teller.end(trained.best)
