import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from supernet.dataset import CocoDataset
from supernet.errors import NotFinite
from supernet.graph_regions import decoding, head_convolutions
from supernet.onnx_session import run_graph
from supernet.quantisation import Calibration, Method, quantise
from tests.supernet.exported import bold_graph
from tests.supernet.tiny_space import tiny_data


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(tiny_data(tmp_path_factory.mktemp("int8") / "data"), "train", image=(64, 64), most=4)


@pytest.fixture(scope="module")
def made(images: CocoDataset) -> tuple[bytes, Calibration]:
    return quantise(bold_graph().onnx, images)


def test_an_int8_file_is_smaller_and_still_gives_boxes(made: tuple[bytes, Calibration]) -> None:
    content, _ = made
    assert len(content) < 0.6 * len(bold_graph().onnx)  # the head, in float32, is much of so small a detector
    whole = bold_graph().onnx
    given = [np.full((1, 3, 64, 64), 0.5, np.float32)]
    (boxes, scores), (other_boxes, other_scores) = run_graph(whole, given), run_graph(content, given)
    assert boxes.shape == other_boxes.shape
    assert np.isfinite(other_boxes).all()
    assert 0 < np.abs(scores - other_scores).max() < 0.5


def test_weights_are_int8_per_channel_and_head_and_attention_stay_float(made: tuple[bytes, Calibration]) -> None:
    graph = onnx.load_from_string(made[0]).graph
    producers = {name: node for node in graph.node for name in node.output}
    arrays = {tensor.name: tensor for tensor in graph.initializer}

    def is_quantised(node: onnx.NodeProto, place: int) -> bool:
        source = producers.get(node.input[place])
        return source is not None and source.op_type == "DequantizeLinear"

    head = head_convolutions(onnx.load_from_string(bold_graph().onnx).graph)
    assert len(head) == 3
    for node in graph.node:
        if node.op_type == "Conv":
            assert is_quantised(node, 0) == is_quantised(node, 1) == (node.name not in head), node.name
        if node.op_type == "Softmax":
            assert not is_quantised(node, 0)
    weights = [producers[node.input[1]] for node in graph.node if node.op_type == "Conv" and is_quantised(node, 1)]
    assert {numpy_helper.to_array(arrays[node.input[0]]).dtype for node in weights} == {np.dtype(np.int8)}
    assert all(arrays[node.input[1]].dims[0] == arrays[node.input[0]].dims[0] for node in weights)


def test_the_record_names_the_images_and_every_way_that_was_tried(
    made: tuple[bytes, Calibration], images: CocoDataset
) -> None:
    record = made[1]
    assert (record.images, record.data_sha256, record.data) == (4, images.content_sha256, "data")
    assert set(record.ap) == set(Method)
    assert record.method in record.ap


def test_nothing_is_printed_and_every_image_is_told(images: CocoDataset, capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    quantise(bold_graph().onnx, images, tell=lambda step: lambda *done: told.setdefault(step, []).append(done))
    assert capsys.readouterr() == ("", "")
    assert len(told) == 4  # two ways, calibrated and scored
    assert {steps[-1] for steps in told.values()} == {(4, 4)}


def test_a_file_that_gives_what_is_no_number_is_refused(images: CocoDataset) -> None:
    """AP takes such boxes for misses, and would say 0 at most."""
    model = onnx.load_from_string(bold_graph().onnx)
    read = {name for node in model.graph.node if node.name in decoding(model.graph) for name in node.input}
    anchors = max((tensor for tensor in model.graph.initializer if tensor.name in read), key=lambda t: len(t.raw_data))
    anchors.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(anchors) * np.float32(np.nan), anchors.name))
    refusal = (
        r"^the int8 file \(ranges: least and greatest value over all images\) is not kept: on the calibration images "
        r"of .*data/train it gives boxes or scores that are no finite numbers\. Calibrate on other images"
    )
    with pytest.raises(NotFinite, match=refusal):
        quantise(model.SerializeToString(), images)
