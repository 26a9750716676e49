"""What the agent and its measuring process say to each other: one JSON object per line.

Down the pipe goes one Order, then a Drop for each item nobody wants any more. Up come events; the end of either pipe
means that the other side is gone. The item in hand stands in a small mapped file instead of a message: it survives a
crash, and writing it wakes no other process while something is being timed.
"""

import mmap
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from profiler.wire import Execution, FailureClass, Message, Policy, Sha256, Timing

_MARK_BYTES = 4096


class Item(Message):
    """A graph to be timed under a key; the file is checked against its hash when it is read."""

    key: str = Field(min_length=1, max_length=512)
    path: str
    sha256: Sha256


class Order(Message):
    """One group, to be measured interleaved."""

    items: tuple[Item, ...] = Field(min_length=1)
    execution: Execution
    policy: Policy
    seed: int


class Drop(Message):
    """Stop measuring an item."""

    key: str


class Ready(Message):
    """The process is up and has found its runtime."""

    event: Literal["ready"] = "ready"


class Advanced(Message):
    """How far the group is; `seconds_left` is an upper bound, None while sessions are opened."""

    event: Literal["advanced"] = "advanced"
    done: int
    total: int
    seconds_left: float | None


class Measured(Message):
    """An item is finished."""

    event: Literal["measured"] = "measured"
    key: str
    timing: Timing
    context: dict[str, str | float | None]


class Refused(Message):
    """An item cannot be measured."""

    event: Literal["refused"] = "refused"
    key: str
    failure: FailureClass
    message: str


class Finished(Message):
    """Nothing is left of the group."""

    event: Literal["finished"] = "finished"


Event = Annotated[Ready | Advanced | Measured | Refused | Finished, Field(discriminator="event")]
_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def read_event(line: bytes) -> Event:
    """Read one line of the measuring process."""
    return _EVENTS.validate_json(line)


class Marker:
    """The item in hand, in a mapped file that outlives the process that wrote it."""

    def __init__(self, path: Path) -> None:
        """Map the file, which is made empty unless it is there."""
        if not path.exists():
            path.write_bytes(bytes(_MARK_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _MARK_BYTES)

    def write(self, key: str) -> None:
        """Take an item in hand; every call changes the content, so that a reader sees signs of life."""
        beat = (int.from_bytes(self._map[:8], "little") + 1) % 2**64
        encoded = key.encode()
        self._map[:] = (
            beat.to_bytes(8, "little") + len(encoded).to_bytes(4, "little") + encoded.ljust(_MARK_BYTES - 12, b"\0")
        )

    def read(self) -> tuple[int, str]:
        """Return (number of writes, item in hand), the item empty before the first."""
        length = int.from_bytes(self._map[8:12], "little")
        return int.from_bytes(self._map[:8], "little"), self._map[12 : 12 + length].decode(errors="replace")

    def clear(self) -> None:
        """Forget the item."""
        self._map[:] = bytes(_MARK_BYTES)

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()
