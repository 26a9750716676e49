"""How the agent talks to a person: a bar on a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LINE_SECONDS = 10.0
"""Plain progress lines come at most this often."""


class PlainReporter:
    """Writes lines, for logs and pipes."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write each line with `write`."""
        self._write, self._clock = write, clock
        self._last = -LINE_SECONDS

    def note(self, text: str) -> None:
        """Say one line."""
        self._write(text)

    def progress(self, done: int, total: int, seconds_left: float | None) -> None:
        """Say how far the lease is, unless that was said just now."""
        if self._clock() - self._last >= LINE_SECONDS:
            self._last = self._clock()
            self._write(f"measured {done} of {total}, {time_left(seconds_left)}")

    def close(self) -> None:
        """Have nothing to put away."""


class BarReporter:
    """Draws a bar on a terminal, with the notes above it."""

    def __init__(self, console: "Console") -> None:
        """Draw on `console` from the first progress on."""
        self._console = console
        self._bar: Progress | None = None

    def note(self, text: str) -> None:
        """Say one line."""
        self._console.print(text, markup=False, highlight=False)

    def progress(self, done: int, total: int, seconds_left: float | None) -> None:
        """Move the bar; it goes away when all is done."""
        bar = self._bar or self._draw()
        bar.update(bar.task_ids[0], completed=done, total=total, left=time_left(seconds_left), refresh=True)
        if done == total:
            self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self) -> "Progress":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415  slow to import

        columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        # No refresh of its own: a thread that draws ten times a second would take part in what is being timed.
        self._bar = Progress(*columns, console=self._console, transient=True, auto_refresh=False)
        self._bar.add_task("measuring", total=None, left="")
        self._bar.start()
        return self._bar


def time_left(seconds: float | None) -> str:
    """Say an upper bound of the time left."""
    if seconds is None:
        return "warming up"
    minutes, rest = divmod(round(seconds), 60)
    return f"at most {minutes} min {rest} s left" if minutes else f"at most {rest} s left"
