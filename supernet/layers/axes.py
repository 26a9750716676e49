"""What each channel axis of a weight stands for: said once where a layer is made, read when a subnet is cut out."""

from enum import Enum, auto


class Axis(Enum):
    """The channels along one axis of a weight."""

    WHOLE = auto()
    """Never narrowed: image channels, anchors and classes."""
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
