"""The worker process: takes jobs from our tables, runs them durably, and gives expired leases back."""

import contextlib
import itertools
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from profiler.device import machine_hash
from server.children import Children
from server.context import Context, DatabaseAway
from server.data_folder import only_worker
from server.database import JobState, make_engine, writing
from server.engine import DbosEngine, EngineState, JobEngine, Steps
from server.errors import (
    ChildFailed,
    DamagedDatabase,
    JobCancelled,
    NewerDatabase,
    StepFailed,
    UnknownJob,
    UnusableFolder,
    WorkerRunning,
)
from server.gate import Gate
from server.handlers.profile import profile
from server.handlers.thin import thin
from server.handlers.train import train
from server.jobs import Jobs, is_final
from server.leases import expire
from server.machine import Machine
from server.migrations import upgrade
from server.settings import Settings

log = logging.getLogger(__name__)

Handler = Callable[[Context, Any], dict[str, Any]]

HANDLERS: Mapping[str, Handler] = {"train": train, "profile": profile, "thin": thin}
"""One function for each job kind."""

TURN_SECONDS = 0.5
"""Between two looks at submitted and cancelled jobs and at expired leases."""

STOP_SECONDS = 5.0
"""How long jobs may take to notice that the worker stops."""

TURNS_PER_RECONCILIATION = 60
"""Between two comparisons of the engine's jobs with ours."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
"""Before a job is taken up again that the database failed; doubled each time."""

MAX_TIMES_LEFT = 20
"""Times that a job is taken up again (for a quarter of an hour) before the database's failure is the job's."""

GIVEN_UP = (
    "the job engine does not run the job any more: it was cancelled or failed there, or its worker died too often, "
    "see the worker's log; submit it again"
)
FINISHED = (
    "the job engine has finished the job, but its outcome is not in the database, which may be an older copy: "
    "submit it again"
)


@dataclass
class _Left:
    """A job that the database failed.

    Attributes:
        times: how often.
        until: when it is taken up again, by the monotonic clock; None once it was.
    """

    times: int = 0
    until: float | None = None


class Worker:
    """Runs the jobs of one data folder.

    Attributes:
        database: our tables.
        jobs: the jobs in them.
        engine: what runs them durably.
        is_up: set once jobs are taken.
    """

    def __init__(self, settings: Settings, handlers: Mapping[str, Handler] = HANDLERS) -> None:
        self._settings, self._handlers = settings, handlers
        self._stopping = threading.Event()
        self._at_work: set[str] = set()
        self._left: dict[str, _Left] = {}
        self.database: Engine = make_engine(settings.database_url)
        here = machine_hash()
        self._machine = Machine(here, Gate(self.database, here, clock=_now))
        self._children = Children()
        self.jobs = Jobs(self.database)
        self.is_up = threading.Event()
        self.engine: JobEngine = DbosEngine(settings.engine_url, self.work)

    def work(self, job: str, steps: Steps) -> None:
        """Run one job to its end and store how it ended; a job that is final already is left alone.

        Raises:
            DatabaseAway: the database did not answer; the job is unfinished, and taken up again by a later turn.
            WorkerStopping: the worker stops; the job is unfinished, and taken up again by the next worker.
        """
        self._at_work.add(job)
        try:
            self._work(job, steps)
        except (OperationalError, DatabaseAway) as error:
            self._leave(job, error)
        except UnknownJob:
            log.warning("job %s is not in our tables: it is left alone", job)
        else:
            self._left.pop(job, None)
        finally:
            self._at_work.discard(job)

    def turn(self) -> None:
        """Hand submitted and left jobs to the engine, take unwanted ones from it, and give expired leases back."""
        for job in self.jobs.submitted():
            self.engine.submit(job)
            self.jobs.mark(job, JobState.QUEUED, now=_now())
        for job in self.engine.unfinished():
            if self._is_unwanted(job):
                self.engine.cancel(job)
        for job, left in list(self._left.items()):
            if left.until is not None and time.monotonic() >= left.until and job not in self._at_work:
                self.engine.resume(job)
                left.until = None
        with writing(self.database) as session:
            expire(session, now=_now())
        self._machine.settle()
        self._children.settle()

    def reconcile(self) -> None:
        """Settle what the engine and our tables disagree about: one of their files may have been lost or restored.

        What jobs that ended kept for being taken up again is removed.
        """
        self._sweep()
        for job in self.jobs.under_way():
            if job in self._at_work:
                continue
            match self.engine.state(job):
                case None:
                    self.engine.submit(job)
                case EngineState.GIVEN_UP:
                    self.jobs.fail(job, kind="JobLost", message=GIVEN_UP, now=_now())
                case EngineState.FINISHED:
                    self.jobs.fail(job, kind="JobLost", message=FINISHED, now=_now())
                case EngineState.UNFINISHED:
                    pass

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; what is unfinished then goes on at the next start.

        Raises:
            NewerDatabase: the data folder belongs to a newer version.
            WorkerRunning: another worker works on it.
        """
        with only_worker(self._settings.data):
            upgrade(self.database)
            self._machine.settle()
            try:
                self.engine.start()
                self._take_turns(stop)
            finally:
                # While the lock is held: of a worker that goes on without it, the next one would know nothing.
                self._stop()

    def _take_turns(self, stop: threading.Event) -> None:
        for number in itertools.count():
            try:
                if number % TURNS_PER_RECONCILIATION == 0:
                    self.reconcile()
                self.turn()
            except OperationalError as error:
                # A full disk or a long writer: nothing is lost, the next turn does it.
                log.warning("the database does not answer (%s); trying again", error.orig)
            self.is_up.set()
            if stop.wait(TURN_SECONDS):
                return

    def _sweep(self) -> None:
        """Remove the scratch of jobs that will never go on: weights and optimisers of a training fill a disk."""
        folder = self._settings.scratch("")
        for scratch in folder.iterdir() if folder.is_dir() else ():
            job = scratch.name
            if job not in self._at_work and self._is_over(job):
                shutil.rmtree(scratch, ignore_errors=True)

    def _is_over(self, job: str) -> bool:
        try:
            return is_final(self.jobs.get(job))
        except UnknownJob:
            return False  # not ours to remove: a restored database may know it again

    def _is_unwanted(self, job: str) -> bool:
        """Tell whether a job that the engine has was cancelled, or is not in our tables (any more)."""
        try:
            return self.jobs.is_cancelled(job)
        except UnknownJob:
            return True

    def _leave(self, job: str, error: BaseException) -> None:
        """Leave a job unfinished, to be taken up again after a pause that grows; fail it when that never helps.

        Raises:
            DatabaseAway: it is left.
        """
        left = self._left.setdefault(job, _Left())
        left.times += 1
        if left.times > MAX_TIMES_LEFT:
            text = (
                f"the database has failed the job {left.times} times, at last with: {error}. "
                "Mend the cause and submit the job again"
            )
            with contextlib.suppress(OperationalError):
                self.jobs.fail(job, kind="DatabaseAway", message=text, now=_now())
                del self._left[job]
                return
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (left.times - 1), LONGEST_PAUSE_SECONDS)
        log.warning("the database does not answer (%s); job %s goes on in %.1f s", error, job, pause)
        left.until = time.monotonic() + pause
        raise DatabaseAway(str(error)) from error

    def _work(self, job: str, steps: Steps) -> None:
        found = self.jobs.get(job)
        if is_final(found):
            return
        self.jobs.mark(job, JobState.RUNNING, now=_now())
        context = Context(job, self._settings, self.database, steps, self._machine, self._children, self._stopping)
        try:
            result = self._handlers[found.kind](context, self.jobs.parameters(job))
        except JobCancelled:
            log.info("job %s was cancelled", job)
        except OperationalError:
            raise
        except (ChildFailed, StepFailed) as error:
            self.jobs.fail(job, kind=error.kind, message=str(error), now=_now())
        except Exception as error:
            # Whatever it was, it belongs to this job alone and its owner has to see it.
            log.exception("job %s failed", job)
            self.jobs.fail(job, kind=type(error).__name__, message=str(error), now=_now())
        else:
            self.jobs.succeed(job, result, now=_now())

    def _stop(self) -> None:
        """Wait a moment for the jobs to leave their steps, which they do at their next check."""
        self._stopping.set()
        deadline = time.monotonic() + STOP_SECONDS
        while self._at_work and time.monotonic() < deadline:
            time.sleep(0.05)
        self.engine.stop()
        self._children.close()
        self.database.dispose()


def run_worker(settings: Settings, *, handlers: Mapping[str, Handler] = HANDLERS, with_parent: bool = False) -> None:
    """Run a worker in this process until SIGTERM or SIGINT; unfinished jobs go on with the next start.

    Args:
        settings: the environment.
        handlers: what runs each kind of job.
        with_parent: stop as well when standard input ends, because whoever started the worker is gone.

    Raises:
        DamagedDatabase: its file is no database.
        NewerDatabase: the data folder belongs to a newer version.
        UnusableFolder: it cannot be written.
        WorkerRunning: another worker works on it.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if with_parent:
        threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    code = 0
    try:
        Worker(settings, handlers).run(stop)
        log.info("worker stopped; unfinished jobs go on at the next start")
    except (DamagedDatabase, NewerDatabase, UnusableFolder, WorkerRunning):
        raise
    except BaseException:
        log.exception("worker failed; unfinished jobs go on at the next start")
        code = 1
    sys.stderr.flush()
    # A thread that is still inside a step would hold the process; the step is repeated after the next start.
    os._exit(code)


def _stop_with_parent(stop: threading.Event) -> None:
    # Not through Python's buffer: a thread that holds it ends the process with a fatal error.
    while os.read(sys.stdin.fileno(), 4096):  # nothing, when the parent closes the pipe or is no more
        pass
    stop.set()


def _now() -> datetime:
    return datetime.now(UTC)
