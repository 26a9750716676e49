"""The tables of agents, tasks, jobs and their files, on the same metadata as the measured numbers."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from lookup_tables.connection import UtcDateTime, make_engine, reading, writing
from lookup_tables.models import Base, Device, Json, one_of

__all__ = [
    "FINAL_JOB_STATES",
    "FINAL_TASK_STATES",
    "Agent",
    "Artifact",
    "Base",
    "BusyMachine",
    "Device",
    "Graph",
    "Job",
    "JobEvent",
    "JobState",
    "Json",
    "Lease",
    "Supernet",
    "Task",
    "TaskState",
    "UtcDateTime",
    "make_engine",
    "reading",
    "writing",
]


class TaskState(StrEnum):
    """Where a task stands; `done`, `failed` and `cancelled` are final."""

    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobState(StrEnum):
    """Where a job stands; `succeeded`, `failed` and `cancelled` are final."""

    SUBMITTED = "submitted"
    """Stored, not yet handed to the job engine."""
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_TASK_STATES = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED})
FINAL_JOB_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class Agent(Base):
    """One agent program on one machine; enrolling again keeps the id."""

    __tablename__ = "agents"

    id: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    description: Mapped[Json]
    version: Mapped[str]
    protocol: Mapped[int]
    enrolled_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class BusyMachine(Base):
    """A machine whose worker does heavy work: agents on it get no leases, since they would measure that work too."""

    __tablename__ = "busy_machines"

    machine_hash: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]


class Lease(Base):
    """An agent's claim on some tasks, until `expires_at` on the server's clock."""

    __tablename__ = "leases"
    __table_args__ = (Index("ix_leases_open", "ended_at", "expires_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    """When it was released, or found expired."""
    progress: Mapped[Json | None]
    """What the agent said at its last renewal: done, total, seconds_left."""


class Graph(Base):
    """An exported ONNX graph in the blob store, found again by what it computes."""

    __tablename__ = "graphs"
    __table_args__ = (CheckConstraint("length(sha256) = 64", name="sha256"), CheckConstraint("bytes > 0", name="bytes"))

    key: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    label: Mapped[str]
    parity: Mapped[Json]
    created_at: Mapped[datetime]


class Task(Base):
    """One graph to time on one device. `attempt` rises with each lease: only the newest one's result completes it."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("job_id", "round", "item_key"),
        CheckConstraint(one_of("state", TaskState), name="state"),
        CheckConstraint("attempt >= 0 AND failures >= 0 AND silences >= 0", name="counts"),
        CheckConstraint("length(graph_sha256) = 64", name="graph_sha256"),
        CheckConstraint("state <> 'leased' OR (lease_id IS NOT NULL AND attempt > 0)", name="leased"),
        CheckConstraint("state <> 'pending' OR lease_id IS NULL", name="pending"),
        CheckConstraint("(state = 'done') = (measurement_id IS NOT NULL)", name="done"),
        CheckConstraint("state <> 'failed' OR failure IS NOT NULL", name="failed"),
        Index("ix_tasks_next", "device_id", "state", "position"),
        Index("ix_tasks_job", "job_id", "state"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    round: Mapped[int] = mapped_column(default=1)
    """A job that measures something again does so in a later round, from 1."""
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    position: Mapped[int]
    """Order within the job."""
    item_key: Mapped[str]
    label: Mapped[str]
    block: Mapped[Json | None]
    graph_sha256: Mapped[str]
    graph_bytes: Mapped[int] = mapped_column(BigInteger)
    execution: Mapped[Json]
    policy: Mapped[Json]
    state: Mapped[str] = mapped_column(default=TaskState.PENDING)
    attempt: Mapped[int] = mapped_column(default=0)
    lease_id: Mapped[str | None] = mapped_column(ForeignKey("leases.id"), index=True)
    """The lease that holds it, or last held it when the state is final."""
    measurement_id: Mapped[str | None] = mapped_column(ForeignKey("measurements.id"))
    failures: Mapped[int] = mapped_column(default=0)
    failure: Mapped[Json | None]
    """The last failure: failure, message, attempt, at, and agent_id where an agent reported it."""
    silences: Mapped[int] = mapped_column(default=0)
    """Leases of it that expired, or whose agent died, since a failure was last reported."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Job(Base):
    """Work on the server side; its id is also the id of its workflow in the job engine."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(one_of("state", JobState), name="state"),
        CheckConstraint("(idempotency_key IS NULL) = (request_digest IS NULL)", name="idempotency"),
        CheckConstraint("progress >= 0 AND progress <= 1", name="progress"),
        CheckConstraint("state <> 'succeeded' OR result IS NOT NULL", name="result"),
        CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="error"),
        CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished_at"
        ),
        Index("ix_jobs_state", "state", "created_at"),
        Index("ix_jobs_kind", "kind", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(default=JobState.SUBMITTED)
    parameters: Mapped[Json]
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    request_digest: Mapped[str | None]
    """Of the request as it was sent, beside its key."""
    progress: Mapped[float] = mapped_column(default=0.0)
    """Share of the work done, 0 to 1."""
    result: Mapped[Json | None]
    error: Mapped[Json | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobEvent(Base):
    """One thing that happened to a job; `seq` counts from 1 without gaps."""

    __tablename__ = "job_events"
    __table_args__ = (CheckConstraint("seq >= 1", name="seq"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    kind: Mapped[str]
    message: Mapped[str]
    data: Mapped[Json | None]


class Artifact(Base):
    """A file a job made, in the blob store."""

    __tablename__ = "artifacts"
    __table_args__ = (
        CheckConstraint("length(sha256) = 64", name="sha256"),
        CheckConstraint("bytes >= 0", name="bytes"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str]
    created_at: Mapped[datetime]


class Supernet(Base):
    """A trained supernet: its checkpoint, and the importance read from it."""

    __tablename__ = "supernets"
    __table_args__ = (CheckConstraint("length(checkpoint_sha256) = 64", name="checkpoint_sha256"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    space: Mapped[Json] = mapped_column(JSON(none_as_null=True))
    checkpoint_sha256: Mapped[str]
    importance: Mapped[Json]
    metrics: Mapped[Json]
    created_at: Mapped[datetime]
