"""What a handler works with: the job, the stores, durable steps, child processes and a way to tell how far it is."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from lookup_tables.models import Measurement
from server.children import Children
from server.database import reading
from server.engine import Steps
from server.errors import ChildFailed, JobCancelled, StepFailed
from server.machine import Machine
from server.settings import Settings
from server.stores import Stores

log = logging.getLogger(__name__)

T = TypeVar("T")
Json = dict[str, Any]


class WorkerStopping(BaseException):
    """The worker is being stopped: the job stays unfinished and goes on at the next start.

    No error of the job: it passes every `except Exception`, the engine's included.
    """


class Futile(Exception):
    """A child's result is of no use any more: another part of the same work has failed."""


class DatabaseAway(BaseException):
    """The database does not answer: the job stays unfinished and goes on a little later.

    As little an error of the job as `WorkerStopping`: kept as the outcome of a step, it would be so for ever.
    """


@dataclass(frozen=True)
class Context(Stores):
    """One job at work.

    Attributes:
        job: its id.
        settings: the environment of the worker.
        database: our tables.
        steps: runs a durable step: `steps(name, function)`.
        machine: keeps heavy work and measurements apart.
        children: run the heavy tasks.
        stopping: set when the worker is to stop.
    """

    job: str
    settings: Settings
    database: Engine
    steps: Steps
    machine: Machine
    children: Children
    stopping: threading.Event

    def now(self) -> datetime:
        """Return the wall-clock time, a label only."""
        return datetime.now(UTC)

    def check(self) -> None:
        """Return if the job may go on; a database that does not answer just now is no reason to stop hours of work.

        Raises:
            JobCancelled: it was cancelled.
            WorkerStopping: its worker is to stop.
        """
        if self.stopping.is_set():
            raise WorkerStopping
        with _patience(self.job):
            self.jobs.check(self.job)

    def step(self, name: str, function: Callable[[], T]) -> T:
        """Run an idempotent step whose JSON result is checkpointed; a cancelled job starts none.

        Raises:
            StepFailed: the function raised, now or in an earlier run of the job.
            JobCancelled: the job was cancelled.
            DatabaseAway: the database does not answer; nothing is checkpointed.
        """
        self.check()
        outcome = self.steps(name, partial(_outcome, function))
        if "error" in outcome:
            raise StepFailed(outcome["error"]["message"], kind=outcome["error"]["kind"])
        value: T = outcome["value"]
        return value

    def tell(self, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Append an event that users see; one that cannot be stored is lost, not the work."""
        with _patience(self.job):
            self.jobs.event(self.job, kind, message, data, now=self.now())

    def progress(self, share: float) -> None:
        """Note the share of the work done, 0 to 1."""
        with _patience(self.job):
            self.jobs.progress(self.job, share)

    def alone(self) -> AbstractContextManager[None]:
        """Do heavy work in this process while no agent measures on this machine."""
        return self.machine.working(self.check)

    def child(
        self,
        task: str,
        parameters: Mapping[str, Any],
        on_message: Callable[[Json], None],
        *,
        is_futile: Callable[[], bool] = lambda: False,
    ) -> Json:
        """Run a heavy task in a child process that ends with the job, when no agent measures on this machine.

        Raises:
            ChildFailed: it failed.
            Futile: nobody needs its result any more, by `is_futile`.
        """

        def check() -> None:
            self.check()
            if is_futile():
                raise Futile

        with self.machine.working(check):
            return self.children.run(task, parameters, on_message=on_message, check=check)

    def save(self, name: str, content: bytes, media_type: str) -> str:
        """Keep a file of the job and return its SHA-256."""
        sha256 = self.blobs.put(content)
        self.jobs.add_artifact(self.job, name, sha256, len(content), media_type, now=self.now())
        return sha256

    def measured_ms(self, measurement: str) -> float:
        """Return the hot median of a measurement, in milliseconds."""
        with reading(self.database) as session:
            return session.get_one(Measurement, measurement).hot_ms

    def is_older(self, measurement: str, other: str) -> bool:
        """Tell whether a measurement came in before another; never when one is unknown here, as in imported tables."""
        with reading(self.database) as session:
            one, two = session.get(Measurement, measurement), session.get(Measurement, other)
        return one is not None and two is not None and one.received_at < two.received_at


@contextmanager
def _patience(job: str) -> Iterator[None]:
    """Pass over a look at the database, or a note in it, that a job can do without."""
    try:
        yield
    except OperationalError as error:
        log.warning("the database does not answer (%s); job %s goes on", error.orig, job)


def _outcome(function: Callable[[], Any]) -> Json:
    """Run a step and write what came of it: checkpointed as it is, an error would come back as another class."""
    try:
        return {"value": function()}
    except OperationalError as error:
        raise DatabaseAway(str(error.orig)) from error
    except (JobCancelled, StepFailed):
        raise
    except ChildFailed as error:
        return {"error": {"kind": error.kind, "message": str(error)}}
    except Exception as error:
        # Whatever it was, it belongs to this job alone and its owner has to see it.
        log.exception("a step failed")
        return {"error": {"kind": type(error).__name__, "message": str(error)}}
