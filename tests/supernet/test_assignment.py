import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from supernet.assignment import match
from supernet.boxes import to_corners

# Ten anchors of side 20 in a row, centres 10, 30, ... 190.
ANCHORS = torch.tensor([[10.0 + 20 * i, 10.0, 20.0, 20.0] for i in range(10)])
FAR = torch.tensor([[900.0, 900.0, 901.0, 901.0]]).expand(10, 4)


def _boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def _pairs(predicted: Tensor, objects: Tensor) -> tuple[list[tuple[int, int]], set[int]]:
    matching = match(predicted, ANCHORS, objects)
    pairs = sorted(zip(matching.anchors.tolist(), matching.objects.tolist(), strict=True))
    return pairs, set(matching.ignored.nonzero().flatten().tolist())


def test_an_image_without_objects_is_all_background() -> None:
    pairs, ignored = _pairs(to_corners(ANCHORS), _boxes())
    assert pairs == []
    assert ignored == set()


def test_the_four_nearest_anchors_are_chosen_and_poor_ones_ignored() -> None:
    # On anchor 5 exactly; 4 and 6 touch it only at the edge, and one of 3 and 7 follows: 3, the lower index.
    pairs, ignored = _pairs(FAR, _boxes((100, 0, 120, 20)))
    assert pairs[-1] == (5, 0)
    # All predictions are equally far: 0..3 are the nearest by index, and overlap the object by nothing.
    assert pairs == [(5, 0)]
    assert ignored == {0, 1, 2, 3, 4, 6}


def test_an_anchor_chosen_by_itself_and_by_its_prediction_counts_twice() -> None:
    pairs, _ = _pairs(to_corners(ANCHORS), _boxes((100, 0, 120, 20)))
    assert pairs == [(5, 0), (5, 0)]


def test_predictions_on_an_object_are_no_background() -> None:
    predicted = FAR.clone()
    predicted[9] = torch.tensor([0.0, 0, 20, 17])  # IoU 0.85 with the object, far from its anchor
    predicted[8] = torch.tensor([0.0, 0, 20, 13])  # IoU 0.65: background, unless it is chosen
    predicted[:4] = torch.tensor([0.0, 0, 20, 20.5])
    predicted[4:8] = torch.tensor([0.0, 0, 20, 20])
    pairs, ignored = _pairs(predicted, _boxes((0, 0, 20, 20)))
    # Chosen: predictions 4..7 (exact) and anchors 0..3; only anchor 0 overlaps enough.
    assert pairs == [(0, 0)]
    assert ignored == {1, 2, 3, 4, 5, 6, 7, 9}


def test_a_chosen_anchor_is_positive_even_where_its_prediction_was_ignored() -> None:
    predicted = FAR.clone()
    predicted[5] = torch.tensor([100.0, 0, 120, 20])
    pairs, ignored = _pairs(predicted, _boxes((100, 0, 120, 20)))
    assert pairs == [(5, 0), (5, 0)]
    assert 5 not in ignored


def test_ignoring_for_a_poor_overlap_comes_last() -> None:
    # Anchor 5 fits the first object, and is among the four nearest of the second, which it hardly touches.
    pairs, ignored = _pairs(FAR, _boxes((100, 0, 120, 20), (118, 0, 138, 20)))
    assert (5, 0) in pairs
    assert (5, 1) not in pairs
    assert 5 in ignored


def test_nothing_flows_back_through_matching() -> None:
    predicted = to_corners(ANCHORS).requires_grad_()
    matching = match(predicted, ANCHORS, _boxes((100, 0, 120, 20)))
    assert not matching.anchors.requires_grad
    assert not matching.ignored.requires_grad


def _iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    sizes = sum(max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (one, other))
    return shared / (sizes - shared)


def _centre(box: list[float]) -> list[float]:
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]


def _brute_force(
    predicted: list[list[float]], anchors: list[list[float]], objects: list[list[float]]
) -> tuple[list[tuple[int, int]], set[int]]:
    """Apply the four rules one after another, box by box."""
    role: dict[int, str] = dict.fromkeys(range(len(anchors)), "background")
    for n, box in enumerate(predicted):
        if any(_iou(box, one) > 0.7 for one in objects):
            role[n] = "ignored"
    chosen: list[tuple[int, int]] = []
    for source in ([_centre(box) for box in predicted], anchors):
        for m, one in enumerate(objects):
            distance = [sum(abs(a - b) for a, b in zip(box, _centre(one), strict=True)) for box in source]
            chosen += [(n, m) for n in sorted(range(len(source)), key=lambda n: (distance[n], n))[:4]]
    for n, _ in chosen:
        role[n] = "positive"
    corners = [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h in anchors]
    poor = [(n, m) for n, m in chosen if _iou(corners[n], objects[m]) < 0.15]
    for n, _ in poor:
        role[n] = "ignored"
    pairs = sorted(pair for pair in chosen if pair not in poor)
    return pairs, {n for n, what in role.items() if what == "ignored"}


# Coordinates in whole pixels with even sides: every distance is exact in both computations.
_BOX = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30)).map(
    lambda n: [2.0 * n[0], 2.0 * n[1], 2.0 * (n[0] + n[2]), 2.0 * (n[1] + n[3])]
)


@settings(max_examples=150)
@given(st.lists(st.tuples(_BOX, _BOX), min_size=4, max_size=14), st.lists(_BOX, max_size=4))
def test_the_rules_hold_on_random_boxes(
    drawn: list[tuple[list[float], list[float]]], objects: list[list[float]]
) -> None:
    predicted, anchors = [one for one, _ in drawn], [_centre(other) for _, other in drawn]
    found = match(torch.tensor(predicted), torch.tensor(anchors), torch.tensor(objects).reshape(-1, 4))
    pairs, ignored = _brute_force(predicted, anchors, objects)
    assert sorted(zip(found.anchors.tolist(), found.objects.tolist(), strict=True)) == pairs
    assert set(found.ignored.nonzero().flatten().tolist()) == ignored
