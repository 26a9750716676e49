"""How long the steps of detection take on real images: what comes before the graph, the graph, and what comes after."""

import statistics
from collections.abc import Callable

import numpy as np

from nas.values import Value
from supernet.dataset import CocoDataset, spread_evenly
from supernet.evaluation import images_to_floats
from supernet.loaded import LoadedDetector
from supernet.pictures import Pixels, stretch
from supernet.postprocess import detect

MOST_RUNS = 100
WARMUP_RUNS = 3

Clock = Callable[[], int]
"""Monotonic time in nanoseconds."""


class Spread(Value):
    """Times of one step over all runs.

    Attributes:
        median_ms: half of the runs took less.
        low_ms: a quarter did.
        high_ms: three quarters did.
    """

    median_ms: float
    low_ms: float
    high_ms: float


class Speed(Value):
    """Times of a run, which looks at `batch` images.

    Attributes:
        runs: how many were timed, after a few that were not.
        batch: images of each.
        threads: that the graph ran with.
        preprocessing: stretching decoded images and turning them into floats.
        graph: the network alone.
        detection: the network and what follows: threshold, best candidates, NMS.
        graph_fps: images per second of the network alone.
        detection_fps: images per second with what follows.
    """

    runs: int
    batch: int
    threads: int
    preprocessing: Spread
    graph: Spread
    detection: Spread
    graph_fps: float
    detection_fps: float


def measure_speed(
    detector: LoadedDetector, data: CocoDataset, *, threads: int, clock: Clock, most: int = MOST_RUNS
) -> Speed:
    """Time a detector on images of a split as they are on disk, spread evenly; reading and decoding files is left out.

    A split with fewer images than a batch is repeated until there is one: every image counted is one worked on.

    Args:
        detector: loaded with `threads`.
        data: the split.
        threads: noted with the times.
        clock: monotonic, in nanoseconds.
        most: runs at most.
    """
    chosen = spread_evenly(len(data), most * detector.batch)
    full = max(1, len(chosen) // detector.batch)
    groups = [
        [chosen[place % len(chosen)] for place in range(start, start + detector.batch)]
        for start in range(0, full * detector.batch, detector.batch)
    ]
    for _ in range(WARMUP_RUNS):
        _run(detector, [data.original(index) for index in groups[0]], clock)
    times = [_run(detector, [data.original(index) for index in group], clock) for group in groups]
    before, graph, whole = (_spread(column) for column in zip(*times, strict=True))
    return Speed(
        runs=len(groups),
        batch=detector.batch,
        threads=threads,
        preprocessing=before,
        graph=graph,
        detection=whole,
        graph_fps=1000 * detector.batch / graph.median_ms,
        detection_fps=1000 * detector.batch / whole.median_ms,
    )


def _run(detector: LoadedDetector, pixels: list[Pixels], clock: Clock) -> tuple[int, int, int]:
    """Return the nanoseconds of preprocessing, of the graph, and of the graph with post-processing."""
    started = clock()
    images = images_to_floats(np.stack([stretch(one, detector.image) for one in pixels]))
    prepared = clock()
    boxes, scores = detector.predict(images)
    predicted = clock()
    for one, other in zip(boxes, scores, strict=True):
        detect(one, other)
    return prepared - started, predicted - prepared, clock() - prepared


def _spread(nanoseconds: tuple[int, ...]) -> Spread:
    low, middle, high = (
        statistics.quantiles(nanoseconds, n=4, method="inclusive") if len(nanoseconds) > 1 else nanoseconds * 3
    )
    return Spread(median_ms=middle / 1e6, low_ms=low / 1e6, high_ms=high / 1e6)
