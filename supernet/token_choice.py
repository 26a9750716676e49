"""Compare sparse attention in two runtimes although the choice of tokens is discontinuous.

Where two tokens receive almost the same attention, rounding decides which one passes the MLP, and from there on two
correct computations differ by far. So PyTorch is given the file's choice of tokens, once it is shown to be one that
PyTorch could have made: no token left out received more attention than a chosen one, by more than rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
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


def with_given_orders(content: bytes) -> bytes:
    """Return a file that is given the order of tokens at each choice, and gives the attention they receive instead.

    The orders are further inputs, the attention is further outputs, (B, N) each, one after another as in the file.
    """
    model = onnx.load_from_string(content)
    for node in _choices(model.graph):
        model.graph.input.append(onnx.helper.make_tensor_value_info(node.output[1], onnx.TensorProto.INT64, None))
        model.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
        model.graph.node.remove(node)
    changed: bytes = model.SerializeToString()
    return changed


def disorder(received: NDArray[np.float32], order: NDArray[np.int64]) -> float:
    """Return by how much a token received more attention (B, N) than one that comes before it in order (B, N).

    Relative to the most that any token received; 0 for an order that descends.
    """
    sorted_ = np.take_along_axis(received, order, axis=1)
    later = np.maximum.accumulate(sorted_[:, ::-1], axis=1)[:, ::-1]
    return float(((later - sorted_) / sorted_.max(axis=1, keepdims=True)).max())


class WrongChoice(Exception):
    """A file chose tokens that received clearly less attention than others.

    Attributes:
        excess: how much more the best token left out received, relative to the most that any token received.
    """

    def __init__(self, excess: float) -> None:
        super().__init__(excess)
        self.excess = excess


@contextmanager
def choosing(places: Sequence[TokenOrder], orders: Sequence[NDArray[np.int64]], *, tolerance: float) -> Iterator[None]:
    """Have each place choose tokens as given: orders (B, N).

    Raises:
        WrongChoice: a place would have chosen clearly otherwise.
    """
    wanted = {place: torch.from_numpy(order) for place, order in zip(places, orders, strict=True)}

    def force(place: TokenOrder, given: tuple[Tensor], _: Tensor) -> Tensor:
        order = wanted[place]
        received = given[0].gather(1, order)
        kept, left_out = received[:, : place.kept], received[:, place.kept :]
        excess = ((left_out.amax(dim=1) - kept.amin(dim=1)) / received.amax(dim=1)).max().item()
        if not excess <= tolerance:
            raise WrongChoice(excess)
        return order

    hooks = [place.register_forward_hook(force) for place in places]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
