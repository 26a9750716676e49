"""A job with tasks for the device of an enrolled agent."""

from datetime import datetime, timedelta

from sqlalchemy import Engine

from profiler.wire import PROTOCOL, Enrolled, Enrolment, Policy, Release, Result
from server.database import Job, JobState, writing
from server.leases import LeaseTerms, enrol
from server.tasks import Item, add_tasks
from tests.lookup_tables.results import BLOCKS, GRAPH, NOON, ONE_THREAD, a_result, described

TERMS = LeaseTerms()
GIVEN_BACK = Release()
CRASHED = Release(crashed=True)


def seconds(number: float) -> datetime:
    return NOON + timedelta(seconds=number)


def enrolment(*, device: str = "laptop", protocol: int = PROTOCOL, machine: str = "m" * 64) -> Enrolment:
    return Enrolment(
        device=device,
        protocol=protocol,
        agent_version="0.1.0",
        description=described(machine=machine, version="1.31.1"),
    )


def enrolled(engine: Engine, *, device: str = "laptop", at: datetime = NOON) -> Enrolled:
    with writing(engine) as session:
        return enrol(session, enrolment(device=device), TERMS, now=at)


def an_item(number: int) -> Item:
    """One of three blocks, or a whole network for every larger number."""
    block = BLOCKS[number] if number < len(BLOCKS) else None
    return Item(
        key=block.key if block else f"network:{number}",
        label=block.label if block else f"reference {number}",
        graph_sha256=GRAPH,
        graph_bytes=1000 + number,
        execution=ONE_THREAD,
        policy=Policy(),
        block=block,
    )


def campaign(engine: Engine, number: int, *, job: str = "job", device: str = "laptop") -> tuple[str, ...]:
    """Store a running job with that many tasks, and return their ids."""
    with writing(engine) as session:
        if session.get(Job, job) is None:
            session.add(Job(id=job, kind="profile", state=JobState.RUNNING, parameters={}, created_at=NOON))
            session.flush()
        return add_tasks(session, job, device, map(an_item, range(number)), now=NOON)


def result_for(task: str, agent: str, *, attempt: int = 1, nonce: str = "") -> Result:
    return a_result(task=task, agent=agent, attempt=attempt, context={"nonce": nonce})
