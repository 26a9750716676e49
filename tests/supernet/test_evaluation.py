import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from supernet.batch_norm import reestimate_batch_norm
from supernet.dataset import CocoDataset
from supernet.evaluation import evaluate, evaluate_module, evaluate_onnx, images_to_floats, score_detections
from supernet.export import export_detector
from supernet.extraction import extract
from supernet.postprocess import Detections, detect, nms
from supernet.training import fresh_supernet
from tests.supernet.tiny_space import TINY, tiny_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("evaluation") / "data")


@pytest.fixture(scope="module")
def held_out(folder: Path) -> CocoDataset:
    return CocoDataset(folder, "val", image=(64, 64))


def _truth(data: CocoDataset) -> list[Detections]:
    return [
        Detections(sample.boxes, np.full(len(sample.boxes), 0.9, dtype=np.float32), sample.labels) for sample in data
    ]


def test_the_annotations_themselves_score_one(held_out: CocoDataset) -> None:
    result = score_detections(_truth(held_out), held_out)
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((1, 1, 1))
    assert result.images == 4
    assert result.objects == result.detections == sum(len(sample.labels) for sample in held_out)
    assert result.data_sha256 == held_out.content_sha256
    present = {held_out.classes[label] for sample in held_out for label in sample.labels}
    assert result.class_ap50 == {name: pytest.approx(1) if name in present else None for name in held_out.classes}


def test_no_detection_scores_zero_not_none(held_out: CocoDataset) -> None:
    nothing = [detect(np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float32)) for _ in held_out]
    result = score_detections(nothing, held_out)
    assert (result.ap, result.ap50, result.detections) == (0, 0, 0)


def test_wrong_classes_score_zero(held_out: CocoDataset) -> None:
    wrong = [found._replace(labels=(found.labels + 1) % 3) for found in _truth(held_out)]
    result = score_detections(wrong, held_out)
    assert result.ap50 is not None
    assert result.ap50 < 0.5


def test_boxes_shifted_a_little_hold_at_half_overlap_only(held_out: CocoDataset) -> None:
    moved = []
    for found in _truth(held_out):
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        # Shifting by a fifth of the width leaves IoU (1 - s) / (1 + s) = 2/3.
        moved.append(
            found._replace(
                boxes=found.boxes + np.hstack((sides[:, :1] * 0.2, 0 * sides[:, :1])).repeat(2, 0).reshape(-1, 4)
            )
        )
    result = score_detections(moved, held_out)
    assert (result.ap50, result.ap75) == pytest.approx((1, 0))
    assert result.ap == pytest.approx(0.4)  # thresholds 0.50, 0.55, 0.60, 0.65 of ten


def test_ap_is_computed_in_original_pixels(folder: Path) -> None:
    other = CocoDataset(folder, "val", image=(128, 64))
    assert other[0].boxes[0, 3] != CocoDataset(folder, "val", image=(64, 64))[0].boxes[0, 3]
    assert score_detections(_truth(other), other).ap == pytest.approx(1)


def test_files_without_area_and_crowd_flags_are_scored(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "val" / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 20]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(coco))
    data = CocoDataset(tmp_path, "val", image=(64, 64))
    assert score_detections(_truth(data), data).ap == pytest.approx(1)


def test_small_medium_and_large_objects_are_scored_apart(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    Image.new("RGB", (256, 128)).save(tmp_path / "val" / "a.png")
    boxes = [[8, 8, 20, 20], [100, 10, 100, 100]]  # 400 and 10 000 square pixels, of the original image
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 256, "height": 128}],
        "annotations": [  # ids from 0, which pycocotools alone would never count as found
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box} for number, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(coco))
    data = CocoDataset(tmp_path, "val", image=(64, 64))
    [both] = _truth(data)
    large = Detections(*(part[1:] for part in both))
    result = score_detections([large], data)
    assert (result.ap_small, result.ap_medium, result.ap_large) == (0, None, pytest.approx(1))
    result = score_detections([both], data)
    assert (result.ap_small, result.ap_medium, result.ap_large) == (pytest.approx(1), None, pytest.approx(1))


def test_nothing_is_printed(held_out: CocoDataset, capsys: pytest.CaptureFixture[str]) -> None:
    score_detections(_truth(held_out), held_out)
    assert capsys.readouterr() == ("", "")


def test_the_file_and_the_module_score_alike(folder: Path, held_out: CocoDataset) -> None:
    detector = extract(fresh_supernet(TINY, seed=1), TINY.largest())
    reestimate_batch_norm(detector, CocoDataset(folder, "train", image=(64, 64)))
    with torch.no_grad():
        detector.head.classify.bias.fill_(0.0)  # untrained scores are all below the threshold otherwise
    graph = export_detector(detector)
    file, twin = (
        evaluate_onnx(graph.onnx, held_out),
        evaluate_module(detector, detector.head.anchors, held_out, batch=3),
    )
    assert file.detections > 0
    assert file.detections == twin.detections
    assert file.ap == pytest.approx(twin.ap, abs=1e-6)
    assert file.ap50 == pytest.approx(twin.ap50, abs=1e-6)


def test_statistics_are_the_mean_over_the_batches_and_momentum_is_put_back(folder: Path) -> None:
    train = CocoDataset(folder, "train", image=(64, 64))
    detector = extract(fresh_supernet(TINY, seed=1), TINY.largest())
    reestimate_batch_norm(detector, train, images=12, batch=4)
    norm, conv = detector.blocks["stem"].first.norm, detector.blocks["stem"].first.conv
    pixels = images_to_floats(np.stack([sample.pixels for sample in train]))
    with torch.no_grad():
        means = conv(torch.from_numpy(pixels)).mean((0, 2, 3))
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, means, atol=1e-5)
    assert norm.momentum == 0.1
    assert not detector.training
    before = norm.running_mean.clone()
    reestimate_batch_norm(detector, train, images=12, batch=4)
    assert torch.equal(norm.running_mean, before)


def test_statistics_need_no_more_images_than_they_look_at(folder: Path) -> None:
    left, right = (extract(fresh_supernet(TINY, seed=1), TINY.largest()) for _ in range(2))
    reestimate_batch_norm(left, CocoDataset(folder, "train", image=(64, 64)), images=4, batch=2)
    few = CocoDataset(folder, "train", image=(64, 64), most=4)
    reestimate_batch_norm(right, few, images=4, batch=2)
    assert len(few) == 4
    for (name, one), other in zip(left.named_buffers(), right.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_images_become_planes_between_zero_and_one(held_out: CocoDataset) -> None:
    seen = []

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(images)
        return np.zeros((len(images), 1, 4), np.float32), np.zeros((len(images), 1, 3), np.float32)

    evaluate(predict, held_out, batch=3)
    assert [images.shape for images in seen] == [(3, 3, 64, 64), (1, 3, 64, 64)]
    assert seen[0].dtype == np.float32
    assert np.array_equal(seen[0][0, 2], held_out[0].pixels[..., 2] / np.float32(255))


def test_detections_are_the_best_above_the_threshold_without_duplicates() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [50, 50, 60, 60]], dtype=np.float32)
    scores = np.array([[0.5, 0.6], [0.9, 0.01], [0.05, 0.2], [0.04, 0.05]], dtype=np.float32)
    found = detect(boxes, scores)
    # Anchor 0 loses its first class to anchor 1 (IoU 0.9), keeps its second; 0.05 is not above 0.05.
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.2])
    assert found.labels.tolist() == [0, 1, 1]
    assert found.boxes.tolist() == boxes[[1, 0, 2]].tolist()


def test_at_most_a_hundred_detections() -> None:
    corners = np.arange(300, dtype=np.float32)[:, None] * 20 + np.array([0, 0, 10, 10], dtype=np.float32)
    found = detect(corners, np.linspace(0.1, 0.9, 300, dtype=np.float32)[:, None])
    assert len(found.scores) == 100
    assert found.scores[0] == pytest.approx(0.9)
    assert (np.diff(found.scores) < 0).all()


_BOX = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 1))


@given(st.lists(_BOX, max_size=25))
def test_suppression_keeps_the_best_and_nothing_that_overlaps_it(drawn: list[tuple[int, int, int, int, int]]) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in drawn], dtype=np.float32).reshape(-1, 4)
    labels = np.array([label for *_, label in drawn], dtype=np.int64)
    kept = nms(boxes, labels)

    def rivals(one: int, other: int) -> bool:
        low, high = np.maximum(boxes[one, :2], boxes[other, :2]), np.minimum(boxes[one, 2:], boxes[other, 2:])
        shared = float(np.prod(np.clip(high - low, 0, None)))
        sizes = sum(float(np.prod(boxes[i, 2:] - boxes[i, :2])) for i in (one, other))
        return bool(labels[one] == labels[other]) and shared / (sizes - shared) > 0.6

    for index in range(len(drawn)):
        beaten = any(rivals(int(best), index) for best in kept if best < index)
        assert (index in kept) is not beaten


def test_the_first_survivors_are_the_first_of_all_survivors() -> None:
    rng = np.random.default_rng(0)
    corners = (rng.random((400, 2)) * 100).astype(np.float32)
    boxes = np.concatenate((corners, corners + 40 * rng.random((400, 2), np.float32)), axis=1)
    labels = rng.integers(0, 3, 400)
    survivors = nms(boxes, labels)
    assert 100 < len(survivors) < 400
    assert nms(boxes, labels, most=100).tolist() == survivors[:100].tolist()
