"""Take a graph of several independent pieces apart into one ONNX model each, named alike wherever they came from."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import onnx
from onnx import helper

V = TypeVar("V", onnx.ValueInfoProto, onnx.TensorProto)


class Piece(NamedTuple):
    """One independent part of a graph, by the names of its values, and what they are called in its own model.

    Attributes:
        inputs: graph input to new name, in order.
        outputs: graph output to new name, in order.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]


def split(model: onnx.ModelProto, pieces: Sequence[Piece]) -> list[onnx.ModelProto]:
    """Return one model per piece; its bytes depend on that piece alone, not on its neighbours."""
    return [_extract(model, piece) for piece in pieces]


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out what the exporter noted for debugging: stack traces and paths of the machine that exported."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def _extract(model: onnx.ModelProto, piece: Piece) -> onnx.ModelProto:
    nodes = _nodes_behind(model.graph, piece.outputs)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    names = piece.inputs | piece.outputs
    kept = []
    for value in dict.fromkeys(value for node in nodes for value in (*node.input, *node.output) if value):
        if value in weights:
            kept.append(weights[value])
            names[value] = f"weight_{len(kept)}"
        names.setdefault(value, f"value_{len(names)}")
    graph = helper.make_graph(
        [_renamed_node(node, number, names) for number, node in enumerate(nodes)],
        "block",
        [_renamed(value, names) for value in _in_order(model.graph.input, piece.inputs)],
        [_renamed(value, names) for value in _in_order(model.graph.output, piece.outputs)],
        [_renamed(tensor, names) for tensor in kept],
    )
    opset = [entry for entry in model.opset_import if entry.domain == ""]
    alone = helper.make_model(
        graph, opset_imports=opset, producer_name=model.producer_name, producer_version=model.producer_version
    )
    alone.ir_version = model.ir_version
    return clean(alone)


def _nodes_behind(graph: onnx.GraphProto, outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs need, in execution order."""
    needed = set(outputs)
    found = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _in_order(values: Iterable[onnx.ValueInfoProto], names: Iterable[str]) -> list[onnx.ValueInfoProto]:
    by_name = {value.name: value for value in values}
    return [by_name[name] for name in names]


def _renamed_node(node: onnx.NodeProto, number: int, names: dict[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{node.op_type}_{number}"
    copy.input[:] = [names.get(value, value) for value in node.input]
    copy.output[:] = [names.get(value, value) for value in node.output]
    return copy


def _renamed(value: V, names: dict[str, str]) -> V:
    copy = type(value)()
    copy.CopyFrom(value)
    copy.name = names[value.name]
    return copy
