"""Engines and transactions that behave the same on SQLite and PostgreSQL.

Every transaction on SQLite begins IMMEDIATE unless it was opened by `reading`: a deferred transaction that first reads
and then writes fails at once when another process wrote in between, whatever the busy timeout says.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, DateTime, Dialect, Engine, StaticPool, create_engine, event, make_url
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator

BUSY_TIMEOUT_MS = 30_000
"""How long SQLite waits for another writer."""

_BEGIN = "sqlite_begin"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored as UTC and given back as UTC on every database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive datetimes; SQLite keeps no zone, so it is handed UTC without one."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"datetime {value.isoformat()} has no time zone: use datetime.now(UTC)")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back an aware UTC datetime."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def make_engine(url: str) -> Engine:
    """Open a database by URL: `sqlite:///path`, or `postgresql://...` through psycopg 3."""
    parsed = make_url(url)
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, json_serializer=_dump_json, pool_pre_ping=True)
    if parsed.database in {None, "", ":memory:"}:
        shared = {"check_same_thread": False, "factory": _Connection}
        memory = create_engine(parsed, json_serializer=_dump_json, poolclass=StaticPool, connect_args=shared)
        return _as_sqlite(memory)
    return _as_sqlite(create_engine(parsed, json_serializer=_dump_json, connect_args={"factory": _Connection}))


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Open a session on one consistent snapshot that blocks no writer; nothing is committed."""
    options: dict[str, Any] = {_BEGIN: "BEGIN"}
    if engine.dialect.name == "postgresql":
        # Its default isolation takes a snapshot for each statement.
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with Session(engine.execution_options(**options), expire_on_commit=False) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Open a session that commits at the end, or rolls back on an exception."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def _dump_json(value: object) -> str:
    return json.dumps(value, allow_nan=False)


class _Connection(sqlite3.Connection):
    """A connection that can close the cursors somebody left half read.

    Such a cursor keeps its snapshot beyond the rollback, and the next BEGIN IMMEDIATE on the pooled connection would
    fail as locked, at once and whatever the timeout.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the driver calls it
        super().__init__(*args, **kwargs)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]  # noqa: ANN401 - as the driver calls it
        """Open a cursor and remember it."""
        cursor: sqlite3.Cursor = super().cursor(*args)
        self._cursors.add(cursor)
        return cursor

    def close_cursors(self) -> None:
        """Close what is left open."""
        for cursor in tuple(self._cursors):
            cursor.close()
        self._cursors.clear()


def _as_sqlite(engine: Engine) -> Engine:
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "reset", _close_cursors)
    return engine


def _close_cursors(connection: _Connection, *_: object) -> None:
    connection.close_cursors()


def _set_pragmas(connection: _Connection, _record: object) -> None:
    # The driver must not open transactions of its own: `_begin` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN IMMEDIATE"))
