"""The commands `heatnas data`: draw a data set, look at one, convert one."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from server.cli_options import DropBadOption, JsonOption, SeedOption, fail, finite, input_size
from server.console import table
from server.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supernet.data_report import DataReport, FaultGroup, SplitReport

VAL_SHARE = 0.2
"""Share of the images that is held out where a source holds out none."""

data_app = typer.Typer(help="Data sets: draw one, check one, convert one.", no_args_is_help=True)


@data_app.command("make")
def make_data(
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must not hold anything else.")],
    *,
    images: Annotated[int, typer.Option(min=1, help="Training images.")] = 1200,
    held_out: Annotated[int, typer.Option(min=1, help="Validation images.")] = 160,
    size: Annotated[int, typer.Option(min=48, help="Side of the square images, in pixels.")] = 192,
    seed: SeedOption = 0,
) -> None:
    """Draw a detection data set in COCO format: textured shapes, the same for the same seed.

    Example: `heatnas data make shapes --images 1200 --seed 0`
    """
    from supernet.procedural import make_dataset  # noqa: PLC0415

    with closing(Steps(sys.stderr)) as steps:
        make_dataset(
            folder,
            images=images,
            size=size,
            seed=seed,
            held_out=held_out,
            progress=lambda done, total: steps.tell("drawing", done, total),
        )
    typer.echo(f"{images} training and {held_out} validation images in {folder}")


@data_app.command("check")
def check_data(
    data: Annotated[Path, typer.Argument(help="Folder in COCO format.")],
    *,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split to look at; give it again for more. Default: train and val.", show_default=False),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Count box sizes as they are at this input size, such as 320x320; default: in the original images.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at every entry and image file: what is in them, and every fault, by kind; status 1 if there is one.

    Small, medium and large are COCO's: boxes below 32x32 pixels, below 96x96, and the others. Where most sides are
    below 32 pixels at the input size, `--stride 16` or a larger `--image` sees more.

    Example: `heatnas data check shapes --image 192x192`
    """
    from supernet.data_report import SPLITS, report_data  # noqa: PLC0415

    with closing(Steps(sys.stderr)) as steps:
        report = report_data(
            data,
            splits=tuple(dict.fromkeys(split)) if split else SPLITS,
            image=input_size(image),
            progress=lambda name, done, total: steps.tell(f"reading {name}", done, total),
        )
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json")))
    else:
        typer.echo(report_text(report, image))
    if report.faults:
        fail(f"{data}: {_verdict(report.faults, 'heatnas train')}")


@data_app.command("convert")
def convert_data(
    source: Annotated[Path, typer.Argument(help="Pascal VOC folder, or YOLO folder or its YAML file.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not hold anything.")],
    *,
    form: Annotated[
        Literal["voc", "yolo"] | None,
        typer.Option("--format", help="Format of the source; default: seen from its files.", show_default=False),
    ] = None,
    val_share: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=0.999,
            callback=finite,
            help="Share of the training images that become val, for a source without val; default: 0.2.",
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy",
            help="Copy images; by default they are hard links, which take no space: one file under two names.",
        ),
    ] = False,
    drop_bad: DropBadOption = False,
) -> None:
    """Turn a Pascal VOC or YOLO data set into a folder in COCO format.

    VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/train.txt, val.txt, test.txt; boxes are 1-based, inclusive.
    Objects marked `difficult` become crowds (iscrowd 1): not trained on, and not counted as missed, as VOC has it.

    YOLO: data.yaml with `names`, `train`, `val`, `test` (folders or lists); an image without labels is background.

    Example: `heatnas data convert VOCdevkit/VOC2012 voc`
    """
    from supernet.conversion import (  # noqa: PLC0415
        check_free,
        read_source,
        recognise,
        with_val,
        write_dataset,
    )
    from supernet.data_report import grouped  # noqa: PLC0415
    from supernet.faults import counted, remedied  # noqa: PLC0415

    check_free(out)
    chosen = form or recognise(source)
    with closing(Steps(sys.stderr)) as steps:
        found = read_source(source, chosen, steps.tell)
    for remark in found.remarks:
        typer.echo(f"remark: {remark}")
    if found.faults and not drop_bad:
        groups = grouped(found.faults)
        typer.echo("\n\n".join(map(group_text, groups)))
        fail(f"{source}: {_verdict(groups, 'heatnas data convert')}")
    if val_share is not None and "val" in found.splits:
        fail(f"--val-share {val_share}: {source} has a val split of its own; leave the option out")
    whole = with_val(found, share=val_share or VAL_SHARE, seed=seed)
    with closing(Steps(sys.stderr)) as steps:
        write_dataset(whole, out, copy=copy, progress=steps.tell)
    if found.faults:
        typer.echo(f"bad entries of {source}: {remedied(counted(found.faults))}")
    counts = ", ".join(f"{len(images)} {split}" for split, images in whole.splits.items())
    typer.echo(f"{chosen} data set in {out}, images: {counts}")


def report_text(report: "DataReport", image: str | None) -> str:
    """Lay out a report: what is there, then what is wrong with it."""
    parts = []
    if report.splits:
        at = f"at {image}" if image else "in the original images"
        parts = [_contents(report.splits), f"boxes {at}:\n{_sizes(report.splits)}", _classes(report.splits)]
    parts += [f"remark: {remark}" for remark in report.remarks]
    parts += list(map(group_text, report.faults))
    return "\n\n".join(parts if report.faults else [*parts, "no faults"])


def group_text(group: "FaultGroup") -> str:
    """Show the faults of one kind: their number, the first few, and what --drop-bad does with them."""
    what = f"--drop-bad: {group.remedy}" if group.remedy else "nothing goes on with it"
    lines = [f"{group.kind}: {group.count} ({what})", *(f"  {example}" for example in group.examples)]
    more = group.count - len(group.examples)
    return "\n".join([*lines, f"  and {more} more"] if more else lines)


def _verdict(groups: "Sequence[FaultGroup]", command: str) -> str:
    """Count faults and say what to do: correct them, or have a command leave them out."""
    count = sum(group.count for group in groups)
    text = f"{count} fault(s) of {len(groups)} kind(s): correct or remove these entries"
    return f"{text}, or go on without them: {command} --drop-bad" if all(group.remedy for group in groups) else text


def _contents(splits: "Sequence[SplitReport]") -> str:
    header = ("split", "images", "usable", "without boxes", "boxes", "crowds", "image sizes")
    rows = [
        (
            part.split,
            *map(str, (part.listed, part.images, part.backgrounds, part.boxes, part.crowds)),
            _image_sizes(part.image_sizes),
        )
        for part in splits
    ]
    return table(header, rows)


def _image_sizes(counts: dict[str, int]) -> str:
    if not counts:
        return "-"
    first, *others = counts
    return f"{first} and {len(others)} more" if others else first


def _sizes(splits: "Sequence[SplitReport]") -> str:
    header = ("split", "small", "medium", "large", "side px: smallest", "10 %", "median", "90 %", "largest")
    rows = []
    for part in splits:
        shares = [f"{count / part.boxes:.1%}" if part.boxes else "-" for count in (part.small, part.medium, part.large)]
        sides = ["-"] * 5 if part.side_px is None else [f"{side:.1f}" for side in part.side_px]
        rows.append((part.split, *shares, *sides))
    return table(header, rows)


def _classes(splits: "Sequence[SplitReport]") -> str:
    names = dict.fromkeys(name for part in splits for name in part.class_boxes)
    header = ["class", *(f"{part.split} {what}" for part in splits for what in ("boxes", "images"))]
    rows = [
        (
            name,
            *(
                str(counts[name]) if name in counts else "-"
                for part in splits
                for counts in (part.class_boxes, part.class_images)
            ),
        )
        for name in names
    ]
    return table(header, rows)
