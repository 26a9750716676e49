"""How a group of graphs is timed so that the numbers repeat.

Every unfinished item is visited once per round, in a new random order each round: what disturbs the machine for a while
then hits all items alike. A visit is one cold run (private caches emptied just before) and a few hot ones. An item is
finished when it was measured for long enough and the confidence interval of its hot median is narrow enough, or when
its runs are used up. One item of the group
also serves as the reference: it is run between the rounds, and a round with a slow reference on either side is thrown
away and repeated. Clock, randomness and eviction are passed in.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from profiler.errors import GraphRefused
from profiler.session import Session
from profiler.summary import count_outliers, median_interval
from profiler.wire import Policy, Timing

SHORT_NS = 20_000
"""Below this a run is timed in blocks: reading the clock (0.1 us from Python) would show in a single one."""
BLOCK_NS = 200_000
"""Length of such a block; the clock is then below 0.1 % of it."""

STABLE = 0.02
"""Warm-up ends when the medians of two blocks, the second twice as long, differ by at most this."""
WARMUP_CAP_BLOCKS = 15
WARMUP_CAP_NS = 1_000_000_000
"""... or after this many times the policy's warm-up runs, or this long, whichever comes first."""

REFERENCE_TOLERANCE = 0.1
"""A reference this much above its usual time tells of a disturbance. Usual is the lower quartile: where
neighbours slow a machine down by a quarter for half of the time (seen on a shared one), the median jumps between two
speeds. On a quiet stretch there, the quartiles of single runs lay 4.5 % below and above their median."""

REFERENCE_RUNS = 3
REFERENCE_PRIMING = 3
"""Readings of the reference before the first round: without them the first rounds had nothing to be judged by."""
REFERENCE_MAX_NS = 5_000_000
MAX_REJECTED_ROUNDS = 10
MAX_REJECTED_SHARE = 0.6
"""A machine that is never quiet is measured as it is after this many repeats, or after this share of all rounds where
those are many; the context says how many there were."""

Clock = Callable[[], int]
Context = dict[str, str | float | None]


class Progress(NamedTuple):
    """How far a group is; `seconds_left` is an upper bound, None while warming up."""

    done: int
    total: int
    seconds_left: float | None


def _ignore(*_: object) -> None:
    """Let an event pass."""


def _keep_all(_: str) -> bool:
    return False


def _raise(_: str, error: GraphRefused) -> None:
    raise error


@dataclass(frozen=True)
class Watch:
    """Who is told what while a group is measured; everything is called between runs, never within one."""

    visiting: Callable[[str], None] = _ignore
    progress: Callable[[Progress], None] = _ignore
    result: Callable[[str, Timing, Context], None] = _ignore
    refused: Callable[[str, GraphRefused], None] = _raise
    is_dropped: Callable[[str], bool] = _keep_all
    """Asked before each visit: whether nobody wants this item any more."""


@dataclass(eq=False)
class _Item:
    key: str
    run: Callable[[], None]
    warmup_runs: int = 0
    expected_ns: float = 0.0
    hot: list[int] = field(default_factory=list)
    cold: list[int] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    visits: int = 0
    rejected: int = 0

    @property
    def repeats(self) -> int:
        """Runs behind one hot sample."""
        return 1 if self.expected_ns >= SHORT_NS else math.ceil(BLOCK_NS / max(self.expected_ns, 1.0))


class _Visit(NamedTuple):
    item: _Item
    cold_ns: int
    hot_ns: list[int]


def measure_group(
    sessions: Mapping[str, Session],
    policy: Policy,
    *,
    clock: Clock,
    rng: random.Random,
    evict: Callable[[], None],
    watch: Watch | None = None,
) -> dict[str, Timing]:
    """Time all sessions interleaved; return the timing of each that was neither dropped nor refused.

    Args:
        sessions: what to run, by a key of the caller's choice.
        policy: when a measurement is good enough.
        clock: monotonic time in nanoseconds.
        rng: decides the order of each round.
        evict: empties the private caches, before each cold run.
        watch: who is told; by default nobody, and a session that refuses to run raises.
    """
    return _Group(sessions, policy, clock, rng, evict, watch or Watch()).measure()


def time_run(run: Callable[[], None], clock: Clock, *, repeats: int = 1) -> int:
    """Return the nanoseconds of one run, averaged over `repeats` of them."""
    started = clock()
    for _ in range(repeats):
        run()
    return round((clock() - started) / repeats)


class _Group:
    def __init__(
        self,
        sessions: Mapping[str, Session],
        policy: Policy,
        clock: Clock,
        rng: random.Random,
        evict: Callable[[], None],
        watch: Watch,
    ) -> None:
        self._policy, self._clock, self._rng, self._evict, self._watch = policy, clock, rng, evict, watch
        self._open = [_Item(key, session.run) for key, session in sessions.items()]
        self._timings: dict[str, Timing] = {}
        self._started = clock()
        self._readings: list[float] = []
        self._rounds = self._rejected = 0
        self._reference: Callable[[], None] | None = None

    def measure(self) -> dict[str, Timing]:
        self._attend(self._warm_up)
        self._prime_reference()
        self._started = self._clock()
        while self._open:
            self._tell_progress()
            self._round()
        self._tell_progress()
        return self._timings

    def _attend(self, act: Callable[[_Item], None]) -> None:
        """Do something with every open item in random order; those dropped or refused are open no longer."""
        for item in self._rng.sample(self._open, len(self._open)):
            if self._watch.is_dropped(item.key):
                self._open.remove(item)
                continue
            self._watch.visiting(item.key)
            try:
                act(item)
            except GraphRefused as error:
                self._open.remove(item)
                self._watch.refused(item.key, error)

    def _warm_up(self, item: _Item) -> None:
        """Run until arena and memory pattern have grown and the clock of the core has settled."""
        block, before, started = self._policy.warmup_runs, math.inf, self._clock()
        while True:
            item.expected_ns = median(time_run(item.run, self._clock) for _ in range(block))
            item.warmup_runs += block
            stable = abs(item.expected_ns - before) <= STABLE * item.expected_ns
            spent = item.warmup_runs >= WARMUP_CAP_BLOCKS * self._policy.warmup_runs
            if stable or spent or self._clock() - started >= WARMUP_CAP_NS:
                return
            block, before = 2 * block, item.expected_ns

    def _prime_reference(self) -> None:
        """Choose the slowest item below 5 ms, else the fastest: steady enough to judge by, cheap enough to repeat."""
        if len(self._open) < 2:  # an item that judges itself would only select its own samples
            return
        cheap = [item for item in self._open if item.expected_ns <= REFERENCE_MAX_NS]
        by_time = sorted(cheap or self._open, key=lambda item: item.expected_ns)
        self._reference = (by_time[-1] if cheap else by_time[0]).run
        for _ in range(REFERENCE_PRIMING):
            self._read_reference()

    def _read_reference(self) -> None:
        if self._reference is not None:
            self._reference()
            self._readings.append(median(time_run(self._reference, self._clock) for _ in range(REFERENCE_RUNS)))

    def _round(self) -> None:
        visits: list[_Visit] = []
        self._attend(lambda item: visits.append(self._visit(item)))
        self._read_reference()
        due = [visit for visit in visits if self._is_due(visit.item)]
        for visit in visits:
            visit.item.visits += 1
        self._rounds += bool(due)
        if due and self._is_disturbed() and self._rejected < self._most_rejected():
            self._rejected += 1
            for visit in due:
                visit.item.rejected += 1
            return
        for visit in due:
            self._take(visit)

    def _most_rejected(self) -> float:
        return max(MAX_REJECTED_ROUNDS, MAX_REJECTED_SHARE * self._rounds)

    def _is_due(self, item: _Item) -> bool:
        """Tell whether to keep the runs of a visit; an item ahead of its schedule runs to keep the machine as it is."""
        share = len(item.hot) / self._policy.max_hot_runs
        return self._elapsed() >= self._policy.min_seconds * share

    def _elapsed(self) -> float:
        """Return the seconds since the first round began."""
        return (self._clock() - self._started) / 1e9

    def _visit(self, item: _Item) -> _Visit:
        self._evict()
        cold = time_run(item.run, self._clock)
        hot = min(self._policy.hot_runs_per_visit, self._policy.max_hot_runs - len(item.hot))
        return _Visit(item, cold, [time_run(item.run, self._clock, repeats=item.repeats) for _ in range(hot)])

    def _is_disturbed(self) -> bool:
        """Tell whether the reference was slow before or after the round that has just ended."""
        if not self._readings:
            return False
        usual = sorted(self._readings)[len(self._readings) // 4]
        return max(self._readings[-2:]) > (1 + REFERENCE_TOLERANCE) * usual

    def _take(self, visit: _Visit) -> None:
        item, policy = visit.item, self._policy
        item.cold.append(visit.cold_ns)
        item.hot.extend(visit.hot_ns)
        item.reference.extend(self._readings[-1:])
        if len(item.hot) < policy.min_hot_runs:
            return
        timing = _summarise(item, policy)
        if len(item.hot) >= policy.max_hot_runs or (timing.converged and self._elapsed() >= policy.min_seconds):
            self._open.remove(item)
            self._timings[item.key] = timing
            self._watch.result(item.key, timing, _context(item))

    def _tell_progress(self) -> None:
        runs_ns = sum(
            item.expected_ns * item.repeats * (self._policy.max_hot_runs - len(item.hot)) for item in self._open
        )
        left = self._policy.min_seconds - self._elapsed() if self._open else 0
        total = len(self._timings) + len(self._open)
        self._watch.progress(Progress(len(self._timings), total, max(runs_ns / 1e9, left, 0.0)))


def _summarise(item: _Item, policy: Policy) -> Timing:
    low, high, confidence = median_interval(item.hot, policy.confidence)
    middle = median(item.hot)
    return Timing(
        hot_ns=tuple(item.hot),
        cold_ns=tuple(item.cold),
        hot_ms=middle / 1e6,
        cold_ms=median(item.cold) / 1e6,
        low_ms=low / 1e6,
        high_ms=high / 1e6,
        confidence=confidence,
        converged=confidence >= policy.confidence and (high - low) / middle < policy.max_relative_width,
        outliers=count_outliers(item.hot),
        rounds=len(item.cold),
        warmup_runs=item.warmup_runs,
    )


def _context(item: _Item) -> Context:
    """Return the circumstances of one timing; without a reference its times are None, not zero."""
    readings = [reading / 1e6 for reading in item.reference]
    return {
        "visits": float(item.visits),
        "rounds_rejected": float(item.rejected),
        "runs_per_sample": float(item.repeats),
        "reference_ms": median(readings) if readings else None,
        "reference_by_round_ms": " ".join(f"{reading:.6g}" for reading in readings) or None,
    }
