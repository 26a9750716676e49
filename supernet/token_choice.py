"""Compare sparse attention in two runtimes although the choice of tokens is discontinuous.

Where two tokens receive almost the same attention, rounding decides which one passes the MLP, and from there on two
correct computations differ by far. So PyTorch is given the file's choice of tokens, once it is shown to be one that
PyTorch could have made: no token left out received more attention than a chosen one, by more than rounding. The order
among the chosen ones, and among those left out, changes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from supernet.layers.global_attention import TokenOrder


def token_orders(module: nn.Module) -> list[TokenOrder]:
    """Return the places in a module where tokens are chosen, in the order in which they run."""
    return [part for part in module.modules() if isinstance(part, TokenOrder)]


def with_orders(content: bytes) -> tuple[bytes, list[str]]:
    """Return a file that also gives the order of tokens at each choice, and the names of these outputs."""
    model = onnx.load_from_string(content)
    names = [node.output[1] for node in _choices(model.graph)]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    return model.SerializeToString(), names


def _choices(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that choose tokens; the other TopK of a block inverts the order: it sorts what is negated."""
    makers = {output: node.op_type for node in graph.node for output in node.output}
    return [node for node in graph.node if node.op_type == "TopK" and makers[node.input[0]] != "Neg"]


def with_given_orders(content: bytes) -> tuple[bytes, list[int]]:
    """Return a file that is given the order of tokens at each choice, and gives the attention they receive instead.

    The orders are further inputs, the attention is further outputs, (B, N) each, one after another as in the file; with
    it, how many tokens each choice keeps.
    """
    model = onnx.load_from_string(content)
    choices = _choices(model.graph)
    kept = [_kept(model.graph, node.output[1]) for node in choices]
    for node in choices:
        model.graph.input.append(onnx.helper.make_tensor_value_info(node.output[1], onnx.TensorProto.INT64, None))
        model.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
        model.graph.node.remove(node)
    return model.SerializeToString(), kept


def _kept(graph: onnx.GraphProto, order: str) -> int:
    """Return how many tokens the split keeps that follows an order, through the gathering of the tokens."""
    sizes = {tensor.name: tensor for tensor in graph.initializer}
    reached = {order}
    for node in graph.node:
        if node.op_type != "Neg" and reached.intersection(node.input):  # negated, the order is inverted
            if node.op_type == "Split":
                return int(numpy_helper.to_array(sizes[node.input[1]])[0])
            reached.update(node.output)
    raise ValueError(f"no tokens are split by their order {order}: the graph is no sparse attention")


def passed_over(received: NDArray[np.float32], order: NDArray[np.int64], kept: int) -> float:
    """Return by how much a token left out received more attention than one of the `kept` first in order.

    Relative to the most that any token received; 0 where none did. Attention and order are (B, N), `kept` is below N.
    """
    ordered = np.take_along_axis(received, order, axis=1)
    excess = ordered[:, kept:].max(axis=1) - ordered[:, :kept].min(axis=1)
    return float(np.maximum(excess / ordered.max(axis=1), 0).max())


PASSED_OVER = "the attention that a token left out received beyond one kept, over the most received, by {reference},"
"""What `passed_over` returns, in words."""


class WrongChoice(Exception):
    """A file chose tokens that received clearly less attention than others.

    Attributes:
        excess: what `passed_over` says.
    """

    def __init__(self, excess: float) -> None:
        super().__init__(excess)
        self.excess = excess


@contextmanager
def choosing(
    places: Sequence[TokenOrder], orders: Sequence[NDArray[np.int64]], *, tolerance: float
) -> Iterator[list[float]]:
    """Have each place choose tokens as given: orders (B, N); the list says what they pass over (`passed_over`).

    Raises:
        WrongChoice: a place would have chosen clearly otherwise.
    """
    wanted = dict(zip(places, orders, strict=True))
    found: list[float] = []

    def force(place: TokenOrder, given: tuple[Tensor], _: Tensor) -> Tensor:
        order = wanted[place]
        excess = passed_over(given[0].numpy(), order, place.kept)
        if not excess <= tolerance:
            raise WrongChoice(excess)
        found.append(excess)
        return torch.from_numpy(order)

    hooks = [place.register_forward_hook(force) for place in places]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
