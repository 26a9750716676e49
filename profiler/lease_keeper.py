"""Holding a lease while its tasks are measured: renewals from a thread, and what the server says in reply."""

import threading
import time
from collections.abc import Callable
from typing import Self

from profiler.client import AgentClient
from profiler.errors import LeaseLost, ServerError, ServerUnreachable
from profiler.wire import Lease, Renewal

RETRY_SECONDS = 5.0
"""After a renewal that did not get through, the next try comes this soon."""


class LeaseKeeper:
    """A context in which a lease is renewed; work begins only after the first renewal has succeeded.

    Counts its own deadline on the monotonic clock, from before each request was sent: no clocks are compared. A server
    that cannot be reached costs nothing until the deadline and one more lease are over; the results are then late at
    worst, which the server takes as replicates.

    Attributes:
        stopped: the lease is lost: what is not yet measured is no longer ours.
        dropped: tasks the server has cancelled.
        why: what ended the lease, None while it holds.
    """

    def __init__(
        self,
        client: AgentClient,
        lease_id: str,
        lease: Lease,
        *,
        renew_seconds: float,
        asked_at: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep a lease that was asked for at `asked_at` on `clock`."""
        self.stopped = False
        self.dropped: frozenset[str] = frozenset()
        self.why: ServerError | None = None
        self._client, self._lease_id, self._renew_seconds, self._clock = client, lease_id, renew_seconds, clock
        self._lease_seconds = lease.lease_seconds
        self._deadline = asked_at + lease.lease_seconds
        self._progress = Renewal(done=0, total=len(lease.tasks))
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Renew for the first time.

        Raises:
            LeaseLost: the lease is not ours, or the server did not answer while it ran.
        """
        while not self._renew():
            if self.stopped:
                raise self.why or LeaseLost(f"lease {self._lease_id} is over")
            self._leaving.wait(min(RETRY_SECONDS, self._renew_seconds))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def note(self, done: int, total: int, seconds_left: float | None) -> None:
        """Tell how far the work is, for the next renewal."""
        self._progress = Renewal(done=done, total=total, seconds_left=seconds_left)

    def _keep(self) -> None:
        wait = self._renew_seconds
        while not self.stopped and not self._leaving.wait(wait):
            wait = self._renew_seconds if self._renew() else min(RETRY_SECONDS, self._renew_seconds)

    def _renew(self) -> bool:
        """Renew once; tell whether the server agreed."""
        sent_at = self._clock()
        try:
            renewed = self._client.renew(self._lease_id, self._progress)
        except ServerUnreachable as error:
            if self._clock() > self._deadline + self._lease_seconds:
                self._stop(error)
            return False
        except ServerError as error:
            self._stop(error)
            return False
        self._lease_seconds = renewed.lease_seconds
        self._deadline = sent_at + renewed.lease_seconds
        self.dropped = self.dropped | frozenset(renewed.cancelled)
        return True

    def _stop(self, error: ServerError) -> None:
        self.why = error
        self.stopped = True
