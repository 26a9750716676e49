"""A stand-in for measuring: times from a formula instead of a clock, for tests of everything around the agent.

Its results say `simulated` in their context. No table is ever published from one.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from profiler.errors import GraphRefused
from profiler.graphs import check_hash
from profiler.measuring import refusal
from profiler.pipe import Measured, Order
from profiler.session import Session
from profiler.supervisor import Report, Wishes
from profiler.timing import measure_group
from profiler.wire import Execution

COLD_FACTOR = 1.25
"""What the first run after an eviction costs, in hot runs."""


class SimulatedClock:
    """Time that passes only when a session runs."""

    def __init__(self) -> None:
        """Start at zero."""
        self.now_ns = 0

    def __call__(self) -> int:
        """Return the time in nanoseconds."""
        return self.now_ns


class SimulatedSession:
    """A session whose every run takes the same time, and longer right after `evict`."""

    def __init__(self, clock: SimulatedClock, time_ms: float) -> None:
        """Take `time_ms` of the clock for a hot run."""
        self._clock = clock
        self._time_ns = time_ms * 1e6
        self._is_cold = True

    def evict(self) -> None:
        """Make the next run a cold one."""
        self._is_cold = True

    def run(self) -> None:
        """Let the time of one run pass."""
        self._clock.now_ns += round(self._time_ns * (COLD_FACTOR if self._is_cold else 1))
        self._is_cold = False


def time_by_hash(graph: bytes, execution: Execution) -> float:
    """Return 0.1 to 1.1 ms for one thread, from nothing but the hash of the graph; half of it for two threads."""
    share = int.from_bytes(hashlib.sha256(graph).digest()[:4], "big") / 2**32
    return (0.1 + share) / execution.threads


class SimulatedMeasurer:
    """Measures a group without running it: same messages, same rounds, no clock."""

    def __init__(self, time_ms: Callable[[bytes, Execution], float] = time_by_hash) -> None:
        """Take the hot time of each graph from a function of its bytes."""
        self._time_ms = time_ms

    def measure(self, order: Order, wishes: Wishes) -> Iterator[Report]:
        """Measure all items of an order at once, and hand them on one by one."""
        clock = SimulatedClock()
        sessions: dict[str, SimulatedSession] = {}
        for item in order.items:
            try:
                graph = Path(item.path).read_bytes()
                check_hash(graph, item.sha256)
                sessions[item.key] = SimulatedSession(clock, self._time_ms(graph, order.execution))
            except GraphRefused as error:
                yield refusal(item.key, error)

        def evict() -> None:
            for session in sessions.values():
                session.evict()

        timings = measure_group(
            dict[str, Session](sessions),
            order.policy,
            clock=clock,
            rng=random.Random(order.seed),  # noqa: S311  an order of visits, no secret
            evict=evict,
        )
        for key, timing in timings.items():
            if wishes.stopped:
                return
            if key not in wishes.dropped:
                yield Measured(key=key, timing=timing, context={"simulated": 1.0, "seed": float(order.seed)})
