import random
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat

import pytest

from profiler.errors import GraphTooBig
from profiler.session import Session
from profiler.timing import MAX_REJECTED_ROUNDS, Context, Progress, Watch, measure_group
from profiler.wire import Policy, Timing

MS = 1_000_000
POLICY = Policy(warmup_runs=3, hot_runs_per_visit=4, min_hot_runs=8, max_hot_runs=16)


class Clock:
    """Time passes only when a session runs."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Scripted:
    """A session whose runs take scripted times; `log` gets its name at each run."""

    def __init__(self, name: str, clock: Clock, times: Iterator[int], log: list[str]) -> None:
        self._name, self._clock, self._times, self._log = name, clock, times, log

    def run(self) -> None:
        self._log.append(self._name)
        self._clock.now += next(self._times)


class Bench:
    """A group of scripted sessions and everything that was told while it was measured."""

    def __init__(self, seed: int = 0) -> None:
        self.clock, self.log, self.sessions = Clock(), [], dict[str, Session]()
        self.results: list[tuple[str, Timing, Context]] = []
        self.progress: list[Progress] = []
        self.seed = seed

    def add(self, name: str, times: Iterator[int]) -> None:
        self.sessions[name] = Scripted(name, self.clock, times, self.log)

    def measure(self, policy: Policy = POLICY, **watch: Callable[..., object]) -> dict[str, Timing]:
        return measure_group(
            self.sessions,
            policy,
            clock=self.clock,
            rng=random.Random(self.seed),
            evict=lambda: self.log.append("evict"),
            watch=Watch(
                progress=self.progress.append,
                result=lambda *result: self.results.append(result),
                **watch,  # type: ignore[arg-type]
            ),
        )


def script(*parts: tuple[int, int]) -> Iterator[int]:
    """(how many runs, how long each) one after the other, the last for ever."""
    for count, time in parts:
        yield from repeat(time, count)
    yield from repeat(parts[-1][1])


def warm(time: int = MS) -> list[tuple[int, int]]:
    """A warm-up that is stable at once: blocks of 3 and 6 runs."""
    return [(9, time)]


def test_steady_session_stops_at_the_least_number_of_runs() -> None:
    bench = Bench()
    visit = [(1, 3 * MS), (4, 2 * MS)]
    bench.add("a", script(*warm(2 * MS), *visit, *visit))
    timing = bench.measure()["a"]
    assert timing.hot_ns == (2 * MS,) * 8
    assert timing.cold_ns == (3 * MS,) * 2
    assert (timing.hot_ms, timing.cold_ms, timing.low_ms, timing.high_ms) == (2.0, 3.0, 2.0, 2.0)
    assert (timing.converged, timing.rounds, timing.warmup_runs, timing.outliers) == (True, 2, 9, 0)


def test_every_cold_run_comes_right_after_an_eviction() -> None:
    bench = Bench()
    bench.add("a", script(*warm()))
    bench.measure()
    assert bench.log[9:] == ["evict", "a", "a", "a", "a", "a"] * 2


def test_noisy_session_ends_at_the_most_runs_unconverged() -> None:
    bench = Bench()
    bench.add("a", iter([*[2 * MS] * 9, *[MS, 3 * MS] * 100]))
    timing = bench.measure()["a"]
    assert len(timing.hot_ns) == 16
    assert timing.rounds == 4
    assert not timing.converged
    assert (timing.low_ms, timing.high_ms) == (1.0, 3.0)


def test_runs_never_exceed_the_policy_when_visits_do_not_divide_it() -> None:
    bench = Bench()
    bench.add("a", iter([*[2 * MS] * 9, *[MS, 3 * MS] * 100]))
    timing = bench.measure(Policy(warmup_runs=3, hot_runs_per_visit=4, min_hot_runs=5, max_hot_runs=10))["a"]
    assert len(timing.hot_ns) == 10
    assert timing.rounds == 3


def test_kept_runs_are_spread_over_the_least_time() -> None:
    bench = Bench()
    clock = bench.clock
    bench.add("a", (MS + clock.now // 1000 for _ in repeat(None)))  # 0.1 % slower with every millisecond
    policy = Policy(warmup_runs=3, hot_runs_per_visit=1, min_hot_runs=5, max_hot_runs=10, min_seconds=0.1)
    timing = bench.measure(policy)["a"]
    assert len(timing.hot_ns) == 10
    gaps = [later - sooner for sooner, later in pairwise(timing.hot_ns)]
    assert all(5_000 <= gap <= 15_000 for gap in gaps), gaps  # about 10 ms apart, and a run tells when it was made
    assert clock.now >= 90 * MS


def test_converged_item_is_measured_until_the_least_time_is_over() -> None:
    bench = Bench()
    bench.add("a", script(*warm()))
    policy = Policy(warmup_runs=3, hot_runs_per_visit=1, min_hot_runs=5, max_hot_runs=1000, min_seconds=0.1)
    timing = bench.measure(policy)["a"]
    assert timing.converged
    assert 100 * MS <= bench.clock.now - 9 * MS <= 102 * MS
    assert len(timing.hot_ns) == 50  # of 2 ms a visit: a cold run and a hot one
    assert bench.progress[0].seconds_left == pytest.approx(1.0)
    assert bench.progress[-1].seconds_left == 0


def test_outliers_are_counted_and_kept() -> None:
    bench = Bench()
    bench.add("a", script(*warm(), (1, 2 * MS), (3, MS), (1, 9 * MS), (1, 2 * MS), (4, MS)))
    timing = bench.measure()["a"]
    assert timing.outliers == 1
    assert 9 * MS in timing.hot_ns
    assert timing.hot_ms == 1.0


def test_warm_up_goes_on_until_two_blocks_agree() -> None:
    bench = Bench()
    bench.add("a", script((3, 5 * MS), (6, 2 * MS), (1000, MS)))
    # Medians of blocks of 3, 6, 12, 24: 5, 2, 1, 1 ms.
    assert bench.measure()["a"].warmup_runs == 3 + 6 + 12 + 24


def test_warm_up_of_a_session_that_never_settles_is_capped() -> None:
    bench = Bench()
    bench.add("a", iter(range(MS, 10**12, MS // 2)))
    assert bench.measure()["a"].warmup_runs == 3 + 6 + 12 + 24


def test_warm_up_of_a_very_slow_session_is_capped_by_time() -> None:
    bench = Bench()
    bench.add("a", script((3, 400 * MS), (1000, 300 * MS)))
    assert bench.measure()["a"].warmup_runs == 3


def test_short_session_is_timed_in_blocks_of_a_fifth_of_a_millisecond() -> None:
    bench = Bench()
    bench.add("a", script((10_000, 5_000)))
    timing = bench.measure()["a"]
    assert timing.hot_ns == (5_000,) * 8
    assert timing.cold_ns == (5_000,) * 2
    assert bench.results[0][2]["runs_per_sample"] == 40.0
    assert bench.log.count("a") == 9 + 2 * (1 + 4 * 40)


def test_each_round_visits_every_open_item_once_in_an_order_of_its_own() -> None:
    bench = Bench(seed=3)
    names = [f"item{n}" for n in range(6)]
    for name in names:
        bench.add(name, script(*warm()))
    bench.measure()
    cold = [bench.log[at + 1] for at, entry in enumerate(bench.log) if entry == "evict"]
    assert [sorted(cold[:6]), sorted(cold[6:])] == [names, names]
    assert cold[:6] != cold[6:]


def test_same_seed_same_order() -> None:
    logs = []
    for _ in range(2):
        bench = Bench(seed=7)
        for name in "abcde":
            bench.add(name, script(*warm()))
        bench.measure()
        logs.append(bench.log)
    assert logs[0] == logs[1]


def test_finished_item_is_handed_on_while_the_others_go_on() -> None:
    bench = Bench()
    bench.add("noisy", iter([*[MS] * 9, *[MS, 3 * MS] * 100]))
    bench.add("steady", script(*warm(2 * MS)))
    finished_at: dict[str, int] = {}
    timings = measure_group(
        bench.sessions,
        Policy(warmup_runs=3, min_hot_runs=8, max_hot_runs=40),
        clock=bench.clock,
        rng=random.Random(0),
        evict=lambda: None,
        watch=Watch(result=lambda key, *_: finished_at.__setitem__(key, bench.clock.now)),
    )
    assert finished_at["steady"] < finished_at["noisy"]
    assert len(timings["noisy"].hot_ns) > len(timings["steady"].hot_ns) == 8


class DisturbedReference(Scripted):
    """Takes 1 ms, but another time while `is_disturbed`: the machine, seen through the reference."""

    is_disturbed = False
    disturbed_ns = 2 * MS

    def run(self) -> None:
        self._log.append(self._name)
        self._clock.now += self.disturbed_ns if self.is_disturbed else MS


def disturbed_bench(disturbed_rounds: set[int], disturbed_ns: int) -> Bench:
    """Two items; the reference (the slower one) is slow in some rounds, counted by the visits of the other."""
    bench = Bench()
    reference = DisturbedReference("reference", bench.clock, repeat(MS), bench.log)
    reference.disturbed_ns = disturbed_ns
    visits = 0
    bench.sessions["reference"] = reference
    bench.sessions["other"] = Scripted("other", bench.clock, repeat(MS // 2), bench.log)

    def evict() -> None:
        nonlocal visits
        visits += 1
        reference.is_disturbed = (visits - 1) // 2 in disturbed_rounds

    bench.evict = evict  # type: ignore[attr-defined]
    return bench


def measure_disturbed(
    disturbed_rounds: set[int], policy: Policy = POLICY, disturbed_ns: int = 2 * MS
) -> list[tuple[str, Timing, Context]]:
    bench = disturbed_bench(disturbed_rounds, disturbed_ns)
    measure_group(
        bench.sessions,
        policy,
        clock=bench.clock,
        rng=random.Random(0),
        evict=bench.evict,  # type: ignore[attr-defined]
        watch=Watch(result=lambda *result: bench.results.append(result)),
    )
    return bench.results


def test_undisturbed_rounds_are_all_kept() -> None:
    for _, timing, context in measure_disturbed(set()):
        assert timing.rounds == 2
        assert context["rounds_rejected"] == 0.0
        assert context["reference_ms"] == 1.0
        assert context["reference_by_round_ms"] == "1 1"


def test_round_with_the_reference_off_is_repeated_and_so_is_the_one_after_it() -> None:
    # Round 1 ends with a slow reading, which is also the reading before round 2.
    for _, timing, context in measure_disturbed({1}):
        assert context["rounds_rejected"] == 2.0
        assert timing.rounds == 2
        assert max(timing.hot_ns) == min(timing.hot_ns)


def test_machine_that_is_slow_half_of_the_time_is_measured_while_it_is_not() -> None:
    policy = POLICY.model_copy(update={"min_hot_runs": 50, "max_hot_runs": 50, "hot_runs_per_visit": 2})
    for key, timing, context in measure_disturbed(set(range(10, 25)), policy, 5 * MS // 4):
        assert context["rounds_rejected"] == 16.0
        assert timing.rounds == 25
        assert set(timing.hot_ns) == {MS if key == "reference" else MS // 2}


@pytest.mark.parametrize("disturbed_ns", [MS // 2, 109 * MS // 100])
def test_reference_that_is_faster_or_hardly_slower_tells_of_no_disturbance(disturbed_ns: int) -> None:
    for _, _, context in measure_disturbed({1}, disturbed_ns=disturbed_ns):
        assert context["rounds_rejected"] == 0.0


def test_machine_that_is_never_quiet_is_measured_after_a_bounded_number_of_repeats() -> None:
    noisy = set(range(0, 100, 2))
    for _, timing, context in measure_disturbed(noisy):
        assert context["rounds_rejected"] == float(MAX_REJECTED_ROUNDS)
        assert timing.rounds >= 2


def test_single_item_has_no_reference_to_be_judged_by() -> None:
    bench = Bench()
    bench.add("a", script(*warm()))
    bench.measure()
    context = bench.results[0][2]
    assert context["reference_ms"] is None
    assert context["reference_by_round_ms"] is None
    assert context["rounds_rejected"] == 0.0


def test_dropped_item_is_not_visited_again_and_has_no_timing() -> None:
    bench = Bench()
    for name in "ab":
        bench.add(name, script(*warm()))
    timings = bench.measure(is_dropped=lambda key: key == "a" and "evict" in bench.log)
    assert list(timings) == ["b"]
    assert bench.progress[-1] == Progress(1, 1, 0.0)


class OutOfMemory:
    def run(self) -> None:
        raise GraphTooBig("out of memory on this graph")


def test_session_that_refuses_to_run_costs_only_itself() -> None:
    bench = Bench()
    bench.add("good", script(*warm()))
    bench.sessions["bad"] = OutOfMemory()
    refused: list[tuple[str, str]] = []
    timings = bench.measure(refused=lambda key, error: refused.append((key, str(error))))
    assert refused == [("bad", "out of memory on this graph")]
    assert list(timings) == ["good"]


def test_session_that_refuses_raises_when_nobody_watches() -> None:
    with pytest.raises(GraphTooBig, match="out of memory on this graph"):
        measure_group({"bad": OutOfMemory()}, POLICY, clock=Clock(), rng=random.Random(0), evict=lambda: None)


def test_progress_counts_down_an_upper_bound() -> None:
    bench = Bench()
    bench.add("a", script(*warm()))
    bench.measure()
    assert bench.progress == [Progress(0, 1, 0.016), Progress(0, 1, 0.012), Progress(1, 1, 0.0)]


def test_nothing_to_measure_is_no_error() -> None:
    assert measure_group({}, POLICY, clock=Clock(), rng=random.Random(0), evict=lambda: None) == {}
