from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.blocks import Kind
from nas.budgets import Budget
from nas.config import Config
from nas.errors import BudgetUnreachable, InvalidConfig, ThinningExhausted
from nas.exact import fastest, optimum
from nas.importance import Importance
from nas.quality import AdditiveScore
from nas.space import SearchSpace, named_space
from nas.thinning import Stages, Trail, best_path, thin
from tests.planted_space import planted_importance, planted_latency

NANO = named_space("heatdetr-nano", classes=3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), stages=st.sampled_from(["least_important", "all"]))
def test_thinning_ends_inside_the_space_with_strictly_falling_latency(seed: int, share: float, stages: Stages) -> None:
    latency, importance = planted_latency(NANO, seed, margin=0.02), planted_importance(NANO, seed)
    score = AdditiveScore.from_importance(NANO, importance)
    slowest = latency.bound_ms(NANO.blocks(best_path(NANO, importance)))
    quickest = fastest(NANO, latency).latency_ms * 1.02
    budget = Budget(latency_ms=0.9 * quickest + share * (slowest - 0.9 * quickest))
    try:
        trail = thin(NANO, latency, importance, score, budget, stages=stages)
    except ThinningExhausted as error:
        assert error.reached_ms > budget.latency_ms >= quickest - 1e-9  # noqa: PT017
        return
    except BudgetUnreachable as error:
        assert error.fastest_ms == pytest.approx(quickest)  # noqa: PT017 - which of three outcomes it is depends on the draw
        assert budget.latency_ms < quickest
        return
    times = [trail.start_latency_ms, *(step.taken.latency_ms for step in trail.steps)]
    assert all(after < before for before, after in pairwise(times))
    assert all(NANO.contains(step.taken.config) for step in trail.steps)
    assert times[-1] * 1.02 <= budget.latency_ms
    assert all(before * 1.02 > budget.latency_ms for before in times[:-1])
    assert trail.score <= optimum(NANO, latency, score, budget).score + 1e-9


def test_the_start_is_the_most_probable_path_without_identities(space: SearchSpace) -> None:
    importance = planted_importance(space, 4)
    start = best_path(space, importance)
    for number, (stage, choices) in enumerate(zip(start.stages, space.stages, strict=True), start=1):
        assert stage.width == choices.widths[-1]
        for slot, kind in enumerate(stage.slots):
            p = importance.slot_probability(number, slot)
            assert p[kind] == max(p[local] for local in choices.local_kinds)


def _planted(logits: dict[int, float]) -> Importance:
    """Importance in which the identity of each stage weighs as told, and RepCNN beats the other kinds."""
    importance = planted_importance(NANO, 0)
    stages = []
    for number, stage in enumerate(importance.stages, start=1):
        slot = {Kind.REP_CNN: 1.0, Kind.WMSA: 0.5, Kind.SWMSA: 0.0, Kind.IDENTITY: logits[number]}
        stages.append(stage.model_copy(update={"slots": (slot,) * len(stage.slots)}))
    return importance.model_copy(update={"stages": tuple(stages)})


def test_the_papers_rule_touches_the_least_important_stage_first() -> None:
    importance = _planted({1: -5.0, 2: -5.0, 3: 3.0, 4: -5.0})
    latency = planted_latency(NANO, 1)
    score = AdditiveScore.from_importance(NANO, importance)
    start = latency.predict_ms(NANO.blocks(best_path(NANO, importance)))
    trail = thin(NANO, latency, importance, score, Budget(latency_ms=start - 1e-6))
    assert [step.taken.move.stage for step in trail.steps] == [3]
    assert {candidate.move.stage for candidate in trail.steps[0].alternatives} <= {3}


def test_free_moves_come_first_and_the_fastest_of_them(space: SearchSpace) -> None:
    importance, latency = planted_importance(space, 2), planted_latency(space, 2)
    start = latency.predict_ms(space.blocks(best_path(space, importance)))
    trail = thin(space, latency, importance, lambda _: 1.0, Budget(latency_ms=start - 1e-6), stages="all")
    step = trail.steps[0]
    assert step.taken.drop == 0
    assert step.taken.fps_gained == max(c.fps_gained for c in (step.taken, *step.alternatives))


def test_the_cheapest_loss_per_frame_is_taken(space: SearchSpace) -> None:
    importance, latency = planted_importance(space, 2), planted_latency(space, 2)

    def width_sum(config: Config) -> float:
        return float(sum(config.widths) + sum(stage.depth for stage in config.stages))

    start = latency.predict_ms(space.blocks(best_path(space, importance)))
    trail = thin(space, latency, importance, width_sum, Budget(latency_ms=0.8 * start), stages="all")
    for step in trail.steps:
        assert step.taken.price == min(c.price for c in (step.taken, *step.alternatives))


def test_a_budget_that_holds_already_needs_no_step(space: SearchSpace) -> None:
    importance, latency = planted_importance(space, 2), planted_latency(space, 2)
    trail = thin(space, latency, importance, lambda _: 0.0, Budget.from_fps(0.001))
    assert trail.steps == ()
    assert trail.answer == best_path(space, importance) == trail.start
    assert trail.latency_ms == trail.start_latency_ms
    assert trail.score == trail.start_score


def test_unreachable_budgets_name_the_fastest_and_what_binds(space: SearchSpace) -> None:
    importance, latency = planted_importance(space, 2), planted_latency(space, 2)
    quickest = fastest(space, latency)
    with pytest.raises(BudgetUnreachable, match=f"{quickest.binding} binds") as caught:
        thin(space, latency, importance, lambda _: 0.0, Budget.from_fps(1e6))
    assert caught.value.fastest_ms == pytest.approx(quickest.latency_ms)


def test_thinning_is_deterministic_and_survives_json(space: SearchSpace) -> None:
    importance, latency = planted_importance(space, 9), planted_latency(space, 9)
    score = AdditiveScore.from_importance(space, importance)
    budget = Budget(latency_ms=latency.predict_ms(space.blocks(best_path(space, importance))) * 0.9)
    trails = [thin(space, latency, importance, score, budget, stages="all") for _ in range(2)]
    assert trails[0].canonical_json() == trails[1].canonical_json()
    assert Trail.model_validate_json(trails[0].canonical_json()) == trails[0]


def test_thinning_refuses_importance_of_another_space(space: SearchSpace) -> None:
    with pytest.raises(InvalidConfig, match="importance belongs to space"):
        thin(NANO, planted_latency(NANO, 0), planted_importance(space, 0), lambda _: 0.0, Budget.from_fps(1))
