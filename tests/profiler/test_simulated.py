import hashlib
from pathlib import Path

from profiler.pipe import Item, Measured, Order, Refused
from profiler.simulated import COLD_FACTOR, SimulatedMeasurer, time_by_hash
from profiler.wire import Execution, FailureClass, Policy


class NoWishes:
    stopped = False
    dropped: frozenset[str] = frozenset()


def order(folder: Path, *graphs: bytes) -> Order:
    items = []
    for n, graph in enumerate(graphs):
        (folder / f"{n}").write_bytes(graph)
        items.append(Item(key=f"item{n}", path=str(folder / f"{n}"), sha256=hashlib.sha256(graph).hexdigest()))
    return Order(items=tuple(items), execution=Execution(), policy=Policy(), seed=1)


def test_times_are_those_of_the_formula_and_say_that_they_are_simulated(tmp_path: Path) -> None:
    measurer = SimulatedMeasurer(lambda graph, _: float(len(graph)))
    events = list(measurer.measure(order(tmp_path, b"xx", b"xxx"), NoWishes()))
    measured = {event.key: event for event in events if isinstance(event, Measured)}
    assert measured["item0"].timing.hot_ms == 2.0
    assert measured["item1"].timing.hot_ms == 3.0
    assert measured["item1"].timing.cold_ms == 3.0 * COLD_FACTOR
    assert all(event.timing.converged and event.context["simulated"] == 1.0 for event in measured.values())


def test_same_order_same_result(tmp_path: Path) -> None:
    runs = [list(SimulatedMeasurer().measure(order(tmp_path, b"a", b"b"), NoWishes())) for _ in range(2)]
    assert runs[0] == runs[1]


def test_damaged_graph_is_refused_like_a_real_one(tmp_path: Path) -> None:
    damaged = order(tmp_path, b"a")
    (tmp_path / "0").write_bytes(b"b")
    (event,) = SimulatedMeasurer().measure(damaged, NoWishes())
    assert isinstance(event, Refused)
    assert event.failure is FailureClass.HASH_MISMATCH


def test_two_threads_take_half_the_time() -> None:
    assert time_by_hash(b"a", Execution(threads=2)) == time_by_hash(b"a", Execution()) / 2
