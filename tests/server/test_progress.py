import io
from collections.abc import Iterator

from server.progress import Steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def seconds(*readings: float) -> Iterator[float]:
    yield from readings


def test_a_log_is_told_now_and_then_with_the_time_left() -> None:
    out, clock = io.StringIO(), seconds(0, 4, 11, 30, 40)
    tell = Steps(out, clock=lambda: next(clock)).begin("scoring")
    for done in (1, 5, 8, 10):
        tell(done, 10)
    assert out.getvalue().splitlines() == [
        "scoring",
        "scoring: 5 of 10, about 11 s left",
        "scoring: 8 of 10, about 8 s left",
    ]


def test_a_terminal_keeps_one_line_and_loses_it_at_the_end() -> None:
    out, clock = Terminal(), seconds(0, 1, 2)
    steps = Steps(out, clock=lambda: next(clock))
    tell = steps.begin("scoring")
    tell(0, 4)
    tell(2, 4)
    steps.close()
    assert out.getvalue().split("\r\x1b[K") == ["", "scoring", "scoring: 0 of 4", "scoring: 2 of 4, about 2 s left", ""]
