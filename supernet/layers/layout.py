"""Feature maps as (batch, channels, height, width) or as tokens (batch, height * width, channels), and between them.

How they lie inside a block: `supernet.layers.forms`.
"""

from torch import Tensor

from nas.blocks import Block, Layout


def to_tokens(x: Tensor, layout: Layout) -> Tensor:
    """Return (B, H*W, C), rows of the map first."""
    return x if layout is Layout.TOKENS else x.flatten(2).transpose(1, 2)


def to_spatial(x: Tensor, layout: Layout, height: int, width: int) -> Tensor:
    """Return (B, C, H, W)."""
    if layout is Layout.SPATIAL:
        return x
    return x.view(x.shape[0], height, width, -1).permute(0, 3, 1, 2)


def to_rows(x: Tensor, layout: Layout) -> Tensor:
    """Return (B*H*W, C)."""
    return x.flatten(0, 1) if layout is Layout.TOKENS else x.permute(0, 2, 3, 1).flatten(0, 2)


def first_spatial(x: Tensor, block: Block) -> Tensor:
    """Return the block's first input as (B, C, H, W)."""
    return to_spatial(x, block.layouts[0], block.height, block.width)
