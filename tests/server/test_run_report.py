from pathlib import Path
from typing import Any

import pytest

from nas.budgets import Budget
from nas.latency import LatencyModel
from nas.space import SearchSpace
from nas.thinning import best_path
from server.answering import front_json, importance_json, point_json, solve, trail_json
from server.run_report import Reach, answer_of, feasible_range, latency_model, write_report
from tests.planted_space import planted_importance, planted_latency, small_space


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
    table = {"calibration": {"revision": 1, "fetch_ms_per_mib": 0.03, "slope": 1.1, "margin": 0.05}}

    assert latency_model(served_rows(latency), table) == latency


def thinned(space: SearchSpace, latency: LatencyModel, *, measured_fps: float | None) -> dict[str, Any]:
    """The result of a thinning job, put together by the functions that the worker uses."""
    importance = planted_importance(space, 1)
    budget = Budget.from_fps(feasible_range(space, importance, latency).at(0.5))
    solution = solve(space, latency, importance, budget, solver="thin_all_stages")
    round_ = {
        "round": 1,
        "config_id": solution.config.id,
        "predicted_ms": solution.latency_ms,
        "predicted_fps": 1000 / solution.latency_ms,
        "bound_fps": 1000 / (solution.latency_ms * (1 + latency.margin)),
        "confidence": 0.9,
        "score": solution.score,
        "calibration_revision": 1,
    }
    if measured_fps is not None:
        round_ |= {
            "measured_ms": 1000 / measured_fps,
            "measured_fps": measured_fps,
            "error_percent": 100 * (measured_fps / round_["predicted_fps"] - 1),
            "steady_error_percent": 1.5,
            "met": measured_fps >= budget.fps,
            "ap50": 0.25,
            "onnx_sha256": "ab" * 32,
        }
    return {
        "status": "predicted",
        "target_fps": budget.fps,
        "config_id": solution.config.id,
        "gmacs": 0.125,
        "solver": "thin_all_stages",
        "gap": solution.gap,
        "edition": "edition-7",
        "calibration_revision": 1,
        "supernet": "supernet-3",
        **importance_json(importance),
        "optimum": point_json(solution.optimum.latency_ms, solution.optimum.score),
        "front": front_json(space, latency, importance),
        "trail": trail_json(solution.trail),
        "rounds": [round_],
    }


def test_an_answer_shows_prediction_and_measurement_of_its_last_round(space: SearchSpace) -> None:
    result = thinned(space, planted_latency(space, 1), measured_fps=7.5)
    last = result["rounds"][-1]
    first = {**last, "predicted_fps": 1.0, "measured_fps": 2.0, "met": False}

    answer = answer_of({**result, "rounds": [first, {**last, "round": 2}]})

    assert (answer.predicted_fps, answer.measured_fps, answer.rounds) == (last["predicted_fps"], 7.5, 2)
    assert (answer.ap50, answer.met, answer.steady_error_pct) == (0.25, last["met"], 1.5)
    assert answer.evidence["table edition"] == "edition-7"
    assert answer.evidence["importance"] == "supernet supernet-3: 0 steps on planted"
    assert answer.evidence["round 1"].endswith(
        "predicted 1.00 FPS, at least {:.2f} with 90 % confidence; measured 2.00 FPS, {:+.1f} %".format(
            last["bound_fps"], last["error_percent"]
        )
    )
    assert answer.evidence["model.onnx"] == "SHA-256 " + "ab" * 32


def test_an_answer_shows_what_each_stride_found_and_where_that_told_them_not_apart(space: SearchSpace) -> None:
    result = thinned(space, planted_latency(space, 1), measured_fps=None)
    planted = planted_importance(small_space((16, 32)), 1)
    name, where = "AP50 of the prediction strides", "(of the supernet, on training images)"

    apart, alike = (
        answer_of(result | importance_json(planted.model_copy(update={"stride_ap50": found})))
        for found in ({16: 0.5, 32: 0.25}, {16: 0.0, 32: 0.0})
    )

    assert apart.evidence[name] == f"0.500 at 16, 0.250 at 32 {where}"
    assert alike.evidence[name] == (
        f"0.000 at 16, 0.000 at 32 {where}; none found anything: not told apart, and all priced alike"
    )
    assert result["stride_ap50"] is None
    assert name not in answer_of(result).evidence


def test_an_answer_that_was_not_verified_claims_no_measurement(space: SearchSpace) -> None:
    answer = answer_of(thinned(space, planted_latency(space, 1), measured_fps=None))

    assert (answer.measured_fps, answer.ap50, answer.met, answer.error_pct) == (None, None, None, None)
    assert answer.evidence["model.onnx"] == "not exported: not verified"


@pytest.mark.parametrize("measured_fps", [None, 9.0])
def test_a_report_is_written_from_the_results_of_jobs(
    space: SearchSpace, tmp_path: Path, measured_fps: float | None
) -> None:
    latency = planted_latency(space, 1)
    result = thinned(space, latency, measured_fps=measured_fps)

    text = write_report(
        tmp_path / "report.html", [result], rows=served_rows(latency), facts={"device": "bench <1>"}
    ).read_text()

    assert f"How {result['target_fps']:.2f} FPS was reached" in text
    assert "bench &lt;1&gt;" in text
    assert result["config_id"] in text


def test_a_report_of_a_run_whose_jobs_all_failed_still_shows_the_table(space: SearchSpace, tmp_path: Path) -> None:
    text = write_report(tmp_path / "r.html", [], rows=served_rows(planted_latency(space, 1)), facts={}).read_text()

    assert "What blocks cost on this device" in text
    assert "The Pareto front" not in text
