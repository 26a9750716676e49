"""Multiply-adds and parameters of deployed (fused) blocks, by arithmetic; one MAC = one multiply and one add."""

from collections.abc import Iterable
from typing import assert_never

from nas.blocks import HEAD_WIDTH, WINDOW, XCA_HEADS, Block, Kind

MLP_RATIO = 4


def gmacs(blocks: Iterable[Block]) -> float:
    """Sum the multiply-adds of the blocks, in units of 1e9."""
    return sum(macs(block) for block in blocks) / 1e9


def macs(block: Block) -> int:
    """Count every multiply-add of one deployed block at batch 1: convolutions, Linears and attention products."""
    return weight_macs(block) + attention_macs(block)


def attention_macs(block: Block) -> int:
    """Count the multiply-adds between activations (queries, keys, values), which hold no weights."""
    c, n = block.channels_in, block.tokens
    match block.kind:
        case Kind.WMSA | Kind.SWMSA:
            return windows(block) * WINDOW**4 * 3 * c // 2
        case Kind.XCA:
            return 2 * n * c * c // XCA_HEADS
        case Kind.ATTENTION:
            return 2 * n * n * c
        case _:
            return 0


def weight_macs(block: Block) -> int:
    """Count the multiply-adds of convolutions and Linears."""
    c, out, n = block.channels_in, block.channels_out, block.tokens
    match block.kind:
        case Kind.STEM:
            first, second, third = (_cells(block, stride) for stride in (2, 4, 8))
            return 27 * (out // 4) * first + 9 * (out // 4) * (out // 2) * second + 9 * (out // 2) * out * third
        case Kind.ENTRY:
            return 9 * c * out * _cells(block, 2)
        case Kind.REP_CNN | Kind.ALIGN:
            return 9 * c * out * n
        case Kind.WMSA | Kind.SWMSA:
            return 11 * c * c * n
        case Kind.XCA:
            return (12 * c * c + 18 * c) * n
        case Kind.ATTENTION:
            kept = block.kept_tokens if block.kept_tokens is not None else n
            return 4 * c * c * n + 2 * MLP_RATIO * c * c * kept
        case Kind.SAM:
            return 9 * c * out * n + 4 * out * out * _cells(block, 2)
        case Kind.SCM:
            coarse = _cells(block, 2)
            return 2 * MLP_RATIO * c * c * coarse + (9 * c * out * coarse if c != out else 0)
        case Kind.UP:
            return 4 * c * c * _cells(block, 2)
        case Kind.PROJECT:
            return c * out * n
        case Kind.SPLIT_PROJECT:
            return c // 2 * out * n
        case Kind.HEAD:
            anchors = len(block.anchor_px or ())
            return 9 * anchors * (c // 2 * out + c * 4 + c) * n
        case Kind.POOL | Kind.IDENTITY:
            return 0
    assert_never(block.kind)


def windows(block: Block) -> int:
    """Count the attention windows of a WMSA or SWMSA block; the shift pads 4 more rows and columns (spec section 6)."""
    shift = shift_padding(block)
    return -(-(block.height + shift) // WINDOW) * -(-(block.width + shift) // WINDOW)


def shift_padding(block: Block) -> int:
    """Return the rows and columns padded at the top and left: 4 when windows move by 3, 0 on maps of one window."""
    one_window = block.height <= WINDOW and block.width <= WINDOW
    return WINDOW - WINDOW // 2 if block.kind is Kind.SWMSA and not one_window else 0


def parameters(block: Block) -> int:
    """Count the weights of one deployed block (biases and constants left out, as in the specification's table)."""
    c, out = block.channels_in, block.channels_out
    match block.kind:
        case Kind.STEM:
            return 27 * (out // 4) + 9 * (out // 4) * (out // 2) + 9 * (out // 2) * out
        case Kind.ENTRY | Kind.REP_CNN | Kind.ALIGN:
            return 9 * c * out
        case Kind.WMSA | Kind.SWMSA:
            return 11 * c * c + (2 * WINDOW - 1) ** 2 * (c // HEAD_WIDTH)
        case Kind.XCA:
            return 12 * c * c + 18 * c
        case Kind.ATTENTION:
            return 12 * c * c
        case Kind.SAM:
            return 9 * c * out + 4 * out * out
        case Kind.SCM:
            return 8 * c * c + (9 * c * out if c != out else 0)
        case Kind.UP:
            return 4 * c * c
        case Kind.PROJECT:
            return c * out
        case Kind.SPLIT_PROJECT:
            return c // 2 * out
        case Kind.HEAD:
            return 9 * len(block.anchor_px or ()) * (c // 2 * out + c * 4 + c)
        case Kind.POOL | Kind.IDENTITY:
            return 0
    assert_never(block.kind)


def weights_mib(blocks: Iterable[Block]) -> float:
    """Return the size of the blocks' weights in MiB, at 4 bytes each."""
    return sum(4 * parameters(block) for block in blocks) / 2**20


def _cells(block: Block, stride: int) -> int:
    return -(-block.height // stride) * -(-block.width // stride)
