"""The command that turns a trained detector into files that are deployed."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli_options import DropBadOption, JsonOption, fail

if TYPE_CHECKING:
    from supernet.manifest import ExportedFile, Manifest


class SmallerPrecision(StrEnum):
    """What a detector can be exported to besides fp32."""

    FP16 = "fp16"
    INT8 = "int8"


class Profile(StrEnum):
    """The runtime profiles (`nas.runtime_profile`) whose layout a graph can have."""

    CPU = "cpu"
    CUDA = "cuda"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors of `heatnas train`.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; an earlier export in it is replaced.")],
    batch: Annotated[int, typer.Option(min=1, max=256, help="Images that one run takes; the shape is static.")] = 1,
    precision: Annotated[
        list[SmallerPrecision] | None,
        typer.Option(help="A further file beside model.onnx (fp32); give it twice for both.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder in COCO format: val is scored, to say what a precision costs; train calibrates int8.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        Profile | None,
        typer.Option(
            help="Lay the graph out for a runtime: cpu (tokens) or cuda (NCHW maps). The activation is part of the "
            "weights and stays. Default: the layout that was trained in.",
            show_default=False,
        ),
    ] = None,
    drop_bad: DropBadOption = False,
    calibration_images: Annotated[
        int | None,
        typer.Option(min=1, help="Training images that int8 takes its ranges from; default: 100.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of ONNX Runtime while it scores; default: 1.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a trained detector: model.onnx (opset 20), and manifest.json with all that it takes to run it.

    Before they are written, fp32 is compared with PyTorch on random pixels, and fp16 with fp32 on an image of val,
    without --data on random pixels. int8 must give finite numbers on its calibration images and is judged by the AP it
    loses, which the table shows.

    Example: `heatnas export run/best.safetensors --out exported --precision int8 --data shapes`
    """
    from importlib.metadata import version  # noqa: PLC0415

    from nas.runtime_profile import RuntimeProfile  # noqa: PLC0415
    from server.progress import Steps  # noqa: PLC0415
    from supernet.deployment import Measuring, deploy  # noqa: PLC0415
    from supernet.manifest import Precision  # noqa: PLC0415

    wanted = {Precision(name) for name in precision or ()}
    if Precision.INT8 in wanted and data is None:
        fail("--precision int8 needs images to calibrate on: name a data set in COCO format with --data")
    if calibration_images is not None and Precision.INT8 not in wanted:
        fail(f"--calibration-images {calibration_images} is for int8 alone: add --precision int8, or leave it out")
    if data is None:
        _refuse_without_data(threads, drop_bad=drop_bad)
    steps = Steps(sys.stderr)
    try:
        manifest = deploy(
            checkpoint,
            out,
            version=version("heatnas"),
            batch=batch,
            precisions=wanted,
            measuring=None if data is None else Measuring(data, calibration_images or 100, threads or 1, drop_bad),
            profile=None if profile is None else RuntimeProfile(profile),
            tell=steps.begin,
        )
    finally:
        steps.close()
    typer.echo(json.dumps(manifest.model_dump(mode="json")) if as_json else _text(out, manifest))


def _refuse_without_data(threads: int | None, *, drop_bad: bool) -> None:
    """Refuse the options that say how data are scored."""
    given = "--drop-bad" if drop_bad else f"--threads {threads}" if threads is not None else None
    if given is not None:
        fail(f"{given} is for scoring, and nothing is scored without data: add --data, or leave it out")


def _text(out: Path, manifest: "Manifest") -> str:
    """Say what was written, and what each precision costs."""
    from server.console import number, table  # noqa: PLC0415

    def row(file: "ExportedFile") -> tuple[str, ...]:
        ap = None if file.evaluation is None else file.evaluation.ap
        cost = None if file.ap_cost is None else 100 * file.ap_cost
        return (
            str(out / file.name), f"{file.bytes / 2**20:.2f}", number(ap, ".4f"), number(cost, "+.2f"), file.sha256[:16]
        )  # fmt: skip

    lines = [table(("file", "MiB", "AP", "AP points lost", "SHA-256"), map(row, manifest.files))]
    shape = "x".join(map(str, manifest.preprocessing.shape))
    lines.append(f"opset {manifest.opset}, input {shape}, classes {', '.join(manifest.classes)}")
    lines.append(_layout(manifest))
    lines += _left_out(manifest)
    if manifest.evaluated_on is None:
        lines.append("accuracy is unmeasured: name a data set with --data")
    else:
        lines.append(f"AP on {manifest.evaluated_on} in ONNX Runtime on the CPU")
    return "\n".join([*lines, *_unproven(manifest), f"manifest: {out / 'manifest.json'}"])


def _layout(manifest: "Manifest") -> str:
    """Say how the graphs are laid out, and that the activation is not for a profile to choose."""
    profile, trained = manifest.profile, manifest.activation
    if profile is None:
        return f"layout {manifest.layout}, activation {trained}"
    usual = "" if profile.activation is trained else f" (spaces for {profile} are trained with {profile.activation})"
    return f"layout {manifest.layout} for {profile.runtime}, activation {trained} stays as trained{usual}"


def _left_out(manifest: "Manifest") -> list[str]:
    """Say which entries of the data were bad, of each split once."""
    from server.cli_training import left_out_text  # noqa: PLC0415

    first, last = manifest.files[0].evaluation, manifest.files[-1].calibration
    counts = {"val": first.left_out if first else {}, "train": last.left_out if last else {}}
    return [left_out_text(split, found) for split, found in counts.items() if found]


def _unproven(manifest: "Manifest") -> list[str]:
    """Say of which files the comparison shows little, and why."""
    from supernet.float16 import Float16Parity  # noqa: PLC0415

    advice = ": name a data set with --data" if manifest.evaluated_on is None else ""
    return [
        f"what {file.name} detects is unproven: no score was above {manifest.postprocessing.score_above:g} on "
        f"{file.parity.images} (best {file.parity.best_score:.3f}){advice}"
        for file in manifest.files
        if isinstance(file.parity, Float16Parity) and file.parity.detections == "unproven"
    ]
