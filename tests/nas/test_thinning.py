import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.blocks import Kind
from nas.budgets import Budget
from nas.config import Config
from nas.errors import BudgetUnmet, BudgetUnreachable, InvalidConfig, InvalidQuality, ThinningExhausted
from nas.exact import fastest, optimum
from nas.importance import Aggregate, Importance
from nas.latency import LatencyModel
from nas.macs import gmacs
from nas.named import named_space
from nas.network import Structure
from nas.quality import AdditiveScore, Quality
from nas.space import SearchSpace, StageChoices
from nas.thinning import Stages, Step, Trail, best_path, thin
from tests.planted_space import blocks_of, planted_importance, planted_latency, small_space

NANO = named_space("heatdetr-nano", classes=3)


@settings(max_examples=30)
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
        assert error.reached_ms > budget.latency_ms >= quickest  # noqa: PT017
        return
    except BudgetUnreachable as error:
        assert error.fastest_ms == pytest.approx(quickest)  # noqa: PT017 - which of three outcomes it is depends on the draw
        assert budget.latency_ms < quickest
        return
    times = [trail.start_latency_ms, *(step.taken.latency_ms for step in trail.steps)]
    assert all(after < before for before, after in pairwise(times))
    assert all(NANO.contains(step.taken.config) for step in trail.steps)
    assert latency.holds(times[-1], budget.latency_ms)
    assert not any(latency.holds(before, budget.latency_ms) for before in times[:-1])
    assert trail.quality <= optimum(NANO, latency, score, budget).score + 1e-9


def test_the_start_is_the_most_probable_path_without_identities(space: SearchSpace) -> None:
    importance = planted_importance(space, 4)
    start = best_path(space, importance)
    for number, (stage, choices) in enumerate(zip(start.stages, space.stages, strict=True), start=1):
        assert stage.width == choices.widths[-1]
        for slot, kind in enumerate(stage.slots):
            p = importance.slot_probability(number, slot)
            assert p[kind] == max(p[local] for local in choices.local_kinds)


def test_the_start_predicts_at_the_stride_that_found_most() -> None:
    space = small_space((16, 32))
    importance = planted_importance(space, 4)
    for best in (16, 32):
        better = importance.model_copy(update={"stride_ap50": {16: 0.5, 32: 0.5} | {best: 0.6}})
        assert best_path(space, better).prediction_stride == best


def test_a_coarser_map_is_taken_early_where_it_costs_little() -> None:
    first, second, third, fourth = small_space().stages
    narrow = fourth.model_copy(update={"widths": third.widths})
    space, fine_only = (
        small_space(strides).model_copy(update={"stages": (first, second, third, narrow)})
        for strides in ((16, 32), (16,))
    )
    latency, planted = LatencyModel({block: gmacs([block]) for block in blocks_of(space)}), planted_importance(space, 4)
    budget = Budget(latency_ms=0.99 * fastest(fine_only, latency).latency_ms)
    turns = []
    for coarse_ap50 in (0.59, 0.1):
        importance = planted.model_copy(update={"stride_ap50": {16: 0.6, 32: coarse_ap50}})
        trail = thin(space, latency, importance, AdditiveScore.from_importance(space, importance), budget)
        turns.append([step.taken.move.stride for step in trail.steps].index(32))
    assert turns[0] < turns[1]


LOCAL = {"R": Kind.REP_CNN, "W": Kind.WMSA, "S": Kind.SWMSA}
RULES = SearchSpace(
    name="rules",
    structure=Structure(classes=2, tcm_depths=(0, 0), anchor_px=(32,)),
    stages=(
        StageChoices(slots=2, widths=(32,)),
        StageChoices(slots=5, widths=(32, 64)),
        StageChoices(slots=2, widths=(64, 96)),
        StageChoices(slots=2, widths=(96, 128, 160)),
    ),
    images=((64, 128),),
)
BLOCK_IMPORTANCE = (("RR", 1, 9), ("WSRSW", 2, 1.9, 1.5, 1.7, 1.8), ("RW", 4, 3), ("SR", 31, 30))
"""Best kinds and M of the slots of each stage. The sums over the stages are 10, 8.9, 7 and 61; the means 5, 1.8, ..."""


def _importance(stages: tuple[tuple[object, ...], ...] = BLOCK_IMPORTANCE) -> Importance:
    """Importance whose paths are as told: M = (1 - p_I) / p_I, so the identity's logit is -log M beside one of 0."""
    drawn = planted_importance(RULES, 0)
    logits = []
    for stage, (kinds, *blocks) in zip(drawn.stages, stages, strict=True):
        slots = tuple(
            dict.fromkeys(LOCAL.values(), -60.0) | {LOCAL[kind]: 0.0, Kind.IDENTITY: -math.log(block)}
            for kind, block in zip(str(kinds), map(float, map(str, blocks)), strict=True)
        )
        logits.append(stage.model_copy(update={"slots": slots}))
    return drawn.model_copy(update={"stages": tuple(logits)})


def _growing_with_work() -> LatencyModel:
    return LatencyModel({block: 0.01 + 10 * gmacs([block]) for block in RULES.all_blocks()})


def _first_step(
    latency: LatencyModel, quality: Quality, *, stages: Stages = "least_important", aggregate: Aggregate = "sum"
) -> Step:
    start = latency.predict_ms(RULES.blocks(best_path(RULES, _importance())))
    budget = Budget(latency_ms=start * (1 - 1e-6))
    trail = thin(RULES, latency, _importance(), quality, budget, stages=stages, aggregate=aggregate)
    return trail.steps[0]


def _labels(step: Step) -> list[str]:
    return sorted(candidate.move.label for candidate in (step.taken, *step.alternatives))


LR = "remove rep_cnn from stage 1 slot 0"
OF_STAGE_2 = [
    "narrow stage 2 to 32",
    "remove rep_cnn from stage 2 slot 2",
    "remove swmsa from stage 2 slot 1",
    "remove wmsa from stage 2 slot 0",
]
OF_STAGE_3 = ["narrow stage 3 to 64", "remove wmsa from stage 3 slot 1"]
OF_STAGE_4 = ["narrow stage 4 to 128", "remove rep_cnn from stage 4 slot 1", "remove swmsa from stage 4 slot 0"]


@pytest.mark.parametrize(
    ("stages", "aggregate", "expected"),
    [
        ("least_important", "sum", [*OF_STAGE_3, LR]),
        ("least_important", "mean", [*OF_STAGE_2, LR]),
        ("all", "sum", [*OF_STAGE_2, *OF_STAGE_3, *OF_STAGE_4, LR]),
        ("all", "mean", [*OF_STAGE_2, *OF_STAGE_3, *OF_STAGE_4, LR]),
    ],
)
def test_a_step_weighs_just_the_moves_of_algorithm_1(stages: Stages, aggregate: Aggregate, expected: list[str]) -> None:
    step = _first_step(_growing_with_work(), lambda _: 1.0, stages=stages, aggregate=aggregate)
    assert _labels(step) == sorted(expected)


def test_a_trail_tells_its_budget_and_its_rule() -> None:
    latency, budget = _growing_with_work(), Budget.from_fps(0.01)
    trail = thin(RULES, latency, _importance(), lambda _: 1.0, budget, stages="all", aggregate="mean")
    assert (trail.budget, trail.stages, trail.aggregate) == (budget, "all", "mean")
    trail = thin(RULES, latency, _importance(), lambda _: 1.0, budget)
    assert (trail.stages, trail.aggregate) == ("least_important", "sum")


def test_quality_is_asked_only_of_the_start_and_of_the_candidates() -> None:
    asked: list[Config] = []

    def measured(config: Config) -> float:
        asked.append(config)
        return 1.0

    step = _first_step(_growing_with_work(), measured)
    assert [config.id for config in asked[1:]] == [
        candidate.config.id
        for candidate in sorted((step.taken, *step.alternatives), key=lambda c: asked.index(c.config))
    ]
    assert asked[0] == best_path(RULES, _importance())
    assert len(asked) == 1 + len(OF_STAGE_3) + 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_quality_that_is_no_number_is_refused(value: float) -> None:
    start = best_path(RULES, _importance())
    with pytest.raises(InvalidQuality, match=rf"the quality of config \w+ is {value}, no finite number: repair"):
        _first_step(_growing_with_work(), lambda config: 1.0 if config == start else value)


def test_a_width_that_is_slower_than_the_one_above_is_passed_over() -> None:
    rows = dict(_growing_with_work().rows_ms)
    rows |= {block: ms + 100 for block, ms in rows.items() if block.kind is Kind.REP_CNN and block.channels_in == 128}
    narrowed = [
        label for label in _labels(_first_step(LatencyModel(rows), lambda _: 1.0, stages="all")) if "narrow" in label
    ]
    assert narrowed == ["narrow stage 2 to 32", "narrow stage 3 to 64", "narrow stage 4 to 96"]


def test_a_gain_within_rounding_is_no_gain() -> None:
    """Local blocks that take next to nothing: removing one gains a ten-billionth, which is no reason to lose it."""
    rows = {block: 1e-9 if block.kind in LOCAL.values() else 1.0 for block in RULES.all_blocks()}
    latency = LatencyModel(rows)
    start = latency.predict_ms(RULES.blocks(best_path(RULES, _importance())))
    with pytest.raises(
        ThinningExhausted, match="none of its moves, a block removed, a stage narrowed, a coarser map, gains speed"
    ):
        thin(RULES, latency, _importance(), lambda _: 1.0, Budget(latency_ms=math.nextafter(start, 0)), stages="all")


def test_the_two_reasons_for_no_answer_are_siblings() -> None:
    assert not issubclass(ThinningExhausted, BudgetUnreachable)
    assert {BudgetUnreachable, ThinningExhausted} == set(BudgetUnmet.__subclasses__())


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
    trail = thin(space, latency, importance, lambda _: 0.5, Budget.from_fps(0.001))
    assert trail.steps == ()
    assert trail.answer == best_path(space, importance) == trail.start
    assert trail.latency_ms == latency.predict_ms(space.blocks(trail.start))
    assert trail.quality == 0.5


def test_unreachable_budgets_name_the_fastest_and_what_binds(space: SearchSpace) -> None:
    importance, latency = planted_importance(space, 2), planted_latency(space, 2)
    quickest = fastest(space, latency)
    with pytest.raises(BudgetUnreachable, match=f"at 64x128 runs at .*{re.escape(quickest.binding)} binds") as caught:
        thin(space, latency, importance, lambda _: 0.0, Budget.from_fps(1e6))
    assert caught.value.fastest_ms == pytest.approx(quickest.latency_ms)
    with pytest.raises(InvalidConfig, match="input size 320x320 is not in small: choose one of 64x128"):
        thin(space, latency, importance, lambda _: 0.0, Budget.from_fps(1e6), image=(320, 320))


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
