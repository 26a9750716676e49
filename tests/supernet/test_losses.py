import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from supernet.assignment import match
from supernet.boxes import paired_giou
from supernet.layers.head import RawPrediction, decode
from supernet.losses import Target, detection_losses, focal_loss, implicit_objectness

ANCHORS = torch.tensor([[16.0 + 32 * (i % 4), 16.0 + 32 * (i // 4), 32.0, 32.0] for i in range(16)])


def _prediction(*, images: int = 1, classes: int = 2, seed: int = 0) -> RawPrediction:
    generator = torch.Generator().manual_seed(seed)
    return RawPrediction(
        torch.randn(images, 16, classes, generator=generator).requires_grad_(),
        (torch.randn(images, 16, 4, generator=generator) * 0.1).requires_grad_(),
        torch.randn(images, 16, generator=generator).requires_grad_(),
    )


def _target(*boxes: tuple[float, float, float, float], labels: tuple[int, ...]) -> Target:
    return Target(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.long))


@given(st.floats(-12, 12), st.floats(-12, 12))
def test_the_implicit_logit_is_that_of_the_product_of_probabilities(c: float, o: float) -> None:
    logit = implicit_objectness(torch.tensor([[[c]]], dtype=torch.float64), torch.tensor([[o]], dtype=torch.float64))
    product = 1 / ((1 + math.exp(-c)) * (1 + math.exp(-o)))
    assert logit.item() == pytest.approx(math.log(product) - math.log1p(-product), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("c", "o"), [(500.0, 500.0), (-500.0, 500.0), (-500.0, -500.0), (0.0, 0.0)])
def test_the_implicit_logit_and_its_slope_stay_finite(c: float, o: float) -> None:
    inputs = torch.tensor([[[c]]]).requires_grad_(), torch.tensor([[o]]).requires_grad_()
    logit = implicit_objectness(*inputs)
    logit.sum().backward()
    assert torch.isfinite(logit).all()
    assert all(torch.isfinite(value.grad).all() for value in inputs if value.grad is not None)


def test_focal_loss_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(40, 5, generator=generator, dtype=torch.float64) * 30 - 15
    wanted = (torch.rand(40, 5, generator=generator) < 0.3).double()
    expected = 0.0
    for x, y in zip(logits.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        p_true, alpha = (1 / (1 + math.exp(-x)), 0.25) if y else (1 / (1 + math.exp(x)), 0.75)
        expected += alpha * (1 - p_true) ** 2 * -math.log(p_true)
    assert focal_loss(logits, wanted).item() == pytest.approx(expected, rel=1e-12)


def test_both_losses_are_divided_by_the_anchors_that_learn() -> None:
    prediction = _prediction()
    target = _target((0, 0, 40, 40), (64, 64, 100, 110), labels=(0, 1))
    losses = detection_losses(prediction, ANCHORS, [target])
    boxes = decode(prediction.deltas, ANCHORS)[0].detach()
    matching = match(boxes, ANCHORS, target.boxes)
    learning = set(matching.anchors.tolist()) - set(matching.ignored.nonzero().flatten().tolist())
    assert losses.positives == len(learning) > 0
    logits = implicit_objectness(prediction.logits, prediction.objectness)[0]
    wanted = torch.zeros(16, 2)
    for anchor, owner in zip(matching.anchors.tolist(), matching.objects.tolist(), strict=True):
        wanted[anchor, target.labels[owner]] = 1
    kept = ~matching.ignored
    assert losses.focal.item() == pytest.approx(focal_loss(logits[kept], wanted[kept]).item() / losses.positives)
    missed = 1 - paired_giou(boxes[matching.anchors], target.boxes[matching.objects])
    assert losses.giou.item() == pytest.approx(missed.sum().item() / losses.positives)
    assert losses.total.item() == pytest.approx(losses.focal.item() + losses.giou.item())


def test_ignored_anchors_learn_nothing() -> None:
    prediction = _prediction()
    target = _target((0, 0, 40, 40), labels=(0,))
    detection_losses(prediction, ANCHORS, [target]).total.backward()
    matching = match(decode(prediction.deltas, ANCHORS)[0].detach(), ANCHORS, target.boxes)
    assert matching.ignored.any()
    assert prediction.logits.grad is not None
    assert not prediction.logits.grad[0][matching.ignored].any()
    assert prediction.logits.grad[0][~matching.ignored].abs().sum(-1).min() > 0


def test_perfect_boxes_cost_nothing() -> None:
    prediction = RawPrediction(torch.zeros(1, 16, 2), torch.zeros(1, 16, 4), torch.zeros(1, 16))
    losses = detection_losses(prediction, ANCHORS, [_target((0, 0, 32, 32), labels=(1,))])
    assert losses.giou.item() == pytest.approx(0, abs=1e-6)
    assert losses.positives == 1


def test_an_image_without_objects_is_background_and_costs_no_regression() -> None:
    losses = detection_losses(_prediction(), ANCHORS, [_target(labels=())])
    assert losses.positives == 0
    assert losses.giou.item() == 0
    assert losses.focal.item() == losses.focal_sum.item() > 0


def test_a_batch_costs_what_its_images_cost_together() -> None:
    prediction = _prediction(images=2)
    targets = [_target((0, 0, 40, 40), labels=(0,)), _target((30, 30, 90, 90), (0, 64, 30, 100), labels=(1, 0))]
    both = detection_losses(prediction, ANCHORS, targets)
    alone = [
        detection_losses(RawPrediction(*(part[i : i + 1] for part in prediction)), ANCHORS, [targets[i]])
        for i in (0, 1)
    ]

    def sums(name: str) -> float:
        return sum(getattr(losses, name).item() * losses.positives for losses in alone)

    assert both.positives == sum(losses.positives for losses in alone)
    assert both.focal.item() * both.positives == pytest.approx(sums("focal"), rel=1e-5)
    assert both.giou.item() * both.positives == pytest.approx(sums("giou"), rel=1e-5)
