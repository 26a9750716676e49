"""What both databases promise, whatever is stored in them."""

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from server.database import Base, Device, Job, JobEvent, JobState, TaskState, make_engine, reading, writing

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHA = "ab" * 32

JOB = {"id": "j", "kind": "train", "state": "queued", "parameters": {}, "progress": 0.0, "created_at": NOON}
DEVICE = {"id": "d", "name": "laptop", "created_at": NOON}
TASK = {
    "id": "t",
    "job_id": "j",
    "device_id": "d",
    "position": 0,
    "item_key": "k",
    "label": "block",
    "graph_sha256": SHA,
    "graph_bytes": 2**40,
    "execution": {},
    "policy": {},
    "state": "pending",
    "attempt": 0,
    "failures": 0,
    "created_at": NOON,
    "updated_at": NOON,
}


def add(engine: Engine, table: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(insert(Base.metadata.tables[table]).values(values))


@pytest.fixture
def filled(engine: Engine) -> Engine:
    add(engine, "devices", **DEVICE)
    add(engine, "jobs", **JOB)
    add(engine, "tasks", **TASK)
    return engine


@pytest.mark.parametrize(
    ("table", "values", "constraint"),
    [
        ("devices", {**DEVICE, "id": "e", "name": "b", "device_class": "toaster"}, "ck_devices_device_class"),
        ("jobs", {**JOB, "id": "k", "state": "paused"}, "ck_jobs_state"),
        ("jobs", {**JOB, "id": "k", "progress": 1.5}, "ck_jobs_progress"),
        ("jobs", {**JOB, "id": "k", "state": "succeeded", "finished_at": NOON}, "ck_jobs_result"),
        ("jobs", {**JOB, "id": "k", "state": "failed", "finished_at": NOON}, "ck_jobs_error"),
        ("jobs", {**JOB, "id": "k", "state": "cancelled"}, "ck_jobs_finished_at"),
        ("jobs", {**JOB, "id": "k", "finished_at": NOON}, "ck_jobs_finished_at"),
        ("job_events", {"job_id": "j", "seq": 0, "at": NOON, "kind": "note", "message": ""}, "ck_job_events_seq"),
        ("tasks", {**TASK, "id": "u", "item_key": "l", "state": "lost"}, "ck_tasks_state"),
        ("tasks", {**TASK, "id": "u", "item_key": "l", "state": "leased", "attempt": 1}, "ck_tasks_leased"),
        ("tasks", {**TASK, "id": "u", "item_key": "l", "state": "done"}, "ck_tasks_done"),
        ("tasks", {**TASK, "id": "u", "item_key": "l", "state": "failed"}, "ck_tasks_failed"),
        ("tasks", {**TASK, "id": "u", "item_key": "l", "attempt": -1}, "ck_tasks_counts"),
        ("tasks", {**TASK, "id": "u", "item_key": "l", "graph_sha256": "ab"}, "ck_tasks_graph_sha256"),
        (
            "artifacts",
            {"job_id": "j", "name": "a", "sha256": "x", "bytes": 1, "media_type": "a/b", "created_at": NOON},
            "ck_artifacts_sha256",
        ),
        (
            "graphs",
            {"key": "k", "sha256": SHA, "bytes": 0, "label": "", "parity": {}, "created_at": NOON},
            "ck_graphs_bytes",
        ),
    ],
)
def test_states_that_make_no_sense_cannot_be_stored(
    filled: Engine, table: str, values: dict[str, object], constraint: str
) -> None:
    with pytest.raises(IntegrityError, match=constraint):
        add(filled, table, **values)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("tasks", {**TASK, "id": "u", "job_id": "nobody", "item_key": "l"}),
        ("tasks", {**TASK, "id": "u", "device_id": "nobody", "item_key": "l"}),
        ("job_events", {"job_id": "nobody", "seq": 1, "at": NOON, "kind": "note", "message": ""}),
        ("leases", {"id": "l", "agent_id": "nobody", "created_at": NOON, "expires_at": NOON}),
    ],
)
def test_nothing_refers_to_what_does_not_exist(filled: Engine, table: str, values: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        add(filled, table, **values)


def test_a_round_of_a_job_has_one_task_per_item(filled: Engine) -> None:
    add(filled, "tasks", **{**TASK, "id": "again", "round": 2})
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        add(filled, "tasks", **{**TASK, "id": "u"})


def test_an_idempotency_key_belongs_to_one_job(filled: Engine) -> None:
    add(filled, "jobs", **{**JOB, "id": "k", "idempotency_key": "x", "request_digest": "d"})
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        add(filled, "jobs", **{**JOB, "id": "l", "idempotency_key": "x", "request_digest": "d"})


def test_an_idempotency_key_stands_beside_what_it_was_used_for(filled: Engine) -> None:
    for half in ({"idempotency_key": "x"}, {"request_digest": "d"}):
        with pytest.raises(IntegrityError, match="ck_jobs_idempotency"):
            add(filled, "jobs", **{**JOB, "id": "k", **half})


def test_times_come_back_in_utc(engine: Engine) -> None:
    tokyo = datetime(2026, 3, 1, 21, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    with writing(engine) as session:
        session.add(Device(id="d", name="laptop", created_at=tokyo))
    with reading(engine) as session:
        read = session.get_one(Device, "d").created_at
    assert read == tokyo
    assert read.tzinfo is UTC


def test_a_time_without_zone_is_refused(engine: Engine) -> None:
    naive = NOON.replace(tzinfo=None)
    with pytest.raises(StatementError, match=r"2026-03-01T12:00:00 has no time zone: use datetime.now\(UTC\)"):
        add(engine, "devices", **{**DEVICE, "created_at": naive})


def test_numbers_in_json_come_back_bit_by_bit(engine: Engine) -> None:
    numbers = {"third": 1 / 3, "tiny": 5e-324, "whole": 1.0, "big": 2**53 + 1, "minus": -0.0, "unset": None}
    add(engine, "jobs", **{**JOB, "parameters": numbers})
    with reading(engine) as session:
        read = session.get_one(Job, "j").parameters
    assert repr(read) == repr(numbers)


def test_a_number_that_is_none_is_refused(engine: Engine) -> None:
    with pytest.raises((StatementError, ValueError), match="not JSON compliant"):
        add(engine, "jobs", **{**JOB, "parameters": {"latency_ms": float("nan")}})


def test_a_transaction_that_fails_leaves_nothing(engine: Engine) -> None:
    def fail() -> None:
        with writing(engine) as session:
            session.add(Device(id="d", name="laptop", created_at=NOON))
            session.flush()
            raise RuntimeError("oops")

    with pytest.raises(RuntimeError, match="oops"):
        fail()
    with reading(engine) as session:
        assert session.get(Device, "d") is None


def test_writers_that_read_first_wait_for_each_other(filled: Engine) -> None:
    """With deferred transactions SQLite would refuse the second writer at once, whatever the timeout."""
    failures: list[Exception] = []
    ready = threading.Barrier(3)

    def count(name: str) -> None:
        ready.wait()
        for number in range(8):
            try:
                with writing(filled) as session:
                    session.get_one(Job, "j")
                    session.add(JobEvent(job_id="j", seq=3 * number + int(name), at=NOON, kind="note", message=name))
            except OperationalError as error:
                failures.append(error)

    threads = [threading.Thread(target=count, args=(name,)) for name in ("1", "2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with reading(filled) as session:
        assert session.query(JobEvent).count() == 24


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_a_reader_sees_one_moment_and_blocks_nobody(filled: Engine) -> None:
    with reading(filled) as reader:
        before = reader.query(JobEvent).count()
        add(filled, "job_events", job_id="j", seq=1, at=NOON, kind="note", message="")
        assert reader.query(JobEvent).count() == before
    with reading(filled) as reader:
        assert reader.query(JobEvent).count() == before + 1


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_sqlite_is_durable_and_strict(engine: Engine) -> None:
    with reading(engine) as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 30000}


def test_a_result_left_half_read_does_not_lock_the_next_writer(filled: Engine) -> None:
    """SQLite: the forgotten cursor kept its snapshot on the pooled connection, and BEGIN IMMEDIATE failed at once."""
    for number in range(1, 4):
        add(filled, "job_events", job_id="j", seq=number, at=NOON, kind="note", message="")
    with reading(filled) as session:
        forgotten = session.execute(Base.metadata.tables["job_events"].select())
        next(iter(forgotten))
    other = make_engine(filled.url.render_as_string(hide_password=False))
    add(other, "job_events", job_id="j", seq=4, at=NOON, kind="note", message="")
    other.dispose()
    add(filled, "job_events", job_id="j", seq=5, at=NOON, kind="note", message="")
    with reading(filled) as session:
        assert session.execute(text("SELECT max(seq) FROM job_events")).scalar_one() == 5


def test_plain_postgresql_urls_use_psycopg(postgres_server: str) -> None:
    engine = make_engine(postgres_server)
    assert engine.driver == "psycopg"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_a_database_in_memory_is_shared_by_its_sessions() -> None:
    engine = make_engine("sqlite://")
    Base.metadata.create_all(engine)
    add(engine, "devices", **DEVICE)
    with reading(engine) as session:
        assert session.get_one(Device, "d").name == "laptop"
    engine.dispose()


def test_stored_states_are_frozen() -> None:
    """They stand in databases out there and in their CHECK constraints: a new one needs a migration."""
    assert [state.value for state in TaskState] == ["pending", "leased", "done", "failed", "cancelled"]
    assert [state.value for state in JobState] == [
        "submitted",
        "queued",
        "running",
        "succeeded",
        "failed",
        "cancelled",
    ]
