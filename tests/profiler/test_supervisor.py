import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from profiler.errors import MeasuringFailed
from profiler.pipe import Advanced, Item, Marker, Measured, Order, Refused
from profiler.supervisor import ChildMeasurer, Report
from profiler.wire import Execution, FailureClass, Policy

GraphOf = Callable[..., bytes]


class Wish:
    """What a test wants while a group is measured."""

    def __init__(self) -> None:
        self.stopped = False
        self.dropped: frozenset[str] = frozenset()


class Group:
    """Graph files and the order to measure them."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        self._folder, self._policy = folder, policy
        self.items: list[Item] = []
        self.wish = Wish()

    def add(self, key: str, graph: bytes, *, sha256: str | None = None) -> None:
        path = self._folder / f"{key}.onnx"
        path.write_bytes(graph)
        self.items.append(Item(key=key, path=str(path), sha256=sha256 or hashlib.sha256(graph).hexdigest()))

    def measure(
        self, *, stall_seconds: float = 60, on_event: Callable[[Report], None] = lambda _: None
    ) -> list[Report]:
        order = Order(items=tuple(self.items), execution=Execution(), policy=self._policy, seed=5)
        events = []
        for event in ChildMeasurer(self._folder / "work", stall_seconds=stall_seconds).measure(order, self.wish):
            events.append(event)
            on_event(event)
        return events

    def in_hand(self) -> str:
        path = self._folder / "work" / "in-hand"
        if not path.exists() or path.stat().st_size == 0:
            return ""
        marker = Marker(path)
        try:
            return marker.read()[1]
        finally:
            marker.close()


@pytest.fixture
def group(tmp_path: Path, quick: Policy) -> Group:
    return Group(tmp_path, quick)


@pytest.fixture
def long_group(tmp_path: Path) -> Group:
    """A group that takes seconds: time enough to kill its child in the middle."""
    return Group(tmp_path, Policy(min_hot_runs=1200, max_hot_runs=1200))


def kill_child(number: signal.Signals) -> None:
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # killed a moment ago: it has no command line until it is waited for
            if "profiler.measuring" in child.cmdline():
                os.kill(child.pid, number)


def measured(events: list[Report]) -> list[str]:
    return sorted(event.key for event in events if isinstance(event, Measured))


def refused(events: list[Report]) -> dict[str, tuple[FailureClass, str]]:
    return {event.key: (event.failure, event.message) for event in events if isinstance(event, Refused)}


def test_group_is_measured_in_another_process(group: Group, graph_of: GraphOf) -> None:
    for n in range(3):
        group.add(f"item{n}", graph_of(size=16 + n))
    events = group.measure()
    assert measured(events) == ["item0", "item1", "item2"]
    timings = [event for event in events if isinstance(event, Measured)]
    assert all(len(event.timing.hot_ns) == 8 and event.timing.hot_ms > 0 for event in timings)
    assert all(event.context["seed"] == 5.0 and event.context["group_size"] == 3.0 for event in timings)
    last = [event for event in events if isinstance(event, Advanced)][-1]
    assert (last.done, last.total, last.seconds_left) == (3, 3, 0.0)


def test_refused_graphs_cost_only_themselves(group: Group, graph_of: GraphOf) -> None:
    group.add("good", graph_of())
    group.add("other", graph_of(size=8), sha256="0" * 64)
    group.add("broken", b"no graph at all")
    events = group.measure()
    assert measured(events) == ["good"]
    assert refused(events)["other"][0] is FailureClass.HASH_MISMATCH
    assert refused(events)["broken"][0] is FailureClass.UNSUPPORTED
    assert "is not an ONNX model" in refused(events)["broken"][1]


def test_hanging_graph_is_timed_out_and_the_others_are_measured(
    group: Group, graph_of: GraphOf, endless_graph: bytes
) -> None:
    group.add("good", graph_of())
    group.add("endless", endless_graph)
    group.add("better", graph_of(size=8))
    events = group.measure(stall_seconds=1)
    assert measured(events) == ["better", "good"]
    failure, message = refused(events)["endless"]
    assert failure is FailureClass.TIMEOUT
    assert "the graph hangs, or is far too slow for this device" in message


@contextmanager
def killer(group: Group, key: str, number: signal.Signals) -> Iterator[None]:
    """Kill the child whenever it has that item in hand: a graph that crashes each time."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if group.in_hand() == key:
                kill_child(number)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize(
    ("number", "failure", "words"),
    [
        (signal.SIGSEGV, FailureClass.CRASH, "the measuring process ended with signal SIGSEGV"),
        (signal.SIGKILL, FailureClass.OUT_OF_MEMORY, "as the system does when memory runs out"),
    ],
)
def test_graph_that_crashes_alone_too_is_reported_and_the_others_are_measured(
    group: Group, graph_of: GraphOf, endless_graph: bytes, number: signal.Signals, failure: FailureClass, words: str
) -> None:
    group.add("good", graph_of())
    group.add("fatal", endless_graph)
    group.add("better", graph_of(size=8))
    with killer(group, "fatal", number):
        events = group.measure()
    assert measured(events) == ["better", "good"]
    assert refused(events)["fatal"][0] is failure
    assert words in refused(events)["fatal"][1]


def test_item_that_crashes_once_is_measured_in_the_second_try(long_group: Group, graph_of: GraphOf) -> None:
    for n in range(3):
        long_group.add(f"item{n}", graph_of(size=16 + n))
    kills: list[str] = []

    def crash_once(event: Report) -> None:
        if isinstance(event, Advanced) and event.seconds_left is not None and not kills:
            kills.append(long_group.in_hand())
            kill_child(signal.SIGSEGV)

    events = long_group.measure(on_event=crash_once)
    assert len(kills) == 1
    assert measured(events) == ["item0", "item1", "item2"]
    assert refused(events) == {}


def test_dropped_item_is_not_measured(long_group: Group, graph_of: GraphOf) -> None:
    for n in range(2):
        long_group.add(f"item{n}", graph_of(size=16 + n))
    long_group.wish.dropped = frozenset({"item0"})
    assert measured(long_group.measure()) == ["item1"]


def test_stopped_group_ends_at_once_and_its_child_is_gone(long_group: Group, graph: bytes) -> None:
    long_group.add("item", graph)

    def stop(_: Report) -> None:
        long_group.wish.stopped = True

    assert measured(long_group.measure(on_event=stop)) == []
    assert not [child for child in psutil.Process().children() if "profiler.measuring" in child.cmdline()]


def test_child_that_does_not_start_is_an_error_of_the_device_not_of_a_graph(
    group: Group, graph: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libonnxruntime.so is not for this machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    group.add("item", graph)
    with pytest.raises(
        MeasuringFailed, match=r"(?s)ended with exit code 1.*libonnxruntime\.so is not for this machine"
    ):
        group.measure()
