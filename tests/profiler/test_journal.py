import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.errors import JournalError
from profiler.identity import result_id
from profiler.journal import _CLAIM, Journal, State
from profiler.wire import Execution, Failure, FailureClass, Lease, Policy, Result, Task, Timing

TIMING = Timing(
    hot_ns=(5, 6, 7),
    cold_ns=(9,),
    hot_ms=6e-6,
    cold_ms=9e-6,
    low_ms=5e-6,
    high_ms=7e-6,
    confidence=0.75,
    converged=False,
    outliers=0,
    rounds=1,
    warmup_runs=3,
)


def lease(*task_ids: str, lease_id: str = "lease-1", attempt: int = 1) -> Lease:
    tasks = [
        Task(
            task_id=task_id,
            attempt=attempt,
            graph_sha256="0" * 64,
            graph_bytes=1,
            label=task_id,
            execution=Execution(),
            policy=Policy(),
        )
        for task_id in task_ids
    ]
    return Lease(lease_id=lease_id, lease_seconds=60, tasks=tuple(tasks))


def result(task_id: str, attempt: int = 1) -> Result:
    return Result(
        agent_id="agent-1",
        task_id=task_id,
        attempt=attempt,
        graph_sha256="0" * 64,
        execution=Execution(),
        timing=TIMING,
        context={"governor": None, "load": 0.5},
        measured_at="2026-01-01T00:00:00+00:00",
    )


def keep(journal: Journal, task_id: str) -> None:
    journal.keep_result(result_id(result(task_id)), result(task_id))


FAILURE = Failure(agent_id="agent-1", attempt=1, failure=FailureClass.CRASH, message="signal SIGSEGV")


def test_result_survives_closing_and_opening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.sqlite"
    with Journal(path) as journal:
        journal.claim(lease("a", "b"))
        keep(journal, "a")
    with Journal(path) as journal:
        (upload,) = journal.backlog()
        assert upload.result() == result("a")
        assert upload.result_id == result_id(result("a"))
        assert journal.open_leases() == {"lease-1": False}
        assert journal.counts() == {State.LEASED: 1, State.MEASURED: 1, State.FAILED: 0, State.REFUSED: 0}


def test_acknowledged_result_is_forgotten(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.claim(lease("a"))
        keep(journal, "a")
        journal.acknowledge(journal.backlog()[0])
        assert journal.backlog() == []
        assert sum(journal.counts().values()) == 0


def test_backlog_keeps_the_order_and_tells_failures_from_results(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.claim(lease("a", "b"))
        journal.keep_failure("a", FAILURE)
        keep(journal, "b")
        failed, measured = journal.backlog()
        assert (failed.task_id, failed.result_id, failed.failure()) == ("a", None, FAILURE)
        assert measured.task_id == "b"


def test_refused_result_is_kept_but_not_sent_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.claim(lease("a"))
        keep(journal, "a")
        journal.refuse(journal.backlog()[0], "status 422")
        assert journal.backlog() == []
        assert journal.counts()[State.REFUSED] == 1


def test_dropped_lease_leaves_what_was_measured(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.claim(lease("a", "b"))
        keep(journal, "a")
        journal.drop_lease("lease-1")
        assert journal.open_leases() == {}
        assert [upload.task_id for upload in journal.backlog()] == ["a"]


def test_lease_the_agent_was_asked_to_stop_on_is_told_from_one_it_died_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.claim(lease("a", "b"))
        journal.claim(lease("c", lease_id="lease-2"))
        journal.stop_lease("lease-2")
    with Journal(path) as journal:
        assert journal.open_leases() == {"lease-1": False, "lease-2": True}
        journal.claim(lease("c", lease_id="lease-3"))
        assert journal.open_leases() == {"lease-1": False, "lease-3": False}


def test_same_attempt_leased_again_can_be_measured(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.claim(lease("a"))
        journal.claim(lease("a", lease_id="lease-2"))
        assert journal.open_leases() == {"lease-2": False}
        keep(journal, "a")
        assert len(journal.backlog()) == 1


def test_result_that_waits_for_its_upload_is_not_overwritten_by_a_new_lease(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.claim(lease("a"))
        keep(journal, "a")
        journal.claim(lease("a", lease_id="lease-2"))
        assert journal.backlog()[0].result() == result("a")


def test_every_write_is_synced(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal._database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert journal._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_second_agent_on_the_same_state_is_told_so(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(JournalError, match=r"j is in use by another agent: stop that one"):
        Journal(tmp_path / "j")


def test_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j").close()
    database = sqlite3.connect(tmp_path / "j")
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(JournalError, match=r"newer agent \(journal version 9, known here is 1\): upgrade this agent"):
        Journal(tmp_path / "j")


def test_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(JournalError, match=r"j cannot be used \(file is not a database\).*move it away"):
        Journal(tmp_path / "j")


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"cannot open .*file/j: .*--state"):
        Journal(tmp_path / "file" / "j")


def test_interrupted_write_is_rolled_back(tmp_path: Path) -> None:
    def tasks_until_interrupted() -> Iterator[tuple[str, int, str]]:
        yield "a", 1, "lease-1"
        raise KeyboardInterrupt

    with Journal(tmp_path / "j") as journal:
        with pytest.raises(KeyboardInterrupt):
            journal._write(_CLAIM, tasks_until_interrupted())
        assert sum(journal.counts().values()) == 0
        journal.claim(lease("b"))
        assert journal.counts()[State.LEASED] == 1
