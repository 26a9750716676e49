"""The architecture of one detector."""

from typing import Literal

from nas.blocks import PREDICTION_STRIDE, Kind
from nas.values import Value


class Stage(Value):
    """One HOD stage: its slots (HeatPaths), the global block that closes it, and its width.

    Attributes:
        width: channels of the residual stream, a multiple of 32 (the paper's D_j).
        slots: the kind in each slot, `Kind.IDENTITY` where the slot is empty (N_j of them).
        global_kind: the block after the slots.
    """

    width: int
    slots: tuple[Kind, ...]
    global_kind: Kind

    @property
    def depth(self) -> int:
        """Local blocks that remain."""
        return sum(kind is not Kind.IDENTITY for kind in self.slots)


class Config(Value):
    """One detector of a search space; build, count, predict and export it together with that space.

    Attributes:
        space: `SearchSpace.id` of the space it belongs to.
        image: input height and width in pixels.
        stages: the four stages, at strides 8, 16, 32 and 64.
        stride: input pixels between two cells of the prediction map, 16; None for 32. At 16 the SCM stops one level
            earlier: small objects are seen that stride 32 loses, at a price.
    """

    space: str
    image: tuple[int, int]
    stages: tuple[Stage, Stage, Stage, Stage]
    stride: Literal[16] | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """The four stage widths D_1..D_4."""
        return tuple(stage.width for stage in self.stages)

    @property
    def prediction_stride(self) -> int:
        """Input pixels between two cells of the prediction map."""
        return self.stride or PREDICTION_STRIDE

    def with_stage(self, index: int, stage: Stage) -> "Config":
        """Return the config with one stage (0-based) replaced."""
        stages = list(self.stages)
        stages[index] = stage
        return self.model_copy(update={"stages": tuple(stages)})
