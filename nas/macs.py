"""Multiply-adds and parameters of deployed (fused) blocks, by arithmetic; one MAC = one multiply and one add."""

from collections.abc import Iterable
from typing import assert_never

from nas.blocks import HEAD_WIDTH, KERNEL, KEY_WIDTH, WINDOW, XCA_HEADS, Block, Kind, Upsample

_WINDOWED = frozenset({Kind.WMSA, Kind.SWMSA})


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
            return windows(block) * WINDOW**4 * (_key_channels(block) + c)
        case Kind.XCA:
            return 2 * n * c * c // XCA_HEADS
        case Kind.ATTENTION | Kind.SPARSE_ATTENTION:
            return 2 * n * n * c
        case _:
            return 0


def weight_macs(block: Block) -> int:
    """Count the multiply-adds of convolutions and Linears."""
    c, out, n = block.channels_in, block.channels_out, block.tokens
    match block.kind:
        case Kind.STEM:
            first, second = block.stem_widths
            return sum(
                size * _cells(block, stride)
                for size, stride in ((27 * first, 2), (9 * first * second, 4), (9 * second * out, 8))
            )
        case Kind.ENTRY:
            return weights(block) * _cells(block, 2)
        case Kind.REP_CNN | Kind.ALIGN | Kind.PROJECT | Kind.SPLIT_PROJECT | Kind.HEAD | Kind.XCA:
            return weights(block) * n
        case Kind.WMSA | Kind.SWMSA:
            return (weights(block) - _position_bias(block)) * n
        case Kind.ATTENTION | Kind.SPARSE_ATTENTION:
            kept = block.kept_tokens if block.kept_tokens is not None else n
            return 4 * c * c * n + 2 * c * block.hidden * kept
        case Kind.SAM:
            return _convolution(block) * n + _up(block) * _cells(block, 2)
        case Kind.SCM:
            return weights(block) * _cells(block, 2)
        case Kind.UP:
            return _up(block) * _cells(block, 2)
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


def weights(block: Block) -> int:
    """Count the weights of one deployed block and the position biases as they are learnt, without other biases.

    The specification's table counts so.
    """
    c, out = block.channels_in, block.channels_out
    match block.kind:
        case Kind.STEM:
            first, second = block.stem_widths
            return 27 * first + 9 * first * second + 9 * second * out
        case Kind.ENTRY | Kind.ALIGN:
            return _convolution(block)
        case Kind.REP_CNN:
            return 9 * c * out
        case Kind.WMSA | Kind.SWMSA:
            return 2 * c * _key_channels(block) + 2 * c * c + 2 * c * block.hidden + _position_bias(block)
        case Kind.XCA:
            return 4 * c * c + 18 * c + 2 * c * block.hidden
        case Kind.ATTENTION | Kind.SPARSE_ATTENTION:
            return 4 * c * c + 2 * c * block.hidden
        case Kind.SAM:
            return _convolution(block) + _up(block)
        case Kind.SCM:
            return 2 * c * block.hidden + (_convolution(block) if c != out else 0)
        case Kind.UP:
            return _up(block)
        case Kind.PROJECT:
            return c * out
        case Kind.SPLIT_PROJECT:
            return c // 2 * out
        case Kind.HEAD:
            return 9 * len(block.anchor_px or ()) * (c // 2 * out + c * 4 + c)
        case Kind.POOL | Kind.IDENTITY:
            return 0
    assert_never(block.kind)


def parameters(block: Block) -> int:
    """Count the numbers that one deployed block carries: weights, biases, and position biases as they are expanded."""
    expanded = WINDOW**4 * (block.channels_in // HEAD_WIDTH) - _position_bias(block)
    temperatures = XCA_HEADS if block.kind is Kind.XCA else 0
    return weights(block) + outputs(block) + temperatures + (expanded if block.kind in _WINDOWED else 0)


def outputs(block: Block) -> int:
    """Count the channels that convolutions and Linears write: each has gamma and beta, and one bias when deployed."""
    c, out = block.channels_in, block.channels_out
    match block.kind:
        case Kind.STEM:
            return sum(block.stem_widths) + out
        case Kind.ENTRY | Kind.REP_CNN | Kind.ALIGN | Kind.PROJECT | Kind.SPLIT_PROJECT:
            return out
        case Kind.WMSA | Kind.SWMSA:
            return 2 * _key_channels(block) + 3 * c + block.hidden
        case Kind.XCA:
            return 7 * c + block.hidden
        case Kind.ATTENTION | Kind.SPARSE_ATTENTION:
            return 5 * c + block.hidden
        case Kind.SAM:
            return out + _sub_pixels(block)
        case Kind.SCM:
            return c + block.hidden + (out if c != out else 0)
        case Kind.UP:
            return _sub_pixels(block)
        case Kind.HEAD:
            return len(block.anchor_px or ()) * (out + 5)
        case Kind.POOL | Kind.IDENTITY:
            return 0
    assert_never(block.kind)


def weights_mib(blocks: Iterable[Block]) -> float:
    """Return the size of the blocks' weights in MiB, at 4 bytes each."""
    return sum(4 * weights(block) for block in blocks) / 2**20


def _cells(block: Block, stride: int) -> int:
    return -(-block.height // stride) * -(-block.width // stride)


def _convolution(block: Block) -> int:
    """Weights of the convolution from the first input's channels to the output's."""
    return (block.kernel or KERNEL) ** 2 * block.channels_in * block.channels_out


def _up(block: Block) -> int:
    """Weights that enlarge the coarse map, and multiply-adds for each of its cells."""
    return _sub_pixels(block) * block.channels_out


def _sub_pixels(block: Block) -> int:
    """Channels that the deconvolution writes at the coarse resolution."""
    return 0 if block.upsample is Upsample.NEAREST else 4 * block.channels_out


def _key_channels(block: Block) -> int:
    """Query (or key) channels of window attention, of all heads."""
    return block.channels_in // HEAD_WIDTH * (block.key_width or KEY_WIDTH)


def _position_bias(block: Block) -> int:
    """Entries of the table of relative positions."""
    return (2 * WINDOW - 1) ** 2 * (block.channels_in // HEAD_WIDTH)
