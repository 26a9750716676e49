"""Job kind `thin`: the closed loop from a target FPS to a detector measured at it.

Solve on the table; export the answer, score that very file, have the device time it whole; when the measurement misses
the target, correct the calibration with it and solve again, a bounded number of times.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from lookup_tables.calibration import Calibration, Point, Source
from lookup_tables.table import LookupTable
from nas.budgets import Budget
from nas.config import Config
from nas.importance import Importance
from nas.macs import gmacs
from nas.space import SearchSpace
from profiler.wire import Policy
from server.answering import Solution, config_json, front_json, point_json, solve, trail_json
from server.campaign import measure
from server.context import Context
from server.graphs import network_item
from server.parameters import ThinParameters
from server.supernets import StoredSupernet, find_supernet
from server.tasks import network_key

Json = dict[str, Any]

WHOLE = Policy(min_hot_runs=40, max_hot_runs=120)
"""How long an answer is measured: longer than a block, since everything rests on it."""


@dataclass(frozen=True)
class _Problem:
    """What stays the same over the rounds."""

    parameters: ThinParameters
    supernet: StoredSupernet
    table: LookupTable

    @property
    def space(self) -> SearchSpace:
        return self.supernet.space

    @property
    def importance(self) -> Importance:
        return self.supernet.importance

    @property
    def budget(self) -> Budget:
        return Budget.from_fps(self.parameters.target_fps)

    def sum_ms(self, config: Config) -> float:
        return sum(self.table[block] for block in self.space.blocks(config))


def thin(context: Context, parameters: ThinParameters) -> Json:
    """Answer with a config, verified on the device unless told otherwise."""
    edition = context.step("edition", lambda: _edition(context, parameters))
    supernet = find_supernet(context.database, parameters.supernet)
    problem = _Problem(parameters, supernet, context.tables.load(edition))
    rounds: list[Json] = []
    while True:
        calibration = _calibration(context, edition, len(rounds) + 1)
        solution = _solve(problem, calibration)
        rounds.append(_round(context, problem, solution, calibration, number=len(rounds) + 1))
        if rounds[-1].get("met", True) or len(rounds) == parameters.max_rounds:
            break
        correct = partial(_correct, context, problem, calibration, solution, rounds[-1])
        context.step(f"correct {len(rounds)}", correct)
    return context.step("answer", partial(_answer, context, problem, solution, calibration, rounds))


def _round(context: Context, problem: _Problem, solution: Solution, calibration: Calibration, *, number: int) -> Json:
    """Describe one answer and, unless told otherwise, verify it."""
    described = _described(problem, solution, calibration, number)
    fps = described["predicted_fps"]
    context.tell("solved", f"round {number}: {solution.config.id} predicted at {fps:.2f} FPS", described)
    if problem.parameters.verify:
        described |= _verify(context, problem, solution, number)
    return described


def _edition(context: Context, parameters: ThinParameters) -> str:
    """Choose the edition once: a table published meanwhile does not change a running job."""
    if parameters.edition is not None:
        return str(context.tables.edition(parameters.edition).id)
    space = find_supernet(context.database, parameters.supernet).space
    return context.tables.latest(parameters.device, parameters.execution, space.all_blocks())


def _calibration(context: Context, edition: str, number: int) -> Calibration:
    revision = context.step(f"calibration {number}", lambda: context.tables.calibration(edition).revision)
    return context.tables.calibration(edition, revision)


def _solve(problem: _Problem, calibration: Calibration) -> Solution:
    latency = calibration.latency_model(problem.table)
    return solve(problem.space, latency, problem.importance, problem.budget, solver=problem.parameters.solver)


def _described(problem: _Problem, solution: Solution, calibration: Calibration, number: int) -> Json:
    predicted = solution.latency_ms
    return {
        "round": number,
        "config_id": solution.config.id,
        "predicted_ms": predicted,
        "predicted_fps": 1000 / predicted,
        "bound_ms": predicted * (1 + calibration.margin),
        "bound_fps": 1000 / (predicted * (1 + calibration.margin)),
        "confidence": calibration.confidence,
        "score": solution.score,
        "gap": solution.gap,
        "gmacs": gmacs(problem.space.blocks(solution.config)),
        "calibration_revision": calibration.revision,
    }


def _verify(context: Context, problem: _Problem, solution: Solution, number: int) -> Json:
    """Export the answer, score the file and have the device time it: prediction and measurement side by side."""
    parameters, config = problem.parameters, solution.config
    share = (number - 1) / parameters.max_rounds
    deployed = context.step(f"deploy {number}", lambda: _deploy(context, problem, config))
    context.progress(share + 0.5 / parameters.max_rounds)
    item = network_item(config, deployed["sha256"], deployed["bytes"], parameters.execution, WHOLE)
    measured = context.step(
        f"measure {number}",
        lambda: measure(context, parameters.device, [item], share=(share, number / parameters.max_rounds)),
    )
    measurement = measured[network_key(config)]
    measured_ms = context.measured_ms(measurement)
    met = 1000 / measured_ms >= parameters.target_fps
    ap50 = deployed["evaluation"]["ap50"]
    context.tell(
        "verified",
        f"round {number}: measured at {1000 / measured_ms:.2f} FPS, {'meets' if met else 'misses'} "
        f"{parameters.target_fps:.2f} FPS; AP50 {'undefined' if ap50 is None else format(ap50, '.3f')}",
    )
    return {
        "measured_ms": measured_ms,
        "measured_fps": 1000 / measured_ms,
        "error_percent": 100 * (solution.latency_ms / measured_ms - 1),
        "measurement": measurement,
        "met": met,
        "onnx_sha256": deployed["sha256"],
        "onnx_bytes": deployed["bytes"],
        "parity": deployed["parity"],
        "ap": deployed["evaluation"]["ap"],
        "ap50": ap50,
        "evaluation": deployed["evaluation"],
    }


def _deploy(context: Context, problem: _Problem, config: Config) -> Json:
    order = {
        "config": config.model_dump(mode="json"),
        "checkpoint": str(context.blobs.path(problem.supernet.checkpoint_sha256)),
        "data": str(context.settings.datasets / problem.supernet.data),
        "blobs": str(context.settings.blobs),
    }
    context.tell("deploying", f"exporting {config.id} and scoring it on held-out images")
    return context.child(
        "server.heavy.deployment:deploy", order, lambda _: None, threads=context.settings.train_threads
    )


def _correct(context: Context, problem: _Problem, calibration: Calibration, solution: Solution, round_: Json) -> int:
    """Fit the calibration again with the missed answer as one more point; return the new revision."""
    point = Point(
        label=solution.config.id,
        sum_ms=problem.sum_ms(solution.config),
        measured_ms=round_["measured_ms"],
        source=Source.VERIFICATION,
        measurement=round_["measurement"],
    )
    if point not in calibration.points:
        calibration = calibration.corrected(point)
        context.tables.add_calibration(problem.table.edition, calibration, now=context.now())
    context.tell("corrected", f"calibration revision {calibration.revision}: factor {calibration.slope:.3f}")
    return calibration.revision


def _answer(
    context: Context, problem: _Problem, solution: Solution, calibration: Calibration, rounds: list[Json]
) -> Json:
    """Assemble the result, and save config, file and evidence."""
    last = rounds[-1]
    latency = calibration.latency_model(problem.table)
    result = {
        "status": _status(last),
        "target_fps": problem.parameters.target_fps,
        "missed_by_percent": _missed_by(problem.parameters.target_fps, last),
        "device": problem.parameters.device,
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
        "importance": problem.importance.provenance.model_dump(mode="json"),
        "optimum": {
            "config_id": solution.optimum.config.id,
            **point_json(solution.optimum.latency_ms, solution.optimum.score),
        },
        "front": front_json(problem.space, latency, problem.importance),
        "trail": trail_json(solution.trail),
        "rounds": rounds,
    }
    document = config_json(problem.space, solution.config)
    context.save("config.json", json.dumps(document, indent=1).encode(), "application/json")
    context.save("evidence.json", json.dumps(result, indent=1).encode(), "application/json")
    if "onnx_sha256" in last:
        sha256, size = last["onnx_sha256"], last["onnx_bytes"]
        context.jobs.add_artifact(
            context.job, "model.onnx", sha256, size, "application/octet-stream", now=context.now()
        )
    return result


def _status(last: Json) -> str:
    if "met" not in last:
        return "predicted"
    return "met" if last["met"] else "missed"


def _missed_by(target_fps: float, last: Json) -> float | None:
    """Return how far the measurement stays below the target, in percent of it; None when it does not."""
    if last.get("met", True):
        return None
    return float(100 * (1 - last["measured_fps"] / target_fps))
