"""Measuring in a child process, so that no graph can take the agent or the other graphs with it.

A child that dies leaves the item it had in hand in its marker. That item is set aside, the rest of the group starts
again in a new child, and the suspect is then tried once more alone: only what also dies alone is reported as a crash.
What had been measured before is kept, since results are handed on one by one.
"""

import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from profiler.errors import MeasuringFailed
from profiler.pipe import Advanced, Drop, Event, Finished, Item, Marker, Measured, Order, Ready, Refused, read_event
from profiler.wire import FailureClass, Message

STALL_SECONDS = 120.0
"""A child that takes no other item in hand for so long is killed, and the item timed out."""

START_SECONDS = 120.0
"""A child that has not found its runtime by then is given up; nothing is said about its items."""

_TICK_SECONDS = 0.2
_TAIL_BYTES = 1000
_KILLED = -9
"""What a process killed by SIGKILL returns; the signal has no name on Windows."""

Report = Advanced | Measured | Refused


class Wishes(Protocol):
    """What the caller may change its mind about while a group is measured."""

    @property
    def stopped(self) -> bool:
        """Whether the whole group is to be given up."""

    @property
    def dropped(self) -> frozenset[str]:
        """Keys that nobody wants measured any more."""


class Measurer(Protocol):
    """Whoever can measure a group."""

    def measure(self, order: Order, wishes: Wishes) -> Iterator[Report]:
        """Measure all items of an order, handing on each as soon as it is known."""


class _Death(NamedTuple):
    """How a child ended before its work was done."""

    culprit: str
    failure: FailureClass
    message: str


class ChildMeasurer:
    """Measures each group in a child process of its own."""

    def __init__(self, folder: Path, *, stall_seconds: float = STALL_SECONDS) -> None:
        """Prepare to start children that use `folder` as their working directory."""
        self._folder = folder.resolve()
        self._stall_seconds = stall_seconds
        self._folder.mkdir(parents=True, exist_ok=True)

    def measure(self, order: Order, wishes: Wishes) -> Iterator[Report]:
        """Measure all items of an order, handing on each as soon as it is known.

        Ends early, with items missing, when the wishes say stop. Closing the iterator kills the child. A group in
        which items crash is begun at most once more for each of them, so this ends.

        Raises:
            MeasuringFailed: the child process does not start at all.
        """
        pending = {item.key: item for item in order.items}
        suspects: dict[str, Item] = {}
        while (pending or suspects) and not wishes.stopped:
            group = pending or dict([suspects.popitem()])
            alone = len(group) == 1
            death = yield from self._measure_group(order, group, wishes)
            if death is None:
                group.clear()
            elif alone:
                yield from (Refused(key=key, failure=death.failure, message=death.message) for key in group)
                group.clear()
            elif death.culprit in group:
                suspects[death.culprit] = group.pop(death.culprit)
            else:  # it died between two items: none can be told from the others
                suspects.update(group)
                group.clear()

    def _measure_group(
        self, order: Order, group: dict[str, Item], wishes: Wishes
    ) -> Generator[Report, None, _Death | None]:
        """Run one child; take what is known out of `group`; return how the child died, None if it was not to blame."""
        part = order.model_copy(update={"items": tuple(group.values())})
        done, total = len(order.items) - len(group), len(order.items)
        with _Child(part, self._folder) as child:
            while not wishes.stopped:
                for key in wishes.dropped & group.keys():
                    child.send(Drop(key=key))
                    del group[key]
                match child.next_event():
                    case Finished():
                        return None
                    case Advanced() as event:
                        yield event.model_copy(update={"done": event.done + done, "total": total})
                    case (Measured() | Refused()) as event:
                        if group.pop(event.key, None) is not None:
                            yield event
                    case Ready():
                        child.is_ready = True
                    case _Silence.ENDED:
                        return child.death()
                    case _Silence.QUIET:
                        if child.silent_seconds() > (self._stall_seconds if child.is_ready else START_SECONDS):
                            return child.timed_out()
        return None


class _Silence(Enum):
    """Why there is no event."""

    QUIET = "nothing to say at the moment"
    ENDED = "the pipe has ended"


class _Child:
    """One run of `profiler.measuring`; leaving the context kills it."""

    def __init__(self, order: Order, folder: Path) -> None:
        self.is_ready = False
        marker_path = folder / "in-hand"
        self._marker = Marker(marker_path)
        self._marker.clear()
        self._beat, self._beaten = 0, time.monotonic()
        self._log = (folder / "measuring.log").open("w+b")
        self._events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "profiler.measuring", str(marker_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._reader = threading.Thread(target=self._pump, daemon=True)
        self._reader.start()
        self.send(order)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._marker.close()

    def send(self, message: Message) -> None:
        """Send one line down; a child that is gone is noticed where its events end."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(message.model_dump_json().encode() + b"\n")
                self._process.stdin.flush()

    def next_event(self) -> Event | _Silence:
        """Return the next event, waiting a moment for it."""
        try:
            line = self._events.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            return _Silence.QUIET
        return _Silence.ENDED if line is None else read_event(line)

    def silent_seconds(self) -> float:
        """Return how long the child has had the same item in hand."""
        beat, _ = self._marker.read()
        if beat != self._beat:
            self._beat, self._beaten = beat, time.monotonic()
        return time.monotonic() - self._beaten

    def timed_out(self) -> _Death:
        """Say which item did not come back.

        Raises:
            MeasuringFailed: the process never came up, so no item is to blame.
        """
        if not self.is_ready:
            raise MeasuringFailed(
                f"the measuring process did not start within {START_SECONDS:.0f} s: is the disk stuck?"
            )
        _, culprit = self._marker.read()
        message = f"no answer for {self.silent_seconds():.0f} s: the graph hangs, or is far too slow for this device."
        return _Death(culprit, FailureClass.TIMEOUT, message)

    def death(self) -> _Death:
        """Say how the process ended, and with what in hand.

        Raises:
            MeasuringFailed: it never came up, so no item is to blame.
        """
        code = self._process.wait()
        tail = self._tail()
        if not self.is_ready:
            raise MeasuringFailed(
                f"the measuring process ended with {_ending(code)} before it measured anything: {tail or 'no output'}. "
                "Check the installation with `heatnas-agent describe`."
            )
        _, culprit = self._marker.read()
        if code == _KILLED:
            message = "the measuring process was killed, as the system does when memory runs out."
            return _Death(culprit, FailureClass.OUT_OF_MEMORY, message)
        return _Death(culprit, FailureClass.CRASH, f"the measuring process ended with {_ending(code)}. {tail}".strip())

    def _pump(self) -> None:
        """Move whole lines to the queue; a line cut off by a crash is no event."""
        if self._process.stdout is not None:
            for line in self._process.stdout:
                if line.endswith(b"\n"):
                    self._events.put(line)
        self._events.put(None)

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-_TAIL_BYTES:].decode(errors="replace").strip()


def _ending(code: int) -> str:
    """Name an exit code, or the signal a negative one stands for."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
