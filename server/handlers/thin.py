"""Job kind `thin`: the closed loop from a target FPS to a detector measured at it.

Solve on the table; export the answer, score that very file, have the device time it whole. What that shows goes into
the table's calibration; when the measurement misses the target, solve again with it, a bounded number of times.
"""

import json
from functools import partial
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from lookup_tables.calibration import Calibration
from nas.errors import BudgetUnreachable, ThinningExhausted
from server.answering import Problem, Solution, answer_json, config_json, round_json
from server.choosing import choose_table
from server.context import Context
from server.errors import StepFailed
from server.parameters import ThinParameters
from server.supernets import find_supernet
from server.verification import learn, verify

Json = dict[str, Any]

SOLUTION = TypeAdapter(Solution)

OUT_OF_REACH = frozenset({BudgetUnreachable.__name__, ThinningExhausted.__name__})
"""Errors of solving that end the rounds, but not the job: the last answer stands."""


class _Attempt(NamedTuple):
    """One round: an answer, what it was predicted with, and all that is known about it."""

    solution: Solution
    calibration: Calibration
    described: Json


def thin(context: Context, parameters: ThinParameters) -> Json:
    """Answer with a config, verified on the device unless told otherwise.

    Raises:
        StepFailed: of kind BudgetUnreachable or ThinningExhausted, no config is fast enough by the table as it was
            calibrated, or thinning alone does not get there; of kind InvalidConfig, the space has no such input size;
            of kind UnknownEdition or MissingBlocks, there is no table to answer from.
    """
    start = context.step("start", partial(_start, context, parameters))
    problem = Problem(
        parameters, find_supernet(context.database, start["supernet"]), context.tables.load(start["edition"])
    )
    attempts = [_attempt(context, problem, start["revision"], 1)]
    reason = None
    while parameters.verify:
        number, last = len(attempts), attempts[-1]
        revision = context.step(f"learn {number}", partial(learn, context, problem, last.solution, last.described))
        if last.described["met"]:
            break
        if number == parameters.max_rounds:
            reason = f"all {number} rounds that were allowed have missed"
            break
        try:
            attempts.append(_attempt(context, problem, revision, number + 1))
        except StepFailed as error:
            if error.kind not in OUT_OF_REACH:
                raise
            reason = f"by the corrected calibration {error}"
            break
    return context.step("answer", partial(_answer, context, problem, attempts, reason))


def _start(context: Context, parameters: ThinParameters) -> Json:
    """Choose supernet, edition and calibration once: what is made meanwhile does not change a job that runs."""
    supernet = find_supernet(context.database, parameters.supernet)
    edition = choose_table(context.tables, parameters, supernet.space).edition
    return {"supernet": supernet.id, "edition": edition, "revision": context.tables.calibration(edition).revision}


def _attempt(context: Context, problem: Problem, revision: int, number: int) -> _Attempt:
    """Solve, and verify unless told otherwise."""
    calibration = context.tables.calibration(problem.table.edition, revision)
    solved = context.step(f"solve {number}", partial(_solve, context, problem, calibration, number))
    solution, described = SOLUTION.validate_python(solved["solution"]), solved["described"]
    if problem.parameters.verify:
        rounds = problem.parameters.max_rounds
        share = ((number - 1) / rounds, number / rounds)
        described |= verify(context, problem, solution, calibration, number=number, share=share)
    return _Attempt(solution, calibration, described)


def _solve(context: Context, problem: Problem, calibration: Calibration, number: int) -> Json:
    """Find the answer of a round: what is exported and timed later is of this very config, whatever solves next."""
    with context.alone():
        solution = problem.solve(calibration)
    described = round_json(problem, solution, calibration, number=number)
    text = f"round {number}: {solution.config.id} predicted at {described['predicted_fps']:.2f} FPS"
    context.tell("solved", text, described)
    return {"solution": SOLUTION.dump_python(solution, mode="json"), "described": described}


def _answer(context: Context, problem: Problem, attempts: list[_Attempt], reason: str | None) -> Json:
    """Assemble the result, and keep config, file and evidence."""
    solution, calibration, last = attempts[-1]
    rounds = [attempt.described for attempt in attempts]
    with context.alone():
        result = answer_json(problem, solution, calibration, rounds, reason=reason)
    document = config_json(problem.space, solution.config)
    context.save("config.json", json.dumps(document, indent=1).encode(), "application/json")
    context.save("evidence.json", json.dumps(result, indent=1).encode(), "application/json")
    if "onnx_sha256" in last:
        sha256, size = last["onnx_sha256"], last["onnx_bytes"]
        context.jobs.add_artifact(
            context.job, "model.onnx", sha256, size, "application/octet-stream", now=context.now()
        )
    return result
