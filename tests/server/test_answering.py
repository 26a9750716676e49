import pytest

from nas.budgets import Budget
from nas.errors import BudgetUnreachable, ThinningExhausted
from nas.exact import fastest, front
from nas.named import named_space
from nas.quality import AdditiveScore
from nas.space import SearchSpace
from nas.thinning import best_path
from server.answering import FRONT_POINTS, front_json, solve, trail_json
from server.parameters import Solver
from tests.planted_space import planted_importance, planted_latency

NANO = named_space("heatdetr-nano", classes=3)
LATENCY = planted_latency(NANO, 1, margin=0.03)
IMPORTANCE = planted_importance(NANO, 1)
SCORE = AdditiveScore.from_importance(NANO, IMPORTANCE)


def budget(share: float, space: SearchSpace = NANO) -> Budget:
    """A budget so many times the fastest config's bound."""
    return Budget(latency_ms=share * fastest(space, LATENCY).latency_ms * (1 + LATENCY.margin))


@pytest.mark.parametrize("solver", ["thin_all_stages", "exact"])
def test_an_answer_meets_the_budget_margin_included(solver: Solver) -> None:
    limit = budget(1.6)
    solution = solve(NANO, LATENCY, IMPORTANCE, limit, solver=solver)
    assert LATENCY.holds(solution.latency_ms, limit.latency_ms)
    assert solution.latency_ms == pytest.approx(LATENCY.predict_ms(NANO.blocks(solution.config)))
    assert solution.score == pytest.approx(SCORE(solution.config))
    assert solution.gap == pytest.approx(solution.optimum.score - solution.score, abs=1e-9)
    assert solution.gap >= 0


def test_the_paper_solver_touches_the_least_important_stage_only() -> None:
    limit = budget(1.6)
    everywhere = solve(NANO, LATENCY, IMPORTANCE, limit, solver="thin_all_stages")
    paper = solve(NANO, LATENCY, IMPORTANCE, limit, solver="thin_paper")
    assert everywhere.trail is not None
    assert paper.trail is not None
    assert max(len(step.alternatives) for step in paper.trail.steps) < max(
        len(step.alternatives) for step in everywhere.trail.steps
    )


def test_a_budget_below_the_fastest_config_is_out_of_reach() -> None:
    with pytest.raises(BudgetUnreachable, match="is out of reach") as caught:
        solve(NANO, LATENCY, IMPORTANCE, budget(0.9), solver="exact")
    assert not isinstance(caught.value, ThinningExhausted)
    assert caught.value.fastest_ms == pytest.approx(budget(1).latency_ms)


@pytest.mark.parametrize("solver", ["thin_all_stages", "thin_paper", "exact"])
def test_an_answer_has_the_input_size_that_was_asked_for(solver: Solver) -> None:
    space = NANO.model_copy(update={"images": ((128, 128), (192, 192))})
    latency, importance = planted_latency(space, 1), planted_importance(space, 1)
    limit = Budget(latency_ms=latency.bound_ms(space.blocks(best_path(space, importance))))
    for image, wanted in ((None, (192, 192)), ((128, 128), (128, 128)), ((192, 192), (192, 192))):
        solution = solve(space, latency, importance, limit, solver=solver, image=image)
        assert (solution.config.image, solution.optimum.config.image) == (wanted, wanted)
        shown = front_json(space, latency, importance, image=image)
        best = front(space, latency, AdditiveScore.from_importance(space, importance), image=wanted)[-1]
        assert shown[-1]["latency_ms"] == best.latency_ms


def test_the_trail_starts_at_the_best_path_and_ends_at_the_answer() -> None:
    solution = solve(NANO, LATENCY, IMPORTANCE, budget(1.6), solver="thin_all_stages")
    trail = trail_json(solution.trail)
    assert trail[0]["label"] == "the supernet's best path"
    assert trail[-1]["latency_ms"] == solution.latency_ms
    assert all(turn["fps"] == pytest.approx(1000 / turn["latency_ms"]) for turn in trail)
    assert [turn["latency_ms"] for turn in trail] == sorted((turn["latency_ms"] for turn in trail), reverse=True)
    assert trail_json(None) == []


def test_a_long_front_is_thinned_out_but_keeps_both_ends() -> None:
    whole = front(NANO, LATENCY, SCORE)
    shown = front_json(NANO, LATENCY, IMPORTANCE)
    assert len(shown) <= FRONT_POINTS + 1
    assert len(shown) <= len(whole)
    assert (shown[0]["latency_ms"], shown[-1]["score"]) == (whole[0].latency_ms, whole[-1].score)
