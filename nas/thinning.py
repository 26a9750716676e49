"""Device-adaptive model thinning (paper section 4.3 step 3, Algorithm 1 lines 13-19).

Start from the supernet's best path and, while the predicted latency exceeds the budget, apply the move that loses
least per frame per second gained. The paper sums a table of FPS; FPS does not add, so the loop runs on latency.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from nas.blocks import Kind
from nas.budgets import Budget
from nas.config import Config, Stage
from nas.errors import BudgetUnmet, InvalidQuality, ThinningExhausted
from nas.exact import fastest, unreachable
from nas.importance import Aggregate, Importance, PerKind
from nas.latency import LatencyModel
from nas.quality import Quality
from nas.space import Move, SearchSpace
from nas.values import Value

Stages = Literal["least_important", "all"]


_ROUNDING = 1e-9
"""Share of the current FPS up to which a gain is the rounding of a sum, and no gain."""


class Candidate(Value):
    """A legal move from the current config and what it buys.

    Attributes:
        move: the reduction.
        config: what it leads to.
        latency_ms: predicted latency of that config.
        quality: quality of that config.
        drop: quality lost against the current config; negative when the move improves it.
        fps_gained: frames per second gained against the current config, always positive.
    """

    move: Move
    config: Config
    latency_ms: float
    quality: float
    drop: float
    fps_gained: float = Field(gt=0)

    @property
    def price(self) -> float:
        """Quality lost per frame per second gained (the paper's FPS_AP_drop)."""
        return self.drop / self.fps_gained


class Step(Value):
    """One turn of the loop: the candidate taken, and those it was preferred to."""

    taken: Candidate
    alternatives: tuple[Candidate, ...]


class Trail(Value):
    """The whole thinning: what was asked, by which rule, where it started and every step to the answer.

    Attributes:
        budget: what had to hold.
        stages: the rule that chose the stages to touch.
        aggregate: how the importance of a stage's blocks was put together; `least_important` goes by it.
        start: the supernet's best path, with its predicted latency and its quality.
        steps: the moves, in order.
    """

    budget: Budget
    stages: Stages
    aggregate: Aggregate
    start: Config
    start_latency_ms: float
    start_quality: float
    steps: tuple[Step, ...]

    @property
    def answer(self) -> Config:
        """The config the thinning arrived at."""
        return self.steps[-1].taken.config if self.steps else self.start

    @property
    def latency_ms(self) -> float:
        """Predicted latency of the answer."""
        return self.steps[-1].taken.latency_ms if self.steps else self.start_latency_ms

    @property
    def quality(self) -> float:
        """Quality of the answer."""
        return self.steps[-1].taken.quality if self.steps else self.start_quality


def thin(
    space: SearchSpace,
    latency: LatencyModel,
    importance: Importance,
    quality: Quality,
    budget: Budget,
    *,
    image: tuple[int, int] | None = None,
    stages: Stages = "least_important",
    aggregate: Aggregate = "sum",
) -> Trail:
    """Thin the supernet's best path at one input size (the largest by default) until the budget holds, margin included.

    `stages="least_important"` is the paper's rule: only the least important stage that can still shrink is touched (and
    the least important block of all, its LR), and a coarser prediction map, which is no stage's. `"all"` considers the
    moves of every stage. Each step removes a block, narrows a stage or coarsens the map, so the loop ends after at most
    `slots + widths + strides` steps.

    Raises:
        BudgetUnreachable: no config of the space is fast enough.
        ThinningExhausted: some config is, but no sequence of these steps leads there.
        InvalidConfig: the importance belongs to another space, or the space has no such input size.
        InvalidQuality: the quality of a config is not a finite number.
        MissingBlocks: the table does not cover a config on the way.
    """
    problem = _Problem(space, latency, importance, quality, stages, aggregate)
    start = current = problem.state(best_path(space, importance, image=image))
    steps: list[Step] = []
    while not latency.holds(current.latency_ms, budget.latency_ms):
        candidates = problem.candidates(current)
        if not candidates:
            raise _out_of_moves(problem, budget, current)
        taken = min(candidates, key=_preference)
        steps.append(Step(taken=taken, alternatives=tuple(c for c in candidates if c is not taken)))
        current = _State(taken.config, taken.latency_ms, taken.quality)
    return Trail(
        budget=budget,
        stages=stages,
        aggregate=aggregate,
        start=start.config,
        start_latency_ms=start.latency_ms,
        start_quality=start.quality,
        steps=tuple(steps),
    )


def best_path(space: SearchSpace, importance: Importance, *, image: tuple[int, int] | None = None) -> Config:
    """Return the full-depth, full-width config with the most probable kind in every slot (identity apart).

    Its prediction map has the stride that found most, the finest of equal ones.

    Raises:
        InvalidConfig: the importance belongs to another space, or the space has no such input size.
    """
    importance.check(space)
    config = space.largest(image)
    for index, logits in enumerate(importance.stages):
        stage = Stage(
            width=config.stages[index].width,
            slots=tuple(_most_probable(slot) for slot in logits.slots),
            global_kind=_most_probable(logits.global_kinds),
        )
        config = config.with_stage(index, stage)
    if importance.stride_ap50 is not None:
        config = space.with_stride(config, max(importance.stride_ap50, key=importance.stride_ap50.__getitem__))
    return space.check(config)


def _most_probable(logits: PerKind) -> Kind:
    return max((kind for kind in logits if kind is not Kind.IDENTITY), key=lambda kind: logits[kind])


class _State(NamedTuple):
    """Where the loop stands."""

    config: Config
    latency_ms: float
    quality: float


class _Faster(NamedTuple):
    """A move that gains speed, not yet judged by quality."""

    move: Move
    config: Config
    latency_ms: float


@dataclass(frozen=True)
class _Problem:
    """What stays the same from step to step."""

    space: SearchSpace
    latency: LatencyModel
    importance: Importance
    quality: Quality
    stages: Stages
    aggregate: Aggregate

    def state(self, config: Config) -> _State:
        """Predict and judge a config."""
        return _State(config, self.predict_ms(config), self.judge(config))

    def predict_ms(self, config: Config) -> float:
        """Predict the latency of a config."""
        return self.latency.predict_ms(self.space.blocks(config))

    def judge(self, config: Config) -> float:
        """Ask for the quality of a config."""
        quality = self.quality(config)
        if not math.isfinite(quality):
            raise InvalidQuality(
                f"the quality of config {config.id} is {quality}, no finite number: repair its measure"
            )
        return quality

    def candidates(self, current: _State) -> tuple[Candidate, ...]:
        """List the moves that gain speed: of the least important stage that has one, or of all stages.

        Quality is asked last and only of these: it may be a measured AP that takes seconds.
        """
        faster = self._faster(current)
        if self.stages == "least_important" and faster:
            faster = self._of_least_important_stage(current.config, faster)
        return tuple(self._candidate(current, one) for one in faster)

    def _faster(self, current: _State) -> list[_Faster]:
        """List the paper's moves that gain speed, of every stage.

        IR: empty the slot of least M. SR: remove the first SWMSA. WMR: remove the first WMSA. WR: narrow to the next
        width that is faster; tables exist in which a width is slower than the one above. And the coarser
        prediction map, where the space has one.
        """
        slots = {
            (number, slot) for number in range(1, 5) for slot in _movable_slots(self.importance, current.config, number)
        }
        found: list[_Faster] = []
        narrowed: set[int | None] = set()
        for move, config in self.space.moves(current.config):
            if move.slot is not None and (move.stage, move.slot) not in slots:
                continue
            if move.width is not None and move.stage in narrowed:
                continue
            latency_ms = self.predict_ms(config)
            if _fps_gained(current.latency_ms, latency_ms) > _ROUNDING * 1000 / current.latency_ms:
                found.append(_Faster(move, config, latency_ms))
                narrowed |= {move.stage} if move.width is not None else set()
        return found

    def _of_least_important_stage(self, config: Config, faster: list[_Faster]) -> list[_Faster]:
        """Keep the moves of the least important stage, LR of Algorithm 1 (the removal of least M), that of no stage."""
        least = min(
            {one.move.stage for one in faster if one.move.stage is not None},
            key=lambda number: (
                self.importance.stage_importance(number, _alive(config, number), aggregate=self.aggregate),
                number,
            ),
            default=None,
        )
        removals = [(move.stage, move.slot) for move, *_ in faster if move.stage is not None and move.slot is not None]
        reduced = min(removals, key=lambda place: self.importance.block_importance(*place), default=None)
        return [one for one in faster if one.move.stage in {least, None} or (one.move.stage, one.move.slot) == reduced]

    def _candidate(self, current: _State, faster: _Faster) -> Candidate:
        quality = self.judge(faster.config)
        return Candidate(
            move=faster.move,
            config=faster.config,
            latency_ms=faster.latency_ms,
            quality=quality,
            drop=current.quality - quality,
            fps_gained=_fps_gained(current.latency_ms, faster.latency_ms),
        )


def _fps_gained(before_ms: float, after_ms: float) -> float:
    return 1000 / after_ms - 1000 / before_ms


def _movable_slots(importance: Importance, config: Config, number: int) -> set[int]:
    """Return the slots of a stage that IR, SR and WMR would empty."""
    slots = config.stages[number - 1].slots
    least = min(_alive(config, number), key=lambda slot: importance.block_importance(number, slot))
    return {least} | {slots.index(kind) for kind in (Kind.SWMSA, Kind.WMSA) if kind in slots}


def _alive(config: Config, number: int) -> tuple[int, ...]:
    slots = config.stages[number - 1].slots
    return tuple(slot for slot, kind in enumerate(slots) if kind is not Kind.IDENTITY)


def _preference(candidate: Candidate) -> tuple[bool, float, str]:
    """Order candidates: free moves first, the fastest of them; then by price; ties by identity, never by chance."""
    free = candidate.drop <= 0
    return (not free, -candidate.fps_gained if free else candidate.price, candidate.config.id)


def _out_of_moves(problem: _Problem, budget: Budget, current: _State) -> BudgetUnmet:
    latency = problem.latency
    quickest = fastest(problem.space, latency, image=current.config.image)
    if not latency.holds(quickest.latency_ms, budget.latency_ms):
        return unreachable(problem.space, latency, budget, quickest)
    return ThinningExhausted(
        target_ms=budget.latency_ms,
        fastest_ms=quickest.latency_ms * (1 + latency.margin),
        binding=quickest.binding,
        image=quickest.config.image,
        reached_ms=current.latency_ms * (1 + latency.margin),
    )
