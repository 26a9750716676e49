"""The contract of the job engine, on its adapter."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from server.engine import DbosEngine, EngineState, JobEngine, Steps

PICKLE_IN_BASE64 = "gASV"
"""How a pickle of protocol 4 or 5 begins, as the engine's default serializer writes it."""

Workflow = Callable[[str, Steps], None]
MakeEngine = Callable[[Workflow], JobEngine]


def until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


class Stopped(BaseException):
    """Ends a workflow as a dying worker would: without an outcome."""


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[MakeEngine]:
    """Start engines on one database, one after the other."""
    running: list[JobEngine] = []

    def make(workflow: Workflow) -> JobEngine:
        stop()
        engine = DbosEngine(f"sqlite:///{tmp_path / 'engine.sqlite'}", workflow, poll_seconds=0.05)
        engine.start()
        running.append(engine)
        return engine

    def stop() -> None:
        if running:
            running.pop().stop()

    yield make
    stop()


def test_a_job_runs_its_steps_in_order(make_engine: MakeEngine) -> None:
    done: list[object] = []

    def workflow(job: str, step: Steps) -> None:
        first = step("first", lambda: {"number": 1})
        done.append((job, first, step("second", lambda: [first["number"] + 1])))

    engine = make_engine(workflow)
    engine.submit("job")
    until(lambda: engine.state("job") is EngineState.FINISHED)
    assert done == [("job", {"number": 1}, [2])]


def test_submitting_again_changes_nothing(make_engine: MakeEngine) -> None:
    runs: list[str] = []
    engine = make_engine(lambda job, _: runs.append(job))
    for _ in range(3):
        engine.submit("job")
    until(lambda: engine.state("job") is EngineState.FINISHED)
    engine.submit("job")
    time.sleep(0.3)
    assert runs == ["job"]


def test_an_unknown_job_has_no_state(make_engine: MakeEngine) -> None:
    assert make_engine(lambda *_: None).state("job") is None


def test_an_unfinished_job_goes_on_after_its_last_step(make_engine: MakeEngine) -> None:
    runs: list[str] = []

    def dying(_: str, step: Steps) -> None:
        step("first", lambda: runs.append("first"))
        step("second", die)

    def die() -> None:
        runs.append("dies")
        raise Stopped

    def living(_: str, step: Steps) -> None:
        step("first", lambda: runs.append("first again"))
        step("second", lambda: runs.append("second"))

    engine = make_engine(dying)
    engine.submit("job")
    until(lambda: "dies" in runs)
    assert engine.state("job") is EngineState.UNFINISHED
    assert engine.unfinished() == ("job",)
    engine = make_engine(living)
    until(lambda: engine.state("job") is EngineState.FINISHED)
    assert runs == ["first", "dies", "second"]
    assert engine.unfinished() == ()


def test_a_cancelled_job_starts_no_further_step(make_engine: MakeEngine) -> None:
    steps: list[str] = []
    engine: JobEngine

    def workflow(job: str, step: Steps) -> None:
        step("first", lambda: [steps.append("first"), engine.cancel(job)])
        step("second", lambda: steps.append("second"))

    engine = make_engine(workflow)
    engine.submit("job")
    until(lambda: engine.state("job") is EngineState.GIVEN_UP)
    time.sleep(0.3)
    assert steps == ["first"]
    assert engine.unfinished() == ()


def test_an_error_gives_the_job_up(make_engine: MakeEngine) -> None:
    def workflow(_: str, step: Steps) -> None:
        step("first", lambda: 1 // 0)

    engine = make_engine(workflow)
    engine.submit("job")
    until(lambda: engine.state("job") is EngineState.GIVEN_UP)


def test_only_so_many_jobs_run_at_a_time(tmp_path: Path) -> None:
    running, most = set[str](), [0]

    def workflow(job: str, _: Steps) -> None:
        running.add(job)
        most[0] = max(most[0], len(running))
        time.sleep(0.2)
        running.discard(job)

    engine = DbosEngine(f"sqlite:///{tmp_path / 'engine.sqlite'}", workflow, concurrency=2, poll_seconds=0.05)
    engine.start()
    try:
        for number in range(5):
            engine.submit(f"job{number}")
        until(lambda: all(engine.state(f"job{number}") is EngineState.FINISHED for number in range(5)))
    finally:
        engine.stop()
    assert most == [2]


def test_nothing_is_pickled_and_the_file_is_in_write_ahead_mode(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(lambda _, step: step("only", lambda: {"value": 1.5}) and None)
    engine.submit("job")
    until(lambda: engine.state("job") is EngineState.FINISHED)
    with closing(sqlite3.connect(tmp_path / "engine.sqlite")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        steps = database.execute("SELECT output, serialization FROM operation_outputs").fetchall()
        jobs = database.execute("SELECT serialization, application_version FROM workflow_status").fetchall()
        everything = "\n".join(database.iterdump())
    assert steps == [('{"value":1.5}', "portable_json")]
    assert jobs == [("portable_json", "1")]
    assert '"positionalArgs":["job"]' in everything
    assert PICKLE_IN_BASE64 not in everything


def test_an_engine_that_is_not_started_says_so(tmp_path: Path) -> None:
    engine = DbosEngine(f"sqlite:///{tmp_path / 'engine.sqlite'}", lambda *_: None)
    assert not (tmp_path / "engine.sqlite").exists()
    with pytest.raises(Exception, match=r"start\(\)|DBOS"):
        engine.submit("job")
