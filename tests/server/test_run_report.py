from typing import Any

import pytest

from nas.latency import LatencyModel
from nas.space import SearchSpace
from nas.thinning import best_path
from server.run_report import Reach, feasible_range, latency_model
from tests.planted_space import planted_importance, planted_latency


def test_the_reach_runs_from_the_best_path_to_where_thinning_ends(space: SearchSpace) -> None:
    importance, latency = planted_importance(space, 1), planted_latency(space, 1, margin=0.1)

    reach = feasible_range(space, importance, latency)

    assert reach.slowest_fps == pytest.approx(1000 / latency.bound_ms(space.blocks(best_path(space, importance))))
    assert reach.slowest_fps < reach.at(0.15) < reach.at(0.85) < reach.fastest_fps


def test_shares_of_the_reach() -> None:
    reach = Reach(slowest_fps=10.0, fastest_fps=50.0)

    assert [reach.at(share) for share in (0.0, 0.5, 1.0)] == [10.0, 30.0, 50.0]


def served_rows(latency: LatencyModel) -> list[dict[str, Any]]:
    return [
        {
            "block": block.model_dump(mode="json"),
            "kind": block.kind.value,
            "channels_out": block.channels_out,
            "height": block.height,
            "width": block.width,
            "latency_ms": latency_ms,
            "fps": 1000 / latency_ms,
        }
        for block, latency_ms in latency.rows_ms.items()
    ]


def test_the_latency_model_comes_back_from_served_rows(space: SearchSpace) -> None:
    latency = planted_latency(space, 2, margin=0.05)
    table = {"calibration": {"revision": 1, "overhead_ms": 0.02, "slope": 1.1, "margin": 0.05}}

    assert latency_model(served_rows(latency), table) == latency
