from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from supernet.checkpoint import load_detector
from supernet.detector_training import TrainedDetector, train_detector
from supernet.errors import BadCheckpoint
from supernet.export import export_detector
from supernet.scoring import score_file
from tests.supernet.tiny_space import TINY, tiny_data
from tests.supernet.trainings import RECIPE, splits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("scoring") / "data")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedDetector:
    return train_detector(TINY, TINY.largest(), splits(data), tmp_path_factory.mktemp("run"), recipe=RECIPE)


def test_a_checkpoint_and_its_onnx_file_score_alike(data: Path, trained: TrainedDetector, tmp_path: Path) -> None:
    detector, header = load_detector(trained.last)
    with torch.no_grad():
        detector.head.classify.bias.fill_(0.0)  # scores of a short training are all below the threshold otherwise
    path = tmp_path / "model.onnx"
    path.write_bytes(export_detector(detector).onnx)
    file = score_file(path, data, "val")
    assert file.detections > 0
    assert file.images == 4
    twin = score_file(trained.last, data, "val")
    assert header.metrics is not None
    assert (twin.ap, twin.data_sha256) == (header.metrics["ap"], file.data_sha256)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pt", b"", "its name ends neither in .safetensors nor in .onnx"),
        ("model.onnx", b"no model", "ONNX Runtime cannot load it"),
        ("model.safetensors", b"no weights", "it cannot be read"),
    ],
)
def test_other_files_are_refused(data: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message):
        score_file(tmp_path / name, data, "val")


def test_a_graph_that_is_no_detector_is_refused(data: Path, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["y"])], "g", [value], [other])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "relu.onnx")
    with pytest.raises(BadCheckpoint, match=r"it takes images of \(1, 3, 8, 8\) and gives \['y'\]: not a detector"):
        score_file(tmp_path / "relu.onnx", data, "val")


def test_data_with_other_classes_are_refused(data: Path, trained: TrainedDetector, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "val").symlink_to(data / "val")
    text = (data / "annotations" / "val.json").read_text().replace('"ring"', '"torus"')
    (other / "annotations" / "val.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"it tells disc, ring, cross apart, .* has disc, torus, cross"):
        score_file(trained.last, other, "val")
