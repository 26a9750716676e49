import threading
from collections.abc import Callable, Iterator

import httpx2
import pytest

from profiler.client import AgentClient
from profiler.errors import LeaseLost, NotAuthorised
from profiler.lease_keeper import LeaseKeeper
from profiler.wire import Lease, Renewal

GONE = httpx2.Response(410)
DOWN = httpx2.Response(503)


def held(*cancelled: str) -> httpx2.Response:
    return httpx2.Response(200, json={"lease_seconds": 30, "cancelled": list(cancelled)})


class Held:
    """A lease of 30 s, renewed every millisecond, by a clock the test turns."""

    def __init__(self, *answers: httpx2.Response) -> None:
        self.now = 100.0
        self.renewals: list[Renewal] = []
        self.reached = threading.Event()
        self._answers: Iterator[httpx2.Response] = iter(answers)
        self._last = answers[-1]
        client = AgentClient("http://server", "t", transport=httpx2.MockTransport(self._answer), sleep=lambda _: None)
        lease = Lease(lease_id="lease-1", lease_seconds=30, tasks=())
        self.keeper = LeaseKeeper(
            client, "lease-1", lease, renew_seconds=0.001, asked_at=self.now, clock=lambda: self.now
        )

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.renewals.append(Renewal.model_validate_json(request.content))
        answer = next(self._answers, None)
        if answer is None:
            self.reached.set()
        answer = answer or self._last
        return httpx2.Response(answer.status_code, content=answer.content)

    def until(self, condition: Callable[[], bool]) -> None:
        tick = threading.Event()
        for _ in range(2000):
            if condition():
                return
            tick.wait(0.005)
        raise AssertionError("it did not happen within 10 s")


def test_work_begins_after_the_first_renewal() -> None:
    lease = Held(DOWN, DOWN, held())
    with lease.keeper:
        assert len(lease.renewals) >= 3


def test_lease_lost_before_the_work_begins_is_raised() -> None:
    with pytest.raises(LeaseLost, match="lease lease-1 is no longer ours"), Held(GONE).keeper:
        raise AssertionError("work must not begin")


def test_cancelled_tasks_add_up() -> None:
    lease = Held(held(), held("a"), held("b"))
    with lease.keeper as keeper:
        lease.until(lambda: keeper.dropped == {"a", "b"})
        assert not keeper.stopped


def test_lease_that_is_gone_stops_the_work() -> None:
    lease = Held(held(), GONE)
    with lease.keeper as keeper:
        lease.until(lambda: keeper.stopped)
        assert isinstance(keeper.why, LeaseLost)


def test_token_refused_in_the_middle_stops_the_work() -> None:
    lease = Held(held(), httpx2.Response(401))
    with lease.keeper as keeper:
        lease.until(lambda: keeper.stopped)
        assert isinstance(keeper.why, NotAuthorised)


def test_server_away_for_less_than_two_leases_costs_nothing() -> None:
    lease = Held(held(), DOWN)
    with lease.keeper as keeper:
        lease.now += 59.9
        assert lease.reached.wait(10)
        assert not keeper.stopped


def test_server_away_for_longer_stops_the_work() -> None:
    lease = Held(held(), DOWN)
    with lease.keeper as keeper:
        lease.now += 60.1
        lease.until(lambda: keeper.stopped)
        assert "no sensible answer from http://server" in str(keeper.why)


def test_renewals_carry_the_progress() -> None:
    lease = Held(held())
    with lease.keeper as keeper:
        keeper.note(3, 7, 12.5)
        lease.until(lambda: lease.renewals[-1] == Renewal(done=3, total=7, seconds_left=12.5))
