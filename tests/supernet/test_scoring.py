import json
import time
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from supernet.checkpoint import load_detector
from supernet.dataset import CocoDataset
from supernet.deployment import deploy
from supernet.detection import detect_objects
from supernet.detector_training import TrainedDetector, train_detector
from supernet.errors import BadCheckpoint, OtherClasses
from supernet.evaluation import Evaluation
from supernet.export import export_detector
from supernet.loaded import load
from supernet.scoring import score_and_time
from tests.supernet.exported import CLASSES, bold_checkpoint
from tests.supernet.tiny_space import TINY, tiny_data
from tests.supernet.trainings import RECIPE, splits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("scoring") / "data")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedDetector:
    return train_detector(TINY, TINY.largest(), splits(data), tmp_path_factory.mktemp("run"), recipe=RECIPE)


def scored(path: Path, folder: Path) -> Evaluation:
    return score_and_time(path, folder, "val", clock=time.perf_counter_ns)[0]


def test_a_checkpoint_and_its_onnx_file_score_alike(data: Path, trained: TrainedDetector, tmp_path: Path) -> None:
    detector, header, _ = load_detector(trained.last)
    with torch.no_grad():
        detector.head.classify.bias.fill_(0.0)  # scores of a short training are all below the threshold otherwise
    path = tmp_path / "model.onnx"
    path.write_bytes(export_detector(detector).onnx)
    file = scored(path, data)
    assert file.detections > 0
    assert file.images == 4
    twin = scored(trained.last, data)
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
        scored(tmp_path / name, data)


def test_a_graph_that_is_no_detector_is_refused(data: Path, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["y"])], "g", [value], [other])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "relu.onnx")
    with pytest.raises(BadCheckpoint, match=r"it takes images of \(1, 3, 8, 8\) and gives \['y'\]: not a detector"):
        scored(tmp_path / "relu.onnx", data)


def test_data_with_other_classes_are_refused(data: Path, trained: TrainedDetector, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "val").symlink_to(data / "val")
    text = (data / "annotations" / "val.json").read_text().replace('"ring"', '"torus"')
    (other / "annotations" / "val.json").write_text(text)
    with pytest.raises(OtherClasses) as refused:
        scored(trained.last, other)
    assert str(refused.value) == (
        f"{trained.last} tells disc, ring, cross apart, {other} has disc, torus, cross: name data with the detector's "
        f"classes in their order, or train a detector on {other}."
    )


@pytest.fixture(scope="module")
def seen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its export, and data whose objects are what the detector sees, some a little off."""
    folder = tmp_path_factory.mktemp("seen")
    deploy(bold_checkpoint(folder / "best.safetensors"), folder / "exported", version="1")
    truth = json.loads((data / "annotations" / "val.json").read_text())
    detector = load(folder / "best.safetensors")
    pictures = CocoDataset(data, "val", image=(64, 64))
    notes = [
        {"id": 100 * index + place, "image_id": image_id, "category_id": 1 + CLASSES.index(one.label), "bbox": box}
        for index, image_id in enumerate(pictures.image_ids)
        for place, one in enumerate(detect_objects(detector, [pictures[index].pixels], min_score=0.05)[0][::3])
        if (box := _moved(one.box, by=place % 5)) is not None
    ]
    (folder / "data" / "annotations").mkdir(parents=True)
    (folder / "data" / "annotations" / "val.json").write_text(json.dumps({**truth, "annotations": notes}))
    (folder / "data" / "val").symlink_to(data / "val")
    return folder


def _moved(box: tuple[float, float, float, float], *, by: int) -> list[float] | None:
    """Return x, y, width, height of a box cut by some pixels on the right; None where too little is left."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1 - by, y2 - y1] if x2 - x1 > 2 * by + 4 and y2 - y1 > 4 else None


def test_torch_and_onnx_give_the_same_ap_within_a_tenth_of_a_point(seen: Path) -> None:
    twin = scored(seen / "best.safetensors", seen / "data")
    file = scored(seen / "exported", seen / "data")
    assert file.detections == twin.detections > 40
    for name in ("ap", "ap50", "ap75"):
        assert 0.05 < getattr(twin, name) < 0.95  # neither blind nor perfect: a difference would show
        assert getattr(file, name) == pytest.approx(getattr(twin, name), abs=1e-3)


def test_a_file_that_reads_blue_for_red_would_not_pass_for_the_same(seen: Path, tmp_path: Path) -> None:
    twin = scored(seen / "best.safetensors", seen / "data")
    model = onnx.load(seen / "exported" / "model.onnx")
    first = next(node for node in model.graph.node if "images" in node.input)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))
    onnx.save(model, tmp_path / "swapped.onnx")
    swapped = scored(tmp_path / "swapped.onnx", seen / "data")
    assert swapped.ap is not None
    assert twin.ap is not None
    assert abs(swapped.ap - twin.ap) > 1e-2


def test_a_file_without_a_manifest_is_scored_if_it_tells_as_many_classes_apart(seen: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((seen / "exported" / "model.onnx").read_bytes())
    assert scored(tmp_path / "model.onnx", seen / "data").images == 4
    truth = json.loads((seen / "data" / "annotations" / "val.json").read_text())
    truth["categories"].append({"id": 9, "name": "square"})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(truth))
    (tmp_path / "val").symlink_to(seen / "data" / "val")
    with pytest.raises(OtherClasses, match=r"model\.onnx tells 3 classes apart, .* has 4 classes: name data with"):
        scored(tmp_path / "model.onnx", tmp_path)


@pytest.mark.parametrize("name", ["best.safetensors", "exported"])
def test_what_is_scored_is_timed_too(seen: Path, name: str) -> None:
    told: list[tuple[int, int]] = []
    found, speed = score_and_time(
        seen / name,
        seen / "data",
        "val",
        clock=time.perf_counter_ns,
        progress=lambda done, total: told.append((done, total)),
    )
    assert (found.images, speed.runs, speed.batch, speed.threads) == (4, 4, 1, 1)
    assert told[-1] == (4, 4)
    assert speed.detection.median_ms >= speed.graph.low_ms > 0
    assert speed.graph_fps == pytest.approx(1000 / speed.graph.median_ms)
