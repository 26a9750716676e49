"""From a table, a calibration and an importance to an answer: pure arithmetic, the same inputs give the same config."""

from dataclasses import dataclass
from typing import Any, assert_never

from nas.budgets import Budget
from nas.config import Config
from nas.exact import Point, front, optimum
from nas.importance import Importance
from nas.latency import LatencyModel
from nas.macs import gmacs
from nas.quality import AdditiveScore
from nas.space import SearchSpace
from nas.thinning import Trail, thin
from server.parameters import Solver

Json = dict[str, Any]

FRONT_POINTS = 200
"""Most points of the front that an answer carries; a longer one is thinned out evenly."""


@dataclass(frozen=True)
class Solution:
    """One answer of a solver, and the exact optimum of the same problem.

    Attributes:
        config: the answer.
        latency_ms: its predicted latency.
        score: its additive score, in percent.
        optimum: the best any config within the budget scores.
        trail: the thinning that led to it, None for the exact solver.
    """

    config: Config
    latency_ms: float
    score: float
    optimum: Point
    trail: Trail | None

    @property
    def gap(self) -> float:
        """Distance to the optimum, in points of the score."""
        return self.optimum.score - self.score


def solve(
    space: SearchSpace, latency: LatencyModel, importance: Importance, budget: Budget, *, solver: Solver
) -> Solution:
    """Find a config that meets the budget, margin included, with the chosen solver.

    Raises:
        BudgetUnreachable: no config is fast enough, or thinning alone does not get there.
    """
    score = AdditiveScore.from_importance(space, importance)
    best = optimum(space, latency, score, budget)
    match solver:
        case "exact":
            return Solution(best.config, best.latency_ms, best.score, best, None)
        case "thin_all_stages":
            trail = thin(space, latency, importance, score, budget, stages="all")
        case "thin_paper":
            trail = thin(space, latency, importance, score, budget, stages="least_important")
        case _:
            assert_never(solver)
    return Solution(trail.answer, trail.latency_ms, trail.score, best, trail)


def front_json(space: SearchSpace, latency: LatencyModel, importance: Importance) -> list[Json]:
    """Return the Pareto front as latency and score, evenly thinned out when it is long."""
    points = front(space, latency, AdditiveScore.from_importance(space, importance))
    step = max(1, -(-len(points) // FRONT_POINTS))
    return [point_json(point.latency_ms, point.score) for point in points[::step]]


def point_json(latency_ms: float, score: float) -> Json:
    """Write a point of the plane of speed and score."""
    return {"latency_ms": latency_ms, "fps": 1000 / latency_ms, "score": score}


def trail_json(trail: Trail | None) -> list[Json]:
    """Write the thinning step by step: where it started, each move, and what was passed over."""
    if trail is None:
        return []
    first = {"label": "the supernet's best path", **point_json(trail.start_latency_ms, trail.start_score)}
    return [
        first,
        *(
            {
                "label": step.taken.move.label,
                **point_json(step.taken.latency_ms, step.taken.score),
                "drop": step.taken.drop,
                "fps_gained": step.taken.fps_gained,
                "alternatives": [
                    {"label": other.move.label, "drop": other.drop, "fps_gained": other.fps_gained}
                    for other in step.alternatives
                ],
            }
            for step in trail.steps
        ),
    ]


def config_json(space: SearchSpace, config: Config) -> Json:
    """Write a config with the space it needs to be built, and what it counts."""
    return {
        "id": config.id,
        "space": space.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "gmacs": gmacs(space.blocks(config)),
    }
