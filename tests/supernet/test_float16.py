import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from supernet.detector import HeatDETR
from supernet.errors import ParityError
from supernet.export import export_detector, randomise_detector
from supernet.float16 import BOX_TOLERANCE, SCORE_TOLERANCE, compare_float16, to_float16
from supernet.graph_regions import decoding
from supernet.layers.global_attention import XCA
from supernet.onnx_session import run_graph
from tests.supernet.block_samples import DEVIANT_SPACE
from tests.supernet.exported import bold_detector, bold_graph

NOISE = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)


def types(content: bytes) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True).graph
    return {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)
    } | {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_a_float16_file_takes_half_the_bytes_and_sees_the_same() -> None:
    whole = bold_graph().onnx
    half = to_float16(whole)
    assert len(half) < 0.65 * len(whole)  # the graph itself is a third of so small a file
    parity = compare_float16(half, whole, NOISE, label="tiny", described="noise")
    assert 0 < parity.box < BOX_TOLERANCE
    assert 0 < parity.score < SCORE_TOLERANCE
    assert (parity.detections, parity.token_choices, parity.token_excess) == ("compared", 0, None)
    assert parity.best_score > 0.3


def test_inputs_outputs_norms_softmax_and_boxes_stay_float32_and_maps_do_not() -> None:
    half = to_float16(bold_graph().onnx)
    graph, found = onnx.load_from_string(half).graph, types(half)
    assert {found["images"], found["boxes"], found["scores"]} == {TensorProto.FLOAT}
    for node in graph.node:
        reads = {found[name] for name in node.input if name} & {TensorProto.FLOAT, TensorProto.FLOAT16}
        if node.op_type in {"Softmax", "ReduceSum", "Sqrt", "Exp", "Sigmoid"}:
            assert reads == {TensorProto.FLOAT}, node.name
        if node.op_type in {"Conv", "Gemm", "Relu"}:
            assert reads == {TensorProto.FLOAT16}, node.name
    assert any(node.op_type == "Sqrt" for node in graph.node)  # XCA is there


def test_the_scales_of_nearest_upsampling_stay_float32_as_onnx_has_them() -> None:
    """`upsample: nearest` is a Resize with scales; ONNX Runtime refuses to load a file that has them in float16."""
    detector = HeatDETR(DEVIANT_SPACE, DEVIANT_SPACE.largest())
    randomise_detector(detector)
    whole = export_detector(detector.eval()).onnx
    half = to_float16(whole)
    onnx.checker.check_model(onnx.load_from_string(half), full_check=True)
    graph, found = onnx.load_from_string(half).graph, types(half)
    resized = [[found[name] for name in node.input if name] for node in graph.node if node.op_type == "Resize"]
    assert resized
    assert all(read == [TensorProto.FLOAT16, TensorProto.FLOAT] for read in resized)
    image = np.random.default_rng(0).random((1, 3, *DEVIANT_SPACE.largest().image), dtype=np.float32)
    boxes, scores = run_graph(half, [image])
    assert np.isfinite(boxes).all()
    assert np.abs(scores - run_graph(whole, [image])[1]).max() < SCORE_TOLERANCE


def test_sums_over_all_tokens_do_not_overflow() -> None:
    detector = bold_detector()
    blocks = [block for block in detector.modules() if isinstance(block, XCA)]
    with torch.no_grad():
        for block in blocks:
            queries_and_keys = 2 * block.block.channels_in
            block.qkv.norm.weight[:queries_and_keys] *= 400 * block.block.tokens**0.5  # their squares pass 65504
            block.qkv.norm.bias[:queries_and_keys] *= 400 * block.block.tokens**0.5
    assert blocks
    whole = export_detector(detector).onnx
    compare_float16(to_float16(whole), whole, NOISE, label="loud queries", described="noise")


def test_a_value_is_cast_once_where_the_types_meet() -> None:
    graph = onnx.load_from_string(to_float16(bold_graph().onnx)).graph
    casts = [(node.input[0], node.attribute[0].i) for node in graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    producers = {name: node.op_type for node in graph.node for name in node.output}
    assert all(producers.get(name) != "Cast" for name, _ in casts)


def test_weights_beyond_float16_are_refused() -> None:
    model = onnx.load_from_string(bold_graph().onnx)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == conv.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e7), weight.name))
    whole = model.SerializeToString()
    assert all(np.isfinite(output).all() for output in run_graph(whole, [np.ones((1, 3, 64, 64), np.float32)]))
    with pytest.raises(ParityError, match=r"of loud .* is not a number, .* pass 65504, the largest float16: export"):
        compare_float16(to_float16(whole), whole, NOISE, label="loud", described="noise")


def test_another_detector_is_no_parity() -> None:
    other = export_detector(bold_detector(seed=1)).onnx
    refusal = (
        r"^the exported graph of other is not kept: the largest distance of a corner from the float32 file's, over the "
        r"larger side of its box \(at least 50 px\), is [\d.]+, allowed is 0\.02\. float16 is too coarse for this "
        r"detector: look for exploding activations, or export without fp16\.$"
    )
    with pytest.raises(ParityError, match=refusal):
        compare_float16(other, bold_graph().onnx, NOISE, label="other", described="noise")


def shy(content: bytes, *, logit: float) -> bytes:
    """Return a file whose classification has such a bias everywhere."""
    model = onnx.load_from_string(content)
    [node] = [node for node in model.graph.node if node.op_type == "Conv" and "classify" in bias_of(model, node).name]
    bias = bias_of(model, node)
    values = numpy_helper.to_array(bias)
    bias.CopyFrom(numpy_helper.from_array(np.full_like(values, logit), bias.name))
    return model.SerializeToString()


def bias_of(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2])


def test_nothing_is_claimed_of_detections_where_no_score_reaches_the_threshold() -> None:
    whole = shy(bold_graph().onnx, logit=-40)
    blind = shy(to_float16(whole), logit=-60000)  # sees nothing, ever
    parity = compare_float16(blind, whole, NOISE, label="shy", described="noise")
    assert parity.score < 1e-6
    assert (parity.detections, parity.best_score) == ("unproven", pytest.approx(0, abs=1e-6))


def test_the_decoding_ends_at_the_convolutions_of_the_head() -> None:
    graph = onnx.load_from_string(bold_graph().onnx).graph
    kinds = {node.op_type for node in graph.node if node.name in decoding(graph)}
    assert {"Exp", "Sigmoid", "Concat", "Clip"} <= kinds
    assert kinds.isdisjoint({"Conv", "Gemm", "MatMul", "Softmax"})
