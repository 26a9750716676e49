import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from profiler.agent import Agent, Summary
from profiler.client import AgentClient
from profiler.device import describe_device
from profiler.errors import DuplicateIdentity, NotAuthorised, ServerUnreachable
from profiler.graphs import GraphCache
from profiler.identity import result_id
from profiler.journal import Journal, State
from profiler.pipe import Order, Refused
from profiler.simulated import SimulatedMeasurer
from profiler.supervisor import ChildMeasurer, Measurer, Report, Wishes
from profiler.wire import FailureClass, Lease, LeaseRequest, Policy

GraphOf = Callable[..., bytes]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done: int, total: int, _: float | None) -> None:
        self.steps.append((done, total))


class Device:
    """A state folder on which agents are started one after the other."""

    def __init__(self, folder: Path, server: Any, token: str, stack: ExitStack) -> None:
        self.folder, self._server, self.token, self._stack = folder, server, token, stack
        self.reporter = Notes()
        self.slept: list[float] = []

    def agent(self, *, measurer: Measurer | None = None, max_tasks: int = 64, group_bytes: int = 2**20) -> Agent:
        self._stack.close()
        client = AgentClient(self._server.url, self.token, patience_seconds=1, sleep=lambda _: None)
        self.journal = Journal(self.folder / "journal.sqlite")
        self._stack.enter_context(self.journal)
        return Agent(
            device="bench",
            description=describe_device(),
            client=self._stack.enter_context(client),
            journal=self.journal,
            cache=GraphCache(self.folder / "graphs"),
            measurer=measurer or SimulatedMeasurer(),
            reporter=self.reporter,
            rng=random.Random(0),
            now=lambda: NOW,
            sleep=self.slept.append,
            max_tasks=max_tasks,
            group_bytes=group_bytes,
        )


@pytest.fixture
def device(tmp_path: Path, server: Any, token: str) -> Iterator[Device]:
    with ExitStack() as stack:
        yield Device(tmp_path, server, token, stack)


class Recording(SimulatedMeasurer):
    """Remembers the orders it got."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Order] = []

    def measure(self, order: Order, wishes: Wishes) -> Iterator[Report]:
        self.orders.append(order)
        yield from super().measure(order, wishes)


class Interrupted(SimulatedMeasurer):
    """Hands on one result, then the user presses Ctrl-C."""

    def measure(self, order: Order, wishes: Wishes) -> Iterator[Report]:
        yield next(super().measure(order, wishes))
        raise KeyboardInterrupt


def test_one_pass_measures_and_uploads_everything(device: Device, server: Any, graph_of: GraphOf) -> None:
    for n in range(5):
        server.add(f"t{n}", graph_of(size=8 + n))
    assert device.agent().run_once() == Summary(leased=5, measured=5, failed=0, uploaded=5)
    assert sorted(task for task, _ in server.accepted) == ["t0", "t1", "t2", "t3", "t4"]
    assert sum(device.journal.counts().values()) == 0
    assert server.renewals[0] == {"done": 0, "total": 5, "seconds_left": None}
    assert device.agent().run_once() == Summary(0, 0, 0, 0)


def test_result_says_what_was_measured_where_and_when(device: Device, server: Any, graph: bytes) -> None:
    task = server.add("t", graph)
    device.agent().run_once()
    ((identity, result),) = server.results.items()
    assert identity == result_id(result)
    assert (result.agent_id, result.task_id, result.attempt) == ("agent-1", "t", 1)
    assert (result.graph_sha256, result.execution) == (task.graph_sha256, task.execution)
    assert result.measured_at == "2026-01-02T03:04:05+00:00"
    assert result.context["simulated"] == 1.0
    assert {"governor", "frequency_mhz", "load", "seed", "agent_version"} <= result.context.keys()


def test_real_measurement_in_a_child_process(device: Device, server: Any, graph_of: GraphOf) -> None:
    server.add("good", graph_of())
    server.add("broken", b"not a graph")
    device.agent(measurer=ChildMeasurer(device.folder / "work")).run_once()
    assert [task for task, _ in server.accepted] == ["good"]
    ((task, failure),) = server.failures
    assert (task, failure["failure"], failure["attempt"]) == ("broken", "unsupported", 1)
    (result,) = server.results.values()
    assert len(result.timing.hot_ns) == 8
    assert "simulated" not in result.context


def test_graph_with_another_hash_is_a_failure_and_not_measured(device: Device, server: Any, graph_of: GraphOf) -> None:
    server.add("good", graph_of())
    bad = server.add("bad", graph_of(size=8))
    server.blobs[bad.graph_sha256] = graph_of(weight=2.0, size=8)
    assert device.agent().run_once() == Summary(leased=2, measured=1, failed=1, uploaded=2)
    ((task, failure),) = server.failures
    assert (task, failure["failure"]) == ("bad", "hash_mismatch")
    assert "it was damaged or replaced on its way" in failure["message"]
    assert "bad" not in [result.task_id for result in server.results.values()]


def test_graph_the_server_has_lost_is_a_failure(device: Device, server: Any, graph: bytes) -> None:
    del server.blobs[server.add("t", graph).graph_sha256]
    device.agent().run_once()
    assert server.failures[0][1]["failure"] == "hash_mismatch"
    assert "no such blob" in server.failures[0][1]["message"]


def test_graph_is_fetched_once(device: Device, server: Any, graph: bytes) -> None:
    for n in range(3):
        server.add(f"t{n}", graph)
    device.agent().run_once()
    server.add("later", graph)
    device.agent().run_once()
    assert server.log.count("GET blobs") == 1


def test_whole_batch_is_one_group_unless_ways_of_running_or_memory_part_it(
    device: Device, server: Any, graph_of: GraphOf
) -> None:
    size = len(graph_of())
    for n in range(4):
        server.add(f"one{n}", graph_of(weight=n))
    for n in range(2):
        server.add(f"two{n}", graph_of(weight=n), threads=2)
    server.add("other", graph_of(), policy=Policy())
    measurer = Recording()
    device.agent(measurer=measurer, group_bytes=3 * size + 2).run_once()
    groups = [[item.key for item in order.items] for order in measurer.orders]
    assert groups == [["one0", "one1", "one2"], ["one3"], ["two0", "two1"], ["other"]]
    assert [order.execution.threads for order in measurer.orders] == [1, 1, 2, 1]
    assert len({order.seed for order in measurer.orders}) == 4


def test_no_more_tasks_are_leased_than_wanted(device: Device, server: Any, graph_of: GraphOf) -> None:
    for n in range(3):
        server.add(f"t{n}", graph_of(weight=n))
    agent = device.agent(max_tasks=2)
    assert [agent.run_once().leased for _ in range(3)] == [2, 1, 0]


def test_cancelled_task_is_dropped(device: Device, server: Any, graph_of: GraphOf) -> None:
    for n in range(2):
        server.add(f"t{n}", graph_of(weight=n))
    server.cancelled = ("t0",)
    assert device.agent().run_once().measured == 1
    assert [task for task, _ in server.accepted] == ["t1"]
    assert device.journal.counts()[State.LEASED] == 0


def test_interrupted_agent_uploads_and_gives_the_rest_back(device: Device, server: Any, graph_of: GraphOf) -> None:
    for n in range(3):
        server.add(f"t{n}", graph_of(weight=n))
    with pytest.raises(KeyboardInterrupt):
        device.agent(measurer=Interrupted()).run_once()
    assert len(server.accepted) == 1
    assert len(server.released) == 1
    assert server.crashed == []
    assert list(server.state.values()).count("pending") == 2
    assert sum(device.journal.counts().values()) == 0


def test_interrupt_with_the_server_away_loses_nothing(device: Device, server: Any, graph_of: GraphOf) -> None:
    for n in range(2):
        server.add(f"t{n}", graph_of(weight=n))
    server.before = lambda kind: (503, "") if kind.startswith("PUT") or kind.endswith("release") else None
    with pytest.raises(KeyboardInterrupt):
        device.agent(measurer=Interrupted()).run_once()
    assert device.journal.counts()[State.MEASURED] == 1
    server.before = lambda _: None
    assert device.agent().run_once() == Summary(leased=1, measured=1, failed=0, uploaded=1)
    assert (len(server.released), server.crashed) == (1, [])  # it was asked to stop, and did not die
    assert sorted(task for task, _ in server.accepted) == ["t0", "t1"]
    assert sum(device.journal.counts().values()) == 0


def test_server_that_goes_away_in_mid_upload_gets_the_rest_after_the_restart(
    device: Device, server: Any, graph_of: GraphOf
) -> None:
    for n in range(4):
        server.add(f"t{n}", graph_of(weight=n))
    puts = []

    def away_after_two(kind: str) -> tuple[int, str] | None:
        puts.append(kind)
        return (502, "<html>") if kind.startswith("PUT") and puts.count(kind) > 2 else None

    server.before = away_after_two
    with pytest.raises(ServerUnreachable, match=r"no sensible answer from http://127\.0\.0\.1:\d+ \(status 502\)"):
        device.agent().run_once()
    assert device.journal.counts()[State.MEASURED] == 2
    server.before = lambda _: None
    at = len(server.log)
    device.agent().run_once()
    assert server.log[at : at + 4] == ["POST agents", "PUT results", "PUT results", "POST agents leases"]
    assert sorted(task for task, _ in server.accepted) == ["t0", "t1", "t2", "t3"]


def test_result_acknowledged_but_not_noted_is_sent_again_and_changes_nothing(
    device: Device, server: Any, graph: bytes
) -> None:
    server.add("t", graph)
    agent = device.agent()
    seen = []

    def note_backlog(kind: str) -> None:
        if kind == "PUT results":
            seen.append(kind)

    server.before = note_backlog
    agent.run_once()
    (result,) = server.results.values()
    device.journal.claim(lease_of(server, "t"))
    device.journal.keep_result(result_id(result), result)  # as after a kill between the reply and the note of it
    device.agent().run_once()
    assert len(seen) == 2
    assert len(server.accepted) == 1
    assert sum(device.journal.counts().values()) == 0


def lease_of(server: Any, task_id: str) -> Lease:
    return Lease(lease_id="gone", lease_seconds=1, tasks=(server.tasks[task_id],))


def test_result_the_server_refuses_is_kept_and_the_others_go_on(device: Device, server: Any, graph_of: GraphOf) -> None:
    for n in range(3):
        server.add(f"t{n}", graph_of(weight=n))
    first = []

    def refuse_first(kind: str) -> tuple[int, str] | None:
        if kind == "PUT results" and not first:
            first.append(kind)
            return 422, '{"error": "InvalidMeasurement", "message": "times must grow"}'
        return None

    server.before = refuse_first
    assert device.agent().run_once().uploaded == 2
    assert device.journal.counts()[State.REFUSED] == 1
    assert any("times must grow It stays in the journal" in note for note in device.reporter.notes)


@pytest.mark.parametrize("answer", [(404, "<html>not found</html>"), (302, ""), (413, '{"message": "too large"}')])
def test_result_that_only_a_proxy_refuses_is_sent_again(
    device: Device, server: Any, graph: bytes, answer: tuple[int, str]
) -> None:
    server.add("t", graph)
    server.before = lambda kind: answer if kind == "PUT results" else None
    agent = device.agent()
    assert agent.run_once().uploaded == 0
    assert device.journal.counts()[State.MEASURED] == 1
    assert any("It is kept, and sent again later." in note for note in device.reporter.notes)
    server.before = lambda _: None
    assert agent.run_once().uploaded == 1
    assert len(server.accepted) == 1


def test_server_that_has_forgotten_the_agent_gets_the_result_after_enrolling(
    device: Device, server: Any, graph: bytes
) -> None:
    server.add("t", graph)
    unknown = 404, '{"error": "UnknownAgent", "message": "no agent agent-1: enrol"}'
    server.before = lambda kind: unknown if kind == "PUT results" and server.log.count("POST agents") == 1 else None
    agent = device.agent()
    assert agent.run_once().uploaded == 0
    assert device.journal.counts()[State.MEASURED] == 1
    agent.run_once()
    assert server.log.count("POST agents") == 2
    assert len(server.accepted) == 1
    assert sum(device.journal.counts().values()) == 0


def test_leases_of_a_killed_agent_are_given_back_at_the_start(device: Device, server: Any, graph: bytes) -> None:
    server.add("t", graph)
    device.agent()
    client = AgentClient(server.url, device.token)
    with client:
        lease = client.lease("agent-1", LeaseRequest())
    device.journal.claim(lease)
    assert device.agent().run_once().measured == 1
    assert server.released == server.crashed == [lease.lease_id]
    assert server.tasks["t"].attempt == 2
    assert [task for task, _ in server.accepted] == ["t"]


def test_lease_lost_in_the_middle_drops_the_unmeasured_and_keeps_the_measured(
    device: Device, server: Any, graph_of: GraphOf
) -> None:
    for n in range(3):
        server.add(f"t{n}", graph_of(weight=n))

    class Expiring(SimulatedMeasurer):
        def measure(self, order: Order, wishes: Wishes) -> Iterator[Report]:
            reports = super().measure(order, wishes)
            yield next(reports)
            server.expire_all()
            while not wishes.stopped:
                pass
            yield from reports

    server.lease_seconds = 0.3
    summary = device.agent(measurer=Expiring()).run_once()
    assert summary.measured == 1
    assert server.accepted == []  # its attempt was over: the server keeps it as a replicate
    assert len(server.results) == 1
    assert any("no longer ours" in note and "unmeasured tasks are dropped" in note for note in device.reporter.notes)
    server.lease_seconds = 30
    device.agent().run_once()
    assert sorted(task for task, _ in server.accepted) == ["t0", "t1", "t2"]


def test_wrong_token_is_said_at_once(device: Device) -> None:
    device.token = device.token[::-1]
    with pytest.raises(NotAuthorised, match="HEATNAS_TOKEN"):
        device.agent().run_once()


def test_server_that_forgot_the_agent_gets_it_enrolled_again(device: Device, server: Any, graph: bytes) -> None:
    agent = device.agent()
    agent.run_once()
    server.add("t", graph)
    forgets = iter([(404, '{"message": "no such agent"}')])
    server.before = lambda kind: next(forgets, None) if kind == "POST agents leases" else None
    assert agent.run_once().leased == 0
    assert agent.run_once().measured == 1
    assert server.log.count("POST agents") == 2


def test_run_once_to_the_end_stops_when_nothing_is_left(device: Device, server: Any, graph_of: GraphOf) -> None:
    for n in range(3):
        server.add(f"t{n}", graph_of(weight=n))
    device.agent(max_tasks=2).run(once=True)
    assert len(server.accepted) == 3


def test_message_of_a_failure_is_one_plain_line(device: Device, server: Any, graph: bytes) -> None:
    class Failing(SimulatedMeasurer):
        def measure(self, order: Order, _: Wishes) -> Iterator[Report]:  # type: ignore[override]
            message = "first\nsecond \x1b[31m\udcff" + "x" * 9000
            yield from (Refused(key=item.key, failure=FailureClass.CRASH, message=message) for item in order.items)

    server.add("t", graph)
    device.agent(measurer=Failing()).run_once()
    ((_, failure),) = server.failures
    assert failure["message"].startswith("first second [31m?xxx")
    assert len(failure["message"]) == 4000


def test_running_agent_waits_for_its_twin_and_a_single_run_does_not(device: Device, server: Any, graph: bytes) -> None:
    server.add("t", graph)
    twin = (409, '{"error": "DuplicateIdentity", "message": "agent-1 is at work on lease l"}')

    def at_work_for_a_while(kind: str) -> tuple[int, str] | None:
        if kind != "POST agents leases":
            return None
        if server.accepted:
            return 403, ""
        return twin if len(device.slept) < 2 else None

    server.before = at_work_for_a_while
    with pytest.raises(DuplicateIdentity, match="is at work on lease l"):
        device.agent().run(once=True)
    with pytest.raises(NotAuthorised):  # how this test ends a run that never ends
        device.agent().run(once=False)
    assert device.slept == [0.1, 0.1]
    assert len(server.accepted) == 1


def test_running_agent_waits_for_a_server_that_went_away(device: Device, server: Any, graph: bytes) -> None:
    server.add("t", graph)

    def away_for_a_while(kind: str) -> tuple[int, str] | None:
        if kind != "POST agents leases":
            return None
        if server.accepted:
            return 403, ""
        return (503, "") if len(device.slept) < 2 else None

    server.before = away_for_a_while
    with pytest.raises(NotAuthorised):  # how this test ends a run that never ends
        device.agent().run(once=False)
    assert device.slept == [0.1, 0.1]  # the pause the server asked for
    assert sum("Trying again in 0 s." in note for note in device.reporter.notes) == 2
    assert len(server.accepted) == 1
