import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.budgets import Budget
from nas.config import Config
from nas.errors import BudgetUnreachable, MissingBlocks
from nas.exact import fastest, front, optimum
from nas.latency import LatencyModel
from nas.quality import AdditiveScore
from nas.sampling import random_config
from nas.space import SearchSpace, named_space
from tests.planted_space import planted_importance, planted_latency


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), margin=st.sampled_from([0.0, 0.03]))
def test_optimum_equals_brute_force(
    space: SearchSpace, configs: list[Config], seed: int, share: float, margin: float
) -> None:
    latency = planted_latency(space, seed, margin=margin)
    score = AdditiveScore.from_importance(space, planted_importance(space, seed + 1))
    times = [latency.bound_ms(space.blocks(config)) for config in configs]
    budget = Budget(latency_ms=min(times) + share * (max(times) - min(times)) + 1e-9)
    expected = max(score(config) for config, ms in zip(configs, times, strict=True) if ms <= budget.latency_ms)
    found = optimum(space, latency, score, budget)
    assert found.score == pytest.approx(expected, abs=1e-9)
    assert found.score == pytest.approx(score(found.config), abs=1e-9)
    assert found.latency_ms == pytest.approx(latency.predict_ms(space.blocks(found.config)), abs=1e-9)
    assert latency.bound_ms(space.blocks(found.config)) <= budget.latency_ms + 1e-9


def test_front_is_every_non_dominated_config_and_no_other(space: SearchSpace, configs: list[Config]) -> None:
    latency = planted_latency(space, 5)
    score = AdditiveScore.from_importance(space, planted_importance(space, 6))
    everything = [(latency.predict_ms(space.blocks(config)), score(config)) for config in configs]
    expected = [
        (ms, value)
        for ms, value in sorted(everything)
        if not any(m <= ms and v > value + 1e-9 for m, v in everything)
        and not any(m < ms - 1e-12 and v >= value - 1e-9 for m, v in everything)
    ]
    found = front(space, latency, score)
    assert np.array([(point.latency_ms, point.score) for point in found]) == pytest.approx(np.array(expected))


def test_fastest_is_the_minimum_and_names_the_block_that_binds(space: SearchSpace, configs: list[Config]) -> None:
    latency = planted_latency(space, 8)
    found = fastest(space, latency)
    assert found.latency_ms == pytest.approx(min(latency.predict_ms(space.blocks(config)) for config in configs))
    costliest = max(space.blocks(found.config), key=lambda block: latency.rows_ms[block])
    assert found.binding == costliest.label


def test_a_budget_just_under_the_minimum_is_proven_unreachable(space: SearchSpace) -> None:
    latency = planted_latency(space, 8, margin=0.05)
    score = AdditiveScore.from_importance(space, planted_importance(space, 8))
    least = fastest(space, latency).latency_ms * 1.05
    assert optimum(space, latency, score, Budget(latency_ms=least + 1e-9)).latency_ms == pytest.approx(least / 1.05)
    with pytest.raises(BudgetUnreachable) as caught:
        optimum(space, latency, score, Budget(latency_ms=least - 1e-6))
    assert caught.value.fastest_ms == pytest.approx(least)
    assert f"runs at {1000 / least:.2f} FPS" in str(caught.value)
    assert f"{fastest(space, latency).binding} binds. Ask for less" in str(caught.value)


def test_a_table_with_a_hole_is_refused(space: SearchSpace) -> None:
    latency = planted_latency(space, 1)
    score = AdditiveScore.from_importance(space, planted_importance(space, 1))
    for block in space.all_blocks():
        rows = {key: value for key, value in latency.rows_ms.items() if key != block}
        with pytest.raises(MissingBlocks) as caught:
            front(space, LatencyModel(rows), score)
        assert block in caught.value.blocks


@pytest.mark.parametrize("name", ["heatdetr", "heatdetr-edge", "heatdetr-nano"])
def test_no_random_config_beats_the_front_of_a_large_space(name: str) -> None:
    space, rng = named_space(name, classes=3), np.random.default_rng(0)
    size = space.images[0]
    small = space.model_copy(update={"images": (size,)})
    latency = planted_latency(small, 2)
    score = AdditiveScore.from_importance(small, planted_importance(small, 2))
    points = front(small, latency, score)
    assert all(small.contains(point.config) for point in points)
    for _ in range(50):
        config = random_config(small, rng)
        ms = latency.predict_ms(small.blocks(config))
        assert max(point.score for point in points if point.latency_ms <= ms + 1e-9) >= score(config) - 1e-9
