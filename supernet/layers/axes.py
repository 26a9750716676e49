"""What each channel axis of a weight stands for: said once where a layer is made, read when a subnet is cut out."""

from abc import ABC, abstractmethod
from enum import Enum, auto

from torch import Tensor


class Axis(Enum):
    """The channels along one axis of a weight."""

    WHOLE = auto()
    """Never narrowed: image channels, anchors, classes, kernel sides."""
    IN = auto()
    """Channels of the block's first input."""
    IN_FIRST_HALF = auto()
    """First half of the first input's channels."""
    IN_SECOND_HALF = auto()
    """Second half of the first input's channels."""
    SECOND_IN = auto()
    """Channels of the block's second input."""
    OUT = auto()
    """Channels of the block's output."""
    OUT_SUBPIXELS = auto()
    """Four sub-pixels for each channel of the output."""
    INNER = auto()
    """Private to the block (hidden widths, whole heads): a narrower block keeps the leading ones."""
    XCA_INNER = auto()
    """Private to channel-wise attention: a narrower block keeps the leading channels of each of the 8 heads."""


class Sliceable(ABC):
    """A layer with channels that a narrower subnet leaves out."""

    @abstractmethod
    def channel_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return what each axis of its tensors stands for, by name; tensors not named are kept whole."""


class Writer(Sliceable):
    """A layer that writes channels.

    Attributes:
        writes: what they stand for.
    """

    writes: Axis

    @abstractmethod
    def strength(self) -> Tensor:
        """Return |gamma| times the L1 norm of the weights behind each output channel: (C_out,)."""


NORM_TENSORS = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
"""The per-channel tensors of a layer's BatchNorm."""
