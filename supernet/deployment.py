"""From the checkpoint of a detector to a folder that is deployed: ONNX files, and a manifest that vouches for them."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nas.blocks import Layout
from nas.runtime_profile import RuntimeProfile, laid_out
from supernet.checkpoint import DetectorHeader, load_detector
from supernet.dataset import CocoDataset, spread_evenly
from supernet.detector import with_structure
from supernet.evaluation import evaluate_onnx, images_to_floats
from supernet.export import OPSET, ParityRecord, export_detector
from supernet.float16 import Float16Parity, compare_float16, to_float16
from supernet.manifest import ExportedFile, Manifest, Precision, Preprocessing, package_versions, write_export
from supernet.onnx_session import filled
from supernet.postprocess import Floats
from supernet.quantisation import Calibration, Tell, quantise
from supernet.scoring import check_classes

OUTPUTS = {
    "boxes": "(batch, candidates, 4) float32: x1, y1, x2, y2 in pixels of the input, not clipped to it",
    "scores": "(batch, candidates, classes) float32: probability that the box holds an object of the class, in [0, 1]",
}


@dataclass(frozen=True)
class Measuring:
    """Images to measure accuracy on and to calibrate with.

    Attributes:
        data: folder in COCO format; `val` is scored.
        calibration_images: of `train`, spread evenly.
        threads: of ONNX Runtime.
        drop_bad: go on without bad entries; scores and calibration count them.
    """

    data: Path
    calibration_images: int = 100
    threads: int = 1
    drop_bad: bool = False


def deploy(
    checkpoint: Path,
    out: Path,
    *,
    version: str,
    batch: int = 1,
    precisions: Collection[Precision] = (),
    measuring: Measuring | None = None,
    profile: RuntimeProfile | None = None,
    tell: Tell = lambda _: lambda *_: None,
) -> Manifest:
    """Export a detector to a folder: `model.onnx`, a file for each further precision, and `manifest.json`.

    Args:
        checkpoint: of a detector.
        out: the folder; files of an earlier export in it are replaced.
        version: of the product, noted in the manifest.
        batch: images that one run takes.
        precisions: besides fp32; int8 needs `measuring`.
        measuring: without it accuracy stays unmeasured.
        profile: whose layout the graphs have; the activation is part of the weights and stays. None for the layout of
            the space that the detector was trained in.
        tell: follows the steps.

    Raises:
        BadCheckpoint: the file is none of a detector.
        OtherClasses: its classes are not those of the data.
        BadDataset: the data cannot be used.
        ParityError: a file computes something else than the detector.
        NotFinite: the int8 file gives what is no number on the calibration images.
        ValueError: int8 without images to calibrate on.
    """
    detector, header, weights_sha256 = load_detector(checkpoint)
    held_out, training = _splits(measuring, precisions, header, checkpoint)
    threads = 1 if measuring is None else measuring.threads
    tell("exporting, comparing with PyTorch")
    structure = header.space.structure if profile is None else laid_out(header.space.structure, profile)
    graph = export_detector(with_structure(detector, header.space, structure), batch=batch)
    made = [_made(Precision.FP32, graph.onnx, parity=graph.parity)]
    if Precision.FP16 in precisions:
        tell("converting to float16, comparing")
        half = to_float16(graph.onnx)
        images, described = _comparison_images(held_out, batch, header)
        label = f"detector {header.config.id} in float16"
        parity = compare_float16(half, graph.onnx, images, label=label, described=described)
        made.append(_made(Precision.FP16, half, parity=parity))
    if training is not None:
        quantised, calibration = quantise(graph.onnx, training, threads=threads, tell=tell)
        made.append(_made(Precision.INT8, quantised, calibration=calibration))
    if held_out is not None:
        made = _scored(made, held_out, threads, tell)
    manifest = Manifest(
        version=version,
        space_id=header.space.id,
        config_id=header.config.id,
        space=header.space,
        profile=profile,
        layout=structure.linear_layout or Layout.TOKENS,
        activation=structure.activation,
        config=header.config,
        classes=header.classes,
        category_ids=header.category_ids,
        opset=OPSET,
        preprocessing=Preprocessing(shape=(batch, 3, *header.config.image)),
        outputs=OUTPUTS,
        weights_sha256=weights_sha256,
        trained_on=header.data,
        evaluated_on=None if held_out is None else f"{held_out.folder.resolve().name}/{held_out.split}",
        files=tuple(one.entry for one in made),
        versions=package_versions(),
    )
    write_export(out, manifest, {one.entry.name: one.content for one in made})
    return manifest


class _Made(NamedTuple):
    entry: ExportedFile
    content: bytes


def _made(
    precision: Precision,
    content: bytes,
    *,
    parity: ParityRecord | Float16Parity | None = None,
    calibration: Calibration | None = None,
) -> _Made:
    entry = ExportedFile(
        name=precision.file_name,
        precision=precision,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        parity=parity,
        calibration=calibration,
    )
    return _Made(entry, content)


def _splits(
    measuring: Measuring | None, precisions: Collection[Precision], header: DetectorHeader, checkpoint: Path
) -> tuple[CocoDataset | None, CocoDataset | None]:
    """Return the split to score and the images to calibrate on, where they are needed: faults show before any work."""
    if measuring is None:
        if Precision.INT8 in precisions:
            raise ValueError("int8 needs images to calibrate on: name a data set")
        return None, None

    def split(name: str, most: int | None) -> CocoDataset:
        found = CocoDataset(measuring.data, name, image=header.config.image, most=most, drop_bad=measuring.drop_bad)
        check_classes(checkpoint, header.classes, found)
        return found

    return split("val", None), split("train", measuring.calibration_images) if Precision.INT8 in precisions else None


def _comparison_images(held_out: CocoDataset | None, batch: int, header: DetectorHeader) -> tuple[Floats, str]:
    """Return a batch of images to compare float16 on, real ones where there are any, and what they are."""
    if held_out is None:
        images = np.random.default_rng(0).random((batch, 3, *header.config.image), dtype=np.float32)
        return images, "random pixels, seed 0"
    chosen = spread_evenly(len(held_out), batch)
    images = images_to_floats(np.stack([held_out[index].pixels for index in chosen]))
    return filled(images, batch), f"{len(images)} of {held_out.split}"


def _scored(made: Sequence[_Made], held_out: CocoDataset, threads: int, tell: Tell) -> list[_Made]:
    """Score every file, and say what it costs against the first."""
    found = [
        evaluate_onnx(
            one.content, held_out, threads=threads, progress=tell(f"scoring {one.entry.name} on {held_out.split}")
        )
        for one in made
    ]
    whole = found[0].ap
    return [
        _Made(
            one.entry.model_copy(
                update={
                    "accuracy": "measured",
                    "evaluation": evaluation,
                    "ap_cost": None if whole is None or evaluation.ap is None else whole - evaluation.ap,
                }
            ),
            one.content,
        )
        for one, evaluation in zip(made, found, strict=True)
    ]
