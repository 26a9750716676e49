"""Check (h): uniform matching chooses eight for each object, and its four rules hold, in their order.

The rules (specification section 5): (1) all anchors are background; (2) predictions with IoU > 0.7 to any object are
ignored; (3) the chosen eight are positive for their object; (4) chosen ones whose anchor overlaps that object by less
than 0.15 are ignored.
"""

import random

import pytest
import torch
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


def test_eight_are_chosen_for_each_object_four_by_prediction_and_four_by_anchor() -> None:
    """Eight anchors that cover both objects: none is poor, so that all that is chosen is seen."""
    anchors = torch.tensor([[50.0 + i, 50.0, 100.0, 100.0] for i in range(10)])
    # Predictions stand in the reverse order, far away: 9 8 7 6 are nearest to any object, and anchors by themselves.
    predicted = torch.tensor([[1000.0 - 9 * i, 0, 1010 - 9 * i, 10] for i in range(10)])
    objects = _boxes((0, 0, 100, 100), (9, 0, 109, 100))
    found = match(predicted, anchors, objects)
    by_object = {m: sorted(found.anchors[found.objects == m].tolist()) for m in (0, 1)}
    assert by_object == {0: [0, 1, 2, 3, 6, 7, 8, 9], 1: [6, 6, 7, 7, 8, 8, 9, 9]}
    assert not found.ignored.any()


def test_rule_1_what_is_not_chosen_is_background() -> None:
    pairs, ignored = _pairs(FAR, _boxes((100, 0, 120, 20)))
    assert {7, 8, 9}.isdisjoint(ignored | {n for n, _ in pairs})


@pytest.mark.parametrize(
    ("iou", "is_ignored"), [(0.71, True), (0.7, False), (0.69, False)], ids=["more", "just", "less"]
)
def test_rule_2_a_prediction_on_an_object_is_ignored_above_an_iou_of_0_7(iou: float, *, is_ignored: bool) -> None:
    predicted = FAR.clone()
    predicted[9] = torch.tensor([0.0, 0, 100, 100 * iou])  # IoU with the object is its share of it
    predicted[:4] = torch.tensor([0.0, 0, 100, 100])  # nearer, so that 9 is not chosen
    pairs, ignored = _pairs(predicted, _boxes((0, 0, 100, 100)))
    assert 9 not in {n for n, _ in pairs}
    assert (9 in ignored) == is_ignored


@pytest.mark.parametrize(
    ("shared", "is_positive"), [(0.16, True), (0.15, True), (0.14, False)], ids=["more", "just", "less"]
)
def test_rule_4_a_chosen_anchor_needs_an_iou_of_0_15(shared: float, *, is_positive: bool) -> None:
    # The object is a share of anchor 5, far from the others.
    pairs, ignored = _pairs(FAR, _boxes((100, 0, 120, 20 * shared)))
    assert ((5, 0) in pairs) == is_positive
    assert (5 in ignored) == (not is_positive)


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


def _random_boxes(rng: random.Random, count: int, *, span: int) -> list[list[float]]:
    """Draw corners with even sides in whole pixels, so that distances are exact here and there, and some tie."""
    drawn = []
    for _ in range(count):
        x, y = rng.randrange(0, span, 2), rng.randrange(0, span, 2)
        drawn.append([float(x), float(y), float(x + 2 * rng.randint(1, span // 4)), float(y + 2 * rng.randint(1, 20))])
    return drawn


def _random_case(seed: int) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Draw predictions, anchors (corners) and objects; the seed also decides what is peculiar about them."""
    rng = random.Random(seed)
    count = rng.randint(4, 16)
    span = 24 if seed % 2 else 120
    predicted, anchors = (_random_boxes(rng, count, span=span) for _ in range(2))
    match seed // 2 % 5:
        case 0:
            objects = []
        case 1:
            objects = _random_boxes(rng, 1, span=span)
        case 2:  # they fight for anchors
            objects = _random_boxes(rng, count // 4 + 1 + rng.randint(0, 4), span=span)
        case 3:  # predictions, anchors and objects stand on one another
            objects = [*rng.choices(predicted, k=2), *rng.choices(anchors, k=2)]
            predicted = rng.choices([*predicted, *objects], k=count)
            anchors = rng.choices([*anchors, *objects], k=count)
        case _:  # nothing but ties
            predicted, anchors = [predicted[0]] * count, [anchors[0]] * count
            objects = [*_random_boxes(rng, 2, span=span), anchors[0]]
    return predicted, anchors, objects


@pytest.mark.parametrize("seed", range(200))
def test_roles_are_those_of_the_rules_applied_box_by_box(seed: int) -> None:
    predicted, corners, objects = _random_case(seed)
    anchors = [_centre(box) for box in corners]
    found = match(torch.tensor(predicted), torch.tensor(anchors), torch.tensor(objects).reshape(-1, 4))
    pairs, ignored = _brute_force(predicted, anchors, objects)
    assert sorted(zip(found.anchors.tolist(), found.objects.tolist(), strict=True)) == pairs
    assert set(found.ignored.nonzero().flatten().tolist()) == ignored


def test_the_random_cases_exercise_every_rule() -> None:
    cases = [_random_case(seed) for seed in range(200)]
    found = [
        match(
            torch.tensor(predicted),
            torch.tensor([_centre(box) for box in corners]),
            torch.tensor(objects).reshape(-1, 4),
        )
        for predicted, corners, objects in cases
    ]
    assert sum(not objects for _, _, objects in cases) == 40
    assert sum(len(objects) > len(anchors) / 4 for _, anchors, objects in cases) > 80
    # Some object learns from an anchor twice; some anchor learns two objects; some is positive for one and ignored.
    pairs = [list(zip(one.anchors.tolist(), one.objects.tolist(), strict=True)) for one in found]
    assert any(len(set(those)) < len(those) for those in pairs)
    assert any(len({n for n, _ in set(those)}) < len(set(those)) for those in pairs)
    assert any(one.ignored[one.anchors].any() for one in found)
    assert any(one.ignored.any() and not one.ignored.all() for one in found)
