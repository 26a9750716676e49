"""A line that moves on a terminal, plain lines anywhere else."""

import shutil
from typing import TextIO


class MovingLine:
    """The last line of a terminal, where a command shows how far it is; elsewhere every text is a line of its own.

    Attributes:
        moves: whether `out` is a terminal.
    """

    def __init__(self, out: TextIO | None) -> None:
        """Show on `out`; None shows nothing."""
        self._out = out
        self.moves = out is not None and out.isatty()

    def show(self, text: str) -> None:
        """Replace what the line says; no more is shown than fits on it, for what wraps cannot be taken away."""
        self._write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}" if self.moves else f"{text}\n")

    def say(self, text: str) -> None:
        """Leave a text for good, and the line free below it."""
        self._write(f"\r\x1b[K{text}\n" if self.moves else f"{text}\n")

    def clear(self) -> None:
        """Take the line off the terminal."""
        if self.moves:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._out is not None:
            self._out.write(text)
            self._out.flush()
