"""No lease for an agent on a machine that does heavy work: the mark is where leases are given, in the database.

Only so does it hold for an agent that starts, or is heard of again, while the work is under way, and for one that goes
on measuring after its worker was killed. What such an agent still measures of a lease that is over would have been
timed beside the work: its attempts are voided, the results become late replicates.
"""

import logging
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from server.database import Agent, BusyMachine, Lease, Task, TaskState, writing
from server.tasks import count_changed

log = logging.getLogger(__name__)


class Gate:
    """The mark of one machine; `close` and `open` may be called again and again."""

    def __init__(self, database: Engine, machine_hash: str, *, clock: Callable[[], datetime]) -> None:
        self._database, self._machine_hash, self._clock = database, machine_hash, clock

    def close(self) -> bool:
        """Give agents on the machine no more leases; return False, changing nothing, while one of them measures."""
        try:
            with writing(self._database) as session:
                return _close(session, self._machine_hash, self._clock())
        except OperationalError as error:
            log.warning("the database does not answer (%s); heavy work waits", error.orig)
            return False

    def open(self) -> bool:
        """Let agents on the machine have leases again; return whether that could be stored."""
        try:
            with writing(self._database) as session:
                session.execute(delete(BusyMachine).where(BusyMachine.machine_hash == self._machine_hash))
        except OperationalError as error:
            log.warning("the database does not answer (%s); agents on this machine wait", error.orig)
            return False
        return True


def is_closed(session: Session, agent: Agent) -> bool:
    """Tell whether heavy work is under way on the machine of an agent."""
    return session.get(BusyMachine, agent.description["machine_hash"]) is not None


def _close(session: Session, machine_hash: str, now: datetime) -> bool:
    # Locked as by whoever leases: of a lease and a closing gate, one sees the other.
    here = select(Agent).where(Agent.description["machine_hash"].as_string() == machine_hash).order_by(Agent.id)
    agents = session.scalars(here.with_for_update()).all()
    held = (
        select(Task.id)
        .join(Lease, Lease.id == Task.lease_id)
        .where(
            Task.state == TaskState.LEASED,
            Lease.agent_id.in_([agent.id for agent in agents]),
            Lease.ended_at.is_(None),
            Lease.expires_at > now,
        )
    )
    if session.scalar(held.limit(1)) is not None:
        return False
    handed_out = Task.state.in_([TaskState.PENDING, TaskState.LEASED]) & (Task.attempt > 0)
    devices = Task.device_id.in_([agent.device_id for agent in agents])
    count_changed(session, update(Task).where(devices, handed_out).values(attempt=Task.attempt + 1, updated_at=now))
    session.merge(BusyMachine(machine_hash=machine_hash, since=now))
    return True
