"""Options that `heatnas train` and `heatnas pretrain` share, and how they change a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from server.cli_options import fail, finite

if TYPE_CHECKING:
    from supernet.recipe import RunRecipe

R = TypeVar("R", bound="RunRecipe")

DEFAULT_SPACE = "heatdetr-edge"
"""Where a config is named without one."""

OutOption = Annotated[Path, typer.Option("--out", help="Folder of the run; an interrupted run in it goes on.")]
ConfigSpaceOption = Annotated[
    str | None,
    typer.Option(
        "--space",
        help="Search space of the config, alone or for a runtime, such as heatdetr-edge@cpu; `heatnas spaces` lists "
        "them. A config.json brings its own. Default: heatdetr-edge.",
        show_default=False,
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Epochs; default: the recipe's. The rate then falls after the same shares of the run.",
        show_default=False,
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(min=1, help="Images a step, over all processes; default: the recipe's.", show_default=False),
]
MicroBatchOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Most images that a process runs at once, where a batch needs much memory: its share is cut evenly into "
        "parts no larger, gradients are added up to those of the batch, BatchNorm sees one part.",
        show_default=False,
    ),
]
LearningRateOption = Annotated[
    float | None,
    typer.Option(min=1e-9, callback=finite, help="Peak rate of AdamW; default: the recipe's.", show_default=False),
]
EmaOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99999,
        callback=finite,
        help="Decay of the averaged weights, which are evaluated and kept; 0 keeps the trained ones. Default: the "
        "recipe's.",
        show_default=False,
    ),
]
DropPathOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.9,
        callback=finite,
        help="Chance that the branches of the last block are left out for an image, less in earlier ones; default: the "
        "recipe's.",
        show_default=False,
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(
        help="Of convolutions and matrix products (mixed precision); auto is 16 bits where the processor computes in "
        "them: bf16 or fp16 on CUDA, bf16 on a CPU with AVX512-BF16 or AMX."
    ),
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Child processes that read and change images.")]


def space_of(config: str, space: str | None) -> str:
    """Return the name of the space that a config is of; none may be named for a `config.json`, which brings its own."""
    if space is not None and config.endswith(".json"):
        fail(f"--space {space}: {config} brings its own space; leave the option out")
    return space or DEFAULT_SPACE


def adjusted(
    recipe: R,
    *,
    epochs: int | None,
    batch: int | None,
    micro_batch: int | None,
    learning_rate: float | None,
    ema: float | None,
    drop_path: float | None,
    precision: str,
    seed: int,
) -> R:
    """Return the recipe with what was given; what is None stays as the recipe has it."""
    wanted = {
        "batch": batch,
        "micro_batch": micro_batch,
        "learning_rate": learning_rate,
        "ema": ema,
        "drop_path": drop_path,
        "precision": precision,
        "seed": seed,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    return recipe.lasting(epochs or recipe.epochs).model_copy(update=given)
