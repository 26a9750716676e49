"""How a command without a server tells how far it is, apart from what it prints."""

import time
from collections.abc import Callable
from typing import TextIO

from server.console import LINE_SECONDS, duration


class Steps:
    """Tells the steps of a command: a line that moves on a terminal, plain lines anywhere else."""

    def __init__(self, out: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Tell on `out`; `clock` counts seconds."""
        self._out, self._clock = out, clock
        self._moves = out.isatty()

    def begin(self, step: str) -> Callable[[int, int], None]:
        """Say what begins; the function returned takes how many of how many are done."""
        self._write(step)
        started = told = self._clock()

        def tell(done: int, total: int) -> None:
            nonlocal told
            now = self._clock()
            if not self._moves and (now - told < LINE_SECONDS or done == total):
                return
            told = now
            left = f", about {duration((now - started) * (total - done) / done)} left" if 0 < done < total else ""
            self._write(f"{step}: {done} of {total}{left}")

        return tell

    def close(self) -> None:
        """Take the moving line off the screen."""
        if self._moves:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def _write(self, text: str) -> None:
        self._out.write(f"\r\x1b[K{text}" if self._moves else f"{text}\n")
        self._out.flush()
