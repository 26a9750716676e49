"""The worker process: takes jobs from our tables, runs them durably, and gives expired leases back."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from server.context import Context
from server.database import JobState, make_engine, writing
from server.engine import DbosEngine, JobEngine, Steps
from server.errors import ChildFailed, JobCancelled
from server.handlers.profile import profile
from server.handlers.thin import thin
from server.handlers.train import train
from server.jobs import Jobs
from server.leases import expire
from server.migrations import upgrade
from server.settings import Settings

log = logging.getLogger(__name__)

Handler = Callable[[Context, Any], dict[str, Any]]

HANDLERS: Mapping[str, Handler] = {"train": train, "profile": profile, "thin": thin}
"""One function for each job kind."""

TURN_SECONDS = 0.5
"""Between two looks at submitted and cancelled jobs and at expired leases."""


class Worker:
    """Runs the jobs of one data folder."""

    def __init__(self, settings: Settings, handlers: Mapping[str, Handler] = HANDLERS) -> None:
        self._settings, self._handlers = settings, handlers
        self.database: Engine = make_engine(settings.database_url)
        self.jobs = Jobs(self.database)
        self.engine: JobEngine = DbosEngine(settings.engine_url, self.work)

    def work(self, job: str, steps: Steps) -> None:
        """Run one job to its end and store how it ended; a job that is final already is left alone."""
        found = self.jobs.get(job)
        self.jobs.mark(job, JobState.RUNNING, now=_now())
        context = Context(job, self._settings, self.database, steps)
        try:
            result = self._handlers[found.kind](context, self.jobs.parameters(job))
        except JobCancelled:
            log.info("job %s was cancelled", job)
        except ChildFailed as error:
            self.jobs.fail(job, kind=error.kind, message=str(error), now=_now())
        except Exception as error:
            # Whatever it was, it belongs to this job alone and its owner has to see it.
            log.exception("job %s failed", job)
            self.jobs.fail(job, kind=type(error).__name__, message=str(error), now=_now())
        else:
            self.jobs.succeed(job, result, now=_now())

    def turn(self) -> None:
        """Hand submitted jobs to the engine and give expired leases back."""
        for job in self.jobs.submitted():
            self.engine.submit(job)
            self.jobs.mark(job, JobState.QUEUED, now=_now())
        with writing(self.database) as session:
            expire(session, now=_now())

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop."""
        upgrade(self.database)
        self.engine.start()
        while not stop.wait(TURN_SECONDS):
            self.turn()


def run_worker(settings: Settings) -> None:
    """Run a worker in this process until SIGTERM or SIGINT; unfinished jobs go on with the next start."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Worker(settings).run(stop)
    log.info("worker stopped; unfinished jobs go on at the next start")
    # The engine's threads may be inside a step that takes minutes; the step is repeated after the next start.
    os._exit(0)


def _now() -> datetime:
    return datetime.now(UTC)
