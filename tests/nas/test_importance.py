import math

import pytest
from pydantic import ValidationError

from nas.blocks import Kind
from nas.config import Config
from nas.errors import InvalidConfig
from nas.exact import front
from nas.importance import Importance, StageLogits
from nas.named import named_space
from nas.quality import AdditiveScore
from nas.space import SearchSpace
from nas.thinning import best_path
from tests.planted_space import PROVENANCE, planted_importance, planted_latency, small_space


def logits(slot: dict[Kind, float]) -> StageLogits:
    return StageLogits(slots=(slot,), global_kinds={Kind.XCA: 0.0}, group_share=(0.7, 0.3))


def test_block_importance_is_the_papers_ratio_on_probabilities() -> None:
    stage = logits({Kind.REP_CNN: math.log(6), Kind.WMSA: math.log(2), Kind.IDENTITY: math.log(2)})
    importance = Importance(space="s", stages=(stage,) * 4, provenance=PROVENANCE)
    assert importance.slot_probability(1, 0)[Kind.REP_CNN] == pytest.approx(0.6)
    assert importance.block_importance(1, 0) == pytest.approx(4.0)


def test_an_identity_that_never_wins_is_bounded() -> None:
    importance = Importance(
        space="s", stages=(logits({Kind.REP_CNN: 100.0, Kind.IDENTITY: 0.0}),) * 4, provenance=PROVENANCE
    )
    assert importance.block_importance(1, 0) == pytest.approx(1e4)


def test_stage_importance_sums_as_printed_or_averages(space: SearchSpace) -> None:
    importance = planted_importance(space, 3)
    each = [importance.block_importance(2, slot) for slot in (0, 1)]
    assert importance.stage_importance(2, (0, 1)) == pytest.approx(sum(each))
    assert importance.stage_importance(2, (0, 1), aggregate="mean") == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize(
    ("share", "message"), [((0.5, 0.2), "must be non-negative and sum to 1"), ((0.3, 0.7), "must descend")]
)
def test_group_shares_are_a_descending_distribution(share: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StageLogits(slots=({Kind.IDENTITY: 0.0},), global_kinds={Kind.XCA: 0.0}, group_share=share)


def test_importance_of_another_space_is_refused(space: SearchSpace) -> None:
    other = named_space("heatdetr-nano", classes=3)
    with pytest.raises(InvalidConfig, match=r"importance belongs to space .* not heatdetr-nano"):
        planted_importance(space, 0).check(other)
    misfit = planted_importance(space, 0).model_copy(update={"space": other.id})
    with pytest.raises(InvalidConfig, match="importance of stage 1 does not fit heatdetr-nano: train it on this space"):
        misfit.check(other)


def test_a_stride_that_finds_less_loses_as_much_of_everything() -> None:
    space = small_space((16, 32))
    importance = planted_importance(space, 2).model_copy(update={"stride_ap50": {16: 0.8, 32: 0.6}}).check(space)
    score = AdditiveScore.from_importance(space, importance)
    fine, coarse = (score(space.with_stride(space.largest(), stride)) for stride in (16, 32))
    assert fine - coarse == pytest.approx(25)
    untrained = importance.model_copy(update={"stride_ap50": {16: 0.0, 32: 0.0}})
    assert AdditiveScore.from_importance(space, untrained).strides == {16: 0, 32: 0}
    assert best_path(space, untrained).prediction_stride == 16
    one = planted_importance(small_space(), 2)
    assert [given.tells_strides_apart for given in (importance, untrained, one)] == [True, False, True]


def test_importance_says_how_well_each_stride_of_the_space_does_and_no_other() -> None:
    space = small_space((16, 32))
    importance = planted_importance(space, 2)
    for wrong in (None, {16: 0.5}, {16: 0.5, 32: 0.4, 64: 0.3}):
        with pytest.raises(InvalidConfig, match="importance of the prediction stride does not fit small: train it"):
            importance.model_copy(update={"stride_ap50": wrong}).check(space)
    one = planted_importance(small_space(), 2)
    assert one.check(small_space()).stride_ap50 is None
    with pytest.raises(InvalidConfig, match="importance of the prediction stride does not fit small"):
        one.model_copy(update={"stride_ap50": {32: 0.4}}).check(small_space())
    assert type(importance).model_validate_json(importance.model_dump_json()) == importance


@pytest.mark.parametrize("seed", range(6))
def test_additive_score_is_a_percentage_of_the_best_config(
    space: SearchSpace, configs: list[Config], seed: int
) -> None:
    score = AdditiveScore.from_importance(space, planted_importance(space, seed))
    scores = [score(config) for config in configs]
    assert max(scores) == pytest.approx(100)
    assert min(scores) > 0


def test_a_score_of_another_space_is_refused(space: SearchSpace) -> None:
    other = named_space("heatdetr-nano", classes=3)
    score = AdditiveScore.from_importance(space, planted_importance(space, 1))
    with pytest.raises(InvalidConfig, match=f"config belongs to space {other.id}, the score to {space.id}"):
        score(other.largest())
    with pytest.raises(InvalidConfig, match=f"score belongs to space {space.id}, not to heatdetr-nano"):
        front(other, planted_latency(other, 0), score)


def test_a_block_the_supernet_would_rather_skip_is_worth_less_than_nothing(space: SearchSpace) -> None:
    importance = planted_importance(space, 1)
    skipped = {Kind.REP_CNN: 0.0, Kind.WMSA: 0.0, Kind.IDENTITY: 2.0}
    stage = importance.stages[1].model_copy(update={"slots": (skipped, skipped)})
    first, _, third, fourth = importance.stages
    score = AdditiveScore.from_importance(
        space, importance.model_copy(update={"stages": (first, stage, third, fourth)})
    )
    full = space.largest()
    one = full.with_stage(1, full.stages[1].model_copy(update={"slots": (Kind.REP_CNN, Kind.IDENTITY)}))
    assert score(one) > score(full)


def test_deleting_swapping_and_narrowing_all_change_the_score(space: SearchSpace) -> None:
    importance = planted_importance(space, 1)
    score = AdditiveScore.from_importance(space, importance)
    p = importance.slot_probability(2, 0)
    largest = space.largest()
    slots = largest.stages[1].slots
    unit = score.stages[1].slots[0][Kind.REP_CNN] / p[Kind.REP_CNN]

    def price(**change: object) -> float:
        changed = largest.with_stage(1, largest.stages[1].model_copy(update=change))
        return score(largest) - score(changed)

    assert price(slots=(Kind.IDENTITY, *slots[1:])) == pytest.approx(unit * (p[Kind.REP_CNN] - p[Kind.IDENTITY]))
    assert price(slots=(Kind.WMSA, *slots[1:])) == pytest.approx(unit * (p[Kind.REP_CNN] - p[Kind.WMSA]))
    least_group = importance.stages[1].group_share[1]
    value = sum(max(importance.slot_probability(2, slot).values()) for slot in (0, 1))
    assert price(width=32) == pytest.approx(unit * least_group * value)
