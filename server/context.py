"""What a handler works with: the job, the stores, durable steps, child processes and a way to tell how far it is."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Engine, select

from lookup_tables.store import TableStore
from server.artifacts import BlobStore
from server.children import run_child
from lookup_tables.models import Measurement
from server.database import Task, TaskState, reading, writing
from server.engine import Steps
from server.errors import TasksFailed
from server.jobs import Jobs
from server.settings import Settings
from server.tasks import Item, add_tasks, task_counts

T = TypeVar("T")
Json = dict[str, Any]

WAIT_SECONDS = 0.5
"""Between two looks at the tasks of a job."""


@dataclass(frozen=True)
class Context:
    """One job at work.

    Attributes:
        job: its id.
        settings: the environment of the worker.
        database: our tables.
        steps: runs a durable step: `steps(name, function)`.
    """

    job: str
    settings: Settings
    database: Engine
    steps: Steps

    @property
    def jobs(self) -> Jobs:
        """Jobs and their events."""
        return Jobs(self.database)

    @property
    def tables(self) -> TableStore:
        """Measured numbers."""
        return TableStore(self.database)

    @property
    def blobs(self) -> BlobStore:
        """Files by hash."""
        return BlobStore(self.settings.blobs)

    def now(self) -> datetime:
        """Return the wall-clock time, a label only."""
        return datetime.now(UTC)

    def step(self, name: str, function: Callable[[], T]) -> T:
        """Run an idempotent step whose JSON result is checkpointed; a cancelled job starts none."""
        self.jobs.check(self.job)
        return self.steps(name, function)

    def tell(self, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Append an event that users see."""
        self.jobs.event(self.job, kind, message, data, now=self.now())

    def progress(self, share: float) -> None:
        """Note the share of the work done, 0 to 1."""
        self.jobs.progress(self.job, share)

    def child(self, task: str, parameters: Mapping[str, Any], on_message: Callable[[Json], None], *, threads: int = 1) -> Json:
        """Run a heavy task in a child process that ends with the job."""
        return run_child(
            task,
            parameters,
            on_message=on_message,
            is_cancelled=lambda: self.jobs.is_cancelled(self.job),
            threads=threads,
        )

    def save(self, name: str, content: bytes, media_type: str) -> str:
        """Keep a file of the job and return its SHA-256."""
        sha256 = self.blobs.put(content)
        self.jobs.add_artifact(self.job, name, sha256, len(content), media_type, now=self.now())
        return sha256

    def measure(self, device: str, items: list[Item], *, share: tuple[float, float]) -> dict[str, str]:
        """Have the device time these graphs; return the measurement id of each item key.

        Raises:
            JobCancelled: the job was cancelled meanwhile.
            TasksFailed: the device gave up on some of them.
        """
        with writing(self.database) as session:
            add_tasks(session, self.job, device, items, now=self.now())
        keys = {item.key for item in items}
        last = -1
        while True:
            self.jobs.check(self.job)
            done = self._finished(keys)
            self.progress(share[0] + (share[1] - share[0]) * len(done) / max(len(keys), 1))
            if len(done) == len(keys):
                return done
            if last < 0 or (len(done) - last) * 4 >= len(keys):
                last = len(done)
                self.tell("measuring", f"{len(done)} of {len(keys)} graphs measured on {device}")
            time.sleep(WAIT_SECONDS)

    def measured_ms(self, measurement: str) -> float:
        """Return the hot median of a measurement, in milliseconds."""
        with reading(self.database) as session:
            return session.get_one(Measurement, measurement).hot_ms

    def _finished(self, keys: set[str]) -> dict[str, str]:
        with reading(self.database) as session:
            tasks = session.scalars(select(Task).where(Task.job_id == self.job, Task.item_key.in_(keys))).all()
            failed = [task for task in tasks if task.state == TaskState.FAILED]
            if failed:
                reasons = "; ".join(f"{task.label}: {(task.failure or {}).get('message')}" for task in failed[:3])
                raise TasksFailed(
                    f"{len(failed)} of {len(keys)} graphs could not be measured ({reasons}): see GET /v1/tasks, mend the "
                    "cause on the device and submit the job again; what was measured is kept"
                )
            return {task.item_key: task.measurement_id for task in tasks if task.measurement_id is not None}

    def task_counts(self) -> Mapping[TaskState, int]:
        """Count the job's tasks by state."""
        with reading(self.database) as session:
            return task_counts(session, self.job)
