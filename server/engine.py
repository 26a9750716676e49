"""Durable jobs: a small port, and its one adapter on DBOS.

A job survives its worker: each finished step is checkpointed under the job's id, and a worker that starts again under
the same executor id takes up every job where it was. Steps run at least once, outcomes count once, so steps must be
idempotent. The engine keeps its state in a database of its own; what users see is in our `jobs` tables.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

T = TypeVar("T")

APPLICATION_VERSION = "1"
"""Raised only when a running job could not go on with newer code; unlike a source hash it survives every upgrade."""

EXECUTOR = "worker"
"""Stable across restarts, so that a restarted worker recovers its own jobs at once."""

QUEUE = "jobs"
POLL_SECONDS = 0.5

MAX_RECOVERIES = 1000
"""Times that a job is taken up again after its worker died; a job whose worker dies that often is given up."""


class Steps(Protocol):
    """How a handler runs its steps."""

    def __call__(self, name: str, function: Callable[[], T]) -> T:
        """Run a step, or return its checkpointed result when it was finished before; the result must be JSON."""
        ...


Workflow = Callable[[str, Steps], None]
"""Runs one job to its end, by id. Raising a `BaseException` that is no `Exception` leaves the job unfinished."""


class EngineState(StrEnum):
    """Where the engine stands with a job."""

    UNFINISHED = "unfinished"
    """Queued, running, or waiting for its worker to come back."""
    FINISHED = "finished"
    """The workflow has returned; whether the job succeeded stands in our own tables."""
    GIVEN_UP = "given up"
    """It will never be run again: cancelled, failed in the engine, or recovered too often."""


class JobEngine(Protocol):
    """What the product asks of a job engine."""

    def start(self) -> None:
        """Take up unfinished jobs and begin to work."""

    def submit(self, job: str) -> None:
        """Run a job; the same id again changes nothing."""

    def cancel(self, job: str) -> None:
        """Start no further step of a job; a finished one stays finished."""

    def state(self, job: str) -> EngineState | None:
        """Tell where the engine stands with a job, None when it never saw it."""

    def unfinished(self) -> tuple[str, ...]:
        """List the jobs that are queued or running, oldest first."""

    def resume(self, job: str) -> None:
        """Take up again, after its last finished step, a job whose workflow was left unfinished; never one at work."""

    def stop(self) -> None:
        """Stop working; unfinished jobs stay where they are."""


class DbosEngine:
    """The port on DBOS Transact, with SQLite in write-ahead mode or PostgreSQL. One at a time in a process."""

    def __init__(
        self, url: str, workflow: Workflow, *, concurrency: int = 4, poll_seconds: float = POLL_SECONDS
    ) -> None:
        """Configure the engine; nothing is read or written before `start`.

        Args:
            url: database of the engine, `sqlite:///path` or `postgresql://...`.
            workflow: what runs a job.
            concurrency: jobs worked on at the same time.
            poll_seconds: between two looks at the queue.
        """
        self._url, self._workflow = url, workflow
        self._concurrency, self._poll_seconds = concurrency, poll_seconds
        self._run: Callable[[str], None] = self._unstarted

    def start(self) -> None:
        """Take up unfinished jobs and begin to work."""
        if self._url.startswith("sqlite:///"):
            _use_write_ahead_log(Path(self._url.removeprefix("sqlite:///")))
        DBOS(config=self._config())

        @DBOS.workflow(name="job", max_recovery_attempts=MAX_RECOVERIES)
        def job(job_id: str) -> None:
            self._workflow(job_id, _step)

        self._run = job
        logging.getLogger("dbos").addFilter(_is_news)
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=self._concurrency,
            polling_interval_sec=self._poll_seconds,
            on_conflict="always_update",
        )

    def submit(self, job: str) -> None:
        """Run a job; the same id again changes nothing."""
        with SetWorkflowID(job):
            DBOS.enqueue_workflow(QUEUE, self._run, job)

    def cancel(self, job: str) -> None:
        """Start no further step of a job; a finished one stays finished."""
        DBOS.cancel_workflow(job)

    def state(self, job: str) -> EngineState | None:
        """Tell where the engine stands with a job, None when it never saw it."""
        status = DBOS.get_workflow_status(job)
        return None if status is None else _state(status.status)

    def unfinished(self) -> tuple[str, ...]:
        """List the jobs that are queued or running, oldest first."""
        found = DBOS.list_workflows(status=list(_UNFINISHED), load_input=False, load_output=False)
        return tuple(workflow.workflow_id for workflow in found)

    def resume(self, job: str) -> None:
        """Take up again, after its last finished step, a job whose workflow was left unfinished; never one at work."""
        DBOS.resume_workflow(job, queue_name=QUEUE)

    def stop(self) -> None:
        """Stop working; unfinished jobs stay where they are."""
        DBOS.destroy(destroy_registry=True)

    def _config(self) -> DBOSConfig:
        return {
            "name": "heatnas",
            "system_database_url": self._url,
            "serializer": DBOSPortableJSONSerializer(),  # the default pickles: whoever writes the file could run code
            "application_version": APPLICATION_VERSION,
            "executor_id": EXECUTOR,
            "log_level": "WARNING",
            "notification_listener_polling_interval_sec": self._poll_seconds,  # stopping waits for one turn of it
        }

    @staticmethod
    def _unstarted(job: str) -> None:
        raise RuntimeError(f"job {job} was submitted to an engine that is not started: call start() first")


_CANCELLED = frozenset({"DBOSWorkflowCancelledError", "DBOSAwaitedWorkflowCancelledError"})
"""What the engine raises in a job that was cancelled; it offers no public names for them."""

_UNFINISHED = frozenset({"ENQUEUED", "PENDING", "DELAYED"})


def _state(status: str) -> EngineState:
    if status in _UNFINISHED:
        return EngineState.UNFINISHED
    return EngineState.FINISHED if status == "SUCCESS" else EngineState.GIVEN_UP


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether to log it: that a cancelled job ended is no fault."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ not in _CANCELLED


def _step(name: str, function: Callable[[], T]) -> T:
    result: T = DBOS.run_step({"name": name}, function)
    return result


def _use_write_ahead_log(path: Path) -> None:
    """Switch the file to WAL once; the mode is a property of the file, and the engine opens it later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
