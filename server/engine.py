"""Durable jobs: a small port, and its one adapter on DBOS.

A job survives its worker: each finished step is checkpointed under the job's id, and a worker that starts again under
the same executor id takes up every job where it was. Steps run at least once, outcomes count once, so steps must be
idempotent. The engine keeps its state in a database of its own; what users see is in our `jobs` tables.
"""

import logging
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, Queue, SetWorkflowID

T = TypeVar("T")
Json = dict[str, Any]

APPLICATION_VERSION = "1"
"""Raised only when a running job could not go on with newer code; unlike a source hash it survives every upgrade."""

EXECUTOR = "worker"
"""Stable across restarts, so that a restarted worker recovers its own jobs at once."""

QUEUE = "jobs"
POLL_SECONDS = 0.5


class Steps(Protocol):
    """How a handler runs its steps."""

    def __call__(self, name: str, function: Callable[[], T]) -> T:
        """Run a step, or return its checkpointed result when it was finished before; the result must be JSON."""
        ...


Workflow = Callable[[str, Steps], None]
"""Runs one job to its end, by id."""


class JobEngine(Protocol):
    """What the product asks of a job engine."""

    def start(self) -> None:
        """Take up unfinished jobs and begin to work."""

    def submit(self, job: str) -> None:
        """Run a job; the same id again changes nothing."""

    def cancel(self, job: str) -> None:
        """Start no further step of a job."""

    def state(self, job: str) -> str | None:
        """Tell the engine's own state of a job, None when it never saw it."""

    def stop(self) -> None:
        """Stop working; unfinished jobs stay where they are."""


class DbosEngine:
    """The port on DBOS Transact, with SQLite in write-ahead mode or PostgreSQL."""

    def __init__(self, url: str, workflow: Workflow, *, concurrency: int = 4) -> None:
        """Configure the engine; nothing is read or written before `start`.

        Args:
            url: database of the engine, `sqlite:///path` or `postgresql://...`.
            workflow: what runs a job.
            concurrency: jobs worked on at the same time.
        """
        self._url = url
        self._queue = Queue(QUEUE, worker_concurrency=concurrency, polling_interval_sec=POLL_SECONDS)
        config: DBOSConfig = {
            "name": "heatnas",
            "system_database_url": url,
            "serializer": DBOSPortableJSONSerializer(),  # the default pickles: whoever writes the file could run code
            "application_version": APPLICATION_VERSION,
            "executor_id": EXECUTOR,
            "enable_otlp": False,
            "log_level": "WARNING",
        }
        self._dbos = DBOS(config=config)
        self._run = DBOS.workflow(name="job")(self._workflow(workflow))

    @staticmethod
    def _workflow(workflow: Workflow) -> Callable[[str], None]:
        def job(job_id: str) -> None:
            workflow(job_id, _step)

        return job

    def start(self) -> None:
        """Take up unfinished jobs and begin to work."""
        if self._url.startswith("sqlite:///"):
            _use_write_ahead_log(Path(self._url.removeprefix("sqlite:///")))
        logging.getLogger("dbos").setLevel(logging.WARNING)
        DBOS.launch()

    def submit(self, job: str) -> None:
        """Run a job; the same id again changes nothing."""
        with SetWorkflowID(job):
            self._queue.enqueue(self._run, job)

    def cancel(self, job: str) -> None:
        """Start no further step of a job."""
        DBOS.cancel_workflow(job)

    def state(self, job: str) -> str | None:
        """Tell the engine's own state of a job, None when it never saw it."""
        status = DBOS.get_workflow_status(job)
        return None if status is None else str(status.status)

    def stop(self) -> None:
        """Stop working; unfinished jobs stay where they are."""
        DBOS.destroy(destroy_registry=True)


def _step(name: str, function: Callable[[], T]) -> T:
    result: T = DBOS.run_step({"name": name}, function)
    return result


def _use_write_ahead_log(path: Path) -> None:
    """Switch the file to WAL once; the mode is a property of the file, and the engine opens it later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path, timeout=30) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def run_inline(workflow: Workflow, job: str, finished: Mapping[str, Any]) -> Json:
    """Run a job here and now without durability, skipping steps that are `finished`; return all step results."""
    results: Json = dict(finished)

    def step(name: str, function: Callable[[], T]) -> T:
        if name not in results:
            results[name] = function()
        value: T = results[name]
        return value

    workflow(job, step)
    return results
