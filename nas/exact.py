"""The exact optimum of an additive score under an additive latency, by dynamic programming over stages.

Every block depends on no more than two adjacent stage widths and on the layout it receives (`Site.stage`,
`Block.layouts`). So the best a network can do up to stage j is a front of (latency, score) pairs per width D_j; the
front of stage j+1 follows by adding every way to fill stage j+1. Dominated pairs can never become part of an optimum,
so they are dropped, and what remains at the end is the whole Pareto front, proven.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nas.blocks import Kind, Layout, gives
from nas.budgets import Budget
from nas.config import Config, Stage
from nas.errors import BudgetUnreachable
from nas.latency import LatencyModel
from nas.network import Site
from nas.quality import AdditiveScore
from nas.space import SearchSpace
from nas.values import Value

_PAIRS_AT_ONCE = 4_000_000
"""Combinations of two fronts held in memory at a time."""

_ROUNDING = 1e-12
"""Difference of two scores up to which they are equal."""

_CODE_BITS = 3
"""Bits per slot in a stage's code: up to 8 candidates, so 18 slots and the closing block fit in 64."""


class Point(Value):
    """A config with its predicted latency (milliseconds) and its score (percent)."""

    config: Config
    latency_ms: float
    score: float


class Fastest(Value):
    """The fastest config of a space, and its costliest block: the one that binds."""

    config: Config
    latency_ms: float
    binding: str


def optimum(
    space: SearchSpace,
    latency: LatencyModel,
    score: AdditiveScore,
    budget: Budget,
    *,
    image: tuple[int, int] | None = None,
) -> Point:
    """Return the config of highest score within the budget at one input size (the largest by default), margin included.

    Raises:
        BudgetUnreachable: even the fastest config is too slow.
        InvalidConfig: the space has no such input size, or the score belongs to another space.
        MissingBlocks: the table does not cover the space at this size.
    """
    reachable = front(space, latency, score, image=image, budget=budget)
    if not reachable:
        raise unreachable(space, latency, budget, fastest(space, latency, image=image))
    return reachable[-1]


def front(
    space: SearchSpace,
    latency: LatencyModel,
    score: AdditiveScore,
    *,
    image: tuple[int, int] | None = None,
    budget: Budget | None = None,
) -> tuple[Point, ...]:
    """Return all non-dominated configs at one input size (the largest by default), by rising latency and score.

    With a budget, only those within it, margin included.

    Raises:
        InvalidConfig: the space has no such input size, or the score belongs to another space.
        MissingBlocks: the table does not cover the space at this size.
    """
    size, limit_ms = space.input_size(image), budget.latency_ms if budget else np.inf
    # The division may round below the limit: search a hair beyond it, then keep what holds.
    limit = limit_ms / (1 + latency.margin) / latency.slope * (1 + 1e-9)
    latency.check(space.all_blocks(size))
    points: list[Point] = []
    for stride in space.prediction_strides:
        labels = _Search(space, latency, score.check(space), size, stride).run(limit)
        times_ms = [latency.from_sum(float(ms)) for ms in labels.ms]
        points += (
            Point(config=labels.config(space, size, stride, row), latency_ms=latency_ms, score=float(labels.score[row]))
            for row, latency_ms in enumerate(times_ms)
            if latency.holds(latency_ms, limit_ms)
        )
    return _undominated(points)


def fastest(space: SearchSpace, latency: LatencyModel, *, image: tuple[int, int] | None = None) -> Fastest:
    """Return the config of lowest predicted latency at one input size (the largest by default).

    Raises:
        InvalidConfig: the space has no such input size.
        MissingBlocks: the table does not cover the space at this size.
    """
    size = space.input_size(image)
    quickest = front(space, latency, AdditiveScore.indifferent(space), image=size)[0]
    return Fastest(
        config=quickest.config,
        latency_ms=quickest.latency_ms,
        binding=max(space.blocks(quickest.config), key=latency.block_ms).label,
    )


def unreachable(space: SearchSpace, latency: LatencyModel, budget: Budget, quickest: Fastest) -> BudgetUnreachable:
    """Build the error that says what the fastest config of the space at its input size does instead."""
    height, width = quickest.config.image
    return BudgetUnreachable(
        target_ms=budget.latency_ms,
        fastest_ms=quickest.latency_ms * (1 + latency.margin),
        binding=quickest.binding,
        image=quickest.config.image,
        smaller=[size for size in space.images if size[0] * size[1] < height * width],
    )


def _undominated(points: list[Point]) -> tuple[Point, ...]:
    """Keep the points that no other one beats, by rising latency and score."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -point.score)):
        if not kept or point.score > kept[-1].score + _ROUNDING:
            kept.append(point)
    return tuple(kept)


@dataclass(frozen=True)
class _Labels:
    """Partial networks, one a row: latency, score, and per stage the width and the code of its slots."""

    ms: NDArray[np.float64]
    score: NDArray[np.float64]
    widths: NDArray[np.int64]
    codes: NDArray[np.int64]

    @classmethod
    def single(cls) -> Self:
        """The empty stage: nothing spent, nothing chosen."""
        return cls(np.zeros(1), np.zeros(1), np.zeros((1, 0), np.int64), np.zeros((1, 1), np.int64))

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("ms", "score", "widths", "codes"))
        )

    def take(self, index: NDArray[np.int64]) -> Self:
        return type(self)(self.ms[index], self.score[index], self.widths[index], self.codes[index])

    def plus(self, ms: float, score: float, code: int = 0) -> Self:
        return type(self)(self.ms + ms, self.score + score, self.widths, self.codes + code)

    def pareto(self, limit: float = np.inf) -> Self:
        """Keep the labels within the limit that no other label beats, by rising latency and score."""
        order = np.lexsort((-self.score, self.ms))
        order = order[self.ms[order] <= limit]
        before = np.concatenate(([-np.inf], np.maximum.accumulate(self.score[order])[:-1]))
        return self.take(order[self.score[order] > before + _ROUNDING])

    def extended(self, stage: Self, ms: float, limit: float) -> Self:
        """Append every way to fill the next stage to every partial network, keeping the front."""
        result: list[Self] = []
        rows = max(1, _PAIRS_AT_ONCE // len(stage.ms))
        for first in range(0, len(self.ms), rows):
            head = self.take(np.arange(first, min(first + rows, len(self.ms))))
            left, right = (grid.ravel() for grid in np.indices((len(head.ms), len(stage.ms))))
            pairs = type(self)(
                head.ms[left] + stage.ms[right] + ms,
                head.score[left] + stage.score[right],
                np.concatenate([head.widths[left], stage.widths[right]], axis=1),
                np.concatenate([head.codes[left], stage.codes[right]], axis=1),
            )
            result.append(pairs.pareto(limit))
        return type(self).joined(result).pareto(limit)

    def config(self, space: SearchSpace, image: tuple[int, int], stride: int, row: int) -> Config:
        """Decode a complete label."""
        first, second, third, fourth = (
            _decode(space, index, int(self.widths[row, index]), int(self.codes[row, index])) for index in range(4)
        )
        config = Config(space=space.id, image=image, stages=(first, second, third, fourth))
        return space.check(space.with_stride(config, stride))


class _Search:
    """One run at one stride of the prediction map: the costs of the pieces, read off the walk, and the programme."""

    def __init__(
        self, space: SearchSpace, latency: LatencyModel, score: AdditiveScore, image: tuple[int, int], stride: int
    ) -> None:
        self.space = space
        self.score = score
        self.stride_score = score.stride(stride)
        self.slot_ms: dict[tuple[int, int, Kind, Layout], float] = {}
        """(stage index, width, kind, received layout) -> row of a local or closing block."""
        self.frame_ms: dict[tuple[int, int, int], float] = {}
        """(stage index, width before, width) -> all other blocks that the stage brings with it."""
        for config in space.covering_configs(image):
            self._read(latency, config, space.sites(config), frames=config.prediction_stride == stride)

    def run(self, limit: float) -> _Labels:
        """Return the front of complete networks whose sum of rows stays within the limit."""
        reached: dict[int, _Labels] = {}
        for index, choices in enumerate(self.space.stages):
            filled = {width: self._fill(index, width) for width in choices.widths}
            reached = self._advance(index, reached, filled, limit)
        if not reached:
            return _Labels(np.zeros(0), np.zeros(0), np.zeros((0, 4), np.int64), np.zeros((0, 4), np.int64))
        return _Labels.joined(list(reached.values())).plus(0.0, self.stride_score).pareto(limit)

    def _advance(
        self, index: int, reached: dict[int, _Labels], filled: dict[int, _Labels], limit: float
    ) -> dict[int, _Labels]:
        """Append stage `index` at each of its widths to everything reached so far."""
        result: dict[int, _Labels] = {}
        for width, stage in filled.items():
            if index == 0:
                parts = [stage.plus(self.frame_ms[0, 0, width], 0.0).pareto(limit)]
            else:
                parts = [
                    labels.extended(stage, self.frame_ms[index, before, width], limit)
                    for before, labels in reached.items()
                    if before <= width
                ]
            parts = [part for part in parts if len(part.ms)]
            if parts:
                result[width] = _Labels.joined(parts).pareto(limit)
        return result

    def _fill(self, index: int, width: int) -> _Labels:
        """Return the front over all ways to fill the slots of one stage at one width and to close it."""
        score = self.score.stages[index]
        states: dict[tuple[Layout, bool], _Labels] = {(Layout.SPATIAL, False): _Labels.single()}
        for slot in range(self.space.stages[index].slots):
            states = _merged(self._fill_slot(index, width, slot, states))
        closed = [
            labels.plus(self.slot_ms[index, width, kind, layout], score.global_kinds[kind], code)
            for (layout, occupied), labels in states.items()
            if occupied
            for kind, code in self._closing_codes(index)
        ]
        joined = _Labels.joined(closed).plus(0.0, score.width(width))
        widths = np.full((len(joined.ms), 1), width, np.int64)
        return _Labels(joined.ms, joined.score, widths, joined.codes).pareto()

    def _fill_slot(
        self, index: int, width: int, slot: int, states: dict[tuple[Layout, bool], _Labels]
    ) -> Iterator[tuple[tuple[Layout, bool], _Labels]]:
        """Yield every state after one more slot: left empty, or holding one of its kinds."""
        values = self.score.stages[index].slots[slot]
        for (layout, occupied), labels in states.items():
            yield (layout, occupied), labels.plus(0.0, values[Kind.IDENTITY])
            for code, kind in enumerate(self.space.stages[index].local_kinds, start=1):
                row_ms = self.slot_ms[index, width, kind, layout]
                left = gives(kind, self.space.structure.linear_layout)
                yield (left, True), labels.plus(row_ms, values[kind], code << (_CODE_BITS * slot))

    def _read(self, latency: LatencyModel, config: Config, walked: tuple[Site, ...], *, frames: bool) -> None:
        """Note the rows of one walk: slots and closing blocks one by one; with `frames`, the rest summed per stage."""
        for index in range(4):
            own = f"stage{index + 1}."
            frame = []
            for site in walked:
                if site.stage != index + 1:
                    continue
                if site.name.startswith((own + "slot", own + "global")):
                    key = (index, config.widths[index], site.block.kind, site.block.layouts[0])
                    if key not in self.slot_ms:
                        self.slot_ms[key] = latency.sum_ms([site.block])
                else:
                    frame.append(site.block)
            before = config.widths[index - 1] if index else 0
            if frames and (index, before, config.widths[index]) not in self.frame_ms:
                self.frame_ms[index, before, config.widths[index]] = latency.sum_ms(frame)

    def _closing_codes(self, index: int) -> list[tuple[Kind, int]]:
        choices = self.space.stages[index]
        return [(kind, code << (_CODE_BITS * choices.slots)) for code, kind in enumerate(choices.global_kinds)]


def _merged(states: Iterator[tuple[tuple[Layout, bool], _Labels]]) -> dict[tuple[Layout, bool], _Labels]:
    grouped: dict[tuple[Layout, bool], list[_Labels]] = {}
    for state, labels in states:
        grouped.setdefault(state, []).append(labels)
    return {state: _Labels.joined(parts).pareto() for state, parts in grouped.items()}


def _decode(space: SearchSpace, index: int, width: int, code: int) -> Stage:
    choices = space.stages[index]
    kinds = (Kind.IDENTITY, *choices.local_kinds)
    mask = (1 << _CODE_BITS) - 1
    return Stage(
        width=width,
        slots=tuple(kinds[code >> (_CODE_BITS * slot) & mask] for slot in range(choices.slots)),
        global_kind=choices.global_kinds[code >> (_CODE_BITS * choices.slots)],
    )
