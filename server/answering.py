"""From a table, a calibration and an importance to an answer: pure arithmetic, the same inputs give the same config."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from lookup_tables.calibration import Calibration
from lookup_tables.table import LookupTable
from nas.budgets import Budget
from nas.config import Config
from nas.exact import Point, front, optimum
from nas.importance import Importance
from nas.latency import LatencyModel
from nas.macs import gmacs
from nas.quality import AdditiveScore
from nas.space import SearchSpace
from nas.thinning import Trail, thin
from server.parameters import Solver, ThinParameters
from server.supernets import StoredSupernet

Json = dict[str, Any]

FRONT_POINTS = 200
"""Most points of the front that an answer carries; a longer one is thinned out evenly."""


@dataclass(frozen=True)
class Problem:
    """What stays the same over the rounds of a thinning job."""

    parameters: ThinParameters
    supernet: StoredSupernet
    table: LookupTable

    @property
    def space(self) -> SearchSpace:
        """What is searched."""
        return self.supernet.space

    @property
    def importance(self) -> Importance:
        """What each choice is worth."""
        return self.supernet.importance

    def latency(self, calibration: Calibration) -> LatencyModel:
        """Predict with the table and one of its calibrations."""
        return calibration.latency_model(self.table)

    def solve(self, calibration: Calibration) -> "Solution":
        """Find an answer that is predicted to meet the target, margin included.

        Raises:
            BudgetUnmet: no config is fast enough, or thinning alone does not get there.
            InvalidConfig: the space has no such input size.
        """
        asked = self.parameters
        budget = Budget.from_fps(asked.target_fps)
        latency = self.latency(calibration)
        return solve(self.space, latency, self.importance, budget, solver=asked.solver, image=asked.image)


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
        """Distance to the optimum, in points of the score; the optimum is proven, less than zero is rounding."""
        return max(self.optimum.score - self.score, 0.0)


def solve(
    space: SearchSpace,
    latency: LatencyModel,
    importance: Importance,
    budget: Budget,
    *,
    solver: Solver,
    image: tuple[int, int] | None = None,
) -> Solution:
    """Find a config that meets the budget, margin included, with the chosen solver.

    `image` is an input size of the space, its largest by default.

    Raises:
        BudgetUnmet: no config is fast enough, or thinning alone does not get there.
        InvalidConfig: the space has no such input size.
    """
    score = AdditiveScore.from_importance(space, importance)
    best = optimum(space, latency, score, budget, image=image)
    match solver:
        case "exact":
            return Solution(best.config, best.latency_ms, best.score, best, None)
        case "thin_all_stages":
            trail = thin(space, latency, importance, score, budget, image=image, stages="all")
        case "thin_paper":
            trail = thin(space, latency, importance, score, budget, image=image, stages="least_important")
        case _:
            assert_never(solver)
    return Solution(trail.answer, trail.latency_ms, trail.quality, best, trail)


def front_json(
    space: SearchSpace, latency: LatencyModel, importance: Importance, *, image: tuple[int, int] | None = None
) -> list[Json]:
    """Return the Pareto front at one input size as latency and score, evenly thinned out when it is long."""
    points = front(space, latency, AdditiveScore.from_importance(space, importance), image=image)
    step = max(1, -(-len(points) // FRONT_POINTS))
    shown = [*points[:-1:step], points[-1]]
    return [point_json(point.latency_ms, point.score) for point in shown]


def point_json(latency_ms: float, score: float) -> Json:
    """Write a point of the plane of speed and score."""
    return {"latency_ms": latency_ms, "fps": 1000 / latency_ms, "score": score}


def trail_json(trail: Trail | None) -> list[Json]:
    """Write the thinning step by step: where it started, each move, and what was passed over."""
    if trail is None:
        return []
    first = {"label": "the supernet's best path", **point_json(trail.start_latency_ms, trail.start_quality)}
    return [
        first,
        *(
            {
                "label": step.taken.move.label,
                **point_json(step.taken.latency_ms, step.taken.quality),
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


def round_json(problem: Problem, solution: Solution, calibration: Calibration, *, number: int) -> Json:
    """Write what is predicted of an answer before anything is measured."""
    bound_ms = solution.latency_ms * (1 + calibration.margin)
    return {
        "round": number,
        "config_id": solution.config.id,
        "predicted_ms": solution.latency_ms,
        "predicted_fps": 1000 / solution.latency_ms,
        "bound_ms": bound_ms,
        "bound_fps": 1000 / bound_ms,
        "confidence": calibration.confidence,
        "score": solution.score,
        "gap": solution.gap,
        "gmacs": gmacs(problem.space.blocks(solution.config)),
        "calibration_revision": calibration.revision,
    }


def answer_json(
    problem: Problem, solution: Solution, calibration: Calibration, rounds: Sequence[Json], *, reason: str | None
) -> Json:
    """Write the result of a thinning job: the answer of its last round, and what that rests on."""
    last = rounds[-1]
    return {
        "status": _status(last),
        "target_fps": problem.parameters.target_fps,
        "missed_by_percent": _missed_by(problem.parameters.target_fps, last),
        "reason": reason,
        "device": problem.table.device,
        "threads": problem.table.execution.threads,
        "space": problem.space.name,
        "config_id": solution.config.id,
        "config": solution.config.model_dump(mode="json"),
        "gmacs": last["gmacs"],
        "solver": problem.parameters.solver,
        "accuracy_grade": "estimate",
        "gap": solution.gap,
        "edition": problem.table.edition,
        "calibration_revision": calibration.revision,
        "supernet": problem.supernet.id,
        **importance_json(problem.importance),
        "optimum": {
            "config_id": solution.optimum.config.id,
            **point_json(solution.optimum.latency_ms, solution.optimum.score),
        },
        "front": front_json(
            problem.space, problem.latency(calibration), problem.importance, image=solution.config.image
        ),
        "trail": trail_json(solution.trail),
        "first_round_error_percent": rounds[0].get("error_percent"),
        "rounds": list(rounds),
    }


def importance_json(importance: Importance) -> Json:
    """Write where an importance comes from, and what it knows of the strides of the prediction map."""
    return {
        "importance": importance.provenance.model_dump(mode="json"),
        "stride_ap50": importance.model_dump(mode="json")["stride_ap50"],
        "strides_told_apart": importance.tells_strides_apart,
    }


def config_json(space: SearchSpace, config: Config) -> Json:
    """Write a config with the space it needs to be built, and what it counts."""
    return {
        "id": config.id,
        "space": space.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "gmacs": gmacs(space.blocks(config)),
    }


def _status(last: Json) -> str:
    if "met" not in last:
        return "predicted"
    return "met" if last["met"] else "missed"


def _missed_by(target_fps: float, last: Json) -> float | None:
    """Return how far the measurement stays below the target, in percent of it; None when it does not."""
    if last.get("met", True):
        return None
    return float(100 * (1 - last["measured_fps"] / target_fps))
