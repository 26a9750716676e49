"""How the command line tells about jobs."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from server.client import Client, Event, Job
from server.moving_line import MovingLine

Json = dict[str, Any]

LINE_SECONDS = 10.0
"""Where output is no terminal, progress is told at most this often."""


class JobTeller:
    """Tells what happens to one job, and how long it will take at the pace so far."""

    def __init__(self, out: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Tell on `out`; `clock` counts seconds."""
        self._line, self._clock = MovingLine(out), clock
        self._told, self._text = -LINE_SECONDS, ""
        self._start: tuple[float, float] | None = None
        """When the job was last seen without progress, and how far it was then."""

    def event(self, event: Event) -> None:
        """Say one event on a line of its own."""
        self._line.say(event.message)

    def progress(self, job: Job) -> None:
        """Say which share is done and about how long the rest takes."""
        now = self._clock()
        if job.is_final or job.state != "running":
            return
        if self._start is None or self._start[1] == job.progress:
            self._start = (now, job.progress)
        if not job.progress or (not self._line.moves and now - self._told < LINE_SECONDS):
            return
        text = f"{job.progress:.0%} done{self._left(now, job.progress)}"
        if not self._line.moves and text == self._text:
            return
        self._told, self._text = now, text
        self._line.show(text)

    def close(self) -> None:
        """Take the moving line off the screen."""
        self._line.clear()

    def _left(self, now: float, share: float) -> str:
        """Extrapolate from where the job was first seen: it may have been running for long."""
        if self._start is None:
            return ""
        since, first = self._start
        gained, elapsed = share - first, now - since
        if gained < 0.01 or elapsed < 2:
            return ""
        return f", about {duration(elapsed * (1 - share) / gained)} left"


def follow(client: Client, job: Job, out: TextIO) -> Job:
    """Tell a job's events and progress until it ends; return how it ended."""
    teller = JobTeller(out)
    try:
        return client.follow(job.id, on_event=teller.event, on_progress=teller.progress)
    finally:
        teller.close()


def duration(seconds: float) -> str:
    """Say a duration in the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows under a header: the first column to the left, the rest to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float | None, form: str) -> str:
    """Write a number, or a dash where it is missing; missing is never zero."""
    return "-" if value is None else format(value, form)


def result_text(kind: str, result: Mapping[str, Any]) -> str:
    """Say the outcome of a job in a few lines."""
    match kind:
        case "train":
            return f"supernet {result['supernet']} of {result['space']}"
        case "profile":
            return f"table edition {result['edition']} with {result['rows']} rows for {result['device']}"
        case "thin":
            return answer_text(result)
        case _:
            return ""


def answer_text(result: Mapping[str, Any]) -> str:
    """Say which config answers a target, round by round, and what that rests on."""
    header = ("round", "predicted FPS", "measured FPS", "AP50", "config")
    rows = [
        (
            str(number_),
            number(round_["predicted_fps"], ".2f"),
            number(round_.get("measured_fps"), ".2f"),
            number(round_.get("ap50"), ".3f"),
            str(round_["config_id"]),
        )
        for number_, round_ in enumerate(result["rounds"], start=1)
    ]
    match result["status"]:
        case "met":
            verdict = "met"
        case "missed":
            verdict = f"missed by {number(result['missed_by_percent'], '.1f')} %: {result['reason']}"
        case _:
            verdict = "predicted to hold; not measured"
    evidence = (
        f"{result['gmacs']:.4f} GMACs, solver {result['solver']}, gap {result['gap']:.2f}, "
        f"edition {result['edition']}, calibration revision {result['calibration_revision']}, "
        f"supernet {result['supernet']}"
    )
    return f"target {result['target_fps']:.2f} FPS {verdict}\n{table(header, rows)}\n{evidence}"
