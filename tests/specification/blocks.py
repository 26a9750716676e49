from typing import Any

from nas.blocks import Activation, Block, Kind, Layout


def block_of(kind: Kind, channels: tuple[int, int], size: tuple[int, int], **deviations: Any) -> Block:
    """A block as it stands in a network whose maps are all spatial."""
    inputs = 2 if kind in {Kind.SAM, Kind.SCM, Kind.UP, Kind.HEAD} else 1
    return Block(
        kind=kind,
        channels_in=channels[0],
        channels_out=channels[1],
        height=size[0],
        width=size[1],
        layouts=(Layout.SPATIAL,) * inputs,
        activation=Activation.GELU,
        **deviations,
    )
