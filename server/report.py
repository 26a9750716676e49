"""The report of a run: one HTML file that needs nothing else, for a phone, a desktop, light and dark.

Everything that comes from outside (names, labels, versions) is escaped, in HTML and in the JSON of the figures alike.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from server.console import number


@dataclass(frozen=True)
class Answer:
    """One row of the table of answers, and the evidence behind it.

    Attributes:
        target_fps: what was asked for.
        predicted_fps: what the table said of the config handed over before it was measured.
        measured_fps: the shipped file measured whole, None without verification.
        steady_error_pct: `error_pct` without the drift of the device since the prediction, None where it is unknown.
        ap50: of that same file on held-out images, 0 to 1, None without verification.
        gmacs: multiply-adds in units of 1e9.
        config_id: identity of the config.
        rounds: verified rounds it took; the first is a prediction of a config never measured.
        met: whether the measurement reaches the target, None without verification.
        evidence: further facts by name, such as edition, calibration revision, importance source, solver, gap.
    """

    target_fps: float
    predicted_fps: float
    measured_fps: float | None
    steady_error_pct: float | None
    ap50: float | None
    gmacs: float
    config_id: str
    rounds: int
    met: bool | None
    evidence: Mapping[str, str]

    @property
    def error_pct(self) -> float | None:
        """Measured over predicted FPS, as a deviation in percent: positive means faster than predicted."""
        if self.measured_fps is None:
            return None
        return 100 * (self.measured_fps / self.predicted_fps - 1)


@dataclass(frozen=True)
class Section:
    """A figure with a heading and a sentence on how to read it."""

    title: str
    text: str
    figure: go.Figure


HEADER = ("target FPS", "predicted", "measured", "error %", "steady %", "AP50", "GMACs", "config", "rounds", "met")


COLUMNS = (
    "error %: how much faster (+) or slower (-) the file ran than predicted. steady %: the same without the drift that "
    "reference networks, timed along with it, showed since the prediction. AP50: of that file, on held-out images."
)
"""How to read the table."""


def cells(answer: Answer) -> tuple[str, ...]:
    """Write an answer under `HEADER`, for the report and for the console alike."""
    return (
        f"{answer.target_fps:.2f}",
        f"{answer.predicted_fps:.2f}",
        number(answer.measured_fps, ".2f"),
        number(answer.error_pct, "+.1f"),
        number(answer.steady_error_pct, "+.1f"),
        number(answer.ap50, ".3f"),
        f"{answer.gmacs:.4f}",
        answer.config_id,
        str(answer.rounds),
        {True: "yes", False: "no", None: "-"}[answer.met],
    )


def render(title: str, *, facts: Mapping[str, str], answers: Sequence[Answer], sections: Sequence[Section]) -> str:
    """Write the report.

    Args:
        title: heading and window title.
        facts: the circumstances by name, such as device, date, versions.
        answers: the rows of the table.
        sections: the figures, top to bottom.
    """
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _definitions(facts),
        "<h2>Answers</h2>",
        _table(HEADER, [cells(answer) for answer in answers]),
        f"<p>{html.escape(COLUMNS)}</p>",
        "<h2>Evidence</h2>",
        *(_evidence(answer) for answer in answers),
        *(_section(index, section) for index, section in enumerate(sections)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n<script>{get_plotlyjs()}</script></head>\n"
        f"<body><main>{''.join(parts)}</main>\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _definitions(facts: Mapping[str, str]) -> str:
    rows = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(rows)}</dl>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _evidence(answer: Answer) -> str:
    heading = f"{answer.target_fps:.2f} FPS: config {html.escape(answer.config_id)}"
    return f"<details><summary>{heading}</summary>{_definitions(answer.evidence)}</details>"


def _section(index: int, section: Section) -> str:
    # Inside <script>, "<" may only come escaped: "</script>" in a label would end it.
    figure = str(section.figure.to_json()).replace("<", "\\u003c")
    return (
        f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>"
        f'<div class="figure" id="figure{index}"></div>'
        f'<script type="application/json" class="figure-data" data-target="figure{index}">{figure}</script>'
    )


_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #d8dde4; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181f; --ink: #e6e9ee; --soft: #9aa4b2; --line: #333b47; } }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } p, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; }
dd { margin: 0; overflow-wrap: anywhere; } summary { cursor: pointer; padding: .4rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
.figure { width: 100%; }
"""

_SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
function colours(layout) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink"), line = style.getPropertyValue("--line");
  const update = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font.color": ink};
  for (const key of Object.keys(layout)) if (/^[xy]axis\\d*$/.test(key)) {
    update[key + ".gridcolor"] = line; update[key + ".linecolor"] = line; update[key + ".zerolinecolor"] = line;
  }
  return update;
}
for (const source of document.querySelectorAll("script.figure-data")) {
  const figure = JSON.parse(source.textContent), target = document.getElementById(source.dataset.target);
  figure.layout.template = {};
  Plotly.newPlot(target, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: false})
    .then(() => Plotly.relayout(target, colours(target.layout)));
  dark.addEventListener("change", () => Plotly.relayout(target, colours(target.layout)));
}
"""
