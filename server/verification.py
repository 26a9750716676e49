"""Truth for an answer: the file that is shipped, scored on held-out images and timed whole on the device."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from lookup_tables.calibration import Calibration, Point, Source
from nas.config import Config
from profiler.wire import Policy
from server.answering import Problem, Solution
from server.campaign import measure
from server.context import Context
from server.errors import WrongGraph
from server.graphs import find_graphs, network_item
from server.tasks import Item, network_key

Json = dict[str, Any]

MIN_RUNS, MAX_RUNS = 40, 400
"""Hot runs kept of an answer: more than of a block, since everything rests on it."""

REFERENCES = 3
"""Reference networks timed again with an answer: they tell how much the device has drifted since its calibration."""


def verify(
    context: Context,
    problem: Problem,
    solution: Solution,
    calibration: Calibration,
    *,
    number: int,
    share: tuple[float, float],
) -> Json:
    """Export the answer of a round, score the file and have the device time it.

    Args:
        context: the job.
        problem: what was asked.
        solution: the answer.
        calibration: what it was predicted with.
        number: of the round, from 1.
        share: progress of the job before and after.

    Raises:
        WrongGraph: the file that an earlier run of the round exported is of another config.
    """
    first, last = share
    deployed = context.step(f"deploy {number}", partial(_deploy, context, problem, solution.config))
    if deployed["key"] != network_key(solution.config):
        raise WrongGraph(
            f"round {number} exported {deployed['key']}, its answer is {network_key(solution.config)}: "
            "submit the job again"
        )
    middle = (first + last) / 2
    context.progress(middle)
    policy = Policy(min_hot_runs=MIN_RUNS, max_hot_runs=MAX_RUNS, min_seconds=problem.parameters.measure_seconds)
    items = [
        network_item(solution.config, deployed["sha256"], deployed["bytes"], problem.parameters.execution, policy),
        *_reference_items(context, problem, solution, calibration, policy),
    ]
    timed = partial(measure, context, problem.parameters.device, items, share=(middle, last), round_=number)
    measured = context.step(f"measure {number}", timed)
    compare = partial(_compare, context, problem, solution, calibration, deployed, measured, number)
    return context.step(f"compare {number}", compare)


def learn(context: Context, problem: Problem, solution: Solution, verified: Json) -> int:
    """Bring the table's newest calibration up to what a verification has shown; return its revision.

    A missed answer becomes one more point, and all the drift that its references showed goes into the slope; of an
    answer that met its target a part of the drift does; older drift than the table knows already is left out. Jobs that
    learn about the same table at the same time build on each other. Asked again, it finds what it did.
    """
    measurement = verified["measurement"]

    def choose(known: Sequence[Calibration]) -> Calibration:
        for done in known:
            if done.measurement == measurement:
                return done
        newest = known[-1]
        return _corrected(problem, solution, verified, newest, drift=_newer_drift(context, verified, newest))

    calibration, is_new = context.tables.revise(problem.table.edition, choose, now=context.now())
    if is_new:
        context.tell("corrected", f"calibration revision {calibration.revision}: {calibration.sentence}")
    return calibration.revision


def _newer_drift(context: Context, verified: Json, newest: Calibration) -> float | None:
    """Return the drift that a verification has seen; None for none, or when the table has learned from a later one."""
    if newest.measurement is not None and context.is_older(verified["measurement"], newest.measurement):
        return None
    return _seen_drift(verified)


def _seen_drift(verified: Json) -> float | None:
    return None if verified["drift_percent"] is None else float(1 + verified["drift_percent"] / 100)


def _corrected(
    problem: Problem, solution: Solution, verified: Json, newest: Calibration, *, drift: float | None
) -> Calibration:
    measurement = verified["measurement"]
    if verified["met"]:
        settled = newest.drift if drift is None else newest.settled_drift(drift)
        return newest if settled == newest.drift else newest.corrected(drift=settled, measurement=measurement)
    missed = Point.of(
        solution.config.id,
        problem.space.blocks(solution.config),
        problem.table,
        verified["measured_ms"],
        source=Source.VERIFICATION,
        drift=_seen_drift(verified) or newest.drift,
        measurement=measurement,
    )
    return newest.corrected(missed, drift=drift, measurement=measurement)


def _deploy(context: Context, problem: Problem, config: Config) -> Json:
    order = {
        "config": config.model_dump(mode="json"),
        "checkpoint": str(context.blobs.path(problem.supernet.checkpoint_sha256)),
        "data": str(context.settings.datasets / problem.supernet.data),
        "blobs": str(context.settings.blobs),
        "threads": context.settings.train_threads,
    }
    context.tell("deploying", f"exporting {config.id} and scoring it on held-out images")
    return context.child("server.heavy.deployment:deploy", order, lambda _: None)


def _reference_items(
    context: Context, problem: Problem, solution: Solution, calibration: Calibration, policy: Policy
) -> list[Item]:
    """Choose the references nearest in latency whose graphs are here; an imported table comes without graphs."""
    points = [point for point in calibration.points if point.source is Source.REFERENCE]
    points.sort(key=lambda point: (abs(math.log(point.measured_ms / solution.latency_ms)), point.label))
    keys = [f"network:{point.label}" for point in points if point.label != solution.config.id]
    graphs = find_graphs(context, keys)
    execution = problem.parameters.execution
    return [
        Item(key, graphs[key].label, graphs[key].sha256, graphs[key].bytes, execution, policy)
        for key in keys
        if key in graphs
    ][:REFERENCES]


def _compare(
    context: Context,
    problem: Problem,
    solution: Solution,
    calibration: Calibration,
    deployed: Json,
    measured: dict[str, str],
    number: int,
) -> Json:
    """Set the measurement against what was predicted, and tell: once, however often the job is taken up."""
    found = _compared(context, problem, solution, deployed, measured)
    answer = network_key(solution.config)  # never a reference: its error would be booked as drift
    references = {key: one for key, one in measured.items() if key != answer}
    found |= _drift(context, calibration, references, found["error_percent"])
    context.tell("verified", _sentence(problem, found, number), found)
    return found


def _compared(context: Context, problem: Problem, solution: Solution, deployed: Json, measured: dict[str, str]) -> Json:
    """Write prediction and measurement side by side."""
    measurement = measured[network_key(solution.config)]
    measured_ms = context.measured_ms(measurement)
    evaluation = deployed["evaluation"]
    return {
        "measured_ms": measured_ms,
        "measured_fps": 1000 / measured_ms,
        "error_percent": 100 * (solution.latency_ms / measured_ms - 1),
        "measurement": measurement,
        "met": 1000 / measured_ms >= problem.parameters.target_fps,
        "onnx_sha256": deployed["sha256"],
        "onnx_bytes": deployed["bytes"],
        "parity": deployed["parity"],
        "ap": evaluation["ap"],
        "ap50": evaluation["ap50"],
        "evaluation": evaluation,
    }


def _drift(context: Context, calibration: Calibration, references: dict[str, str], error_percent: float) -> Json:
    """Compare the references with what they took when they were first measured; None without any.

    `steady_error_percent` is the error of the prediction with the drift taken out that came after it: what the table
    got wrong, where `error_percent` has also what the device did meanwhile.
    """
    now_ms = {key.removeprefix("network:"): context.measured_ms(one) for key, one in sorted(references.items())}
    drift = calibration.drift_of(now_ms)
    return {
        "references": [
            {"config_id": point.label, "calibrated_ms": point.measured_ms, "measured_ms": now_ms[point.label]}
            for point in calibration.points
            if point.source is Source.REFERENCE and point.label in now_ms
        ],
        "drift_percent": None if drift is None else 100 * (drift - 1),
        "steady_error_percent": (
            None if drift is None else 100 * ((1 + error_percent / 100) * drift / calibration.drift - 1)
        ),
    }


def _sentence(problem: Problem, found: Json, number: int) -> str:
    verdict = "meets" if found["met"] else "misses"
    ap50 = "undefined" if found["ap50"] is None else format(found["ap50"], ".3f")
    drift = found["drift_percent"]
    since = "" if drift is None else f"; references take {_change(drift)} than when the table was calibrated"
    target = f"{problem.parameters.target_fps:.2f} FPS"
    return f"round {number}: measured at {found['measured_fps']:.2f} FPS, {verdict} {target}; AP50 {ap50}{since}"


def _change(percent: float) -> str:
    return f"{abs(percent):.1f} % {'less' if percent < 0 else 'more'}"
