"""Device-adaptive model thinning (paper section 4.3 step 3, Algorithm 1 lines 13-19).

Start from the supernet's best path and, while the predicted latency exceeds the budget, apply the evolution that loses
least per frame per second gained. The paper sums a table of FPS; FPS does not add, so the loop runs on latency.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nas.blocks import Kind
from nas.budgets import Budget
from nas.config import Config, Stage
from nas.errors import BudgetUnreachable, ThinningExhausted
from nas.exact import fastest
from nas.importance import Aggregate, Importance
from nas.latency import LatencyModel
from nas.quality import Quality
from nas.space import Move, SearchSpace
from nas.values import Value

Stages = Literal["least_important", "all"]


class Candidate(Value):
    """A legal evolution of the current config and what it buys.

    Attributes:
        move: the reduction.
        config: what it leads to.
        latency_ms: predicted latency of that config.
        score: quality of that config.
        drop: quality lost against the current config; negative when the move improves it.
        fps_gained: frames per second gained against the current config.
    """

    move: Move
    config: Config
    latency_ms: float
    score: float
    drop: float
    fps_gained: float

    @property
    def price(self) -> float:
        """Quality lost per frame per second gained (the paper's FPS_AP_drop)."""
        return self.drop / self.fps_gained


class Step(Value):
    """One turn of the loop: the candidate taken, and those it was preferred to."""

    taken: Candidate
    alternatives: tuple[Candidate, ...]


class Trail(Value):
    """The whole thinning: where it started and every step to the answer."""

    start: Config
    start_latency_ms: float
    start_score: float
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
    def score(self) -> float:
        """Quality of the answer."""
        return self.steps[-1].taken.score if self.steps else self.start_score


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
    """Thin the supernet's best path until the budget holds, margin included.

    `stages="least_important"` is the paper's rule: only the least important stage that can still shrink is touched (and
    the least important block of all, its LR). `"all"` considers the evolutions of every stage. Each step removes a
    block or narrows a stage and strictly lowers the predicted latency, so the loop ends.

    Raises:
        BudgetUnreachable: no config of the space is fast enough.
        ThinningExhausted: some config is fast enough, but not one that these reductions lead to.
        MissingBlocks: the table lacks a row that a candidate needs.
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
        current = _State(taken.config, taken.latency_ms, taken.score)
    return Trail(start=start.config, start_latency_ms=start.latency_ms, start_score=start.score, steps=tuple(steps))


def best_path(space: SearchSpace, importance: Importance, *, image: tuple[int, int] | None = None) -> Config:
    """Return the full-depth, full-width config with the most probable kind in every slot (identity apart)."""
    importance.check(space)
    config = space.largest(image)
    for index, logits in enumerate(importance.stages):
        stage = Stage(
            width=config.stages[index].width,
            slots=tuple(_most_probable(slot) for slot in logits.slots),
            global_kind=_most_probable(logits.global_kinds),
        )
        config = config.with_stage(index, stage)
    return space.check(config)


def _most_probable(logits: dict[Kind, float]) -> Kind:
    return max((kind for kind in sorted(logits) if kind is not Kind.IDENTITY), key=lambda kind: logits[kind])


class _State(NamedTuple):
    """Where the loop stands."""

    config: Config
    latency_ms: float
    score: float


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
        """Predict and score a config."""
        return _State(config, self.latency.predict_ms(self.space.blocks(config)), self.quality(config))

    def candidates(self, current: _State) -> tuple[Candidate, ...]:
        """List the evolutions that gain speed: of the least important stage that has one, or of all stages."""
        faster: dict[int, list[Candidate]] = {}
        for move, evolved in _evolutions(self.space, self.importance, current.config):
            # Latency first: quality may be a measured AP that takes seconds.
            latency_ms = self.latency.predict_ms(self.space.blocks(evolved))
            if latency_ms < current.latency_ms:
                candidate = _candidate(move, current, _State(evolved, latency_ms, self.quality(evolved)))
                faster.setdefault(move.stage, []).append(candidate)
        if self.stages == "all" or not faster:
            return tuple(candidate for found in faster.values() for candidate in found)
        least = min(faster, key=lambda number: self._stage_importance(current.config, number))
        return tuple({c.config.id: c for c in (*faster[least], *self._layer_reduction(faster))}.values())

    def _stage_importance(self, config: Config, number: int) -> float:
        return self.importance.stage_importance(number, _alive(config, number), aggregate=self.aggregate)

    def _layer_reduction(self, faster: dict[int, list[Candidate]]) -> list[Candidate]:
        """LR of Algorithm 1: the removal of the block of globally least M, whatever its stage."""
        removals = [c for found in faster.values() for c in found if c.move.slot is not None]
        return sorted(removals, key=lambda c: self.importance.block_importance(c.move.stage, c.move.slot or 0))[:1]


def _candidate(move: Move, current: _State, evolved: _State) -> Candidate:
    return Candidate(
        move=move,
        config=evolved.config,
        latency_ms=evolved.latency_ms,
        score=evolved.score,
        drop=current.score - evolved.score,
        fps_gained=1000 / evolved.latency_ms - 1000 / current.latency_ms,
    )


def _evolutions(space: SearchSpace, importance: Importance, config: Config) -> Iterator[tuple[Move, Config]]:
    """Yield the paper's evolutions of every stage.

    IR: empty the slot of least M. SR: remove the first SWMSA. WMR: remove the first WMSA. WR: narrow by one step.
    """
    for move, evolved in space.moves(config):
        if move.slot is None or move.slot in _evolving_slots(importance, config, move.stage):
            yield move, evolved


def _evolving_slots(importance: Importance, config: Config, number: int) -> set[int]:
    alive = _alive(config, number)
    slots = config.stages[number - 1].slots
    least = min(alive, key=lambda slot: importance.block_importance(number, slot))
    return {least} | {slots.index(kind) for kind in (Kind.SWMSA, Kind.WMSA) if kind in slots}


def _alive(config: Config, number: int) -> tuple[int, ...]:
    slots = config.stages[number - 1].slots
    return tuple(slot for slot, kind in enumerate(slots) if kind is not Kind.IDENTITY)


def _preference(candidate: Candidate) -> tuple[bool, float, str]:
    """Order candidates: free moves first, the fastest of them; then by price; ties by identity, never by chance."""
    free = candidate.drop <= 0
    return (not free, -candidate.fps_gained if free else candidate.price, candidate.config.id)


def _out_of_moves(problem: _Problem, budget: Budget, current: _State) -> BudgetUnreachable:
    latency = problem.latency
    quickest = fastest(problem.space, latency, image=current.config.image)
    bound_ms = quickest.latency_ms * (1 + latency.margin)
    if bound_ms > budget.latency_ms:
        return BudgetUnreachable(target_ms=budget.latency_ms, fastest_ms=bound_ms, binding=quickest.binding)
    return ThinningExhausted(
        target_ms=budget.latency_ms,
        fastest_ms=bound_ms,
        binding=quickest.binding,
        reached_ms=current.latency_ms * (1 + latency.margin),
    )
