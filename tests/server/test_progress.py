import io
from collections.abc import Iterator

from server.progress import Steps
from tests.server.terminal import Terminal


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


def test_a_short_step_leaves_no_line_in_a_log_and_a_long_one_does() -> None:
    out, clock = io.StringIO(), seconds(0, 1, 2, 2, 8, 13, 20)
    steps = Steps(out, clock=lambda: next(clock))
    for done in (1, 2):
        steps.tell("reading train", done, 2)
    for done in (1, 4, 8):
        steps.tell("reading val", done, 8)
    steps.close()
    assert out.getvalue().splitlines() == ["reading val: 4 of 8, about 11 s left"]


def test_a_terminal_is_not_drawn_anew_for_each_of_many_images() -> None:
    out, clock = Terminal(), seconds(0, 0.02, 0.11, 0.15, 0.25)
    steps = Steps(out, clock=lambda: next(clock))
    for done in range(1, 5):
        steps.tell("reading train", done, 4)
    lines = out.getvalue().split("\r\x1b[K")
    assert [line.partition(",")[0] for line in lines] == ["", "reading train: 2 of 4", "reading train: 4 of 4"]
