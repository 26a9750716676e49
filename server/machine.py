"""Heavy work and measurements on the same machine, kept out of each other's way.

An agent may run on the worker's own machine. What it times while a training or an export uses the same cores is worth
nothing, so that children wait while it measures, and tasks wait while children work.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_SECONDS = 0.5
"""Between two looks whether whoever waits may go on."""


class Machine:
    """The machine that the worker runs on; one object for all its jobs.

    Attributes:
        identity: hash by which an agent on this machine describes it.
    """

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._condition = threading.Condition()
        self._working = 0
        self._measuring = 0

    @contextmanager
    def working(self, check: Callable[[], None]) -> Iterator[None]:
        """Do heavy work, after the measurements that are under way; `check` may raise to end the wait."""
        with self._condition:
            while self._measuring:
                self._wait(check)
            self._working += 1
        try:
            yield
        finally:
            with self._condition:
                self._working -= 1
                self._condition.notify_all()

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

    def _wait(self, check: Callable[[], None]) -> None:
        self._condition.wait(LOOK_SECONDS)
        check()
