"""Heavy work and measurements on the same machine, kept out of each other's way.

An agent may run on the worker's own machine. What it times while a training or an export uses the same cores is worth
nothing. So heavy work waits while a campaign measures here, campaigns wait while heavy work is under way, and a gate
keeps agents from leasing meanwhile, whatever their campaign knows of them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

LOOK_SECONDS = 0.5
"""Between two looks whether whoever waits may go on."""


class LeaseGate(Protocol):
    """Decides whether agents on the machine may have work; both calls may be repeated."""

    def close(self) -> bool:
        """Give them no more leases; return False, changing nothing, while one of them measures."""

    def open(self) -> bool:
        """Let them have leases; return whether that could be stored."""


class Machine:
    """The machine that the worker runs on; one object for all its jobs.

    Attributes:
        identity: hash by which an agent on this machine describes it.
    """

    def __init__(self, identity: str, gate: LeaseGate) -> None:
        self.identity = identity
        self._gate = gate
        self._condition = threading.Condition()
        self._working = 0
        self._measuring = 0
        self._is_open = False  # a worker that was killed may have left the gate closed

    @contextmanager
    def working(self, check: Callable[[], None]) -> Iterator[None]:
        """Do heavy work, after the measurements that are under way; `check` may raise to end the wait."""
        with self._condition:
            while self._measuring or not (self._working or self._close()):
                self._wait(check)
            self._working += 1
        try:
            yield
        finally:
            with self._condition:
                self._working -= 1
                self._condition.notify_all()
            self.settle()

    @contextmanager
    def measuring(self, check: Callable[[], None]) -> Iterator[None]:
        """Have the agent on this machine measure, after the heavy work that is under way."""
        with self._condition:
            while self._working:
                self._wait(check)
            self._measuring += 1
        try:
            yield
        finally:
            with self._condition:
                self._measuring -= 1
                self._condition.notify_all()

    def settle(self) -> None:
        """Open the gate if nothing heavy is under way; called again and again, for the database may fail to answer."""
        with self._condition:
            if not (self._working or self._is_open):
                self._is_open = self._gate.open()

    def _close(self) -> bool:
        is_closed = self._gate.close()
        self._is_open = self._is_open and not is_closed
        return is_closed

    def _wait(self, check: Callable[[], None]) -> None:
        self._condition.wait(LOOK_SECONDS)
        check()
