from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from supernet.dataset import CocoDataset
from supernet.loaded import LoadedDetector
from supernet.postprocess import Floats
from supernet.speed import Spread, measure_speed
from tests.supernet.tiny_space import tiny_data


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(tiny_data(tmp_path_factory.mktemp("speed") / "data"), "val", image=(64, 64))


def detector(batch: int, seen: list[tuple[int, ...]]) -> LoadedDetector:
    def predict(images: Floats) -> tuple[Floats, Floats]:
        seen.append(images.shape)
        return np.zeros((len(images), 1, 4), np.float32), np.zeros((len(images), 1, 3), np.float32)

    return LoadedDetector(Path("none"), (32, 32), batch, 3, None, None, predict)


def ticking(*steps_ns: int) -> Callable[[], int]:
    """Return a clock that is read four times a run, with these times in between, over and over."""
    readings, now = count(), 0

    def clock() -> int:
        nonlocal now
        place = next(readings) % 4
        now += steps_ns[place - 1] if place else 0
        return now

    return clock


def test_the_steps_are_told_apart(held_out: CocoDataset) -> None:
    seen: list[tuple[int, ...]] = []
    found = measure_speed(detector(1, seen), held_out, threads=2, clock=ticking(1_000_000, 20_000_000, 5_000_000))
    assert found.preprocessing == Spread(median_ms=1, low_ms=1, high_ms=1)
    assert found.graph == Spread(median_ms=20, low_ms=20, high_ms=20)
    assert found.detection.median_ms == 25
    assert (found.graph_fps, found.detection_fps) == (50, 40)
    assert (found.runs, found.batch, found.threads) == (4, 1, 2)
    assert seen == [(1, 3, 32, 32)] * 7  # three to warm up


def test_a_batch_counts_all_its_images(held_out: CocoDataset) -> None:
    found = measure_speed(detector(2, []), held_out, threads=1, clock=ticking(1_000_000, 20_000_000, 0))
    assert (found.runs, found.graph_fps) == (2, 100)


def test_no_more_runs_than_asked_for(held_out: CocoDataset) -> None:
    assert measure_speed(detector(1, []), held_out, threads=1, clock=ticking(1, 1, 1), most=2).runs == 2


def test_a_split_smaller_than_a_batch_is_repeated_so_that_only_images_worked_on_count(held_out: CocoDataset) -> None:
    seen: list[tuple[int, ...]] = []
    found = measure_speed(detector(6, seen), held_out, threads=1, clock=ticking(1_000_000, 20_000_000, 10_000_000))
    assert (len(held_out), found.runs, found.batch) == (4, 1, 6)
    assert set(seen) == {(6, 3, 32, 32)}  # else post-processing would be timed on 4 and counted for 6
    assert (found.graph_fps, found.detection_fps) == (300, 200)
