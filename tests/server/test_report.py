import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from server.report import HEADER, Answer, Section, cells, render

ANSWER = Answer(
    target_fps=40.0,
    predicted_fps=42.0,
    measured_fps=41.0,
    steady_error_pct=0.06,
    ap50=0.4567,
    gmacs=0.12345,
    config_id="0123456789abcdef",
    rounds=2,
    met=True,
    evidence={"table edition": "e1", "solver": "thin_all_stages"},
)


def test_an_answer_is_written_under_its_header() -> None:
    assert dict(zip(HEADER, cells(ANSWER), strict=True)) == {
        "target FPS": "40.00",
        "predicted": "42.00",
        "measured": "41.00",
        "error %": "-2.4",
        "steady %": "+0.1",
        "AP50": "0.457",
        "GMACs": "0.1235",
        "config": "0123456789abcdef",
        "rounds": "2",
        "met": "yes",
    }


def test_error_is_positive_when_the_device_is_faster_than_predicted() -> None:
    assert ANSWER.error_pct == pytest.approx(-2.380952381)
    assert replace(ANSWER, measured_fps=44.1).error_pct == pytest.approx(5)


def test_what_was_not_measured_is_missing_and_not_zero() -> None:
    bare = replace(ANSWER, measured_fps=None, steady_error_pct=None, ap50=None, met=None)

    assert bare.error_pct is None
    assert cells(bare)[2:6] == ("-", "-", "-", "-")
    assert cells(bare)[-1] == "-"


class Reader(HTMLParser):
    """Collects what the page would load from elsewhere, and that its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.figures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [str(given[name]) for name in ("src", "href") if name in given]
        if tag != "meta":
            self.open.append("figure-data" if given.get("class") == "figure-data" else tag)

    def handle_endtag(self, tag: str) -> None:
        opened = self.open.pop()
        assert tag == ("script" if opened == "figure-data" else opened)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "figure-data":
            self.figures.append(data)


def page(title: str = "Run", label: str = "a") -> str:
    figure = go.Figure(go.Scatter(x=[1.0], y=[2.0], name=label))
    return render(title, facts={"device": label}, answers=[ANSWER], sections=[Section("Front", label, figure)])


def test_the_page_is_whole_and_loads_nothing() -> None:
    reader = Reader()
    reader.feed(page())
    reader.close()

    assert reader.open == []
    assert reader.loaded == []
    assert json.loads(reader.figures[0])["data"][0]["y"] == [2.0]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page()
    assert "prefers-color-scheme: dark" in page()


def test_everything_from_outside_is_escaped() -> None:
    hostile = "</script><script>alert(1)</script>"

    text = page(title=hostile, label=hostile)
    reader = Reader()
    reader.feed(text)

    assert "alert(1)</script>" not in re.sub(r"\\u003c", "", text)
    assert json.loads(reader.figures[0])["data"][0]["name"] == hostile
    assert text.count("&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;") == 4


def test_evidence_stands_beside_the_answer() -> None:
    assert "<dt>table edition</dt><dd>e1</dd><dt>solver</dt><dd>thin_all_stages</dd>" in page()
