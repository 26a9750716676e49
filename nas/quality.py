"""How good a config is: two kinds of answer that are never confused.

`Quality` is any callable from config to a number, such as measured AP. `AdditiveScore` is a bounded surrogate made from
importance: a sum over slots and channel groups, so that removing a block, swapping its type and narrowing a stage all
change it, and an exact solver can prove an optimum of it. Narrowing never raises it; removing a block does where the
supernet would rather skip it (p_identity > p_kind). It is a surrogate: measured AP decides.
"""

from collections.abc import Callable
from typing import Self

from nas.blocks import Kind
from nas.config import Config
from nas.errors import InvalidConfig
from nas.importance import Importance, PerKind, PerStride
from nas.space import WIDTH_STEP, SearchSpace
from nas.values import Value

Quality = Callable[[Config], float]
"""Higher is better. The search never assumes that it is additive."""


class StageScore(Value):
    """The price list of one stage, in percent of the best config of the space.

    Attributes:
        slots: score of each candidate in each slot, the identity included.
        global_kinds: score of each candidate of the closing block.
        groups: score of each group of 32 residual channels, most important first.
    """

    slots: tuple[PerKind, ...]
    global_kinds: PerKind
    groups: tuple[float, ...]

    def width(self, width: int) -> float:
        """Return the score of keeping the most important `width` channels."""
        return sum(self.groups[: width // WIDTH_STEP])


class AdditiveScore(Value):
    """Score of a config as a sum over what it keeps, in percent of the best config of the space: never above 100.

    Attributes:
        space: id of the space whose configs it scores.
        stages: the price lists of the four stages.
        strides: what each stride of the prediction map loses, 0 for the best; None where the space has one stride.
    """

    space: str
    stages: tuple[StageScore, StageScore, StageScore, StageScore]
    strides: PerStride | None = None

    @classmethod
    def from_importance(cls, space: SearchSpace, importance: Importance) -> Self:
        """Derive the score from trained logits (spec 3.6).

        A slot holding kind n scores p_n = softmax(r)_n, an emptied one p_identity. Channel group g of stage j scores
        share(j, g) * V_j, with V_j the sum over the stage's slots of their best p. A stride whose AP50 is x percent
        below the best one loses x percent of everything: all blocks work for the one prediction map. Where no stride
        found anything, none loses.

        Raises:
            InvalidConfig: the importance belongs to another space.
        """
        importance.check(space)
        raw = [_stage_score(importance, number) for number in (1, 2, 3, 4)]
        unit = 100 / sum(_best(stage) for stage in raw)
        first, second, third, fourth = (_scaled(stage, unit) for stage in raw)
        strides = importance.stride_ap50 and _stride_losses(importance.stride_ap50)
        return cls(space=space.id, stages=(first, second, third, fourth), strides=strides)

    @classmethod
    def indifferent(cls, space: SearchSpace) -> Self:
        """Score every config of the space zero: what remains to choose by is latency."""
        first, second, third, fourth = (
            StageScore(
                slots=(dict.fromkeys((*choices.local_kinds, Kind.IDENTITY), 0.0),) * choices.slots,
                global_kinds=dict.fromkeys(choices.global_kinds, 0.0),
                groups=(0.0,) * (choices.widths[-1] // WIDTH_STEP),
            )
            for choices in space.stages
        )
        strides = dict.fromkeys(space.prediction_strides, 0.0)
        return cls(space=space.id, stages=(first, second, third, fourth), strides=strides if len(strides) > 1 else None)

    def check(self, space: SearchSpace) -> Self:
        """Return self, or raise `InvalidConfig` if it scores the configs of another space."""
        if self.space != space.id:
            raise InvalidConfig(
                f"score belongs to space {self.space}, not to {space.name} ({space.id}): derive it from its importance"
            )
        return self

    def __call__(self, config: Config) -> float:
        """Score a config, in percent.

        Raises:
            InvalidConfig: the config is one of another space.
        """
        if config.space != self.space:
            raise InvalidConfig(f"config belongs to space {config.space}, the score to {self.space}: score it there")
        total = self.stride(config.prediction_stride)
        for score, stage in zip(self.stages, config.stages, strict=True):
            total += sum(slot[kind] for slot, kind in zip(score.slots, stage.slots, strict=True))
            total += score.global_kinds[stage.global_kind] + score.width(stage.width)
        return total

    def stride(self, stride: int) -> float:
        """Return the score of a stride of the prediction map: 0 or less."""
        return 0.0 if self.strides is None else self.strides[stride]


def _stride_losses(ap50: PerStride) -> dict[int, float]:
    best = max(ap50.values())
    return {stride: 100 * (value / best - 1) if best > 0 else 0.0 for stride, value in ap50.items()}


def _stage_score(importance: Importance, number: int) -> StageScore:
    logits = importance.stages[number - 1]
    slots = tuple(importance.slot_probability(number, slot) for slot in range(len(logits.slots)))
    value = sum(max(slot.values()) for slot in slots)
    return StageScore(
        slots=slots,
        global_kinds=importance.global_probability(number),
        groups=tuple(share * value for share in logits.group_share),
    )


def _best(stage: StageScore) -> float:
    """Return the most a legal stage scores: one slot must hold a block, even where all would rather be empty."""
    slots = sum(max(slot.values()) for slot in stage.slots)
    regret = min(max(slot.values()) - max(_of_blocks(slot)) for slot in stage.slots)
    return slots - regret + max(stage.global_kinds.values()) + sum(stage.groups)


def _of_blocks(slot: PerKind) -> list[float]:
    return [value for kind, value in slot.items() if kind is not Kind.IDENTITY]


def _scaled(stage: StageScore, unit: float) -> StageScore:
    return StageScore(
        slots=tuple({kind: value * unit for kind, value in slot.items()} for slot in stage.slots),
        global_kinds={kind: value * unit for kind, value in stage.global_kinds.items()},
        groups=tuple(value * unit for value in stage.groups),
    )
