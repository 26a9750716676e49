import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from nas.errors import BudgetUnreachable
from profiler.wire import Execution, Policy
from server import leases
from server.context import Context
from server.database import JobState, Task, TaskState, reading, writing
from server.engine import EngineState
from server.errors import ChildFailed, WorkerRunning
from server.jobs import Jobs, is_final
from server.parameters import TrainParameters
from server.settings import Settings
from server.tasks import Item, add_tasks
from server.worker import Handler, Worker
from tests.server.agents import enrol_agent

Json = dict[str, Any]


def now() -> datetime:
    return datetime.now(UTC)


def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data")


@contextmanager
def running(settings: Settings, handlers: Mapping[str, Handler]) -> Iterator[Worker]:
    """Run a worker in a thread of this process."""
    worker, stop = Worker(settings, handlers), threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        until(lambda: worker.is_up.is_set() or not thread.is_alive())
        yield worker
    finally:
        stop.set()
        thread.join()


def submit(jobs: Jobs) -> str:
    return jobs.submit("train", TrainParameters(), key=None, now=now()).id


def test_a_job_succeeds_with_its_result(settings: Settings) -> None:
    def handler(context: Context, parameters: TrainParameters) -> Json:
        context.tell("training", "at it", {"step": 1})
        context.progress(0.25)
        return {"steps": context.step("only", lambda: parameters.steps)}

    with running(settings, {"train": handler}) as worker:
        job = submit(worker.jobs)
        until(lambda: is_final(worker.jobs.get(job)))
        found = worker.jobs.get(job)
        events = [(event.seq, event.kind) for event in worker.jobs.events(job)]
        until(lambda: worker.engine.state(job) is EngineState.FINISHED)
    assert (found.state, found.progress) == (JobState.SUCCEEDED, 1.0)
    assert found.result == {"steps": TrainParameters().steps}
    assert events == [(1, "submitted"), (2, "running"), (3, "training"), (4, "succeeded")]


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (BudgetUnreachable(target_ms=1, fastest_ms=2, binding="wmsa 96", image=(64, 64)), "BudgetUnreachable"),
        (ChildFailed("the loss is nan", kind="TrainingDiverged"), "TrainingDiverged"),
    ],
)
def test_a_failure_keeps_class_and_message(settings: Settings, error: Exception, name: str) -> None:
    def handler(context: Context, _: TrainParameters) -> Json:
        def fail() -> None:
            raise error

        context.step("only", fail)
        return {}

    with running(settings, {"train": handler}) as worker:
        job = submit(worker.jobs)
        until(lambda: is_final(worker.jobs.get(job)))
        found = worker.jobs.get(job)
    assert (found.state, found.error) == (JobState.FAILED, {"error": name, "message": str(error)})


def test_a_cancelled_job_stops_and_the_worker_goes_on(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    steps: list[str] = []

    def handler(context: Context, _: TrainParameters) -> Json:
        def wait() -> None:
            steps.append("begun")
            while True:
                context.check()
                time.sleep(0.02)

        if not steps:
            context.step("long", wait)
            steps.append("never")
        return {}

    with running(settings, {"train": handler}) as worker:
        job = submit(worker.jobs)
        until(lambda: steps == ["begun"])
        worker.jobs.cancel(job, now=now())
        until(lambda: worker.engine.unfinished() == ())
        other = submit(worker.jobs)
        until(lambda: is_final(worker.jobs.get(other)))
        states = [worker.jobs.get(which).state for which in (job, other)]
    assert states == [JobState.CANCELLED, JobState.SUCCEEDED]
    assert steps == ["begun"]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_job_cancelled_before_its_turn_never_runs(settings: Settings) -> None:
    ran: list[str] = []

    def handler(context: Context, _: TrainParameters) -> Json:
        ran.append(context.job)
        return {}

    with running(settings, {"train": handler}) as worker:
        jobs = worker.jobs
    job = submit(jobs)
    jobs.cancel(job, now=now())
    with running(settings, {"train": handler}) as worker:
        other = submit(worker.jobs)
        until(lambda: is_final(worker.jobs.get(other)))
    assert ran == [other]


def test_a_stopped_worker_leaves_its_job_for_the_next(settings: Settings) -> None:
    notes: list[str] = []
    go = threading.Event()

    def handler(context: Context, _: TrainParameters) -> Json:
        def wait() -> None:
            notes.append("second begins")
            while not go.is_set():
                context.check()
                time.sleep(0.02)

        context.step("first", lambda: notes.append("first"))
        context.step("second", wait)
        return {}

    with running(settings, {"train": handler}) as worker:
        job = submit(worker.jobs)
        until(lambda: "second begins" in notes)
    assert worker.jobs.get(job).state == JobState.RUNNING
    go.set()
    with running(settings, {"train": handler}) as worker:
        until(lambda: is_final(worker.jobs.get(job)))
        assert worker.jobs.get(job).state == JobState.SUCCEEDED
    assert notes == ["first", "second begins", "second begins"]


def test_a_lost_engine_file_loses_no_job(settings: Settings) -> None:
    go = threading.Event()

    def handler(context: Context, _: TrainParameters) -> Json:
        def wait() -> int:
            while not go.is_set():
                context.check()
                time.sleep(0.02)
            return 7

        return {"number": context.step("only", wait)}

    with running(settings, {"train": handler}) as worker:
        job = submit(worker.jobs)
        until(lambda: worker.jobs.get(job).state == JobState.RUNNING)
    for file in settings.data.glob("engine.sqlite*"):
        file.unlink()
    go.set()
    with running(settings, {"train": handler}) as worker:
        until(lambda: is_final(worker.jobs.get(job)))
        assert worker.jobs.result(job) == {"number": 7}


def test_a_job_that_the_engine_gave_up_fails(settings: Settings) -> None:
    def handler(context: Context, _: TrainParameters) -> Json:
        def wait() -> None:
            while True:
                context.check()
                time.sleep(0.02)

        context.step("only", wait)
        return {}

    with running(settings, {"train": handler}) as worker:
        job = submit(worker.jobs)
        until(lambda: worker.jobs.get(job).state == JobState.RUNNING)
        worker.engine.cancel(job)
    with running(settings, {"train": handler}) as worker:
        until(lambda: is_final(worker.jobs.get(job)))
        error = worker.jobs.get(job).error
    assert error is not None
    assert error["error"] == "JobLost"
    assert error["message"].endswith("submit it again")


def test_what_a_job_kept_to_be_taken_up_again_goes_with_the_job(settings: Settings) -> None:
    with running(settings, {}) as worker:
        jobs = worker.jobs
    over, waiting = submit(jobs), submit(jobs)
    for job in (over, waiting):
        settings.scratch(job).mkdir(parents=True)
        (settings.scratch(job) / "training.safetensors").write_bytes(b"weights and optimisers")
    jobs.cancel(over, now=now())
    with running(settings, {"train": lambda context, _: context.steps("wait", context.stopping.wait)}):
        until(lambda: not settings.scratch(over).exists())
        assert settings.scratch(waiting).exists()


def test_one_worker_works_on_a_folder(settings: Settings) -> None:
    with running(settings, {}), pytest.raises(WorkerRunning, match=r"another worker runs the jobs of .*data"):
        Worker(settings, {}).run(threading.Event())


def test_expired_leases_are_given_back(settings: Settings) -> None:
    with running(settings, {}) as worker:
        agent = enrol_agent(worker.database, "bench")
        job = submit(worker.jobs)
        item = Item("wmsa-1", "wmsa", "a" * 64, 10, Execution(), Policy())
        long_ago = now() - timedelta(hours=1)
        with writing(worker.database) as session:
            (task,) = add_tasks(session, job, "bench", [item], now=long_ago)
            leases.lease(session, agent, 8, leases.LeaseTerms(lease_seconds=1), now=long_ago)

        def state() -> str:
            with reading(worker.database) as session:
                return session.get_one(Task, task).state

        until(lambda: state() == TaskState.PENDING)


@contextmanager
def worker_process(data: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.server.worker_process", str(data)], stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def notes_of(settings: Settings) -> list[str]:
    path = settings.data / "notes"
    return path.read_text().splitlines() if path.exists() else []


def test_a_killed_worker_completes_its_job_when_it_comes_back(settings: Settings) -> None:
    with running(settings, {}) as worker:
        jobs = worker.jobs
    job = submit(jobs)
    for kill in range(2):
        with worker_process(settings.data):
            until(lambda: notes_of(settings).count("second begins") == kill + 1)  # noqa: B023
    assert jobs.get(job).state == JobState.RUNNING
    (settings.data / "go").touch()
    with worker_process(settings.data):
        until(lambda: is_final(jobs.get(job)))
    assert jobs.result(job) == {"lines": ["first", "second ends", "third"]}
    assert Counter(notes_of(settings)) == {"first": 1, "second begins": 3, "second ends": 1, "third": 1}


def test_a_worker_that_is_asked_to_stop_does_so_at_once(settings: Settings) -> None:
    with running(settings, {}) as worker:
        jobs = worker.jobs
    job = submit(jobs)
    with worker_process(settings.data) as process:
        until(lambda: "second begins" in notes_of(settings))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert jobs.get(job).state == JobState.RUNNING


class Away(Jobs):
    """Jobs whose database does not answer the first so many calls of a method."""

    def __init__(self, engine: Engine, method: str, times: int) -> None:
        super().__init__(engine)
        self._method, self._times = method, times

    def _fail(self, method: str) -> None:
        if method == self._method and self._times:
            self._times -= 1
            raise locked()

    def mark(self, job: str, state: JobState, *, now: datetime) -> bool:
        if state is JobState.RUNNING:
            self._fail("mark")
        return super().mark(job, state, now=now)

    def succeed(self, job: str, result: Mapping[str, Any], *, now: datetime) -> None:
        self._fail("succeed")
        super().succeed(job, result, now=now)

    def fail(self, job: str, *, kind: str, message: str, now: datetime) -> None:
        self._fail("fail")
        super().fail(job, kind=kind, message=message, now=now)


def locked() -> OperationalError:
    return OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked"))


@pytest.mark.parametrize("method", ["mark", "succeed"])
def test_a_database_that_is_away_for_a_moment_costs_no_job_its_outcome(settings: Settings, method: str) -> None:
    runs: list[str] = []

    def handler(context: Context, _: TrainParameters) -> Json:
        return {"runs": context.step("only", lambda: runs.append("run") or len(runs))}  # type: ignore[func-returns-value]

    with running(settings, {"train": handler}) as worker:
        worker.jobs = Away(worker.database, method, times=2)
        job = submit(worker.jobs)
        until(lambda: is_final(worker.jobs.get(job)))
        assert worker.jobs.result(job) == {"runs": 1}
        until(lambda: worker.engine.state(job) is EngineState.FINISHED)


def test_a_failure_is_stored_with_its_class_although_the_database_was_away(settings: Settings) -> None:
    def handler(context: Context, _: TrainParameters) -> Json:
        def diverge() -> None:
            raise ChildFailed("the loss is nan", kind="TrainingDiverged")

        context.step("only", diverge)
        return {}

    with running(settings, {"train": handler}) as worker:
        worker.jobs = Away(worker.database, "fail", times=1)
        job = submit(worker.jobs)
        until(lambda: is_final(worker.jobs.get(job)))
        assert worker.jobs.get(job).error == {"error": "TrainingDiverged", "message": "the loss is nan"}


def test_a_step_that_the_database_failed_is_run_again(settings: Settings) -> None:
    runs: list[str] = []

    def handler(context: Context, _: TrainParameters) -> Json:
        def count() -> int:
            runs.append("run")
            if len(runs) == 1:
                raise locked()
            return len(runs)

        return {"runs": context.step("only", count)}

    with running(settings, {"train": handler}) as worker:
        job = submit(worker.jobs)
        until(lambda: is_final(worker.jobs.get(job)))
        assert worker.jobs.result(job) == {"runs": 2}


def test_a_job_that_only_the_engine_knows_is_cancelled_there_and_the_worker_goes_on(settings: Settings) -> None:
    with running(settings, {"train": lambda _, __: {}}) as worker:
        worker.engine.submit("train-of-a-lost-database")
        until(lambda: worker.engine.unfinished() == ())
        job = submit(worker.jobs)
        until(lambda: is_final(worker.jobs.get(job)))
        assert worker.jobs.get(job).state == JobState.SUCCEEDED


def test_a_fault_of_the_worker_ends_its_process_although_jobs_wait(settings: Settings) -> None:
    """`heatnas serve` starts it again; a process that stayed without its lock would run jobs beside the next worker."""
    with running(settings, {}) as worker:
        jobs = worker.jobs
    submit(jobs)
    code = (
        "import sys, time; from pathlib import Path; from server import worker; from server.settings import Settings\n"
        "def fault(_): raise RuntimeError('a fault')\n"
        "def wait(context, _): context.step('only', lambda: (setattr(worker.Worker, 'turn', fault), "
        "time.sleep(600)))\n"
        "worker.run_worker(Settings(data=Path(sys.argv[1])), handlers={'train': wait})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(settings.data)], stderr=subprocess.PIPE)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert b"RuntimeError: a fault" in said
