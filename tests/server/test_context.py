"""A job goes on while the database does not answer, and keeps its errors as they were."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from server.context import DatabaseAway, WorkerStopping
from server.errors import ChildFailed, JobCancelled, StepFailed
from server.jobs import Jobs
from server.parameters import TrainParameters
from tests.server.dry import Bench, DryContext, DrySteps, now


class AwayJobs(Jobs):
    """Jobs whose database does not answer."""

    def check(self, job: str) -> None:  # noqa: ARG002
        raise locked()

    def event(self, *_: object, **__: object) -> int:
        raise locked()

    def progress(self, job: str, share: float) -> None:  # noqa: ARG002
        raise locked()


class AwayContext(DryContext):
    @property
    def jobs(self) -> Jobs:
        return AwayJobs(self.database)


def locked() -> OperationalError:
    return OperationalError("SELECT", {}, sqlite3.OperationalError("database is locked"))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.open(tmp_path / "data")
    yield bench
    bench.database.dispose()


def test_a_database_that_does_not_answer_stops_no_hours_of_work(bench: Bench) -> None:
    known = bench.context(bench.submit("train", TrainParameters()))
    context = AwayContext(
        known.job, known.settings, known.database, known.steps, known.machine, known.children, threading.Event()
    )
    context.check()
    context.tell("training", "at it")
    context.progress(0.5)
    context.stopping.set()
    with pytest.raises(WorkerStopping):
        context.check()


def test_a_step_keeps_the_class_of_its_error_when_the_worker_died_before_it_was_stored(bench: Bench) -> None:
    def diverge() -> None:
        raise ChildFailed("the loss is nan", kind="TrainingDiverged")

    steps = DrySteps()
    job = bench.submit("train", TrainParameters())
    for _ in range(2):
        with pytest.raises(StepFailed, match="the loss is nan") as caught:
            bench.context(job, steps).step("only", diverge)
        assert caught.value.kind == "TrainingDiverged"
    assert steps.run == ["only"]


def test_neither_a_cancelled_job_nor_an_absent_database_is_the_outcome_of_a_step(bench: Bench) -> None:
    steps = DrySteps()
    job = bench.submit("train", TrainParameters())
    context = bench.context(job, steps)

    def ask() -> None:
        raise locked()

    with pytest.raises(DatabaseAway, match="database is locked"):
        context.step("ask", ask)

    def cancel() -> None:
        bench.jobs.cancel(job, now=now())
        context.check()

    with pytest.raises(JobCancelled):
        context.step("cancel", cancel)
    assert steps.finished == {}
