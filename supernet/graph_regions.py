"""Parts of an exported detector's graph that lose most by few bits: what decodes it, and what weighs its attention."""

from collections.abc import Iterable

import onnx


def decoding(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names of the nodes from the head's convolutions, left out, to the outputs.

    A float16 between 512 and 1024 pixels moves in steps of half a pixel, and the sides of boxes are exponentials.
    """
    return _behind(graph, (output.name for output in graph.output), until={"Conv"})


def head_convolutions(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names of the convolutions that the decoding reads."""
    behind = decoding(graph)
    decoded = {name for node in graph.node if node.name in behind for name in node.input}
    return frozenset(node.name for node in graph.node if node.op_type == "Conv" and decoded.intersection(node.output))


def attention_weights(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names of every softmax and of the nodes from the query and key, split off, to it.

    They hold the sums over all tokens of XCA's norms, and the products of queries and keys.
    """
    weighing = [node for node in graph.node if node.op_type == "Softmax"]
    before = _behind(graph, (name for node in weighing for name in node.input), until={"Split", "Conv", "Gemm"})
    return before | {node.name for node in weighing}


def _behind(graph: onnx.GraphProto, values: Iterable[str], *, until: set[str]) -> frozenset[str]:
    """Return the names of the nodes that values are computed by, back to nodes of some types, these left out."""
    producers = {output: node for node in graph.node for output in node.output}
    found, waiting = set(), list(values)
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.op_type not in until and node.name not in found:
            found.add(node.name)
            waiting.extend(node.input)
    return frozenset(found)
