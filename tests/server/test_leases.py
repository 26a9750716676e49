"""The agent protocol, on SQLite and on PostgreSQL; `test_leases_model` walks through it at random."""

import threading
from collections import Counter

import pytest
from sqlalchemy import Engine, select

from lookup_tables.errors import DeviceConflict, InvalidMeasurement, MeasurementConflict, UnknownDevice
from lookup_tables.models import Measurement
from lookup_tables.store import TableStore
from profiler.identity import result_id
from profiler.wire import Execution, Failure, FailureClass, Renewal, Result, ResultReceipt
from profiler.wire import Lease as LeaseReply
from server.database import Agent, Lease, Task, TaskState, reading, writing
from server.errors import (
    LeaseLost,
    ResultMismatch,
    ResultRefused,
    UnknownAgent,
    UnknownLease,
    UnknownTask,
    UpgradeRequired,
)
from server.leases import enrol, expire, lease, record_failure, record_result, release, renew
from server.tasks import add_tasks, cancel_tasks, task_counts, task_id
from tests.lookup_tables.results import BLOCKS, NOON, ONE_THREAD, described, timed
from tests.server.campaigns import TERMS, an_item, campaign, enrolled, enrolment, result_for, seconds


@pytest.fixture
def agent(engine: Engine) -> str:
    return enrolled(engine).agent_id


def leased(engine: Engine, agent: str, number: int = 32, *, at: float = 0) -> LeaseReply:
    with writing(engine) as session:
        return lease(session, agent, number, TERMS, now=seconds(at))


def sent(engine: Engine, result: Result, *, at: float = 10, identity: str | None = None) -> ResultReceipt:
    with writing(engine) as session:
        return record_result(session, identity or result_id(result), result, now=seconds(at))


def failed(engine: Engine, task: str, agent: str, failure: FailureClass, *, attempt: int = 1) -> TaskState:
    report = Failure(agent_id=agent, attempt=attempt, failure=failure, message="because")
    with writing(engine) as session:
        return record_failure(session, task, report, TERMS, now=seconds(10))


def task(engine: Engine, identity: str) -> Task:
    with reading(engine) as session:
        return session.get_one(Task, identity)


# Enrolment


def test_enrolling_again_keeps_the_agent_and_renews_what_is_known(engine: Engine) -> None:
    first = enrolled(engine)
    again = enrolled(engine, at=seconds(60))
    assert again == first
    assert (first.device, first.protocol, first.lease_seconds, first.renew_seconds) == ("laptop", 1, 120, 40)
    with reading(engine) as session:
        [agent] = session.scalars(select(Agent))
    assert (agent.enrolled_at, agent.seen_at, agent.version) == (NOON, seconds(60), "0.1.0")
    assert TableStore(engine).device("laptop").described == described()


@pytest.mark.parametrize("protocol", [0, 2, -1])
def test_another_protocol_is_refused_and_nothing_stored(engine: Engine, protocol: int) -> None:
    message = f"agent 0.1.0 speaks protocol {protocol}, this server 1: install the same version on both sides"
    with pytest.raises(UpgradeRequired, match=message), writing(engine) as session:
        enrol(session, enrolment(protocol=protocol), TERMS, now=NOON)
    assert TableStore(engine).devices() == []


def test_another_machine_cannot_enrol_under_the_same_name(engine: Engine, agent: str) -> None:
    with pytest.raises(DeviceConflict, match="'laptop' is another machine"), writing(engine) as session:
        enrol(session, enrolment(machine="n" * 64), TERMS, now=NOON)
    assert leased(engine, agent).tasks == ()


# Tasks


def test_tasks_are_made_once_however_often_the_job_runs(engine: Engine, agent: str) -> None:
    first = campaign(engine, 2)
    leased(engine, agent, 1)
    assert campaign(engine, 3)[:2] == first
    with reading(engine) as session:
        assert [t.position for t in session.scalars(select(Task).order_by(Task.position))] == [0, 1, 2]
        assert task_counts(session, "job") == {
            TaskState.PENDING: 2,
            TaskState.LEASED: 1,
            TaskState.DONE: 0,
            TaskState.FAILED: 0,
            TaskState.CANCELLED: 0,
        }
    assert first == (task_id("job", BLOCKS[0].key), task_id("job", BLOCKS[1].key))


def test_tasks_need_a_known_device(engine: Engine) -> None:
    with pytest.raises(UnknownDevice, match="device 'phone' is unknown"), writing(engine) as session:
        add_tasks(session, "job", "phone", [an_item(0)], now=NOON)


# Leases


def test_a_lease_hands_out_the_tasks_in_order(engine: Engine, agent: str) -> None:
    ids = campaign(engine, 3)
    first, second, third = (leased(engine, agent, 2, at=number) for number in range(3))
    assert [t.task_id for t in first.tasks + second.tasks] == list(ids)
    assert [t.attempt for t in first.tasks] == [1, 1]
    assert first.tasks[1].label == BLOCKS[1].label
    assert (first.tasks[1].graph_bytes, first.tasks[1].execution) == (1001, ONE_THREAD)
    assert first.lease_id != second.lease_id
    assert (third.lease_id, third.tasks, third.lease_seconds) == (None, (), 120)


def test_an_agent_gets_only_tasks_of_its_own_device(engine: Engine, agent: str) -> None:
    other = enrolled(engine, device="board").agent_id
    campaign(engine, 2, device="board")
    assert leased(engine, agent).tasks == ()
    assert len(leased(engine, other).tasks) == 2


def test_an_unknown_agent_is_told_to_enrol(engine: Engine) -> None:
    with pytest.raises(UnknownAgent, match="agent nobody is unknown here: enrol with POST /v1/agents"):
        leased(engine, "nobody")


def test_a_renewed_lease_holds_and_an_expired_one_is_handed_out_again(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    lease_id = str(leased(engine, agent).lease_id)
    with writing(engine) as session:
        renewal = Renewal(done=1, total=4, seconds_left=9.5)
        assert renew(session, lease_id, renewal, TERMS, now=seconds(100)).lease_seconds == 120
        assert expire(session, now=seconds(219)) == ()
        assert session.get_one(Lease, lease_id).progress == {"done": 1, "total": 4, "seconds_left": 9.5}
    with writing(engine) as session:
        assert expire(session, now=seconds(220)) == (identity,)
        assert expire(session, now=seconds(220)) == ()
    assert task(engine, identity).state == TaskState.PENDING
    again = leased(engine, agent, at=221)
    assert [(t.task_id, t.attempt) for t in again.tasks] == [(identity, 2)]


def test_leasing_takes_back_what_expired(engine: Engine, agent: str) -> None:
    campaign(engine, 2)
    leased(engine, agent)
    assert leased(engine, agent, at=119).tasks == ()
    assert [t.attempt for t in leased(engine, agent, at=120).tasks] == [2, 2]


@pytest.mark.parametrize("end", ["expiry", "release"])
def test_a_lost_lease_cannot_be_renewed(engine: Engine, agent: str, end: str) -> None:
    campaign(engine, 1)
    lease_id = str(leased(engine, agent).lease_id)
    if end == "release":
        with writing(engine) as session:
            assert release(session, lease_id, now=seconds(1)) == 1
    with (
        pytest.raises(LeaseLost, match=f"lease {lease_id} does not hold .*: drop its tasks and ask for a new lease"),
        writing(engine) as session,
    ):
        renew(session, lease_id, Renewal(done=0, total=1), TERMS, now=seconds(120))
    with pytest.raises(UnknownLease, match="lease nothing is unknown: ask for a new lease"), writing(engine) as session:
        renew(session, "nothing", Renewal(done=0, total=1), TERMS, now=seconds(120))


def test_released_tasks_are_free_at_once(engine: Engine, agent: str) -> None:
    ids = campaign(engine, 2)
    given = leased(engine, agent)
    sent(engine, result_for(ids[0], agent))
    with writing(engine) as session:
        assert release(session, str(given.lease_id), now=seconds(1)) == 1
        assert release(session, str(given.lease_id), now=seconds(2)) == 0
    assert [t.task_id for t in leased(engine, agent, at=3).tasks] == [ids[1]]
    with pytest.raises(UnknownLease, match="lease nothing is unknown"), writing(engine) as session:
        release(session, "nothing", now=NOON)


def test_a_renewal_tells_what_was_cancelled(engine: Engine, agent: str) -> None:
    ids = campaign(engine, 3)
    given = leased(engine, agent, 2)
    sent(engine, result_for(ids[0], agent))
    with writing(engine) as session:
        assert cancel_tasks(session, "job", now=seconds(11)) == 2
        assert cancel_tasks(session, "job", now=seconds(12)) == 0
        renewed = renew(session, str(given.lease_id), Renewal(done=1, total=2), TERMS, now=seconds(12))
    assert renewed.cancelled == (ids[1],)
    assert [task(engine, identity).state for identity in ids] == ["done", "cancelled", "cancelled"]
    assert leased(engine, agent, at=500).tasks == ()


# Results


def test_a_result_completes_its_task(engine: Engine, agent: str) -> None:
    ids = campaign(engine, 4)
    leased(engine, agent)
    for identity in ids:
        assert sent(engine, result_for(identity, agent)).late is False
    found = task(engine, ids[0])
    assert (found.state, found.measurement_id) == ("done", result_id(result_for(ids[0], agent)))
    store = TableStore(engine)
    assert store.unmeasured("laptop", ONE_THREAD, BLOCKS) == ()
    [network] = store.measurements("laptop", item_key="network:3")
    assert (network.block, network.runtime_version, network.received_at) == (None, "1.31.1", seconds(10))


def test_sending_a_result_again_changes_nothing(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    result = result_for(identity, agent)
    assert sent(engine, result) == sent(engine, result, at=1000)
    assert len(TableStore(engine).measurements("laptop")) == 1
    with pytest.raises(MeasurementConflict, match="exists with other content"):
        sent(engine, result_for(identity, agent, nonce="other"), identity=result_id(result))


def test_a_result_counts_although_its_lease_expired_when_nobody_else_has_the_task(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    with writing(engine) as session:
        expire(session, now=seconds(130))
    assert sent(engine, result_for(identity, agent), at=140).late is False
    assert task(engine, identity).state == "done"


def test_a_result_of_an_older_attempt_is_a_replicate_that_completes_nothing(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    leased(engine, agent, at=121)
    late = sent(engine, result_for(identity, agent, attempt=1), at=130)
    assert late.late is True
    assert (task(engine, identity).state, task(engine, identity).attempt) == ("leased", 2)
    current = sent(engine, result_for(identity, agent, attempt=2), at=140)
    assert current.late is False
    assert task(engine, identity).measurement_id == current.measurement_id
    assert sent(engine, result_for(identity, agent, attempt=1), at=150) == late
    assert len(TableStore(engine).measurements("laptop", item_key=BLOCKS[0].key)) == 2


def test_done_is_final(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    first = sent(engine, result_for(identity, agent))
    assert sent(engine, result_for(identity, agent, nonce="twin")).late is True
    assert failed(engine, identity, agent, FailureClass.CRASH) is TaskState.DONE
    with writing(engine) as session:
        assert cancel_tasks(session, "job", now=NOON) == 0
        assert expire(session, now=seconds(1000)) == ()
    assert task(engine, identity).measurement_id == first.measurement_id


def test_a_result_for_a_cancelled_task_is_kept_as_a_replicate(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    with writing(engine) as session:
        cancel_tasks(session, "job", now=NOON)
    assert sent(engine, result_for(identity, agent)).late is True
    assert task(engine, identity).state == "cancelled"


def wrong_attempt(task: str, agent: str) -> Result:
    return result_for(task, agent, attempt=2)


def wrong_graph(task: str, agent: str) -> Result:
    return result_for(task, agent).model_copy(update={"graph_sha256": "cd" * 32})


def wrong_execution(task: str, agent: str) -> Result:
    return result_for(task, agent).model_copy(update={"execution": Execution(threads=2)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            wrong_attempt,
            ResultRefused,
            "attempt 2 of task .* was never handed out, the newest is 1: lease the task first",
        ),
        (
            wrong_graph,
            ResultMismatch,
            f"the result is of graph {'cd' * 32}, task .* is of {'ab' * 32}: measure the graph of the task",
        ),
        (
            wrong_execution,
            ResultMismatch,
            r'ran as \{.*"threads": 2\}, task .* asks for \{.*"threads": 1\}: run it as asked',
        ),
    ],
)
def test_a_result_that_does_not_belong_to_its_task_is_refused(
    engine: Engine, agent: str, change: object, error: type[Exception], message: str
) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    assert callable(change)
    with pytest.raises(error, match=message):
        sent(engine, change(identity, agent))
    assert task(engine, identity).state == "leased"
    assert TableStore(engine).measurements("laptop") == []


def test_a_task_never_leased_takes_no_result(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    with pytest.raises(ResultRefused, match=r"attempt 0 of task .* was never handed out, the newest is 0"):
        sent(engine, result_for(identity, agent, attempt=0))


def test_an_agent_of_another_device_is_refused(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    other = enrolled(engine, device="board").agent_id
    message = f"agent {other} is not on the device of task {identity}: measure where it was leased"
    with pytest.raises(ResultRefused, match=message):
        sent(engine, result_for(identity, other))
    with pytest.raises(ResultRefused, match=message):
        failed(engine, identity, other, FailureClass.CRASH)


def test_unknown_tasks_and_agents_are_named(engine: Engine, agent: str) -> None:
    with pytest.raises(UnknownTask, match="task nothing is unknown here: it may belong to another server"):
        sent(engine, result_for("nothing", agent))
    with pytest.raises(UnknownTask, match="task nothing is unknown"):
        failed(engine, "nothing", agent, FailureClass.CRASH)
    [identity] = campaign(engine, 1)
    with pytest.raises(UnknownAgent, match="agent nobody is unknown"):
        sent(engine, result_for(identity, "nobody"))


def test_an_impossible_result_leaves_the_task_leased(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    result = result_for(identity, agent).model_copy(update={"timing": timed().model_copy(update={"cold_ns": ()})})
    with pytest.raises(InvalidMeasurement, match="cold_ns holds no runs"):
        sent(engine, result)
    assert task(engine, identity).state == "leased"


# Failures


@pytest.mark.parametrize("failure", [failure for failure in FailureClass if failure is not FailureClass.UNSUPPORTED])
def test_what_may_pass_is_tried_three_times(engine: Engine, agent: str, failure: FailureClass) -> None:
    [identity] = campaign(engine, 1)
    states = []
    for attempt in (1, 2, 3):
        [given] = leased(engine, agent, at=attempt).tasks
        assert given.attempt == attempt
        states.append(failed(engine, identity, agent, failure, attempt=attempt))
    assert states == [TaskState.PENDING, TaskState.PENDING, TaskState.FAILED]
    assert leased(engine, agent, at=5).tasks == ()
    assert task(engine, identity).failure == {
        "agent_id": agent,
        "attempt": 3,
        "failure": failure.value,
        "message": "because",
        "at": "2026-03-01T12:00:10+00:00",
    }


def test_what_never_works_fails_at_once(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    assert failed(engine, identity, agent, FailureClass.UNSUPPORTED) is TaskState.FAILED
    assert sent(engine, result_for(identity, agent)).late is True
    assert task(engine, identity).state == "failed"


def test_a_failure_told_twice_counts_once(engine: Engine, agent: str) -> None:
    [identity] = campaign(engine, 1)
    leased(engine, agent)
    for _ in range(5):
        assert failed(engine, identity, agent, FailureClass.CRASH) is TaskState.PENDING
    assert task(engine, identity).failures == 1
    leased(engine, agent, at=1)
    assert failed(engine, identity, agent, FailureClass.CRASH, attempt=1) is TaskState.LEASED
    assert task(engine, identity).failures == 1


def test_expired_leases_are_no_failures(engine: Engine, agent: str) -> None:
    """An agent that is killed again and again must not use up the attempts of its whole batch."""
    [identity] = campaign(engine, 1)
    for number in range(6):
        assert [t.attempt for t in leased(engine, agent, at=200 * number).tasks] == [number + 1]
    assert sent(engine, result_for(identity, agent, attempt=6), at=1200).late is False


# Concurrency


def test_two_that_lease_at_once_never_get_the_same_task(engine: Engine, agent: str) -> None:
    campaign(engine, 40)
    found: list[str] = []
    errors: list[Exception] = []
    ready = threading.Barrier(4)

    def work() -> None:
        ready.wait()
        try:
            for _ in range(4):
                found.extend(t.task_id for t in leased(engine, agent, 3).tasks)
        except Exception as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert max(Counter(found).values()) == 1
    with reading(engine) as session:
        tasks = session.scalars(select(Task).where(Task.state == TaskState.LEASED)).all()
    assert {t.id for t in tasks} == set(found)
    assert {t.attempt for t in tasks} == {1}


def test_everything_at_once_completes_each_task_once(engine: Engine, agent: str) -> None:
    """Lease, renew, report, expire and release from four threads, with a clock that lets every lease expire."""
    ids = campaign(engine, 12)
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(60):
                given = leased(engine, agent, 3, at=1000 * turn + number)
                for position, t in enumerate(given.tasks):
                    if (turn + position) % 3:
                        sent(engine, result_for(t.task_id, agent, attempt=t.attempt, nonce=str(number)), at=1000 * turn)
                    else:
                        failed_once = Failure(
                            agent_id=agent, attempt=t.attempt, failure=FailureClass.TIMEOUT, message="slow"
                        )
                        with writing(engine) as session:
                            record_failure(session, t.task_id, failed_once, TERMS, now=seconds(1000 * turn))
                if given.lease_id and turn % 2:
                    with writing(engine) as session:
                        release(session, given.lease_id, now=seconds(1000 * turn))
                with reading(engine) as session:
                    counts = task_counts(session, "job")
                if counts[TaskState.DONE] + counts[TaskState.FAILED] == len(ids):
                    return
        except Exception as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [], "\n".join(map(repr, errors))
    with reading(engine) as session:
        counts = task_counts(session, "job")
        assert counts[TaskState.DONE] + counts[TaskState.FAILED] == len(ids)
        completing = Counter(session.scalars(select(Measurement.task_id).where(Measurement.late.is_(False))))
        done = set(session.scalars(select(Task.id).where(Task.state == TaskState.DONE)))
    assert completing == dict.fromkeys(done, 1)
