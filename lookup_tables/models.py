"""The tables of measured numbers, and the metadata that every table of the product belongs to.

Measurements, editions, rows and calibrations are append-only: triggers refuse statements that update, replace, delete
or truncate them. They guard against mistakes; who owns the database can drop them, and can add rows to an edition. What
the edition then holds is not what its id says, and loading it fails.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import DDL, JSON, CheckConstraint, ForeignKey, Index, LargeBinary, MetaData, Table, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from lookup_tables.connection import UtcDateTime
from profiler.wire import DeviceClass, DeviceDescription, Execution

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Base of all tables; JSON columns keep their text, so that numbers come back bit by bit."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - read once by SQLAlchemy
        datetime: UtcDateTime(),
        Json: JSON(none_as_null=True),
        list[Json]: JSON(none_as_null=True),
    }


def one_of(column: str, values: type[StrEnum]) -> str:
    """Write the SQL condition that a column holds one of a string enumeration's values."""
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


class Device(Base):
    """One machine that runs networks; `description` is what its agent last said about it."""

    __tablename__ = "devices"
    __table_args__ = (CheckConstraint(one_of("device_class", DeviceClass), name="device_class"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    device_class: Mapped[str | None]
    description: Mapped[Json | None]
    created_at: Mapped[datetime]

    @property
    def described(self) -> DeviceDescription | None:
        """The description as a value, None before the first enrolment."""
        return None if self.description is None else DeviceDescription.model_validate(self.description)


class Measurement(Base):
    """One result of an agent, raw samples included; `id` is the agent's hash of the content.

    The routes and the import check that hash; whoever writes through the store answers for it.
    """

    __tablename__ = "measurements"
    __table_args__ = (
        CheckConstraint("hot_ms > 0 AND cold_ms > 0", name="positive"),
        CheckConstraint("low_ms <= hot_ms AND hot_ms <= high_ms", name="interval"),
        Index("ix_measurements_newest", "device_id", "item_key", "received_at"),
        Index("ix_measurements_table", "device_id", "runtime", "provider", "precision", "threads"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    """SHA-256 of the result as received, times in UTC."""
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    agent_id: Mapped[str]
    task_id: Mapped[str]
    attempt: Mapped[int]
    schema_version: Mapped[int]
    item_key: Mapped[str]
    """`Block.key`, or `network:<config id>` for a network measured whole."""
    block: Mapped[Json | None]
    graph_sha256: Mapped[str]
    runtime: Mapped[str]
    runtime_version: Mapped[str | None]
    """Version of the runtime as the device described it when the result came in; None when it never did."""
    provider: Mapped[str]
    precision: Mapped[str]
    threads: Mapped[int]
    hot_ms: Mapped[float]
    cold_ms: Mapped[float]
    low_ms: Mapped[float]
    high_ms: Mapped[float]
    confidence: Mapped[float]
    converged: Mapped[bool]
    outliers: Mapped[int]
    rounds: Mapped[int]
    warmup_runs: Mapped[int]
    runs: Mapped[int]
    """Timed runs, hot and cold."""
    samples: Mapped[bytes] = mapped_column(LargeBinary)
    """Raw nanoseconds, written by `lookup_tables.samples.pack`."""
    context: Mapped[Json]
    simulated: Mapped[bool]
    late: Mapped[bool]
    """The result of an older attempt: a replicate that completed no task."""
    measured_at: Mapped[datetime]
    received_at: Mapped[datetime]

    @property
    def execution(self) -> Execution:
        """How the graph was run."""
        return Execution.model_validate(
            {"runtime": self.runtime, "provider": self.provider, "precision": self.precision, "threads": self.threads}
        )

    @property
    def fps(self) -> float:
        """Frames per second of the hot median."""
        return 1000 / self.hot_ms


class Edition(Base):
    """An immutable lookup table of one device, runtime, precision and thread count; `id` is a hash of its content."""

    __tablename__ = "editions"
    __table_args__ = (
        CheckConstraint("statistic IN ('hot')", name="statistic"),
        CheckConstraint("row_count > 0", name="row_count"),
        Index("ix_editions_newest", "device_id", "runtime", "provider", "precision", "threads", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    runtime: Mapped[str]
    runtime_version: Mapped[str | None]
    provider: Mapped[str]
    precision: Mapped[str]
    threads: Mapped[int]
    statistic: Mapped[str]
    row_count: Mapped[int]
    created_at: Mapped[datetime]

    @property
    def execution(self) -> Execution:
        """How the blocks were run."""
        return Execution.model_validate(
            {"runtime": self.runtime, "provider": self.provider, "precision": self.precision, "threads": self.threads}
        )


class Row(Base):
    """The latency of one block in one edition, with the measurement it comes from."""

    __tablename__ = "rows"
    __table_args__ = (
        CheckConstraint("latency_ms > 0 AND hot_ms > 0 AND cold_ms > 0", name="positive"),
        Index("ix_rows_kind", "edition_id", "kind", "channels_in", "channels_out"),
    )

    edition_id: Mapped[str] = mapped_column(ForeignKey("editions.id"), primary_key=True)
    block_key: Mapped[str] = mapped_column(primary_key=True)
    block: Mapped[Json]
    kind: Mapped[str]
    channels_in: Mapped[int]
    channels_out: Mapped[int]
    height: Mapped[int]
    width: Mapped[int]
    latency_ms: Mapped[float]
    hot_ms: Mapped[float]
    cold_ms: Mapped[float]
    converged: Mapped[bool]
    measurement_id: Mapped[str] = mapped_column(ForeignKey("measurements.id"), index=True)


class Calibration(Base):
    """How sums of rows become times of whole networks; corrections add revisions, starting at 1."""

    __tablename__ = "calibrations"
    __table_args__ = (
        CheckConstraint("revision >= 1", name="revision"),
        CheckConstraint("slope > 0 AND drift > 0 AND margin >= 0 AND fetch_ms_per_mib >= 0", name="numbers"),
    )

    edition_id: Mapped[str] = mapped_column(ForeignKey("editions.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fetch_ms_per_mib: Mapped[float]
    slope: Mapped[float]
    drift: Mapped[float]
    margin: Mapped[float]
    confidence: Mapped[float]
    points: Mapped[list[Json]]
    measurement: Mapped[str | None]
    """What a correction learned from; no foreign key, since a table may come from elsewhere."""
    created_at: Mapped[datetime]


APPEND_ONLY = (Measurement, Edition, Row, Calibration)


def append_only_sql(table: str, key: Sequence[str], dialect: str) -> tuple[str, ...]:
    """Write the statements that make a database refuse to change or delete the rows of a table.

    Args:
        table: its name.
        key: the columns of its primary key.
        dialect: `sqlite` or `postgresql`.
    """
    message = f"{table} is append-only: add a new record instead"
    if dialect == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        same = " AND ".join(f"{column} = NEW.{column}" for column in key)
        exists = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - names of our own
        return (
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}",
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}",
            # INSERT OR REPLACE deletes without asking the trigger above.
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {exists} {refuse}",
        )
    name = f"{table}_append_only"
    body = f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
    return (
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS {body}",
        f"CREATE TRIGGER {name} BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {name}()",
    )


def _guard(table: Table) -> None:
    key = [column.name for column in table.primary_key]
    for dialect in ("sqlite", "postgresql"):
        for statement in append_only_sql(table.name, key, dialect):
            create = DDL(statement)  # type: ignore[no-untyped-call]
            event.listen(table, "after_create", create.execute_if(dialect=dialect))


for _model in APPEND_ONLY:
    _guard(Base.metadata.tables[_model.__tablename__])
