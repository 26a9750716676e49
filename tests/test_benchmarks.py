"""The counts that are quoted come from the script that prints them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, BENCH / "macs.py", "--json"], capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("reading", "convention", "gmacs"),
    [
        ("R*", "A", (54.52, 57.81, 61.46, 92.29)),
        ("R*", "B", (66.94, 70.42, 74.44, 106.97)),
        ("R*", "C", (56.63, 59.57, 62.97, 90.50)),
        ("FA", "A", (65.0, 68.3, 71.9, 108.8)),
        ("FB", "B", (66.1, 69.6, 73.6, 107.3)),
        ("XCA", "A", (57.6, 60.8, 64.5, 95.3)),
        ("XCA", "B", (61.3, 64.8, 68.8, 101.3)),
    ],
)
def test_readings_of_table_3_cost_what_the_specification_counted(
    counted: dict[str, Any], reading: str, convention: str, gmacs: tuple[float, ...]
) -> None:
    found = tuple(counted["readings"][reading][convention].values())
    assert found == pytest.approx(gmacs, abs=0.005 if reading == "R*" else 0.1)


@pytest.mark.parametrize(
    ("reading", "params_m"),
    [
        ("R*", (42.3, 43.8, 48.3, 55.1)),
        ("FA", (48.7, 50.2, 54.7, 61.7)),
        ("FB", (39.2, 40.7, 45.3, 51.9)),
        ("XCA", (42.4, 43.9, 48.4, 55.2)),
    ],
)
def test_readings_of_table_3_have_the_parameters_that_the_specification_counted(
    counted: dict[str, Any], reading: str, params_m: tuple[float, ...]
) -> None:
    assert tuple(counted["readings_params_m"][reading].values()) == pytest.approx(params_m, abs=0.1)


def test_each_detector_stands_there_by_its_name(counted: dict[str, Any]) -> None:
    for name, printed in (("tiny", 67), ("small", 69), ("medium", 73), ("large", 108)):
        found = counted[f"heatdetr-{name}"]
        assert (found["gmacs"], found["paper_gflops"]) == (counted["conventions"]["B"][f"heatdetr-{name}"], printed)
    assert counted["quick"] is False


def test_the_convention_counts_a_detector_of_others_as_its_authors_do(counted: dict[str, Any]) -> None:
    assert counted["detr_r50_gmacs"] == pytest.approx(101.7, abs=0.5)
