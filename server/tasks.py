"""Tasks of a job: what is to be timed on a device, made once however often the job is run again."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, Update, func, select, update
from sqlalchemy.orm import Session

from lookup_tables.devices import find_device
from nas.blocks import Block
from nas.config import Config
from profiler.wire import Execution, Policy
from server.database import FINAL_TASK_STATES, Task, TaskState


@dataclass(frozen=True)
class Item:
    """One thing a job wants timed; `block` is None for a whole network."""

    key: str
    label: str
    graph_sha256: str
    graph_bytes: int
    execution: Execution
    policy: Policy
    block: Block | None = None


def network_key(config: Config) -> str:
    """Return the item key of a network that is timed whole."""
    return f"network:{config.id}"


def add_tasks(
    session: Session, job_id: str, device: str, items: Iterable[Item], *, now: datetime, round_: int = 1
) -> tuple[str, ...]:
    """Create one task per item and return their ids; items the round of the job already has are left as they are.

    Raises:
        UnknownDevice: there is no device of that name.
    """
    device_id = find_device(session, device).id
    existing = set(session.scalars(select(Task.item_key).where(Task.job_id == job_id, Task.round == round_)))
    position = session.scalar(select(func.count()).where(Task.job_id == job_id)) or 0
    ids = []
    for item in items:
        ids.append(task_id(job_id, item.key, round_))
        if item.key not in existing:
            existing.add(item.key)
            session.add(_new_task(ids[-1], job_id, round_, device_id, position, item, now))
            position += 1
    session.flush()
    return tuple(ids)


def task_id(job_id: str, item_key: str, round_: int = 1) -> str:
    """Return the id of a job's task for an item: the same whenever the job is run again."""
    return digest(job_id, str(round_), item_key)


def task_counts(session: Session, job_id: str) -> Mapping[TaskState, int]:
    """Count a job's tasks by state; states without any count zero."""
    query = select(Task.state, func.count()).where(Task.job_id == job_id).group_by(Task.state)
    found = {state: number for state, number in session.execute(query)}  # noqa: C416 - dict() knows no row types
    return {state: found.get(state.value, 0) for state in TaskState}


def cancel_tasks(session: Session, job_id: str, *, now: datetime) -> int:
    """Cancel what a job still waits for, and return how many tasks that were; agents learn it when they renew."""
    waiting = Task.state.not_in([state.value for state in FINAL_TASK_STATES])
    # Locked in the order of ids, as leases are given back: two transactions never wait for each other.
    tasks = session.scalars(select(Task.id).where(Task.job_id == job_id, waiting).order_by(Task.id).with_for_update())
    cancelled = update(Task).where(Task.id.in_(tasks.all()), waiting)
    return count_changed(session, cancelled.values(state=TaskState.CANCELLED, updated_at=now))


def count_changed(session: Session, statement: Update) -> int:
    """Execute a conditional UPDATE and return how many rows met the condition."""
    result: CursorResult[Any] = session.execute(statement, execution_options={"synchronize_session": False})  # type: ignore[assignment]
    return result.rowcount


def digest(*parts: str) -> str:
    """Derive an id from what it identifies."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _new_task(
    identity: str, job_id: str, round_: int, device_id: str, position: int, item: Item, now: datetime
) -> Task:
    return Task(
        id=identity,
        job_id=job_id,
        round=round_,
        device_id=device_id,
        position=position,
        item_key=item.key,
        label=item.label,
        block=None if item.block is None else item.block.model_dump(mode="json", exclude_none=True),
        graph_sha256=item.graph_sha256,
        graph_bytes=item.graph_bytes,
        execution=item.execution.model_dump(mode="json"),
        policy=item.policy.model_dump(mode="json"),
        created_at=now,
        updated_at=now,
    )
