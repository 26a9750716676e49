import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.errors import HashMismatch, UnsafeGraph, UnsupportedGraph
from profiler.session import available_providers, open_session, runtime_versions
from profiler.wire import Execution

Model = Callable[..., bytes]


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize("threads", [1, 2])
def test_real_graph_runs(graph: bytes, threads: int) -> None:
    session = open_session(graph, Execution(threads=threads), sha256=hashlib.sha256(graph).hexdigest())
    before = session._binding.get_outputs()[0].numpy().copy()
    session.run()
    session.run()
    assert np.array_equal(session._binding.get_outputs()[0].numpy(), before)  # of the same inputs
    assert np.ptp(before) > 0


def test_run_writes_into_the_same_output_buffer(graph: bytes) -> None:
    session = open_session(graph, Execution())
    before = session._binding.get_outputs()[0]
    session.run()
    after = session._binding.get_outputs()[0]
    assert before.data_ptr() == after.data_ptr()
    assert after.numpy().shape == (16, 16)


def test_inputs_are_the_same_in_every_session(graph: bytes) -> None:
    outputs = [open_session(graph, Execution())._binding.get_outputs()[0].numpy() for _ in range(2)]
    assert np.array_equal(*outputs)
    assert np.ptp(outputs[0]) > 0


def test_every_common_input_type_is_fed(model_of: Model) -> None:
    kinds = {"f": TensorProto.FLOAT16, "d": TensorProto.DOUBLE, "l": TensorProto.INT64, "b": TensorProto.BOOL}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    inputs = [value(name, [2, 3], kind) for name, kind in kinds.items()]
    outputs = [value(f"{name}_out", [2, 3], kind) for name, kind in kinds.items()]
    session = open_session(model_of(nodes, inputs, outputs, []), Execution())
    session.run()
    given = [output.numpy() for output in session._binding.get_outputs()]
    types = ("float16", "float64", "int64", "bool")
    assert [(array.dtype.name, array.shape) for array in given] == [(name, (2, 3)) for name in types]


def test_other_bytes_than_announced_are_not_loaded(graph: bytes) -> None:
    expected = "0" * 64
    actual = hashlib.sha256(graph).hexdigest()
    with pytest.raises(HashMismatch, match=f"hashes to {actual}, announced was {expected}.*Export it again"):
        open_session(graph, Execution(), sha256=expected)


def test_graph_with_external_data_is_refused_before_it_is_loaded(model_of: Model) -> None:
    tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(UnsafeGraph, match=r"external files, which are never read: export it as one file\."):
        open_session(model_of([node], [value("x", [4, 4])], [value("y", [4, 4])], [tensor]), Execution())


def test_dynamic_input_is_refused_by_name(model_of: Model) -> None:
    node = helper.make_node("Relu", ["pixels"], ["y"])
    model = model_of([node], [value("pixels", ["n", 4])], [value("y", ["n", 4])], [])
    with pytest.raises(UnsupportedGraph, match=r"input pixels has the shape \('n', 4\).*static shapes"):
        open_session(model, Execution())


def test_unknown_operator_is_refused(model_of: Model) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"])
    model = model_of([node], [value("x", [4])], [value("y", [4])], [])
    with pytest.raises(UnsupportedGraph, match=r"ONNX Runtime cannot run this graph: .*Frobnicate"):
        open_session(model, Execution())


def test_text_input_is_refused(model_of: Model) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    kind = TensorProto.STRING
    with pytest.raises(UnsupportedGraph, match=r"input x is a tensor\(string\); known are tensor\(float\)"):
        open_session(model_of([node], [value("x", [4], kind)], [value("y", [4], kind)], []), Execution())


def test_missing_provider_is_refused_with_those_that_are_there(graph: bytes) -> None:
    with pytest.raises(UnsupportedGraph, match=r"MadeUpProvider is not in this ONNX Runtime.*CPUExecutionProvider"):
        open_session(graph, Execution(provider="MadeUpProvider"))


def test_installed_runtime_is_described() -> None:
    assert runtime_versions()["onnxruntime"].count(".") == 2
    assert "CPUExecutionProvider" in available_providers()
