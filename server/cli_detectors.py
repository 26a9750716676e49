"""The commands about detectors that need no server: what they cost, training one, scoring one."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from server.cli_options import ImageOption, JsonOption, SeedOption, SpaceOption, fail, input_size
from server.cli_training import TrainingTeller, evaluation_text, speed_text


def macs() -> None:
    """Count the multiply-adds and parameters of the paper's four detectors beside what its Table 3 prints.

    A: 1280x800, convolutions and Linears only. B: 800x1333, products of attention as well. C: the mean over COCO.

    Example: `heatnas macs`
    """
    from nas.conventions import Convention, gmacs_by, parameters_m  # noqa: PLC0415
    from nas.named import CONFIG_NAMES, PAPER_GFLOPS, named_config  # noqa: PLC0415
    from nas.space import named_space  # noqa: PLC0415
    from server.console import table  # noqa: PLC0415

    space = named_space("heatdetr", classes=80)
    rows = []
    for name in CONFIG_NAMES:
        config = named_config(name, space, image=space.images[-1])
        counts = [f"{gmacs_by(convention, space.structure, config):.2f}" for convention in Convention]
        rows.append((name, *counts, str(PAPER_GFLOPS[name]), f"{parameters_m(space.structure, config):.2f}"))
    header = ("detector", *(f"GMACs {convention}" for convention in Convention), "paper", "parameters M")
    typer.echo(table(header, rows))


def train(
    data: Annotated[
        Path, typer.Argument(help="Folder in COCO format: train/, val/, annotations/train.json, val.json.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; an interrupted run in it goes on.")],
    config: Annotated[
        str,
        typer.Option(
            help="What to train: largest or smallest of the space, heatdetr-tiny, -small, -medium or -large of the "
            "space heatdetr, or the config.json of an answer."
        ),
    ] = "largest",
    space: SpaceOption = "heatdetr-edge",
    image: ImageOption = None,
    stride: Annotated[
        int,
        typer.Option(help="Input pixels between two predictions, 32 or 16; 16 sees smaller objects and costs more."),
    ] = 32,
    recipe: Annotated[
        Literal["small", "1x", "3x"],
        typer.Option(help="small: a few hundred images from scratch; 1x and 3x: the paper's, for large data."),
    ] = "small",
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs; default: the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step, over all processes.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images at once, where a batch needs much memory.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Peak rate; default: the recipe's.")] = None,
    seed: SeedOption = 0,
    workers: Annotated[int, typer.Option(min=0, help="Child processes that read and change images.")] = 0,
) -> None:
    """Train a detector on a data set in COCO format.

    Leaves best.safetensors, last.safetensors, curve.csv, curve.png and TensorBoard events. Under `torchrun` several
    processes share each batch; BatchNorm then sees all of it on CUDA alone, elsewhere each process its own share.

    Example: `heatnas train shapes --out run --space heatdetr-nano --epochs 20`
    """
    from server.detectors import choose  # noqa: PLC0415
    from supernet.dataset import CocoDataset  # noqa: PLC0415
    from supernet.detector_training import Splits, train_detector  # noqa: PLC0415
    from supernet.processes import joined  # noqa: PLC0415
    from supernet.recipe import named_recipe  # noqa: PLC0415

    changes = {"epochs": epochs, "batch": batch, "micro_batch": micro_batch, "learning_rate": learning_rate}
    chosen_recipe = named_recipe(recipe).model_copy(
        update={"seed": seed} | {name: value for name, value in changes.items() if value is not None}
    )
    training = CocoDataset(data, "train", image=None)
    chosen_space, chosen = choose(config, space, input_size(image), stride=stride, classes=len(training.classes))
    held_out = CocoDataset(data, "val", image=chosen.image)
    if held_out.classes != training.classes:
        fail(f"{data}: val has the classes {held_out.classes}, train {training.classes}: give both the same")
    with joined() as processes:
        teller = TrainingTeller(sys.stdout if processes.is_first else None)
        teller.begin(chosen_space, chosen, len(training), len(held_out), chosen_recipe.epochs)
        trained = train_detector(
            chosen_space,
            chosen,
            Splits(data.resolve().name, training, held_out),
            out,
            recipe=chosen_recipe,
            workers=workers,
            processes=processes,
            progress=teller.progress,
            on_epoch=teller.epoch,
        )
        teller.end(trained)


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
    as_json: JsonOption = False,
) -> None:
    """Score a detector on a data set, as COCO does, and time it on up to 100 of the images.

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
            detector, data, split, clock=time.perf_counter_ns, threads=threads, progress=progress
        )
    finally:
        steps.close()
    if as_json:
        typer.echo(json.dumps({**found.model_dump(mode="json"), "speed": speed.model_dump(mode="json")}))
    else:
        typer.echo(f"{evaluation_text(found)}\n{speed_text(speed)}")
