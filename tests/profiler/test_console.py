import io

import pytest
from rich.console import Console

from profiler.console import BarReporter, PlainReporter, time_left


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "warming up"), (0.4, "at most 0 s left"), (59, "at most 59 s left"), (61, "at most 1 min 1 s left")],
)
def test_time_left_is_said_as_a_bound(seconds: float | None, text: str) -> None:
    assert time_left(seconds) == text


def test_plain_lines_come_at_most_every_ten_seconds() -> None:
    lines: list[str] = []
    now = [0.0]
    reporter = PlainReporter(lines.append, clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        reporter.progress(second, 25, 25.0 - second)
    reporter.note("done")
    assert lines == [
        "measured 0 of 25, at most 25 s left",
        "measured 10 of 25, at most 15 s left",
        "measured 20 of 25, at most 5 s left",
        "done",
    ]


def test_bar_shows_count_and_time_left_and_prints_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = io.StringIO()
    reporter = BarReporter(Console(file=screen, force_terminal=True, width=100))
    reporter.progress(1, 2, 5.0)
    reporter.note("block [7] of [red]")
    reporter.progress(2, 2, 0.0)
    reporter.close()
    assert "1/2" in screen.getvalue()
    assert "at most 5 s left" in screen.getvalue()
    assert "block [7] of [red]" in screen.getvalue()
