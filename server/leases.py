"""The agent protocol on the database: who may time which task, and whose result counts.

    pending --lease--> leased --result--> done
       ^                 |
       |<--expiry, release, failure worth a retry
       |                 '--failure, final; the last of several silences--> failed
                                                       pending, leased --cancel--> cancelled

`Task.attempt` rises with each lease of a task and is the fencing token: a result completes the task, and a failure
counts, only if its attempt is the newest one, whatever happened to the lease meanwhile. Every other result is kept as a
late replicate. `Task.silences` counts the leases that ended without a word: a graph that takes its agent or the whole
machine down leaves nothing else behind.
All functions run inside the caller's writing session and are told the time: the server's clock alone decides expiry.
Rows are locked in one order, agent before lease before task, so that no two transactions wait for each other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from lookup_tables.devices import insert_device
from lookup_tables.measurements import find_receipt, insert_measurement, present_version
from nas.blocks import Block
from profiler.wire import (
    PROTOCOL,
    Enrolled,
    Enrolment,
    Execution,
    Failure,
    FailureClass,
    Policy,
    Release,
    Renewal,
    Renewed,
    Result,
    ResultReceipt,
)
from profiler.wire import Lease as LeaseReply
from profiler.wire import Task as TaskMessage
from server.database import Agent, Device, Lease, Task, TaskState
from server.errors import (
    DuplicateIdentity,
    LeaseLost,
    ResultMismatch,
    ResultRefused,
    UnknownAgent,
    UnknownLease,
    UnknownTask,
    UpgradeRequired,
)
from server.gate import is_closed
from server.tasks import count_changed, digest

OPEN_STATES = frozenset({TaskState.PENDING, TaskState.LEASED})
"""Not final: the newest attempt still counts, even when its lease is over."""

MAX_TRIES = 3
"""A task is given up after so many failures that may pass, or so many silences."""

LAST_TRY_TASKS = 8
"""Tasks on their last try are leased apart and so few at a time: one that ends its agent takes few along."""

SUPPORTED_PROTOCOLS = tuple(range(max(1, PROTOCOL - 1), PROTOCOL + 1))
"""This protocol and the one before."""


@dataclass(frozen=True)
class LeaseTerms:
    """The intervals and limits the server sets.

    Attributes:
        lease_seconds: how long a lease holds without renewal.
        renew_seconds: how often an agent is to renew.
        poll_seconds: how long a request for work may wait.
        max_graph_bytes: the largest graph handed out.
    """

    lease_seconds: float = 120.0
    renew_seconds: float = 40.0
    poll_seconds: float = 20.0
    max_graph_bytes: int = 512 * 2**20


def enrol(session: Session, enrolment: Enrolment, terms: LeaseTerms, *, now: datetime) -> Enrolled:
    """Admit an agent and its device; the same machine under the same name is the same agent.

    Raises:
        UpgradeRequired: it speaks another protocol.
        DeviceConflict: the device name belongs to another machine.
    """
    if enrolment.protocol not in SUPPORTED_PROTOCOLS:
        raise UpgradeRequired(
            f"agent {enrolment.agent_version} speaks protocol {enrolment.protocol}, this server "
            f"{' and '.join(map(str, SUPPORTED_PROTOCOLS))}: install the same version on both sides, "
            "`pip install -U heatnas`"
        )
    device = insert_device(session, enrolment.device, now=now, description=enrolment.description)
    agent_id = digest(device.id, enrolment.description.machine_hash)
    agent = session.get(Agent, agent_id)
    if agent is None:
        agent = Agent(id=agent_id, device_id=device.id, enrolled_at=now)
        session.add(agent)
    agent.description = enrolment.description.model_dump(mode="json")
    agent.version, agent.protocol, agent.seen_at = enrolment.agent_version, enrolment.protocol, now
    session.flush()
    return Enrolled(
        agent_id=agent_id,
        device=enrolment.device,
        protocol=enrolment.protocol,
        lease_seconds=terms.lease_seconds,
        renew_seconds=terms.renew_seconds,
        poll_seconds=terms.poll_seconds,
        max_graph_bytes=terms.max_graph_bytes,
    )


def lease(session: Session, agent_id: str, max_tasks: int, terms: LeaseTerms, *, now: datetime) -> LeaseReply:
    """Claim up to `max_tasks` pending tasks of the agent's device, oldest job first; none is an empty lease.

    While heavy work is under way on the agent's machine there is none.

    Raises:
        UnknownAgent: there is no such agent.
        DuplicateIdentity: the agent is at work on another lease.
    """
    agent = _seen(session, agent_id, now)
    expire(session, now=now)
    _check_idle(session, agent_id)
    tasks = () if is_closed(session, agent) else _pending(session, agent.device_id, max_tasks)
    if not tasks:
        return LeaseReply(lease_id=None, lease_seconds=terms.lease_seconds, tasks=())
    # A task is leased once per attempt, so that its id and attempt name the lease.
    lease_id = digest(tasks[0].id, str(tasks[0].attempt + 1))
    expires_at = now + timedelta(seconds=terms.lease_seconds)
    session.add(Lease(id=lease_id, agent_id=agent_id, created_at=now, expires_at=expires_at))
    session.flush()
    claimed = [task for task in tasks if _claim(session, task, lease_id, now)]
    return LeaseReply(lease_id=lease_id, lease_seconds=terms.lease_seconds, tasks=tuple(map(_message, claimed)))


def may_lease(session: Session, agent_id: str, *, now: datetime) -> bool:
    """Tell whether asking for a lease could give one; only reads, so that many agents can wait without a writer."""
    agent = session.get(Agent, agent_id)
    if agent is None or is_closed(session, agent):
        return False
    pending = select(Task.id).where(Task.device_id == agent.device_id, Task.state == TaskState.PENDING)
    over = select(Lease.id).where(Lease.ended_at.is_(None), Lease.expires_at <= now)
    return any(session.scalar(query.limit(1)) is not None for query in (pending, over))


def renew(session: Session, lease_id: str, renewal: Renewal, terms: LeaseTerms, *, now: datetime) -> Renewed:
    """Let a lease run on, and tell which of its tasks were cancelled.

    Raises:
        UnknownLease: there never was such a lease.
        LeaseLost: it expired or was released.
    """
    expires_at = now + timedelta(seconds=terms.lease_seconds)
    renewed = count_changed(
        session,
        update(Lease)
        .where(Lease.id == lease_id, Lease.ended_at.is_(None), Lease.expires_at > now)
        .values(expires_at=expires_at, progress=renewal.model_dump(mode="json")),
    )
    if not renewed and session.get(Lease, lease_id) is None:
        raise _unknown(lease_id)
    if not renewed:
        raise LeaseLost(f"lease {lease_id} does not hold (any more): drop its tasks and ask for a new lease")
    _seen(session, session.scalars(select(Lease.agent_id).where(Lease.id == lease_id)).one(), now)
    query = select(Task.id).where(Task.lease_id == lease_id, Task.state == TaskState.CANCELLED).order_by(Task.id)
    return Renewed(lease_seconds=terms.lease_seconds, cancelled=tuple(session.scalars(query)))


def release(session: Session, lease_id: str, asked: Release, *, now: datetime) -> int:
    """Give the unfinished tasks of a lease back, and return how many; releasing it again gives back none.

    Where its holder died, that is a silence of each of them.

    Raises:
        UnknownLease: there never was such a lease.
    """
    if session.get(Lease, lease_id, with_for_update=True) is None:
        raise _unknown(lease_id)
    if asked.crashed:
        return len(_end_in_silence(session, [lease_id], now))
    return len(_give_back(session, [lease_id], now))


def expire(session: Session, *, now: datetime) -> tuple[str, ...]:
    """End the leases whose time is over, and return the ids of the tasks they held: a silence of each of them."""
    over = session.scalars(
        select(Lease.id).where(Lease.ended_at.is_(None), Lease.expires_at <= now).with_for_update(skip_locked=True)
    ).all()
    return _end_in_silence(session, over, now)


def record_result(session: Session, result_id: str, result: Result, *, now: datetime) -> ResultReceipt:
    """Store a measurement, and complete its task if the attempt is the newest one; the same again changes nothing.

    Raises:
        UnknownTask, UnknownAgent: it names something that does not exist.
        ResultRefused: it is of another device, or of an attempt that was never handed out.
        ResultMismatch: it is of another graph or execution than the task.
        InvalidMeasurement: it contradicts itself.
        MeasurementConflict: the id is taken by other content.
    """
    agent = _seen(session, result.agent_id, now)
    task = _locked(session, result.task_id)
    stored = find_receipt(session, result, result_id=result_id)
    if stored is not None:
        return stored
    _check_attempt(task, agent, result.attempt)
    _check_result(task, result)
    completes = task.attempt == result.attempt and task.state in OPEN_STATES
    device = session.get_one(Device, task.device_id)
    receipt = insert_measurement(
        session,
        result,
        result_id=result_id,
        device=device,
        item_key=task.item_key,
        block=None if task.block is None else Block.model_validate(task.block),
        runtime_version=present_version(device, result.execution),
        received_at=now,
        late=not completes,
    )
    if completes:
        _move(session, task, now, state=TaskState.DONE, measurement_id=receipt.measurement_id)
    return receipt


def record_failure(session: Session, task_id: str, failure: Failure, *, now: datetime) -> TaskState:
    """Note why a task could not be measured, and return its state; only the newest attempt counts, once.

    Raises:
        UnknownTask, UnknownAgent: it names something that does not exist.
        ResultRefused: the agent is of another device, or the attempt was never handed out.
    """
    agent = _seen(session, failure.agent_id, now)
    task = _locked(session, task_id)
    _check_attempt(task, agent, failure.attempt)
    is_told = task.failure is not None and task.failure["attempt"] == failure.attempt
    if task.state not in OPEN_STATES or task.attempt != failure.attempt or is_told:
        return TaskState(task.state)
    failures = task.failures + 1
    state = TaskState.PENDING if _is_worth_retrying(failure.failure, failures) else TaskState.FAILED
    _move(
        session,
        task,
        now,
        state=state,
        failures=failures,
        silences=0,
        failure={**failure.model_dump(mode="json"), "at": now.isoformat()},
        lease_id=None if state is TaskState.PENDING else task.lease_id,
    )
    return state


def _is_worth_retrying(failure: FailureClass, failures: int) -> bool:
    match failure:
        case FailureClass.UNSUPPORTED:
            return False
        case FailureClass.HASH_MISMATCH | FailureClass.OUT_OF_MEMORY | FailureClass.CRASH | FailureClass.TIMEOUT:
            return failures < MAX_TRIES
    assert_never(failure)


def _unknown(lease_id: str) -> UnknownLease:
    return UnknownLease(f"lease {lease_id} is unknown: ask for a new lease")


def _seen(session: Session, agent_id: str, now: datetime) -> Agent:
    agent = session.get(Agent, agent_id, with_for_update=True)
    if agent is None:
        raise UnknownAgent(f"agent {agent_id} is unknown here: enrol with POST /v1/agents")
    agent.seen_at = now
    return agent


def _check_idle(session: Session, agent_id: str) -> None:
    """Refuse an agent that is at work: two on one machine would disturb each other's times."""
    held = session.scalar(
        select(Lease)
        .join(Task, Task.lease_id == Lease.id)
        .where(Lease.agent_id == agent_id, Lease.ended_at.is_(None), Task.state == TaskState.LEASED)
        .limit(1)
    )
    if held is not None:
        raise DuplicateIdentity(
            f"agent {agent_id} is at work on lease {held.id} until {held.expires_at.isoformat(timespec='seconds')}: "
            "if another agent runs on this machine under the same name, stop one of them; else the lease ends then."
        )


def _pending(session: Session, device_id: str, limit: int) -> Sequence[Task]:
    """Choose what to hand out: of a job those on their last try after its other tasks, apart from them and few."""
    on_last_try = Task.silences >= MAX_TRIES - 1
    found = session.scalars(
        select(Task)
        .where(Task.device_id == device_id, Task.state == TaskState.PENDING)
        .order_by(Task.created_at, Task.job_id, on_last_try, Task.position)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    last_try = [task for task in found if task.silences >= MAX_TRIES - 1]
    if last_try and found[0] is last_try[0]:
        return last_try[:LAST_TRY_TASKS]
    return [task for task in found if task not in last_try]


def _claim(session: Session, task: Task, lease_id: str, now: datetime) -> bool:
    """Take a task, unless somebody did since we looked."""
    taken = count_changed(
        session,
        update(Task)
        .where(Task.id == task.id, Task.state == TaskState.PENDING, Task.attempt == task.attempt)
        .values(state=TaskState.LEASED, attempt=task.attempt + 1, lease_id=lease_id, updated_at=now),
    )
    session.refresh(task)
    return bool(taken)


def _message(task: Task) -> TaskMessage:
    return TaskMessage(
        task_id=task.id,
        attempt=task.attempt,
        graph_sha256=task.graph_sha256,
        graph_bytes=task.graph_bytes,
        label=task.label,
        execution=Execution.model_validate(task.execution),
        policy=Policy.model_validate(task.policy),
    )


def _end_in_silence(session: Session, leases: Sequence[str], now: datetime) -> tuple[str, ...]:
    """End leases that nobody will say anything about; give up the tasks for which that was once too often."""
    tasks = _give_back(session, leases, now)
    freed = Task.id.in_(tasks)
    count_changed(session, update(Task).where(freed).values(silences=Task.silences + 1))
    given_up = select(Task).where(freed, Task.silences >= MAX_TRIES).order_by(Task.id)
    for task in session.scalars(given_up.execution_options(populate_existing=True)):
        _give_up(session, task, now)
    return tasks


def _give_up(session: Session, task: Task, now: datetime) -> None:
    message = (
        f"the agent or device died each of the last {task.silences} times while measuring {task.label}, without a "
        "word: look there for memory that ran out, heat and restarts, and at what the agent said last"
    )
    failure = {"failure": FailureClass.CRASH.value, "message": message, "attempt": task.attempt, "at": now.isoformat()}
    _move(session, task, now, state=TaskState.FAILED, failure=failure)


def _give_back(session: Session, leases: Sequence[str], now: datetime) -> tuple[str, ...]:
    held = select(Task.id).where(Task.lease_id.in_(leases), Task.state == TaskState.LEASED).order_by(Task.id)
    tasks = session.scalars(held.with_for_update()).all()
    count_changed(
        session,
        update(Task)
        .where(Task.id.in_(tasks), Task.state == TaskState.LEASED, Task.lease_id.in_(leases))
        .values(state=TaskState.PENDING, lease_id=None, updated_at=now),
    )
    count_changed(session, update(Lease).where(Lease.id.in_(leases), Lease.ended_at.is_(None)).values(ended_at=now))
    return tuple(tasks)


def _locked(session: Session, task_id: str) -> Task:
    task = session.get(Task, task_id, with_for_update=True)
    if task is None:
        raise UnknownTask(f"task {task_id} is unknown here: it may belong to another server, drop it")
    return task


def _check_attempt(task: Task, agent: Agent, attempt: int) -> None:
    if agent.device_id != task.device_id:
        raise ResultRefused(f"agent {agent.id} is not on the device of task {task.id}: measure where it was leased")
    if not 1 <= attempt <= task.attempt:
        raise ResultRefused(
            f"attempt {attempt} of task {task.id} was never handed out, the newest is {task.attempt}: "
            "lease the task first"
        )


def _check_result(task: Task, result: Result) -> None:
    if result.graph_sha256 != task.graph_sha256:
        raise ResultMismatch(
            f"the result is of graph {result.graph_sha256}, task {task.id} is of {task.graph_sha256}: "
            "measure the graph of the task"
        )
    expected = Execution.model_validate(task.execution)
    if result.execution != expected:
        raise ResultMismatch(
            f"the result ran as {_json(result.execution)}, task {task.id} asks for {_json(expected)}: run it as asked"
        )


def _move(session: Session, task: Task, now: datetime, **values: object) -> None:
    """Change a task we hold the lock of, unless it has moved on regardless."""
    moved = count_changed(
        session,
        update(Task)
        .where(Task.id == task.id, Task.state == task.state, Task.attempt == task.attempt)
        .values(updated_at=now, **values),
    )
    if not moved:
        raise ResultRefused(f"task {task.id} changed while its report came in: send it again")
    session.refresh(task)


def _json(execution: Execution) -> str:
    return json.dumps(execution.model_dump(mode="json"), sort_keys=True)
