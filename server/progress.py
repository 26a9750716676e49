"""How a command without a server tells how far it is, apart from what it prints."""

import time
from collections.abc import Callable
from typing import TextIO

from server.console import LINE_SECONDS, duration
from server.moving_line import MovingLine

MOVE_SECONDS = 0.1
"""Shortest time between two states of a line that moves."""


class Steps:
    """Tells the steps of a command: a line that moves on a terminal, plain lines anywhere else."""

    def __init__(self, out: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Tell on `out`; `clock` counts seconds."""
        self._line, self._clock = MovingLine(out), clock
        self._quiet: dict[str, Callable[[int, int], None]] = {}

    def begin(self, step: str) -> Callable[[int, int], None]:
        """Say what begins; the function returned takes how many of how many are done."""
        self._line.show(step)
        return self._teller(step)

    def tell(self, step: str, done: int, total: int) -> None:
        """Take how many of how many are done of a step that begins when it is first named; a short one stays unsaid."""
        if step not in self._quiet:
            self._quiet[step] = self._teller(step)
        self._quiet[step](done, total)

    def close(self) -> None:
        """Take the moving line off the screen."""
        self._line.clear()

    def _teller(self, step: str) -> Callable[[int, int], None]:
        started = told = self._clock()

        def tell(done: int, total: int) -> None:
            nonlocal told
            now = self._clock()
            is_last_line = done == total and not self._line.moves
            if now - told < (MOVE_SECONDS if self._line.moves else LINE_SECONDS) or is_last_line:
                return
            told = now
            left = f", about {duration((now - started) * (total - done) / done)} left" if 0 < done < total else ""
            self._line.show(f"{step}: {done} of {total}{left}")

        return tell
