"""Detector graphs in float16: half the bytes, for accelerators that compute in it.

ONNX Runtime's own converter casts to float16 and back between neighbours that are to stay in float32, and gives boxes
that passed float16: here a value is cast once, where the two meet.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nas.values import Value
from supernet.errors import ParityError
from supernet.graph_regions import attention_weights, decoding
from supernet.onnx_session import run_graph
from supernet.postprocess import MIN_SCORE
from supernet.token_choice import PASSED_OVER, passed_over, with_given_orders, with_orders

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

BOX_TOLERANCE = 0.02
"""Largest difference between corners, in larger sides of their box; one below `SMALL_PX` counts as that large."""

SMALL_PX = 50.0
"""So that a box this small may move by one pixel. Trained detectors at 256x256 and 320x320 stayed below 0.005."""

SCORE_TOLERANCE = 0.02
"""Largest difference between scores. Trained detectors stayed below 0.002."""


class Float16Parity(Value):
    """What the comparison of a float16 file with the float32 one found.

    Attributes:
        images: what both looked at.
        box: largest difference between corners, in larger sides of their box (at least 50 px).
        box_tolerance: largest one allowed.
        score: largest difference between scores.
        score_tolerance: largest one allowed.
        best_score: highest score of the float32 file.
        detections: `unproven` where it is not above the threshold of detections (0.05): a file that sees nothing at all
            would have passed.
        token_choices: places where the float32 file was given this one's choice of tokens.
        token_excess: most attention that a token left out there received beyond one kept, over the most that any
            received; None without such a place.
        token_tolerance: the most allowed.
    """

    images: str
    box: float
    box_tolerance: float
    score: float
    score_tolerance: float
    best_score: float
    detections: Literal["compared", "unproven"]
    token_choices: int
    token_excess: float | None
    token_tolerance: float


TOKEN_TOLERANCE = 0.02
"""Largest share of the most attention by which a token left out may have received more than one that was kept."""


_TOKENS = PASSED_OVER.format(reference="the float32 file's reckoning")
_BOX = (
    "the largest distance of a corner from the float32 file's, over the larger side of its box "
    f"(at least {SMALL_PX:g} px),"
)
_SCORE = "the largest difference of a score from the float32 file's"
_COARSE = "float16 is too coarse for this detector: look for exploding activations, or export without fp16"
_OVERFLOW = f"Weights or maps pass {np.finfo(np.float16).max:g}, the largest float16: export without fp16"


def compare_float16(
    half: bytes, whole: bytes, images: NDArray[np.float32], *, label: str, described: str
) -> Float16Parity:
    """Run both files in ONNX Runtime on the same batch of images, which is `described` in the record.

    Sparse attention in the float32 file is given the float16 file's choice of tokens (`supernet.token_choice`).

    Raises:
        ParityError: they differ by more than the tolerances, or one gives what is no number.
    """
    told, _ = with_orders(half)
    other_boxes, other_scores, *orders = run_graph(told, [images])
    given, kept = with_given_orders(whole)
    boxes, scores, *received = run_graph(given, [images, *orders])
    excess = max(map(passed_over, received, orders, kept), default=None)
    box = float((np.abs(boxes - other_boxes) / np.maximum(_larger_side(boxes), SMALL_PX)).max())
    score, best_score = float(np.abs(scores - other_scores).max()), float(scores.max())
    judged = (_Judged(_TOKENS, excess or 0.0, TOKEN_TOLERANCE), _Judged(_BOX, box, BOX_TOLERANCE),
              _Judged(_SCORE, score, SCORE_TOLERANCE))  # fmt: skip
    # NaN is no parity either, and told first: it makes every choice of tokens a wrong one.
    for quantity, found, tolerance in sorted(judged, key=lambda one: not math.isnan(one.found)):
        if not found <= tolerance:
            advice = _COARSE if math.isfinite(found) else _OVERFLOW
            raise ParityError(label=label, quantity=quantity, found=found, tolerance=tolerance, advice=advice)
    return Float16Parity(
        images=described,
        box=box,
        box_tolerance=BOX_TOLERANCE,
        score=score,
        score_tolerance=SCORE_TOLERANCE,
        best_score=best_score,
        detections="compared" if best_score > MIN_SCORE else "unproven",
        token_choices=len(orders),
        token_excess=excess,
        token_tolerance=TOKEN_TOLERANCE,
    )


class _Judged(NamedTuple):
    quantity: str
    found: float
    tolerance: float


def _larger_side(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides: NDArray[np.float32] = (boxes[..., 2:] - boxes[..., :2]).max(axis=-1, keepdims=True)
    return sides


def to_float16(content: bytes) -> bytes:
    """Return a detector file whose weights and maps are float16; inputs and outputs stay float32.

    So do the decoding of boxes and scores and the weights of attention: XCA's norms sum over all tokens.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    graph = model.graph
    kept = decoding(graph) | attention_weights(graph)
    halved = _Halved(
        weights={tensor.name: tensor for tensor in graph.initializer if tensor.data_type == FLOAT},
        types={value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)},
    )
    for node in graph.node:
        halved.add(node, FLOAT if node.name in kept or node.op_type == "Cast" else HALF)
    used = {name for node in halved.nodes for name in node.input}
    weights = [tensor for tensor in (*graph.initializer, *halved.halves.values()) if tensor.name in used]
    for part, replaced in ((graph.node, halved.nodes), (graph.initializer, weights), (graph.value_info, [])):
        del part[:]
        part.extend(replaced)
    halved_content: bytes = model.SerializeToString(deterministic=True)
    return halved_content


def _read_as(node: onnx.NodeProto, place: int, type_: int) -> int:
    """Return the type of an input of a node that computes in a type: ONNX has the scales of Resize in float32 alone."""
    return FLOAT if node.op_type == "Resize" and place > 0 else type_


@dataclass
class _Halved:
    """The nodes of a graph, one after another, each in its own type.

    Attributes:
        weights: float initializers by name.
        types: element type of every value, as it is; outputs of float16 nodes are changed.
        nodes: those so far, casts included.
        halves: initializers in float16, by the name of the original.
    """

    weights: dict[str, onnx.TensorProto]
    types: dict[str, int]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    halves: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _cast: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, node: onnx.NodeProto, type_: int) -> None:
        """Add a node that computes in a type, with the casts that it needs."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.input[:] = [self._as(name, _read_as(node, place, type_)) for place, name in enumerate(node.input)]
        self.nodes.append(new)
        for name in node.output:
            if self.types.get(name) == FLOAT:
                self.types[name] = type_

    def _as(self, name: str, type_: int) -> str:
        """Return the name under which a value is there in a type; what is no float stays as it is."""
        if name in self.weights:
            return self._half(name) if type_ == HALF else name
        if self.types.get(name) not in {FLOAT, HALF} or self.types[name] == type_:
            return name
        key = (name, type_)
        if key not in self._cast:
            self._cast[key] = f"{name}.{TensorProto.DataType.Name(type_).lower()}"
            self.nodes.append(
                helper.make_node("Cast", [name], [self._cast[key]], name=f"Cast_{self._cast[key]}", to=type_)
            )
        return self._cast[key]

    def _half(self, name: str) -> str:
        if name not in self.halves:
            with np.errstate(over="ignore"):  # an infinite weight shows in the parity check
                values = numpy_helper.to_array(self.weights[name]).astype(np.float16)
            self.halves[name] = numpy_helper.from_array(values, f"{name}.float16")
        return self.halves[name].name
