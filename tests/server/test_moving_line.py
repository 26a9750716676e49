import io

import pytest

from server.moving_line import MovingLine
from tests.server.terminal import Terminal


def test_a_line_that_moves_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What wraps would stay on the screen for each step."""
    monkeypatch.setenv("COLUMNS", "10")
    out = Terminal()
    line = MovingLine(out)
    line.show("0123456789abc")
    line.say("0123456789abc")
    line.clear()
    assert out.getvalue() == "\r\x1b[K012345678\r\x1b[K0123456789abc\n\r\x1b[K"


def test_elsewhere_every_text_is_a_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    out = io.StringIO()
    line = MovingLine(out)
    line.show("0123456789abc")
    line.say("def")
    line.clear()
    assert out.getvalue() == "0123456789abc\ndef\n"


def test_without_a_place_nothing_is_shown() -> None:
    line = MovingLine(None)
    line.show("text")
    line.say("text")
    line.clear()
    assert line.moves is False
