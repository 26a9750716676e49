import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.blocks import Kind
from nas.budgets import Budget
from nas.config import Config
from nas.errors import BudgetUnreachable, InvalidConfig, MissingBlocks
from nas.exact import fastest, front, optimum
from nas.latency import LatencyModel
from nas.macs import weights
from nas.named import named_space
from nas.quality import AdditiveScore
from nas.sampling import random_config
from nas.space import SearchSpace
from tests.planted_space import Strides, every_config, every_walk, planted_importance, planted_latency, small_space


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), margin=st.sampled_from([0.0, 0.03]))
def test_optimum_equals_brute_force(
    space: SearchSpace, configs: list[Config], seed: int, share: float, margin: float
) -> None:
    latency = planted_latency(space, seed, margin=margin)
    score = AdditiveScore.from_importance(space, planted_importance(space, seed + 1))
    times = [latency.bound_ms(blocks) for blocks in every_walk(space)]
    limit = min(times) + share * (max(times) - min(times))
    # The bound of some config, exactly: the budget that most easily goes wrong.
    for budget in (Budget(latency_ms=limit), Budget(latency_ms=min(times, key=lambda ms: abs(ms - limit)))):
        found = optimum(space, latency, score, budget)
        expected = max(score(config) for config, ms in zip(configs, times, strict=True) if ms <= budget.latency_ms)
        assert found.score == pytest.approx(expected, abs=1e-9)
        assert found.score == pytest.approx(score(found.config), abs=1e-9)
        assert found.latency_ms == latency.predict_ms(space.blocks(found.config))
        assert latency.holds(found.latency_ms, budget.latency_ms)


@pytest.mark.parametrize("strides", [(16,), (16, 32)])
def test_optimum_equals_brute_force_with_a_prediction_map_at_stride_16(strides: Strides) -> None:
    space = small_space(strides)
    configs, latency = every_config(space), planted_latency(space, 3)
    score = AdditiveScore.from_importance(space, planted_importance(space, 4))
    times = [latency.bound_ms(blocks) for blocks in every_walk(space)]
    for limit in np.quantile(times, (0, 0.01, 0.1, 0.5, 1)):
        found = optimum(space, latency, score, Budget(latency_ms=float(limit)))
        expected = max(score(config) for config, ms in zip(configs, times, strict=True) if ms <= limit)
        assert found.score == pytest.approx(expected, abs=1e-9)
        assert found.latency_ms == latency.predict_ms(space.blocks(found.config)) <= limit


@pytest.mark.parametrize("margin", [0.0, 0.03, 0.1])
def test_a_budget_that_the_fastest_config_just_holds_is_reachable(space: SearchSpace, margin: float) -> None:
    for seed in range(20):
        latency = replace(planted_latency(space, seed, margin=margin), slope=0.877)  # does not divide back exactly
        score = AdditiveScore.from_importance(space, planted_importance(space, seed))
        quickest = fastest(space, latency)
        least = latency.bound_ms(space.blocks(quickest.config))
        assert optimum(space, latency, score, Budget(latency_ms=least)).latency_ms == quickest.latency_ms
        with pytest.raises(BudgetUnreachable):
            optimum(space, latency, score, Budget(latency_ms=math.nextafter(least, 0)))


def test_front_is_every_non_dominated_config_and_no_other(space: SearchSpace, configs: list[Config]) -> None:
    latency = planted_latency(space, 5)
    score = AdditiveScore.from_importance(space, planted_importance(space, 6))
    everything = [
        (latency.predict_ms(blocks), score(config)) for blocks, config in zip(every_walk(space), configs, strict=True)
    ]
    expected = [
        (ms, value)
        for ms, value in sorted(everything)
        if not any(m <= ms and v > value + 1e-9 for m, v in everything)
        and not any(m < ms and v >= value - 1e-9 for m, v in everything)
    ]
    found = front(space, latency, score)
    assert np.array([(point.latency_ms, point.score) for point in found]) == pytest.approx(np.array(expected))


def test_fastest_is_the_minimum_and_names_the_block_that_binds(space: SearchSpace) -> None:
    latency = planted_latency(space, 8)
    found = fastest(space, latency)
    assert found.latency_ms == pytest.approx(min(latency.predict_ms(blocks) for blocks in every_walk(space)))
    costliest = max(space.blocks(found.config), key=latency.block_ms)
    assert found.binding == costliest.label


def test_the_block_that_binds_is_costliest_with_its_weights_fetched(space: SearchSpace) -> None:
    rows = {block: 1.1 if block.kind is Kind.STEM else 1.0 for block in space.all_blocks()}
    assert fastest(space, LatencyModel(rows)).binding.startswith("stem ")
    found = fastest(space, LatencyModel(rows, fetch_ms_per_mib=100.0))
    assert found.binding == max(space.blocks(found.config), key=weights).label
    assert not found.binding.startswith("stem ")


def test_a_budget_just_under_the_minimum_is_proven_unreachable(space: SearchSpace) -> None:
    latency = planted_latency(space, 8, margin=0.05)
    score = AdditiveScore.from_importance(space, planted_importance(space, 8))
    quickest = fastest(space, latency)
    least = quickest.latency_ms * 1.05
    with pytest.raises(BudgetUnreachable) as caught:
        optimum(space, latency, score, Budget(latency_ms=least - 1e-6))
    assert caught.value.fastest_ms == pytest.approx(least)
    assert (
        f"the fastest config of the space at 64x128 runs at {1000 / least:.2f} FPS ({least:.3f} ms, margin included) "
        f"and {quickest.binding} binds. Ask for less, or choose a space with narrower widths."
    ) in str(caught.value)


def test_an_unreachable_budget_speaks_of_its_input_size_and_of_smaller_ones() -> None:
    space = small_space().model_copy(update={"images": ((64, 64), (64, 128))})
    latency = planted_latency(space, 1)
    score = AdditiveScore.from_importance(space, planted_importance(space, 1))
    small, large = (fastest(space, latency, image=image).latency_ms for image in space.images)
    assert small < large
    between = Budget(latency_ms=(small + large) / 2)
    with pytest.raises(BudgetUnreachable, match=r"at 64x128 .* choose a smaller input size \(64x64\), or a space with"):
        optimum(space, latency, score, between)
    assert optimum(space, latency, score, between, image=(64, 64)).config.image == (64, 64)
    with pytest.raises(BudgetUnreachable, match=r"at 64x64 .* Ask for less, or choose a space with narrower widths\."):
        optimum(space, latency, score, Budget(latency_ms=0.9 * small), image=(64, 64))


def test_an_input_size_outside_the_space_is_refused_before_the_table_is_read(space: SearchSpace) -> None:
    score, budget = AdditiveScore.indifferent(space), Budget.from_fps(1)
    for ask in (
        lambda: fastest(space, LatencyModel({}), image=(320, 320)),
        lambda: front(space, LatencyModel({}), score, image=(320, 320)),
        lambda: optimum(space, LatencyModel({}), score, budget, image=(320, 320)),
    ):
        with pytest.raises(InvalidConfig, match="input size 320x320 is not in small: choose one of 64x128"):
            ask()


def test_a_table_with_a_hole_is_refused(space: SearchSpace) -> None:
    latency = planted_latency(space, 1)
    score = AdditiveScore.from_importance(space, planted_importance(space, 1))
    for block in space.all_blocks():
        rows = {key: value for key, value in latency.rows_ms.items() if key != block}
        with pytest.raises(MissingBlocks) as caught:
            front(space, LatencyModel(rows), score)
        assert caught.value.blocks == (block,)


@pytest.mark.parametrize("kept", [0, -2])
def test_all_the_missing_rows_are_named_at_once(space: SearchSpace, kept: int) -> None:
    blocks = space.all_blocks()
    rows = dict.fromkeys(blocks[:kept], 1.0)
    for search in (fastest, lambda *given: front(*given, AdditiveScore.indifferent(space))):
        with pytest.raises(MissingBlocks) as caught:
            search(space, LatencyModel(rows))
        assert caught.value.blocks == blocks[kept:]


@pytest.mark.parametrize("name", ["heatdetr", "heatdetr-edge", "heatdetr-nano", "heatdetr-nano@cuda"])
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
        assert max(point.score for point in points if point.latency_ms <= ms) >= score(config) - 1e-9
