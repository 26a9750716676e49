import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.budgets import Budget
from nas.errors import InvalidBudget, MissingBlocks
from nas.latency import LatencyModel
from nas.macs import weights
from nas.space import SearchSpace
from tests.planted_space import planted_latency


def test_prediction_is_slope_times_rows_and_fetching_with_repeats(space: SearchSpace) -> None:
    block = space.blocks(space.largest())[0]
    mib = 4 * weights(block) / 2**20
    model = LatencyModel({block: 2.0}, fetch_ms_per_mib=0.5 / mib, slope=1.2, margin=0.1)
    assert model.block_ms(block) == pytest.approx(2.5)
    assert model.predict_ms([block, block]) == pytest.approx(6.0)
    assert model.bound_ms([block, block]) == pytest.approx(6.6)
    assert model.holds(6.0, 6.61)
    assert not model.holds(6.0, 6.59)


@given(seed=st.integers(0, 2**32), rows=st.lists(st.floats(0, 1e3), min_size=40, max_size=40))
def test_a_sum_is_the_same_in_every_order_and_grouping(space: SearchSpace, seed: int, rows: list[float]) -> None:
    blocks = space.blocks(space.largest())
    model = LatencyModel(dict(zip(blocks, rows, strict=False)), fetch_ms_per_mib=0.03)
    shuffled = [blocks[index] for index in np.random.default_rng(seed).permutation(len(blocks))]
    half = len(shuffled) // 2
    assert model.sum_ms(blocks) == model.sum_ms(shuffled[:half]) + model.sum_ms(shuffled[half:])


def test_each_row_missed_in_turn_is_named_and_never_counts_as_zero(space: SearchSpace) -> None:
    full = planted_latency(space, 0)
    blocks = space.blocks(space.largest())
    for block in set(blocks):
        rows = {key: value for key, value in full.rows_ms.items() if key != block}
        with pytest.raises(MissingBlocks) as caught:
            LatencyModel(rows).predict_ms(blocks)
        assert caught.value.blocks == (block,)
        assert f"no row for 1 block(s): {block.label}. Measure them:" in str(caught.value)


def test_many_missing_rows_are_counted(space: SearchSpace) -> None:
    blocks = space.blocks(space.largest())
    with pytest.raises(
        MissingBlocks, match=rf"no row for {len(set(blocks))} block\(s\): .* and {len(set(blocks)) - 5} more"
    ):
        LatencyModel({}).predict_ms(blocks)


def test_budget_is_latency_and_fps_is_derived() -> None:
    assert Budget.from_fps(25).latency_ms == 40
    assert Budget(latency_ms=8).fps == 125


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf, 1e-306])
def test_budget_refuses_what_no_detector_can_run_at(fps: float) -> None:
    with pytest.raises(InvalidBudget, match=rf"target_fps {fps} is not a positive number of frames that each take"):
        Budget.from_fps(fps)
