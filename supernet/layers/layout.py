"""Feature maps as (batch, channels, height, width) or as tokens (batch, height * width, channels), and between them."""

from torch import Tensor

from nas.blocks import Block, Layout


def to_tokens(x: Tensor, layout: Layout) -> Tensor:
    """Return (B, H*W, C), rows first."""
    return x if layout is Layout.TOKENS else x.flatten(2).transpose(1, 2)


def to_spatial(x: Tensor, layout: Layout, height: int, width: int) -> Tensor:
    """Return (B, C, H, W)."""
    return x if layout is Layout.SPATIAL else x.transpose(1, 2).reshape(x.shape[0], -1, height, width)


def first_spatial(x: Tensor, block: Block) -> Tensor:
    """Return the block's first input as (B, C, H, W)."""
    return to_spatial(x, block.layouts[0], block.height, block.width)


def first_tokens(x: Tensor, block: Block) -> Tensor:
    """Return the block's first input as (B, H*W, C)."""
    return to_tokens(x, block.layouts[0])
