"""What a trained supernet says about each choice: the architecture logits r and what is derived from them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from nas.blocks import Kind
from nas.errors import InvalidConfig
from nas.space import WIDTH_STEP, SearchSpace
from nas.values import Value

Aggregate = Literal["sum", "mean"]


K = TypeVar("K", Kind, int)


class _FrozenPer(Mapping[K, float]):
    """Immutable, hashable, and in the order of the keys: a sum over it comes out the same after JSON."""

    def __init__(self, numbers: Mapping[K, float]) -> None:
        self._numbers: dict[K, float] = {key: numbers[key] for key in sorted(numbers)}

    def __getitem__(self, key: K) -> float:
        return self._numbers[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __hash__(self) -> int:
        return hash(tuple(self._numbers.items()))

    def __repr__(self) -> str:
        return repr(self._numbers)


PerKind = Annotated[
    Mapping[Kind, float], AfterValidator(_FrozenPer), PlainSerializer(dict, return_type=dict[Kind, float])
]
"""A number for each candidate of a slot or a closing block."""


PerStride = Annotated[
    Mapping[int, float], AfterValidator(_FrozenPer), PlainSerializer(dict, return_type=dict[int, float])
]
"""A number for each stride of the prediction map."""


class StageLogits(Value):
    """The trained logits of one stage.

    Attributes:
        slots: r of each slot: one logit per candidate, the identity included (paper eq. 8).
        global_kinds: r of the closing block's candidates.
        group_share: importance of each group of 32 residual channels, largest first, summing to 1 (spec 3.6).
    """

    slots: tuple[PerKind, ...]
    global_kinds: PerKind
    group_share: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(share < 0 for share in self.group_share) or abs(sum(self.group_share) - 1) > 1e-6:
            raise ValueError(f"group_share {self.group_share} must be non-negative and sum to 1: normalise it")
        if list(self.group_share) != sorted(self.group_share, reverse=True):
            raise ValueError(f"group_share {self.group_share} must descend: the most important group is kept longest")
        return self


class Provenance(Value):
    """Where an importance comes from.

    Attributes:
        data: name and content hash of the training data.
        seed: seed of the run.
        steps: optimiser steps taken.
        noise: distribution added to the logits: `gumbel`, or `uniform` as the paper prints it.
        precision: what convolutions and matrix products were computed in.
        version: version of the product that trained it.
        checkpoint_sha256: hash of the weights the logits were trained with.
    """

    data: str
    seed: int
    steps: int = Field(ge=0)
    noise: Literal["gumbel", "uniform"]
    precision: Literal["fp32", "bf16"]
    version: str
    checkpoint_sha256: str


class Importance(Value):
    """Importance scores of one supernet, bound to its search space.

    Attributes:
        space: id of the space the supernet spans.
        stages: trained logits of the four stages.
        stride_ap50: AP50 of the mixture on training images for each stride of the prediction map; None where the space
            has one stride. Strides give different maps, which no gate can mix: they are compared by what they find. All
            are 0 where none found anything: then they are not told apart (`tells_strides_apart`).
        provenance: the run that produced them.
    """

    space: str
    stages: tuple[StageLogits, StageLogits, StageLogits, StageLogits]
    stride_ap50: PerStride | None = None
    provenance: Provenance

    def check(self, space: SearchSpace) -> Self:
        """Return self, or raise `InvalidConfig` if the logits do not fit the space slot by slot and kind by kind."""
        if self.space != space.id:
            raise InvalidConfig(f"importance belongs to space {self.space}, not {space.name} ({space.id}): train there")
        for number, (logits, choices) in enumerate(zip(self.stages, space.stages, strict=True), start=1):
            candidates = {*choices.local_kinds, Kind.IDENTITY}
            fits = (
                len(logits.slots) == choices.slots
                and all(set(slot) == candidates for slot in logits.slots)
                and set(logits.global_kinds) == set(choices.global_kinds)
                and len(logits.group_share) == choices.widths[-1] // WIDTH_STEP
            )
            if not fits:
                raise InvalidConfig(f"importance of stage {number} does not fit {space.name}: train it on this space")
        strides = {} if len(space.prediction_strides) == 1 else space.prediction_strides
        if set(self.stride_ap50 or {}) != set(strides):
            raise InvalidConfig(
                f"importance of the prediction stride does not fit {space.name}: train it on this space"
            )
        return self

    @property
    def tells_strides_apart(self) -> bool:
        """Whether some stride found something; where none did, they cost nothing and the finest is taken to start."""
        return self.stride_ap50 is None or any(self.stride_ap50.values())

    def slot_probability(self, stage: int, slot: int) -> dict[Kind, float]:
        """Return p = softmax(r) over the candidates of a slot, without noise (stage 1..4, slot 0-based)."""
        return softmax(self.stages[stage - 1].slots[slot])

    def global_probability(self, stage: int) -> dict[Kind, float]:
        """Return p = softmax(r) over the closing block's candidates (stage 1..4)."""
        return softmax(self.stages[stage - 1].global_kinds)

    def block_importance(self, stage: int, slot: int) -> float:
        """Return M_{i,j} = (1 - p_I) / max(p_I, 1e-4), the paper's ratio on probabilities (Alg. 1 line 15)."""
        identity = self.slot_probability(stage, slot)[Kind.IDENTITY]
        return (1 - identity) / max(identity, 1e-4)

    def stage_importance(self, stage: int, alive: tuple[int, ...], *, aggregate: Aggregate = "sum") -> float:
        """Aggregate M over the alive slots of a stage: `sum` as printed, or `mean`, which forgives short stages."""
        scores = [self.block_importance(stage, slot) for slot in alive]
        return float(np.sum(scores) if aggregate == "sum" else np.mean(scores))


def softmax(logits: Mapping[Kind, float]) -> dict[Kind, float]:
    """Normalise logits to probabilities."""
    values = np.array(list(logits.values()))
    exponentials = np.exp(values - values.max())
    return dict(zip(logits, (exponentials / exponentials.sum()).tolist(), strict=True))
