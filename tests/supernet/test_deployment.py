import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from nas.runtime_profile import RuntimeProfile
from supernet.deployment import Measuring, deploy
from supernet.errors import BadManifest, OtherClasses
from supernet.loaded import load
from supernet.manifest import Manifest, Precision, read_manifest
from tests.supernet.exported import CLASSES, bold_checkpoint
from tests.supernet.tiny_space import TINY, tiny_data

BOTH = (Precision.FP16, Precision.INT8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment")
    tiny_data(folder / "shapes")
    bold_checkpoint(folder / "best.safetensors")
    return folder


@pytest.fixture(scope="module")
def exported(root: Path) -> Manifest:
    measuring = Measuring(root / "shapes", calibration_images=3)
    return deploy(root / "best.safetensors", root / "all", version="1.2.3", precisions=BOTH, measuring=measuring)


def test_the_manifest_says_all_that_it_takes_to_run_the_files(root: Path, exported: Manifest) -> None:
    told = json.loads((root / "all" / "manifest.json").read_text())
    assert (told["config_id"], told["space_id"]) == (TINY.largest().id, TINY.id)
    assert (told["classes"], told["category_ids"], told["opset"]) == (list(CLASSES), [1, 2, 3], 20)
    assert told["preprocessing"]["shape"] == [1, 3, 64, 64]
    assert told["preprocessing"]["range"] == [0, 1]
    assert told["postprocessing"] == {
        "score_above": 0.05,
        "candidates": 1000,
        "nms_iou": 0.6,
        "nms": "within each class",
        "detections": 100,
    }
    assert told["weights_sha256"] == hashlib.sha256((root / "best.safetensors").read_bytes()).hexdigest()
    assert {"torch", "onnx", "onnxruntime"} <= told["versions"].keys()
    for entry in told["files"]:
        content = (root / "all" / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert read_manifest(root / "all" / "manifest.json") == exported


def test_each_precision_says_what_it_costs(exported: Manifest) -> None:
    whole, half, int8 = exported.files
    assert [one.name for one in exported.files] == ["model.onnx", "model.fp16.onnx", "model.int8.onnx"]
    assert whole.bytes > half.bytes > int8.bytes
    assert exported.evaluated_on == "shapes/val"
    for one in exported.files:
        assert one.evaluation is not None
        assert whole.evaluation is not None
        assert (one.accuracy, one.evaluation.images) == ("measured", 4)
        assert one.ap_cost == pytest.approx(whole.evaluation.ap - one.evaluation.ap)  # type: ignore[operator]
    assert half.parity is not None
    assert half.parity.model_dump()["images"] == "1 of val"
    assert (int8.parity, int8.calibration is None, whole.calibration) == (None, False, None)


def test_without_data_the_cost_is_unmeasured_and_files_of_before_are_gone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.int8.onnx").write_bytes(b"of before")
    (tmp_path / "notes.txt").write_text("mine")
    manifest = deploy(root / "best.safetensors", tmp_path, version="1", precisions=[Precision.FP16], batch=2)
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert [(one["accuracy"], one["ap_cost"], one["evaluation"]) for one in told["files"]] == [
        ("unmeasured", None, None)
    ] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json", "model.fp16.onnx", "model.onnx", "notes.txt",
    ]  # fmt: skip
    assert manifest.preprocessing.shape == (2, 3, 64, 64)


@pytest.mark.usefixtures("exported")
def test_a_graph_laid_out_for_another_runtime_sees_the_same(root: Path, exported: Manifest, tmp_path: Path) -> None:
    found = deploy(root / "best.safetensors", tmp_path, version="1", profile=RuntimeProfile.CUDA)
    assert (found.profile, found.layout, found.activation) == ("cuda", "spatial", "relu")
    assert (exported.profile, exported.layout) == (None, "tokens")
    assert (found.space_id, found.config_id) == (exported.space_id, exported.config_id)
    kinds = [
        {node.op_type for node in onnx.load(folder / "model.onnx").graph.node} for folder in (tmp_path, root / "all")
    ]
    assert ["Gemm" in found for found in kinds] == [False, True]
    images = np.random.default_rng(1).random((1, 3, 64, 64), dtype=np.float32)
    for one, two in zip(load(tmp_path).predict(images), load(root / "all").predict(images), strict=True):
        assert np.abs(one - two).max() <= 1e-4 * max(1, np.abs(two).max())
    deploy(root / "best.safetensors", tmp_path, version="1", profile=RuntimeProfile.CPU)
    assert (tmp_path / "model.onnx").read_bytes() == (root / "all" / "model.onnx").read_bytes()


@pytest.mark.usefixtures("exported")
def test_a_batch_sees_in_each_image_what_one_alone_does(root: Path, tmp_path: Path) -> None:
    deploy(root / "best.safetensors", tmp_path, version="1", batch=3)
    one, three = load(root / "all"), load(tmp_path)
    assert (one.batch, three.batch, three.names) == (1, 3, CLASSES)
    images = np.random.default_rng(1).random((2, 3, 64, 64), dtype=np.float32)
    boxes, scores = three.predict(images)  # one short of a batch
    assert (len(boxes), len(scores)) == (2, 2)
    for index in range(2):
        alone_boxes, alone_scores = one.predict(images[index : index + 1])
        assert np.allclose(boxes[index], alone_boxes[0], atol=1e-2)
        assert np.allclose(scores[index], alone_scores[0], atol=1e-4)
    assert not np.allclose(scores[0], scores[1], atol=1e-4)


def test_what_cannot_be_exported_is_said_before_any_work(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8 needs images to calibrate on"):
        deploy(root / "best.safetensors", tmp_path, version="1", precisions=[Precision.INT8])
    for name in ("train", "val"):
        text = (root / "shapes" / "annotations" / f"{name}.json").read_text().replace('"ring"', '"torus"')
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"{name}.json").write_text(text)
        (tmp_path / name).symlink_to(root / "shapes" / name)
    with pytest.raises(OtherClasses, match=r"best.* tells disc, ring, cross apart, .* has disc, torus, cross"):
        deploy(root / "best.safetensors", tmp_path / "out", version="1", measuring=Measuring(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("exported")
def test_a_manifest_of_another_file_is_noticed(root: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "model.onnx"):
        (tmp_path / name).write_bytes((root / "all" / name).read_bytes())
    assert load(tmp_path / "model.onnx").category_ids == (1, 2, 3)
    (tmp_path / "other.onnx").write_bytes((root / "all" / "model.onnx").read_bytes())
    with pytest.raises(BadManifest, match=r"it lists model\.onnx, model\.fp16\.onnx, .* not other\.onnx"):
        load(tmp_path / "other.onnx")
    (tmp_path / "model.onnx").write_bytes((root / "all" / "model.fp16.onnx").read_bytes())
    with pytest.raises(BadManifest, match=r"model\.onnx is not the file that it was written for"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, r"it cannot be read \(No such file"), ("{}", "it is none of an exported detector, or of another version")],
)
def test_a_folder_without_a_manifest_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadManifest, match=message):
        load(tmp_path)
