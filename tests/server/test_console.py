import io
from typing import Any

import pytest

from server.client import Event, Job
from server.console import JobTeller, answer_text, duration, number, result_text, table
from tests.server.terminal import Terminal


def job(progress: float, state: str = "running") -> Job:
    return Job(id="thin-1", kind="thin", state=state, progress=progress)


def teller(out: io.StringIO, times: list[float]) -> JobTeller:
    return JobTeller(out, clock=iter(times).__next__)


def test_in_a_file_progress_comes_now_and_then_with_the_time_left() -> None:
    out = io.StringIO()
    told = teller(out, [0, 1, 10, 20, 30])
    for share in (0.0, 0.0, 0.0, 0.25, 0.5):
        told.progress(job(share))
    assert out.getvalue().splitlines() == [
        "25% done, about 30 s left",
        "50% done, about 20 s left",
    ]


def test_the_pace_counts_from_where_the_job_was_first_seen() -> None:
    out = io.StringIO()
    told = teller(out, [0, 10])
    told.progress(job(0.9))
    told.progress(job(0.95))
    assert out.getvalue().splitlines()[-1] == "95% done, about 10 s left"


def test_a_terminal_gets_one_line_that_moves_and_events_above_it() -> None:
    out = Terminal()
    told = teller(out, [0, 1])
    told.progress(job(0.1))
    told.event(Event(seq=1, kind="solved", message="round 1"))
    told.progress(job(0.2))
    told.close()
    assert out.getvalue() == "\r\x1b[K10% done\r\x1b[Kround 1\n\r\x1b[K20% done\r\x1b[K"


@pytest.mark.parametrize("state", ["submitted", "queued", "succeeded"])
def test_nothing_is_said_of_a_job_that_does_not_run(state: str) -> None:
    out = io.StringIO()
    teller(out, [0]).progress(job(0.5, state))
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_durations_are_said_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_table_is_laid_out_and_a_missing_number_is_a_dash() -> None:
    assert table(("block", "ms"), [("wmsa", number(1.5, ".2f")), ("x", number(None, ".2f"))]) == (
        "block    ms\nwmsa   1.50\nx         -"
    )


RESULT: dict[str, Any] = {
    "status": "met",
    "target_fps": 40.0,
    "missed_by_percent": None,
    "gmacs": 0.25,
    "solver": "exact",
    "gap": 0.0,
    "edition": "e1",
    "calibration_revision": 2,
    "supernet": "train-1",
    "rounds": [
        {"config_id": "a" * 16, "predicted_fps": 42.0, "measured_fps": 39.5, "ap50": 0.5},
        {"config_id": "b" * 16, "predicted_fps": 43.0, "measured_fps": 41.25, "ap50": None},
    ],
}


def test_an_answer_is_said_round_by_round() -> None:
    assert answer_text(RESULT) == (
        "target 40.00 FPS met\n"
        "round  predicted FPS  measured FPS   AP50            config\n"
        "1              42.00         39.50  0.500  aaaaaaaaaaaaaaaa\n"
        "2              43.00         41.25      -  bbbbbbbbbbbbbbbb\n"
        "0.2500 GMACs, solver exact, gap 0.00, edition e1, calibration revision 2, supernet train-1"
    )


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (
            {"status": "missed", "missed_by_percent": 3.25, "reason": "all 1 rounds that were allowed have missed"},
            "target 40.00 FPS missed by 3.2 %: all 1 rounds that were allowed have missed",
        ),
        ({"status": "predicted"}, "target 40.00 FPS predicted to hold; not measured"),
    ],
)
def test_the_verdict_comes_first(changes: dict[str, Any], verdict: str) -> None:
    assert answer_text(RESULT | changes).splitlines()[0] == verdict


def test_other_jobs_have_one_line() -> None:
    assert result_text("train", {"supernet": "train-1", "space": "nano"}) == "supernet train-1 of nano"
    assert result_text("profile", {"edition": "e1", "rows": 120, "device": "bench"}) == (
        "table edition e1 with 120 rows for bench"
    )
