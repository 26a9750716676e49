"""The figures of a search: what blocks cost, where the answers stand, how the thinning went.

Each function returns a plotly figure without colours of its own for text and ground: the page that shows it sets them,
so that one figure serves light and dark.
"""

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

BLUE, ORANGE, GREEN, GREY = "#2f7fd1", "#e07b29", "#2ca36b", "#8a8f98"
"""Told apart by colour-blind readers, and legible on light and on dark ground."""

HEAT = ((0.0, "#fff6dd"), (0.5, "#fdbf6b"), (1.0, "#e8683c"))
"""From cheap to dear; dark text is legible on all of it."""

INK = "#1c2430"

ROW_PX = 26
"""Height of one row of a figure with named rows: a finger on a phone can hit it."""


@dataclass(frozen=True)
class BlockTime:
    """One row of a lookup table, as far as a figure shows it."""

    kind: str
    channels_out: int
    height: int
    width: int
    latency_ms: float


@dataclass(frozen=True)
class Point:
    """A config by its predicted latency and its additive score in percent."""

    latency_ms: float
    score: float

    @property
    def fps(self) -> float:
        """Frames per second at that latency."""
        return 1000 / self.latency_ms


@dataclass(frozen=True)
class Solved:
    """One thinning job in the plane of the front: what was asked, what came out, what the exact solver finds.

    Attributes:
        label: what people call the answer, such as `40 FPS`.
        answer: predicted latency and score of the config handed over.
        optimum: the best config within the same budget.
        measured_ms: the answer measured whole, None when it was not verified.
    """

    label: str
    answer: Point
    optimum: Point
    measured_ms: float | None


@dataclass(frozen=True)
class Turn:
    """One state of the thinning: the move that led there, and what the config then costs and scores."""

    label: str
    point: Point


def latency_heat_map(rows: Iterable[BlockTime]) -> go.Figure:
    """Show latency by kind and width, one panel per resolution; where layouts differ, their median."""
    cells: dict[tuple[int, int], dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        kinds = cells.setdefault((row.height, row.width), {})
        kinds.setdefault(row.kind, {}).setdefault(row.channels_out, []).append(row.latency_ms)
    sizes = sorted(cells, reverse=True)
    figure = make_subplots(
        rows=max(len(sizes), 1),
        cols=1,
        row_heights=[len(cells[size]) for size in sizes] or None,
        vertical_spacing=0.36 / max(len(sizes), 1) ** 1.3,
        subplot_titles=[f"{height} x {width} cells" for height, width in sizes],
    )
    for number, size in enumerate(sizes, start=1):
        figure.add_trace(_panel(cells[size]), row=number, col=1)
    panel_px = ROW_PX * sum(len(cells[size]) for size in sizes) + 66 * len(sizes)
    figure.update_layout(
        height=panel_px + 90,
        margin={"l": 8, "r": 8, "t": 40, "b": 30},
        coloraxis={"colorscale": HEAT, "colorbar": _log_bar(cells)},
    )
    figure.update_xaxes(type="category", title_text="", automargin=True)
    figure.update_yaxes(automargin=True)
    if sizes:
        figure.update_xaxes(title_text="channels out", row=len(sizes), col=1)
    return figure


def front_figure(fronts: Mapping[int, Sequence[Point]], solved: Sequence[Solved]) -> go.Figure:
    """Show the exact Pareto front in FPS against score, with each answer, its optimum and its measurement.

    Each calibration revision predicts other speeds: `fronts` has one front per revision that an answer was found with.
    """
    figure = go.Figure()
    dashes = cycle(("solid", "dash", "dot"))
    for (revision, front), dash in zip(sorted(fronts.items()), dashes, strict=False):
        name = "exact front" if len(fronts) == 1 else f"exact front, revision {revision}"
        ordered = sorted(front, key=lambda point: point.latency_ms)
        line = {"color": GREY, "width": 2, "shape": "hv", "dash": dash}
        figure.add_trace(_points(ordered, name, mode="lines", line=line))
    answers, optima = [job.answer for job in solved], [job.optimum for job in solved]
    labels = [job.label for job in solved]
    figure.add_trace(
        _points(
            optima, "exact optimum", labels, mode="markers",
            marker={"color": GREEN, "size": 15, "symbol": "star-open", "line": {"width": 2}},
        )
    )  # fmt: skip
    figure.add_trace(
        _points(answers, "answer, predicted", labels, mode="markers+text", marker={"color": BLUE, "size": 10})
    )
    measured = [(job, job.measured_ms) for job in solved if job.measured_ms is not None]
    figure.add_trace(
        _points(
            [Point(latency_ms, job.answer.score) for job, latency_ms in measured],
            "answer, measured",
            [job.label for job, _ in measured],
            mode="markers",
            marker={"color": ORANGE, "size": 11, "symbol": "diamond"},
        )
    )
    figure.update_xaxes(title_text="frames per second", automargin=True)
    figure.update_yaxes(title_text="score, % of the best", automargin=True)
    figure.update_layout(height=440, margin={"l": 8, "r": 8, "t": 10, "b": 8}, legend=_LEGEND)
    return figure


def trail_figure(turns: Sequence[Turn], *, target_ms: float) -> go.Figure:
    """Show a thinning from top to bottom: latency after each move as bars, score as a line, the target as a rule."""
    rows = [f"{number}. {html.escape(turn.label)}" for number, turn in enumerate(turns)]
    latencies = [turn.point.latency_ms for turn in turns]
    figure = go.Figure()
    figure.add_trace(
        go.Bar(
            y=rows, x=latencies, orientation="h", name="predicted latency, ms", marker={"color": BLUE},
            customdata=[turn.point.fps for turn in turns],
            hovertemplate="%{y}<br>%{x:.3f} ms, %{customdata:.2f} FPS<extra></extra>",
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            y=rows, x=[turn.point.score for turn in turns], xaxis="x2", mode="lines+markers", name="score, %",
            line={"color": ORANGE}, hovertemplate="%{y}<br>score %{x:.2f} %<extra></extra>",
        )
    )  # fmt: skip
    figure.add_vline(x=target_ms, line={"color": GREEN, "dash": "dash"})
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(
        height=ROW_PX * len(rows) + 150,
        margin={"l": 8, "r": 8, "t": 50, "b": 8},
        showlegend=False,
        xaxis={
            "title": {"text": "latency, ms", "font": {"color": BLUE}},
            "rangemode": "tozero",
            "automargin": True,
        },
        xaxis2={
            "title": {"text": "score, %", "font": {"color": ORANGE}},
            "overlaying": "x",
            "side": "top",
            "showgrid": False,
        },
    )
    return figure


_LEGEND = {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0}


def _points(points: Sequence[Point], name: str, labels: Sequence[str] = (), **style: object) -> go.Scatter:
    return go.Scatter(
        x=[point.fps for point in points],
        y=[point.score for point in points],
        name=name,
        text=[html.escape(label) for label in labels] or None,
        textposition="bottom center",
        customdata=[point.latency_ms for point in points],
        hovertemplate="%{text}<br>" * bool(labels) + "%{x:.2f} FPS, %{customdata:.3f} ms<br>score %{y:.2f} %",
        **style,
    )


def _panel(kinds: dict[str, dict[int, list[float]]]) -> go.Heatmap:
    names = sorted(kinds, reverse=True)
    widths = sorted({channels for row in kinds.values() for channels in row})
    cells = [[kinds[name].get(channels) for channels in widths] for name in names]
    medians = [[None if times is None else statistics.median(times) for times in row] for row in cells]
    return go.Heatmap(
        x=[str(channels) for channels in widths],
        y=names,
        z=[[None if value is None else math.log10(value) for value in row] for row in medians],
        text=[["" if value is None else _ms(value) for value in row] for row in medians],
        customdata=[[None if value is None else 1000 / value for value in row] for row in medians],
        texttemplate="%{text}",
        textfont={"color": INK},
        hovertemplate="%{y}, %{x} channels<br>%{text} ms, %{customdata:.1f} FPS alone<extra></extra>",
        hoverongaps=False,
        coloraxis="coloraxis",
    )


def _log_bar(cells: dict[tuple[int, int], dict[str, dict[int, list[float]]]]) -> dict[str, object]:
    """Label the logarithmic colour bar in milliseconds, 1, 2 and 5 of each decade."""
    times = [time for kinds in cells.values() for row in kinds.values() for cell in row.values() for time in cell]
    low, high = (math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))) if times else (0, 1)
    ticks = [step * 10.0**decade for decade in range(low, high + 1) for step in (1, 2, 5)]
    return {
        "title": {"text": "ms"},
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:g}" for tick in ticks],
        "thickness": 10,
    }


def _ms(value: float) -> str:
    """Write a time with three significant digits."""
    return f"{value:.3g}"
