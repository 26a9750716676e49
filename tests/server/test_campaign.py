import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from profiler.wire import Execution, Policy, Renewal
from server import leases
from server.campaign import _Campaign, measure
from server.database import writing
from server.errors import JobCancelled, TasksFailed
from server.parameters import TrainParameters
from server.tasks import Item, add_tasks
from tests.server.agents import enrol_agent
from tests.server.dry import DEVICE, NANO, Bench, now, tasks_of

BLOCK = NANO.all_blocks()[0]


def until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.open(tmp_path / "data")
    yield bench
    bench.database.dispose()


def item(number: int = 0) -> Item:
    return Item(f"{BLOCK.key}-{number}", BLOCK.label, "a" * 64, 10, Execution(), Policy(), BLOCK)


def submit(bench: Bench) -> str:
    return bench.submit("train", TrainParameters())


def test_without_an_agent_it_says_so_and_goes_on_when_one_comes(bench: Bench) -> None:
    job = submit(bench)
    context = bench.context(job)
    context.tables.register_device(DEVICE, now=now())
    found: list[dict[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(measure(context, DEVICE, [item()], share=(0, 1))))
    thread.start()
    waiting = "no agent of bench is at work: start `heatnas-agent --device bench` on it; what was measured is kept"
    until(lambda: waiting in bench.told(job))
    with bench.agent():
        thread.join()
    assert "the agent of bench is at work" in bench.told(job)
    (task,) = tasks_of(bench, job)
    assert found == [{item().key: task.measurement_id}]
    assert bench.jobs.get(job).progress == 1


def test_a_graph_larger_than_agents_are_asked_to_run_is_not_handed_out(bench: Bench) -> None:
    job = submit(bench)
    context = replace(bench.context(job), settings=bench.settings.model_copy(update={"max_graph_bytes": 9}))
    message = (
        f"2 of 2 graphs are larger than the 9 bytes agents are asked to run, {BLOCK.label} has 10: start server "
        "and worker with a larger HEATNAS_MAX_GRAPH_BYTES and submit the job again"
    )
    with pytest.raises(TasksFailed, match=re.escape(message)):
        measure(context, DEVICE, [item(0), item(1)], share=(0, 1))
    assert tasks_of(bench, job) == []


def test_cancelling_ends_the_wait(bench: Bench) -> None:
    job = submit(bench)
    context = bench.context(job)
    enrol_agent(bench.database, DEVICE)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            measure(context, DEVICE, [item()], share=(0, 1))
        except JobCancelled as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: len(tasks_of(bench, job)) == 1)
    bench.jobs.cancel(job, now=now())
    thread.join(10)
    assert [str(error) for error in caught] == [f"job {job} was cancelled"]


def test_progress_follows_the_time_that_the_agent_says_is_left(bench: Bench) -> None:
    """Tasks that are timed interleaved end together: counting the finished ones would stand still, then jump."""
    job = submit(bench)
    context = bench.context(job)
    agent = enrol_agent(bench.database, DEVICE)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            measure(context, DEVICE, [item(number) for number in range(4)], share=(0.2, 1))
        except JobCancelled as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: len(tasks_of(bench, job)) == 4)
    with writing(bench.database) as session:
        lease = leases.lease(session, agent, 2, leases.LeaseTerms(), now=now() - timedelta(seconds=30))
    assert lease.lease_id is not None
    with writing(bench.database) as session:
        renewal = Renewal(done=0, total=2, seconds_left=30)
        leases.renew(session, lease.lease_id, renewal, leases.LeaseTerms(), now=now())
    until(lambda: bench.jobs.get(job).progress > 0.2)
    progress = bench.jobs.get(job).progress
    bench.jobs.cancel(job, now=now())
    thread.join(10)
    assert progress == pytest.approx(0.2 + 0.8 * 2 / 4 * 0.5, abs=0.02)
    assert len(caught) == 1


HERE = "1" * 64


def lease_of(bench: Bench, agent: str) -> tuple[str, ...]:
    """Ask for work; return the labels of what is given."""
    with writing(bench.database) as session:
        may = leases.may_lease(session, agent, now=now())
        given = leases.lease(session, agent, 8, leases.LeaseTerms(), now=now())
    assert may == bool(given.tasks)
    return tuple(task.label for task in given.tasks)


def test_an_agent_that_wakes_up_beside_heavy_work_gets_none_before_it_ends(bench: Bench) -> None:
    """Its campaign does not see it awake at once, so that no campaign could keep it from measuring."""
    context = bench.context(submit(bench), identity=HERE)
    agent = enrol_agent(bench.database, DEVICE, machine_hash=HERE)
    elsewhere = enrol_agent(bench.database, "board", machine_hash="2" * 64)
    for number, device in enumerate((DEVICE, "board")):
        with writing(bench.database) as session:
            add_tasks(session, context.job, device, [item(number)], now=now())
    with context.machine.working(context.check):
        assert lease_of(bench, agent) == ()
        assert lease_of(bench, elsewhere) == (BLOCK.label,)
    assert lease_of(bench, agent) == (BLOCK.label,)


def test_heavy_work_waits_for_a_lease_that_outlived_its_worker(bench: Bench) -> None:
    job = submit(bench)
    agent = enrol_agent(bench.database, DEVICE, machine_hash=HERE)
    with writing(bench.database) as session:
        add_tasks(session, job, DEVICE, [item()], now=now())
    assert lease_of(bench, agent) == (BLOCK.label,)
    restarted, begun = bench.context(job, identity=HERE), threading.Event()

    def work() -> None:
        with restarted.machine.working(restarted.check):
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not begun.wait(0.3)
    bench.report(agent)
    assert begun.wait(10)
    thread.join()
    (task,) = tasks_of(bench, job)
    assert (task.state, task.attempt) == ("done", 1)


def test_what_a_silent_agent_measured_beside_heavy_work_does_not_count(bench: Bench) -> None:
    context = bench.context(submit(bench), identity=HERE)
    agent = enrol_agent(bench.database, DEVICE, machine_hash=HERE)
    whole = replace(item(), key=BLOCK.key)
    with writing(bench.database) as session:
        add_tasks(session, context.job, DEVICE, [whole], now=now())
        long_ago = now() - timedelta(hours=1)
        leases.lease(session, agent, 8, leases.LeaseTerms(), now=long_ago)
    (stale,) = tasks_of(bench, context.job)
    with context.machine.working(context.check):
        pass
    bench.report(agent, stale)
    assert context.tables.unmeasured(DEVICE, Execution(), [BLOCK]) == (BLOCK,)
    assert lease_of(bench, agent) == (BLOCK.label,)
    bench.report(agent)
    (task,) = tasks_of(bench, context.job)
    assert (task.state, task.attempt) == ("done", 3)
    assert context.tables.unmeasured(DEVICE, Execution(), [BLOCK]) == ()


def test_a_worker_that_was_killed_at_work_does_not_keep_the_agent_out(bench: Bench) -> None:
    job = submit(bench)
    agent = enrol_agent(bench.database, DEVICE, machine_hash=HERE)
    with writing(bench.database) as session:
        add_tasks(session, job, DEVICE, [item()], now=now())
    killed, restarted = bench.context(job, identity=HERE), bench.context(job, identity=HERE)
    working = killed.machine.working(killed.check)
    working.__enter__()
    assert lease_of(bench, agent) == ()
    restarted.machine.settle()
    assert lease_of(bench, agent) == (BLOCK.label,)


def test_a_job_that_was_cancelled_just_before_gets_no_tasks(bench: Bench) -> None:
    """Nobody would cancel them, and the agent would time them ahead of every later job's."""
    job = submit(bench)
    context = bench.context(job)
    enrol_agent(bench.database, DEVICE)
    campaign = _Campaign(context, DEVICE, [item()], (0, 1), 1)
    bench.jobs.cancel(job, now=now())
    with pytest.raises(JobCancelled, match=f"job {job} was cancelled"):
        campaign.add()
    assert tasks_of(bench, job) == []


@pytest.mark.parametrize(("machine", "together"), [("1" * 64, False), ("2" * 64, True)])
def test_children_wait_while_the_agent_on_this_machine_measures(bench: Bench, machine: str, together: bool) -> None:
    job = submit(bench)
    context = bench.context(job, identity="1" * 64)
    enrol_agent(bench.database, DEVICE, machine_hash=machine)
    done = threading.Event()

    def wait() -> None:
        with pytest.raises(JobCancelled):
            measure(context, DEVICE, [item()], share=(0, 1))
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: len(tasks_of(bench, job)) == 1 and context.machine._measuring == (not together))
    worked = threading.Event()

    def work() -> None:
        with context.machine.working(lambda: None):
            worked.set()

    worker = threading.Thread(target=work)
    worker.start()
    assert worked.wait(0.3) == together
    bench.jobs.cancel(job, now=now())
    assert done.wait(10)
    assert worked.wait(10)
    thread.join()
    worker.join()
