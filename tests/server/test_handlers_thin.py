import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lookup_tables.calibration import Calibration, Source
from lookup_tables.errors import UnknownEdition
from nas.config import Config
from nas.errors import ThinningExhausted
from nas.exact import fastest
from server.answering import Problem, Solution
from server.errors import StepFailed, UnknownSupernet, WrongGraph
from server.handlers.profile import profile
from server.handlers.thin import thin
from server.parameters import ProfileParameters, Solver, ThinParameters
from server.supernets import find_supernet
from server.tasks import network_key
from server.verification import learn
from tests.server.dry import DEVICE, NANO, Bench, Crash, DryContext, DrySteps, digest, tasks_of

WITHIN_REACH = 0.5
"""Targets of these tests, as a share of the fastest FPS."""

SURPRISE = 1.2
"""How much slower than the table predicts an answer runs where a test wants a miss."""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Config]]:
    """A data folder with a calibrated table and two supernets."""
    data = tmp_path_factory.mktemp("profiled") / "data"
    bench = Bench.open(data)
    parameters = ProfileParameters(device=DEVICE, references=4)
    with bench.agent():
        profile(bench.context(bench.submit("profile", parameters)), parameters)
    for seed in (0, 1):
        bench.plant_supernet(seed)
    bench.database.dispose()
    return data, bench.networks


@pytest.fixture
def bench(profiled: tuple[Path, dict[str, Config]], tmp_path: Path) -> Iterator[Bench]:
    data, networks = profiled
    shutil.copytree(data, tmp_path / "data")
    bench = Bench.open(tmp_path / "data")
    bench.networks.update(networks)
    yield bench
    bench.database.dispose()


def fastest_fps(bench: Bench) -> float:
    context = bench.context("any")
    edition = context.tables.editions(device=DEVICE)[0].id
    latency = context.tables.calibration(edition).latency_model(context.tables.load(edition))
    return 1000 / (fastest(NANO, latency).latency_ms * (1 + latency.margin))


def asked(
    bench: Bench,
    *,
    share: float = WITHIN_REACH,
    verify: bool = True,
    solver: Solver = "thin_all_stages",
    max_rounds: int = 3,
) -> ThinParameters:
    return ThinParameters(
        device=DEVICE,
        supernet="train-0",
        target_fps=share * fastest_fps(bench),
        verify=verify,
        solver=solver,
        max_rounds=max_rounds,
    )


def started(bench: Bench, parameters: ThinParameters, steps: DrySteps | None = None) -> DryContext:
    return bench.context(bench.submit("thin", parameters), steps)


def test_an_answer_that_holds_is_met_in_the_first_round(bench: Bench) -> None:
    parameters = asked(bench)
    context = started(bench, parameters)
    with bench.agent():
        result = thin(context, parameters)
    (round_,) = result["rounds"]
    assert (result["status"], result["missed_by_percent"], result["reason"]) == ("met", None, None)
    assert round_["measured_fps"] >= parameters.target_fps
    assert round_["measured_fps"] == pytest.approx(1000 / round_["measured_ms"])
    assert round_["error_percent"] == pytest.approx(0, abs=0.5)
    assert result["first_round_error_percent"] == round_["error_percent"]
    assert round_["bound_fps"] >= parameters.target_fps > 0
    assert len(round_["references"]) == 3
    assert round_["drift_percent"] == pytest.approx(0, abs=0.1)
    assert round_["steady_error_percent"] == pytest.approx(0, abs=0.5)
    assert (result["supernet"], result["solver"], result["calibration_revision"]) == ("train-0", "thin_all_stages", 1)
    assert (result["stride_ap50"], result["strides_told_apart"]) == (None, True)
    assert (round_["ap"], round_["ap50"]) == (0.25, 0.5)
    assert result["gap"] == pytest.approx(result["optimum"]["score"] - round_["score"])
    assert result["gap"] >= 0
    assert result["trail"][-1]["latency_ms"] == round_["predicted_ms"]


def test_the_files_are_the_ones_that_were_measured(bench: Bench) -> None:
    parameters = asked(bench)
    context = started(bench, parameters)
    with bench.agent():
        result = thin(context, parameters)
    files = {file.name: context.blobs.get(file.sha256) for file in bench.jobs.artifacts(context.job)}
    assert set(files) == {"config.json", "model.onnx", "evidence.json"}
    assert digest(files["model.onnx"]) == result["rounds"][0]["onnx_sha256"]
    assert json.loads(files["evidence.json"]) == result
    config = Config.model_validate(json.loads(files["config.json"])["config"])
    assert NANO.check(config).id == result["config_id"]
    task = next(task for task in tasks_of(bench, context.job) if task.item_key == network_key(config))
    assert task.graph_sha256 == digest(files["model.onnx"])


def test_a_miss_corrects_the_calibration_and_the_next_round_holds(bench: Bench) -> None:
    parameters = asked(bench)
    first = thin(
        started(bench, parameters.model_copy(update={"verify": False})), parameters.model_copy(update={"verify": False})
    )
    bench.slowdown[f"network:{first['config_id']}"] = SURPRISE
    context = started(bench, parameters)
    with bench.agent():
        result = thin(context, parameters)
    assert result["status"] == "met"
    assert len(result["rounds"]) == 2
    missed, met = result["rounds"]
    assert (missed["met"], met["met"]) == (False, True)
    assert missed["config_id"] == first["config_id"] != met["config_id"] == result["config_id"]
    assert (
        missed["error_percent"]
        == pytest.approx(100 * (1 / SURPRISE - 1), abs=0.5)
        == result["first_round_error_percent"]
    )
    assert (missed["calibration_revision"], met["calibration_revision"]) == (1, 2)
    newest = context.tables.calibration(result["edition"])
    assert (newest.revision, [point.label for point in newest.points if point.source is Source.VERIFICATION]) == (
        2,
        [missed["config_id"]],
    )


def test_the_last_allowed_round_reports_by_how_much_it_missed(bench: Bench) -> None:
    parameters = asked(bench, max_rounds=1)
    foreseen = parameters.model_copy(update={"verify": False})
    first = thin(started(bench, foreseen), foreseen)
    bench.slowdown[f"network:{first['config_id']}"] = 2.0
    context = started(bench, parameters)
    with bench.agent():
        result = thin(context, parameters)
    measured_fps = result["rounds"][0]["measured_fps"]
    assert (result["status"], len(result["rounds"])) == ("missed", 1)
    assert result["missed_by_percent"] == pytest.approx(100 * (1 - measured_fps / parameters.target_fps))
    assert result["reason"] == "all 1 rounds that were allowed have missed"
    newest = context.tables.calibration(result["edition"])
    assert (newest.revision, newest.points[-1].label) == (2, first["config_id"])


def test_a_quarter_of_the_drift_that_an_answer_shows_goes_into_the_next_prediction(bench: Bench) -> None:
    parameters = asked(bench, share=0.5)
    bench.drift = 0.9  # everything is faster than when the table was made
    first_context, second_context = started(bench, parameters), started(bench, parameters)
    with bench.agent():
        first = thin(first_context, parameters)
        second = thin(second_context, parameters)
    (before,), (after,) = first["rounds"], second["rounds"]
    assert before["drift_percent"] == pytest.approx(-10, abs=0.1)
    assert before["error_percent"] == pytest.approx(100 * (1 / 0.9 - 1), abs=0.5)
    assert after["calibration_revision"] == 2
    assert after["error_percent"] == pytest.approx(100 * (0.9**0.25 / 0.9 - 1), abs=0.5)
    for round_ in (before, after):
        assert round_["steady_error_percent"] == pytest.approx(0, abs=0.5)
    drifts = [found.drift for found in second_context.tables.calibrations(first["edition"])]
    assert drifts == pytest.approx([1, 0.9**0.25, 0.9 ** (1 - 0.75**2)], abs=1e-3)
    assert len(second_context.tables.calibration(first["edition"]).points) == 4


def test_all_of_the_drift_that_a_miss_shows_goes_into_the_next_round(bench: Bench) -> None:
    parameters = asked(bench, share=0.5)
    bench.drift = 1.3
    context = started(bench, parameters)
    with bench.agent():
        first, second = thin(context, parameters)["rounds"]
    assert (first["met"], second["met"]) == (False, True)
    assert second["error_percent"] == pytest.approx(0, abs=0.5)
    newest = context.tables.calibration(parameters.edition or context.tables.editions(device=DEVICE)[0].id)
    assert (newest.revision, newest.drift) == (2, pytest.approx(1.3, abs=1e-3))


def test_a_target_that_a_correction_puts_out_of_reach_is_missed_with_the_reason(bench: Bench) -> None:
    parameters = asked(bench, share=0.99, solver="exact")
    foreseen = parameters.model_copy(update={"verify": False})
    first = thin(started(bench, foreseen), foreseen)
    bench.slowdown[f"network:{first['config_id']}"] = 1.3
    context = started(bench, parameters)
    with bench.agent():
        result = thin(context, parameters)
    assert (result["status"], len(result["rounds"])) == ("missed", 1)
    assert result["reason"].startswith("by the corrected calibration ")
    assert "is out of reach: the fastest config of the space at 192x192 runs at" in result["reason"]


def test_a_target_that_a_correction_puts_out_of_reach_of_thinning_is_missed_with_that_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = asked(bench)
    solve = Problem.solve

    def only_at_first(problem: Problem, calibration: Calibration) -> Solution:
        if calibration.revision == 1:
            return solve(problem, calibration)
        raise ThinningExhausted(target_ms=2, fastest_ms=1.9, binding="head", image=(192, 192), reached_ms=2.1)

    monkeypatch.setattr(Problem, "solve", only_at_first)
    context = started(bench, parameters)
    bench.drift = 1.3
    with bench.agent():
        result = thin(context, parameters)
    assert (result["status"], len(result["rounds"])) == ("missed", 1)
    assert result["reason"].startswith("by the corrected calibration thinning ends at 476.19 FPS, short of 500.00 FPS")
    assert result["reason"].endswith("ask for it with --solver exact.")


def test_an_answer_that_is_a_reference_does_not_tell_of_drift(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is another one than the reference's, and what the prediction missed is no drift."""
    reference, solve = NANO.smallest(), Problem.solve

    def answer(problem: Problem, calibration: Calibration) -> Solution:
        return replace(solve(problem, calibration), config=reference)

    monkeypatch.setattr(Problem, "solve", answer)
    bench.slowdown[network_key(reference)] = 1.3
    parameters = asked(bench, max_rounds=1)
    context = started(bench, parameters)
    with bench.agent():
        (only,) = thin(context, parameters)["rounds"]
    edition = context.tables.editions(device=DEVICE)[0].id
    assert reference.id in {point.label for point in context.tables.calibrations(edition)[0].points}
    assert only["drift_percent"] == pytest.approx(0, abs=0.01)
    assert reference.id not in {one["config_id"] for one in only["references"]}


def test_an_unreachable_target_fails_with_the_fastest_fps(bench: Bench) -> None:
    parameters = asked(bench, share=1.2)
    with pytest.raises(StepFailed, match="is out of reach") as caught:
        thin(started(bench, parameters), parameters)
    assert caught.value.kind == "BudgetUnreachable"


def test_a_thinning_at_an_input_size_outside_the_space_is_refused(bench: Bench) -> None:
    parameters = asked(bench, verify=False).model_copy(update={"image": (320, 320)})
    with pytest.raises(StepFailed, match="input size 320x320 is not in heatdetr-nano: choose one of 192x192") as caught:
        thin(started(bench, parameters), parameters)
    assert caught.value.kind == "InvalidConfig"


def test_without_verification_nothing_is_exported_or_measured(bench: Bench) -> None:
    parameters = asked(bench, verify=False)
    context = started(bench, parameters)
    result = thin(context, parameters)
    assert (result["status"], result["missed_by_percent"]) == ("predicted", None)
    assert context.orders == []
    assert tasks_of(bench, context.job) == []
    assert [file.name for file in bench.jobs.artifacts(context.job)] == ["config.json", "evidence.json"]


def test_the_same_inputs_give_the_same_config(bench: Bench) -> None:
    parameters = asked(bench, verify=False)
    results = [thin(started(bench, parameters), parameters) for _ in range(2)]
    assert results[0] == results[1]


def test_the_exact_solver_has_no_gap_and_no_trail(bench: Bench) -> None:
    parameters = asked(bench, verify=False, solver="exact")
    result = thin(started(bench, parameters), parameters)
    assert (result["gap"], result["trail"]) == (0, [])
    assert result["optimum"]["config_id"] == result["config_id"]


@pytest.mark.parametrize("step", ["start", "solve 1", "deploy 1", "measure 1", "compare 1", "learn 1", "answer"])
def test_a_worker_that_dies_in_any_step_measures_and_corrects_once(bench: Bench, step: str) -> None:
    parameters, steps = asked(bench), DrySteps(dies_in=step)
    foreseen = parameters.model_copy(update={"verify": False})
    first = thin(started(bench, foreseen), foreseen)
    bench.slowdown[f"network:{first['config_id']}"] = SURPRISE
    job = bench.submit("thin", parameters)
    with bench.agent():
        with pytest.raises(Crash):
            thin(bench.context(job, steps), parameters)
        steps.dies_in = None
        bench.plant_supernet(2)  # what is made meanwhile changes nothing
        result = thin(bench.context(job, steps), parameters)
    tasks = tasks_of(bench, job)
    assert result["status"] == "met"
    assert len(result["rounds"]) == 2
    assert len(tasks) == 2 * 4  # each round times its answer and three references, all anew
    assert len({(task.round, task.item_key) for task in tasks}) == len(tasks)
    assert {task.attempt for task in tasks} == {1}
    assert [found.revision for found in bench.context(job).tables.calibrations(result["edition"])] == [1, 2]


def test_a_round_taken_up_again_keeps_its_answer_whatever_solves_by_then(bench: Bench) -> None:
    """The file that was exported and timed is of that answer: another one beside it would be wrong evidence."""
    parameters, steps = asked(bench), DrySteps(dies_in="deploy 1")
    foreseen = parameters.model_copy(update={"verify": False})
    first = thin(started(bench, foreseen), foreseen)
    job = bench.submit("thin", parameters)
    with pytest.raises(Crash):
        thin(bench.context(job, steps), parameters)
    steps.dies_in = None
    newer = parameters.model_copy(update={"target_fps": 0.5 * parameters.target_fps})  # as if it solved another way
    with bench.agent():
        result = thin(bench.context(job, steps), newer)
    assert {result["config_id"], result["rounds"][0]["config_id"]} == {first["config_id"]}
    assert f"network:{first['config_id']}" in {task.item_key for task in tasks_of(bench, job)}


def test_a_file_of_another_config_is_refused(bench: Bench) -> None:
    parameters, steps = asked(bench), DrySteps(dies_in="measure 1")
    job = bench.submit("thin", parameters)
    with bench.agent(), pytest.raises(Crash):
        thin(bench.context(job, steps), parameters)
    deployed = json.loads(steps.finished["deploy 1"])
    deployed["value"]["key"] = "network:0123"
    steps.finished["deploy 1"], steps.dies_in = json.dumps(deployed), None
    with pytest.raises(
        WrongGraph, match=r"round 1 exported network:0123, its answer is network:.*submit the job again"
    ):
        thin(bench.context(job, steps), parameters)


def test_what_happened_once_is_told_once_however_often_the_job_is_taken_up(bench: Bench) -> None:
    parameters, steps = asked(bench, max_rounds=1), DrySteps(dies_in="learn 1")
    job = bench.submit("thin", parameters)
    bench.drift = 1.5
    with bench.agent():
        for _ in range(3):
            with pytest.raises(Crash):
                thin(bench.context(job, steps), parameters)
        steps.dies_in = None
        thin(bench.context(job, steps), parameters)
    kinds = [event.kind for event in bench.jobs.events(job)]
    assert [kinds.count(kind) for kind in ("solved", "verified", "corrected")] == [1, 1, 1]


def test_solving_waits_while_the_agent_on_this_machine_measures(bench: Bench) -> None:
    parameters = asked(bench, verify=False)
    context = started(bench, parameters)
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(thin(context, parameters)))
    with context.machine.measuring(context.check):
        thread.start()
        thread.join(0.5)
        assert results == []
    thread.join()
    assert len(results) == 1


def test_jobs_that_correct_one_table_build_on_each_other(bench: Bench) -> None:
    parameters = asked(bench)
    context = started(bench, parameters)
    edition = context.tables.editions(device=DEVICE)[0].id
    problem = Problem(parameters, find_supernet(bench.database, "train-0"), context.tables.load(edition))
    solution = problem.solve(context.tables.calibration(edition))
    missed = {"measured_ms": 2 * solution.latency_ms, "met": False, "drift_percent": 10.0}
    found = [{**missed, "measurement": f"{number}" * 64} for number in (1, 2)]
    assert [learn(context, problem, solution, one) for one in found] == [2, 3]
    assert [learn(context, problem, solution, one) for one in found] == [2, 3]
    assert len(context.tables.calibration(edition).points) == 4 + 2


def test_a_worker_that_died_while_learning_of_drift_learns_it_once(bench: Bench) -> None:
    parameters = asked(bench)
    context = started(bench, parameters)
    edition = context.tables.editions(device=DEVICE)[0].id
    problem = Problem(parameters, find_supernet(bench.database, "train-0"), context.tables.load(edition))
    first = context.tables.calibration(edition)
    met = {"measured_ms": 1.0, "met": True, "drift_percent": 8.0, "measurement": "1" * 64}
    assert [learn(context, problem, problem.solve(first), met) for _ in range(3)] == [2, 2, 2]
    assert context.tables.calibration(edition).drift == pytest.approx(1.08**0.25)


def measured_earlier(bench: Bench) -> tuple[str, str]:
    """Return the ids of two measurements, the earlier one first."""
    found = sorted(bench.context("any").tables.measurements(DEVICE), key=lambda one: one.received_at)
    assert found[0].received_at < found[-1].received_at
    return found[0].id, found[-1].id


@pytest.mark.parametrize("is_newer", [False, True])
def test_an_answer_that_met_its_target_never_undoes_the_drift_of_a_later_miss(bench: Bench, is_newer: bool) -> None:
    """Two jobs begin with one calibration: the config that has just missed must not be offered again."""
    parameters = asked(bench)
    context = started(bench, parameters)
    edition = context.tables.editions(device=DEVICE)[0].id
    problem = Problem(parameters, find_supernet(bench.database, "train-0"), context.tables.load(edition))
    solution = problem.solve(context.tables.calibration(edition))
    earlier, later = measured_earlier(bench)
    missing, meeting = (earlier, later) if is_newer else (later, earlier)
    missed = {
        "measured_ms": 1.2 * solution.latency_ms, "met": False, "drift_percent": 20.0, "measurement": missing,
    }  # fmt: skip
    met = {"measured_ms": 1.0, "met": True, "drift_percent": 5.0, "measurement": meeting}
    assert learn(context, problem, solution, missed) == 2
    assert [learn(context, problem, solution, met) for _ in range(2)] == [3 if is_newer else 2] * 2
    newest = context.tables.calibration(edition)
    assert newest.drift == pytest.approx(1.2 * (1.05 / 1.2) ** 0.25 if is_newer else 1.2)
    blocks = NANO.blocks(solution.config)
    bound_ms = newest.latency_model(problem.table).predict_ms(blocks) * (1 + newest.margin)
    assert bound_ms >= (missed["measured_ms"] if not is_newer else 0.95 * missed["measured_ms"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"edition": "0" * 16}, UnknownEdition, "0000000000000000"),
        ({"supernet": "train-9"}, UnknownSupernet, "supernet 'train-9' is unknown"),
        ({"threads": 2}, UnknownEdition, "2 thread"),
    ],
)
def test_what_does_not_exist_is_named(
    bench: Bench, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    parameters = asked(bench).model_copy(update=changes)
    with pytest.raises(StepFailed, match=message) as caught:
        thin(started(bench, parameters), parameters)
    assert caught.value.kind == error.__name__


def test_an_edition_of_another_device_is_refused(bench: Bench) -> None:
    parameters = asked(bench)
    edition = bench.context("any").tables.editions(device=DEVICE)[0].id
    other = parameters.model_copy(update={"device": "laptop", "edition": edition})
    with pytest.raises(StepFailed, match=f"edition {edition} is the table of bench with 1 thread.*not of laptop"):
        thin(started(bench, other), other)
