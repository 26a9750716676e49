"""Detector graphs in int8: static quantisation of convolutions and linear layers, calibrated on the user's images.

Weights are int8 per output channel, maps uint8 per tensor; in between stand QuantizeLinear and DequantizeLinear (QDQ),
which runtimes fuse. The head's convolutions, the decoding and everything between two maps (attention) stay float32: the
scores of rare classes and the sides of large boxes need more than 256 steps.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from pydantic import Field

from nas.values import Value
from supernet.dataset import CocoDataset
from supernet.errors import NotFinite
from supernet.evaluation import Progress, evaluate, images_to_floats
from supernet.faults import counted
from supernet.graph_regions import attention_weights, decoding, head_convolutions
from supernet.onnx_session import batch_of, filled, open_session, predictor
from supernet.postprocess import Floats, Predictor

QUANTISED = ("Conv", "MatMul", "Gemm")

Tell = Callable[[str], Progress]
"""Is told what begins, and returns what is told about its progress."""


class Method(StrEnum):
    """How the range of a map is chosen.

    Histograms (percentiles, entropy) take many times as long on maps of this size, and are not offered.
    """

    EXTREMES = "least and greatest value over all images"
    AVERAGED = "mean over the images of their least and greatest values"


class Calibration(Value):
    """Where the ranges of an int8 file come from.

    Attributes:
        data: name of the data set.
        data_sha256: content hash of the images taken from its training split.
        images: how many.
        method: how a range is chosen from the values seen: that which kept most AP on these very images.
        ap: on these images, by method tried.
        left_out: bad entries of the split, counted by kind, that were left out or clipped before images were taken.
    """

    data: str
    data_sha256: str
    images: int
    method: str
    ap: dict[str, float | None]
    left_out: dict[str, int] = Field(default_factory=dict)


def quantise(
    content: bytes, data: CocoDataset, *, threads: int = 1, tell: Tell = lambda _: lambda *_: None
) -> tuple[bytes, Calibration]:
    """Return a detector file in int8, and where its ranges come from.

    Both ways to choose ranges are tried, and scored on the calibration images: the held-out split stays held out.

    Args:
        content: the float32 file.
        data: images to calibrate on, at the size of its input.
        threads: of ONNX Runtime, for the scores.
        tell: follows the steps.

    Raises:
        NotFinite: a file gives what is no number on these images.
    """
    tried = [_tried(content, data, method, threads, tell) for method in Method]
    best = max(tried, key=lambda one: -1.0 if one.ap is None else one.ap)
    return best.content, Calibration(
        data=data.folder.resolve().name,
        data_sha256=data.content_sha256,
        images=len(data),
        method=best.method,
        ap={one.method: one.ap for one in tried},
        left_out=counted(data.left_out),
    )


class _Tried(NamedTuple):
    method: Method
    content: bytes
    ap: float | None


def _tried(content: bytes, data: CocoDataset, method: Method, threads: int, tell: Tell) -> _Tried:
    quantised = _quantise(content, data, method, tell(f"calibrating, {method}"))
    session = open_session(quantised, threads=threads)
    images = f"the calibration images of {data.folder}/{data.split}"
    predict = _finite(predictor(session), NotFinite(ranges=method, images=images))
    scoring = tell(f"scoring {method} on the calibration images")
    return _Tried(method, quantised, evaluate(predict, data, batch=batch_of(session), progress=scoring).ap)


def _finite(predict: Predictor, error: NotFinite) -> Predictor:
    """Have predictions that are no finite numbers refused: AP would take them for boxes that hit nothing."""

    def checked(images: Floats) -> tuple[Floats, Floats]:
        boxes, scores = predict(images)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise error
        return boxes, scores

    return checked


def _quantise(content: bytes, data: CocoDataset, method: Method, progress: Progress) -> bytes:
    graph = onnx.load_from_string(content).graph
    kept = decoding(graph) | attention_weights(graph) | head_convolutions(graph)
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
    with tempfile.TemporaryDirectory() as name, _quiet():
        path = Path(name) / "float.onnx"
        path.write_bytes(content)
        quantize_static(
            path,
            path.with_name("int8.onnx"),
            _Reader(data, batch, progress),
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=sorted(kept),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "CalibMovingAverage": method is Method.AVERAGED},
        )
        quantised: bytes = onnx.load(path.with_name("int8.onnx")).SerializeToString(deterministic=True)
        return quantised


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the images of a data set to a calibrator, a batch at a time."""

    def __init__(self, data: CocoDataset, batch: int, progress: Progress) -> None:
        self._data, self._batch, self._progress, self._done = data, batch, progress, 0

    def get_next(self) -> dict[str, Floats] | None:
        """Return the next batch, None after the last."""
        self._progress(self._done, len(self._data))
        indices = range(self._done, min(self._done + self._batch, len(self._data)))
        if not indices:
            return None
        self._done = indices.stop
        images = images_to_floats(np.stack([self._data[index].pixels for index in indices]))
        return {"images": filled(images, self._batch)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the quantiser prints at each image, and its advice to prepare a graph (it is), from the user."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
