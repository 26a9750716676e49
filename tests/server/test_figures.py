import json

import pytest

from server.figures import BlockTime, Point, Solved, Turn, front_figure, latency_heat_map, trail_figure

ROWS = [
    BlockTime("wmsa", 64, 24, 24, 0.4),
    BlockTime("wmsa", 64, 24, 24, 0.6),
    BlockTime("wmsa", 96, 24, 24, 1.0),
    BlockTime("rep_cnn", 64, 24, 24, 0.25),
    BlockTime("rep_cnn", 64, 12, 12, 0.05),
]


def test_heat_map_has_a_panel_per_resolution_and_the_median_over_layouts() -> None:
    figure = latency_heat_map(ROWS)

    large, small = figure.data
    assert [annotation.text for annotation in figure.layout.annotations] == ["24 x 24 cells", "12 x 12 cells"]
    assert (large.x, large.y) == (("64", "96"), ("wmsa", "rep_cnn"))
    assert [list(row) for row in large.text] == [["0.5", "1"], ["0.25", ""]]
    assert large.z[0][1] == pytest.approx(0.0)
    assert large.z[1][1] is None
    assert large.customdata[1][0] == pytest.approx(4000)
    assert small.text[0] == ["0.05"] or list(small.text[0]) == ["0.05"]


def test_heat_map_of_an_empty_table_is_empty() -> None:
    assert list(latency_heat_map([]).data[:1]) == []


def test_front_shows_frames_per_second_and_never_an_invented_measurement() -> None:
    front = [Point(10.0, 80.0), Point(5.0, 60.0)]
    solved = [
        Solved("150 FPS", Point(6.0, 61.0), Point(6.5, 62.0), measured_ms=6.25),
        Solved("90 FPS", Point(11.0, 79.0), Point(11.0, 80.0), measured_ms=None),
    ]

    exact, optima, answers, measured = front_figure({1: front}, solved).data

    assert list(exact.x) == [200.0, 100.0]
    assert list(exact.y) == [60.0, 80.0]
    assert list(optima.y) == [62.0, 80.0]
    assert list(answers.x) == pytest.approx([1000 / 6, 1000 / 11])
    assert list(measured.x) == [160.0]
    assert list(measured.text) == ["150 FPS"]


def test_each_calibration_revision_has_a_front_of_its_own() -> None:
    fronts = {3: [Point(5.0, 60.0)], 1: [Point(10.0, 80.0)]}

    first, second, *_ = front_figure(fronts, []).data

    assert (first.name, list(first.x), first.line.dash) == ("exact front, revision 1", [100.0], "solid")
    assert (second.name, list(second.x), second.line.dash) == ("exact front, revision 3", [200.0], "dash")


def test_trail_keeps_the_order_of_the_moves_and_marks_the_target() -> None:
    turns = [Turn("start", Point(10.0, 90.0)), Turn("remove wmsa from stage 1 slot 0", Point(8.0, 88.5))]

    figure = trail_figure(turns, target_ms=8.5)

    bars, line = figure.data
    assert list(bars.y) == ["0. start", "1. remove wmsa from stage 1 slot 0"]
    assert list(bars.x) == [10.0, 8.0]
    assert list(bars.customdata) == [100.0, 125.0]
    assert list(line.x) == [90.0, 88.5]
    assert figure.layout.shapes[0].x0 == 8.5
    assert figure.layout.yaxis.autorange == "reversed"


def test_labels_from_outside_cannot_become_markup() -> None:
    trail = trail_figure([Turn("<a href='x'>y</a>", Point(1.0, 1.0))], target_ms=1.0)
    front = front_figure({}, [Solved("<b>1</b>", Point(1.0, 1.0), Point(1.0, 1.0), None)])

    assert trail.data[0].y[0] == "0. &lt;a href=&#x27;x&#x27;&gt;y&lt;/a&gt;"
    assert front.data[1].text[0] == "&lt;b&gt;1&lt;/b&gt;"


def test_figures_are_strict_json() -> None:
    for figure in (latency_heat_map(ROWS), front_figure({}, []), trail_figure([], target_ms=1.0)):
        json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
