"""The agent's memory on disk: what it claimed, what it measured and has not yet handed over.

    leased ──> measured ──> (acknowledged: the row is deleted)
          └──> failed ───┘
    measured, failed ──> refused          the server will never take it; kept for a person to look at

A result is on disk, synced, before the first attempt to upload it, and leaves only after the server's acknowledgement.
Whatever moment the power fails at, the result is here, at the server, or in both places under the same id.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

from profiler.errors import JournalError
from profiler.wire import Failure, Lease, Result

_VERSION = 1
_SCHEMA = """
CREATE TABLE entries (
    task_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    lease_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('leased', 'measured', 'failed', 'refused')),
    result_id TEXT UNIQUE,
    body TEXT,
    note TEXT,
    PRIMARY KEY (task_id, attempt),
    CHECK ((state = 'leased') = (body IS NULL))
) STRICT
"""


# An attempt that is leased again is measured again, unless a result of it still waits for its upload.
_CLAIM = """
INSERT INTO entries (task_id, attempt, lease_id, state) VALUES (?, ?, ?, 'leased')
ON CONFLICT (task_id, attempt) DO UPDATE
SET lease_id = excluded.lease_id, state = 'leased', result_id = NULL, body = NULL, note = NULL
WHERE state IN ('leased', 'refused')
"""


class State(StrEnum):
    """Where one attempt at a task stands on this device."""

    LEASED = "leased"
    MEASURED = "measured"
    FAILED = "failed"
    REFUSED = "refused"


class Upload(NamedTuple):
    """Something the server has not yet acknowledged."""

    task_id: str
    attempt: int
    result_id: str | None
    """None for a failure, which has no content worth an identity."""
    body: str

    def result(self) -> Result:
        """Read the body of a measured attempt."""
        return Result.model_validate_json(self.body)

    def failure(self) -> Failure:
        """Read the body of a failed attempt."""
        return Failure.model_validate_json(self.body)


class Journal:
    """A SQLite file that one agent at a time may open; every method is one synced transaction."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal.

        Raises:
            JournalError: another agent uses it, it is damaged, or a newer version wrote it.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, timeout=1)
        except (OSError, sqlite3.Error) as error:
            raise JournalError(f"cannot open {path}: {error}. Name a writable folder with --state.") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._database.close()
            raise self._explain(error) from error
        except JournalError:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; everything in it is already safe."""
        self._database.close()

    def claim(self, lease: Lease) -> None:
        """Note the tasks of a new lease."""
        rows = [(task.task_id, task.attempt, lease.lease_id) for task in lease.tasks]
        self._write(_CLAIM, rows)

    def keep_result(self, result_id: str, result: Result) -> None:
        """Store a result on disk, synced, ready to be uploaded."""
        row = (State.MEASURED, result_id, result.model_dump_json(), result.task_id, result.attempt)
        self._finish(row)

    def keep_failure(self, task_id: str, failure: Failure) -> None:
        """Store a failure on disk, synced, ready to be reported."""
        self._finish((State.FAILED, None, failure.model_dump_json(), task_id, failure.attempt))

    def acknowledge(self, upload: Upload) -> None:
        """Forget what the server has acknowledged."""
        self._write("DELETE FROM entries WHERE task_id = ? AND attempt = ?", [(upload.task_id, upload.attempt)])

    def refuse(self, upload: Upload, note: str) -> None:
        """Set aside what the server will never take; it is kept, and not sent again."""
        row = (note, upload.task_id, upload.attempt)
        self._write("UPDATE entries SET state = 'refused', note = ? WHERE task_id = ? AND attempt = ?", [row])

    def backlog(self) -> list[Upload]:
        """Return everything to be uploaded, oldest first."""
        sql = (
            "SELECT task_id, attempt, result_id, body FROM entries WHERE state IN ('measured', 'failed') ORDER BY rowid"
        )
        return [Upload(*row) for row in self._read(sql)]

    def open_leases(self) -> dict[str, bool]:
        """Return the leases that still have tasks to measure, and whether the agent was asked to stop on them."""
        sql = "SELECT lease_id, max(note IS NOT NULL) FROM entries WHERE state = 'leased' GROUP BY lease_id"
        return {lease_id: bool(is_stopped) for lease_id, is_stopped in self._read(sql)}

    def stop_lease(self, lease_id: str) -> None:
        """Note that the agent was asked to stop: whatever comes, it did not die on the tasks of this lease."""
        sql = "UPDATE entries SET note = 'stopped' WHERE state = 'leased' AND lease_id = ?"
        self._write(sql, [(lease_id,)])

    def drop_lease(self, lease_id: str) -> None:
        """Forget the unmeasured tasks of a lease."""
        self._write("DELETE FROM entries WHERE state = 'leased' AND lease_id = ?", [(lease_id,)])

    def counts(self) -> dict[State, int]:
        """Return how many attempts are in each state."""
        found: dict[str, int] = dict(self._read("SELECT state, count(*) FROM entries GROUP BY state"))
        return {state: found.get(state, 0) for state in State}

    def _prepare(self) -> None:
        # Exclusive locking keeps the file locked while it is open, and the system lets go when the process dies.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise JournalError(
                    f"{self._path} was written by a newer agent (journal version {version}, known here is {_VERSION}): "
                    "upgrade this agent with `pip install -U heatnas`, or name another folder with --state."
                )
            if version == 0:
                self._database.execute(_SCHEMA)
                self._database.execute(f"PRAGMA user_version = {_VERSION}")

    def _finish(self, row: tuple[object, ...]) -> None:
        sql = "UPDATE entries SET state = ?, result_id = ?, body = ? WHERE task_id = ? AND attempt = ?"
        self._write(f"{sql} AND state = 'leased'", [row])

    def _write(self, sql: str, rows: Iterable[tuple[object, ...]]) -> None:
        try:
            with self._transaction():
                self._database.executemany(sql, rows)
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _read(self, sql: str) -> list[tuple[Any, ...]]:
        try:
            with closing(self._database.execute(sql)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._database)

    def _explain(self, error: sqlite3.Error) -> JournalError:
        if "locked" in str(error):
            return JournalError(f"{self._path} is in use by another agent: stop that one, or name another --state.")
        return JournalError(
            f"{self._path} cannot be used ({error}): free disk space if there is none left; if the file is damaged, "
            "move it away (un-uploaded results in it would be measured again)."
        )


class _Transaction:
    """BEGIN EXCLUSIVE ... COMMIT, rolled back when anything is raised, an interrupt included."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN EXCLUSIVE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")
