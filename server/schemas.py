"""What the REST interface answers; every latency is also shown as frames per second."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from lookup_tables import models
from lookup_tables.calibration import Calibration
from nas.macs import gmacs
from nas.space import SearchSpace
from profiler.wire import DeviceClass, Name
from server.database import Artifact, Job, JobEvent, Task
from server.supernets import StoredSupernet

Json = dict[str, Any]
T = TypeVar("T")


class Answer(BaseModel):
    """Base of what is answered."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Page(Answer, Generic[T]):
    """A part of a listing."""

    items: list[T]
    total: int = Field(description="Items in the whole listing.")


class ErrorAnswer(Answer):
    """What every refusal looks like; some carry more fields, such as `fastest_fps`."""

    error: str
    message: str


class Health(Answer):
    """Whether the server is well."""

    status: str
    version: str
    database: str


class DeviceRequest(BaseModel):
    """A device to make known."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    device_class: DeviceClass | None = None


class DeviceAnswer(Answer):
    """A device, and what its agent last said about it."""

    name: str
    device_class: str | None
    description: Json | None
    created_at: datetime


class SpaceAnswer(Answer):
    """A search space with what it spans."""

    name: str
    id: str
    space: Json
    largest_gmacs: float
    smallest_gmacs: float
    rows: int = Field(description="Table rows a device needs to cover the space.")

    @classmethod
    def of(cls, space: SearchSpace) -> "SpaceAnswer":
        """Describe a space."""
        return cls(
            name=space.name,
            id=space.id,
            space=space.model_dump(mode="json"),
            largest_gmacs=gmacs(space.blocks(space.largest())),
            smallest_gmacs=gmacs(space.blocks(space.smallest())),
            rows=len(space.all_blocks()),
        )


class TaskAnswer(Answer):
    """One graph that a job wants timed."""

    id: str
    job_id: str
    item_key: str
    label: str
    state: str
    attempt: int
    failures: int
    failure: Json | None
    graph_sha256: str
    measurement_id: str | None
    updated_at: datetime

    @classmethod
    def of(cls, task: Task) -> "TaskAnswer":
        """Read a record."""
        return cls.model_validate(task)


class CalibrationAnswer(Answer):
    """How rows become the time of a whole network: slope * (sum of rows + fetch_ms_per_mib * MiB of weights)."""

    revision: int
    fetch_ms_per_mib: float = Field(description="Time to fetch a MiB of weights, 0 where it does not show.")
    slope: float
    drift: float = Field(description="Part of the slope that is drift: 1 is the device as it was first measured.")
    margin: float
    confidence: float
    error_percent: float = Field(description="Mean absolute error over the points it was fitted to.")
    points: list[Json] = Field(description="Whole networks it was fitted to, measured in ms and FPS.")
    measurement: str | None = Field(None, description="What a correction learned from; null for revision 1.")

    @classmethod
    def of(cls, calibration: Calibration) -> "CalibrationAnswer":
        """Write a calibration."""
        fields = calibration.model_dump(mode="json")
        for point in fields["points"]:
            point["measured_fps"] = 1000 / point["measured_ms"]
        return cls(**fields, error_percent=calibration.mape_percent)


class EditionAnswer(Answer):
    """A table edition without its rows."""

    edition: str
    device: str
    runtime: str
    runtime_version: str | None
    provider: str
    precision: str
    threads: int
    statistic: str
    rows: int
    created_at: datetime
    calibration: CalibrationAnswer | None

    @classmethod
    def of(cls, edition: models.Edition, device: str, calibration: Calibration | None) -> "EditionAnswer":
        """Write an edition."""
        return cls(
            edition=edition.id,
            device=device,
            runtime=edition.runtime,
            runtime_version=edition.runtime_version,
            provider=edition.provider,
            precision=edition.precision,
            threads=edition.threads,
            statistic=edition.statistic,
            rows=edition.row_count,
            created_at=edition.created_at,
            calibration=None if calibration is None else CalibrationAnswer.of(calibration),
        )


class RowAnswer(Answer):
    """One row of a table."""

    block_key: str
    kind: str
    channels_in: int
    channels_out: int
    height: int
    width: int
    latency_ms: float
    fps: float
    hot_ms: float
    cold_ms: float
    converged: bool
    measurement_id: str
    block: Json

    @classmethod
    def of(cls, row: models.Row) -> "RowAnswer":
        """Read a record."""
        fields = {name: getattr(row, name) for name in cls.model_fields if name != "fps"}
        return cls(**fields, fps=1000 / row.latency_ms)


class CoverageAnswer(Answer):
    """How much of a space a table covers."""

    total: int
    missing: int
    missing_blocks: list[str]
    message: str
    command: str


class ImportAnswer(Answer):
    """What an import stored."""

    edition: str


class SupernetAnswer(Answer):
    """A trained supernet."""

    id: str
    space: str
    space_id: str
    checkpoint_sha256: str
    metrics: Json
    created_at: datetime

    @classmethod
    def of(cls, supernet: StoredSupernet) -> "SupernetAnswer":
        """Write a supernet."""
        return cls(
            id=supernet.id,
            space=supernet.space.name,
            space_id=supernet.space.id,
            checkpoint_sha256=supernet.checkpoint_sha256,
            metrics=supernet.metrics,
            created_at=supernet.created_at,
        )


class JobAnswer(Answer):
    """Where a job stands."""

    id: str
    kind: str
    state: str
    progress: float = Field(description="Share of the work done, 0 to 1.")
    parameters: Json
    error: Json | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: Job) -> "JobAnswer":
        """Read a record."""
        return cls.model_validate(job)


class EventAnswer(Answer):
    """One thing that happened to a job."""

    seq: int
    at: datetime
    kind: str
    message: str
    data: Json | None

    @classmethod
    def of(cls, event: JobEvent) -> "EventAnswer":
        """Read a record."""
        return cls.model_validate(event)


class ArtifactAnswer(Answer):
    """A file of a job."""

    name: str
    sha256: str
    bytes: int
    media_type: str

    @classmethod
    def of(cls, artifact: Artifact) -> "ArtifactAnswer":
        """Read a record."""
        return cls.model_validate(artifact)


def page(items: Sequence[T], total: int) -> Page[T]:
    """Wrap a part of a listing."""
    return Page(items=list(items), total=total)
