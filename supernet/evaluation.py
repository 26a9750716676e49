"""Average precision on a split, by pycocotools: of an ONNX file (the truth) or of a module in training (a twin)."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pydantic import Field
from torch import Tensor

from nas.values import Value
from supernet.dataset import CocoDataset
from supernet.faults import counted
from supernet.layers.head import RawPrediction, decode, score
from supernet.onnx_session import batch_of, open_session, predictor
from supernet.postprocess import Detections, Floats, Predictor, detect

Progress = Callable[[int, int], None]
"""Is told how many images of how many are done."""


class Evaluation(Value):
    """How well detections fit the annotations of a split, in COCO's terms; None where COCO defines no value.

    Attributes:
        ap: mean over IoU 0.50..0.95 and classes, in [0, 1].
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: AP over objects below 32x32 pixels of the original image.
        ap_medium: over those up to 96x96.
        ap_large: over the others.
        class_ap50: AP50 of each class; None for a class without objects in the split.
        images: images looked at.
        objects: annotated objects among them, crowds left out.
        detections: detections scored.
        data_sha256: content hash of the split.
        left_out: bad entries of the split that were left out or clipped, counted by kind.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    class_ap50: dict[str, float | None]
    images: int
    objects: int
    detections: int
    data_sha256: str
    left_out: dict[str, int] = Field(default_factory=dict)


def evaluate_onnx(
    onnx: bytes, data: CocoDataset, *, threads: int = 1, progress: Progress = lambda *_: None
) -> Evaluation:
    """Run a detector file in ONNX Runtime, at its own batch, and score what it finds."""
    session = open_session(onnx, threads=threads)
    return evaluate(predictor(session), data, batch=batch_of(session), progress=progress)


def evaluate_module(
    forward: Callable[[Tensor], RawPrediction],
    anchors: Tensor,
    data: CocoDataset,
    *,
    batch: int = 16,
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """Score a network in its training form; put it into evaluation mode first.

    Args:
        forward: takes images (B, 3, H, W), such as a `HeatDETR`, or a `Supernet` with its gates bound.
        anchors: (N, 4) of its head.
        data: the split.
        batch: images per forward pass.
        progress: is told how many images of how many are done.
    """

    @torch.no_grad()
    def predict(images: Floats) -> tuple[Floats, Floats]:
        prediction = forward(torch.from_numpy(images).to(anchors.device))
        return decode(prediction.deltas, anchors).cpu().numpy(), score(prediction).cpu().numpy()

    return evaluate(predict, data, batch=batch, progress=progress)


def evaluate(predict: Predictor, data: CocoDataset, *, batch: int, progress: Progress = lambda *_: None) -> Evaluation:
    """Detect on every image of the split and score the detections."""
    found: list[Detections] = []
    for images in _batches(data, batch):
        boxes, scores = predict(images)
        found += [detect(one, other) for one, other in zip(boxes, scores, strict=True)]
        progress(len(found), len(data))
    return score_detections(found, data)


def score_detections(found: list[Detections], data: CocoDataset) -> Evaluation:
    """Score the detections of every image, in the order of the split; boxes are in pixels of the samples."""
    results = [result for index, detections in enumerate(found) for result in _results(detections, data, index)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _with_defaults(data.ground_truth)
        truth.createIndex()
        by_area, iou_thresholds = _precision(truth, results)
    precision = by_area[..., 0]
    halves = precision[np.isclose(iou_thresholds, 0.5)]
    return Evaluation(
        ap=_mean(precision),
        ap50=_mean(halves),
        ap75=_mean(precision[np.isclose(iou_thresholds, 0.75)]),
        ap_small=_mean(by_area[..., 1]),
        ap_medium=_mean(by_area[..., 2]),
        ap_large=_mean(by_area[..., 3]),
        class_ap50={name: _mean(halves[:, :, label]) for label, name in enumerate(data.classes)},
        images=len(data),
        objects=sum(not note.get("iscrowd", 0) for note in data.ground_truth["annotations"]),
        detections=len(results),
        data_sha256=data.content_sha256,
        left_out=counted(data.left_out),
    )


def images_to_floats(pixels: NDArray[np.uint8]) -> Floats:
    """Turn RGB (B, H, W, 3), uint8, into (B, 3, H, W), float32 in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def _batches(data: CocoDataset, batch: int) -> Iterator[Floats]:
    for start in range(0, len(data), batch):
        indices = range(start, min(start + batch, len(data)))
        yield images_to_floats(np.stack([data[index].pixels for index in indices]))


def _results(detections: Detections, data: CocoDataset, index: int) -> Iterator[dict[str, Any]]:
    corners = detections.boxes * np.tile(data.scales[index], 2)
    for (x1, y1, x2, y2), confidence, label in zip(corners.tolist(), detections.scores, detections.labels, strict=True):
        yield {
            "image_id": data.image_ids[index],
            "category_id": data.category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(confidence),
        }


def _with_defaults(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """Fill in what pycocotools insists on and COCO files may lack.

    Annotations are numbered anew from 1: it takes an object whose id is 0 for one that nobody found.
    """
    notes = [
        {"iscrowd": 0, "area": note["bbox"][2] * note["bbox"][3], **note, "id": number}
        for number, note in enumerate(ground_truth["annotations"], start=1)
    ]
    return {"info": {}, **ground_truth, "annotations": notes}


def _precision(truth: COCO, results: list[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision (IoU thresholds, recalls, classes, areas) at 100 detections, and the thresholds.

    Areas are all, small, medium, large.
    """
    found = truth.loadRes(results) if results else COCO()
    if not results:
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
    judge = COCOeval(truth, found, "bbox")
    judge.evaluate()
    judge.accumulate()
    return judge.eval["precision"][..., -1], judge.params.iouThrs


def _mean(precision: NDArray[np.float64]) -> float | None:
    """Average the defined entries; COCO writes -1 where a class has no object."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
