"""Check (f): windows that move by padding attend as Swin's do, which rolls the map and masks what was not adjacent.

Swin's way is restated here from its paper, without the product's windows, masks or position index. Where a side is no
multiple of 7, the map is padded at the bottom and right before it is rolled, and padded keys are masked too: the
specification (section 2) lets no padding be attended to.
"""

import pytest
import torch
from torch import Tensor

from nas.blocks import Block, Kind
from supernet.detector import build_block
from supernet.export import randomise_statistics
from supernet.layers.window_attention import WindowAttention
from tests.supernet.block_samples import random_inputs

SIDE, SHIFT = 7, 3


def window_block(kind: Kind, height: int, width: int, *, key_width: int | None = None) -> tuple[Block, WindowAttention]:
    block = Block(kind=kind, channels_in=64, channels_out=64, height=height, width=width, key_width=key_width)
    torch.manual_seed(0)
    module = build_block(block)
    assert isinstance(module, WindowAttention)
    torch.nn.init.normal_(module.position.table)
    return block, module


@pytest.mark.parametrize(
    ("height", "width"),
    [(21, 28), (14, 14), (14, 7), (25, 42), (13, 21), (10, 15), (20, 20), (5, 14), (8, 3), (7, 8)],
    ids=str,
)
@pytest.mark.parametrize("kind", [Kind.WMSA, Kind.SWMSA])
@torch.no_grad()
def test_shift_by_padding_is_the_cyclic_shift_with_the_mask_of_swin(kind: Kind, height: int, width: int) -> None:
    _, module = window_block(kind, height, width)
    qkv = torch.randn(2, height, width, 2, 64, generator=torch.Generator().manual_seed(0))
    got = module.attend(qkv.reshape(2 * height * width, 128)).view(2, height, width, 64)
    shift = SHIFT if kind is Kind.SWMSA else 0
    assert (got - swin(qkv, module.position.table, shift=shift, key_width=16)).abs().max() <= 1e-6


@torch.no_grad()
def test_the_shift_is_that_of_swin_with_wide_keys_too() -> None:
    _, module = window_block(Kind.SWMSA, 20, 26, key_width=32)
    qkv = torch.randn(1, 20, 26, 2, 96, generator=torch.Generator().manual_seed(0))
    got = module.attend(qkv.reshape(520, 192)).view(1, 20, 26, 64)
    assert (got - swin(qkv, module.position.table, shift=SHIFT, key_width=32)).abs().max() <= 2e-6


@pytest.mark.parametrize(("height", "width"), [(7, 7), (7, 6), (5, 7), (3, 3)])
@torch.no_grad()
def test_a_map_of_one_window_is_not_shifted(height: int, width: int) -> None:
    block, plain = window_block(Kind.WMSA, height, width)
    _, shifted = window_block(Kind.SWMSA, height, width)
    randomise_statistics(plain)
    shifted.load_state_dict(plain.state_dict())
    (x,) = random_inputs(block)
    assert torch.equal(plain.eval()(x), shifted.eval()(x))
    qkv = torch.randn(1, height, width, 2, 64, generator=torch.Generator().manual_seed(0))
    got = shifted.attend(qkv.reshape(height * width, 128)).view(1, height, width, 64)
    assert (got - swin(qkv, shifted.position.table, shift=0, key_width=16)).abs().max() <= 1e-6


def swin(qkv: Tensor, table: Tensor, *, shift: int, key_width: int) -> Tensor:
    """Attend in windows as Swin does: pad, roll, attend where region and window agree, roll back, crop.

    Args:
        qkv: scaled queries, keys and values (B, H, W, heads, 2 * key width + 32).
        table: position biases (169, heads), by 13 * (row offset + 6) + column offset + 6, query minus key.
        shift: rows and columns by which windows move.
        key_width: channels of a query.
    """
    height, width = qkv.shape[1:3]
    rows, columns = (-(-side // SIDE) * SIDE for side in (height, width))
    padded = torch.zeros(len(qkv), rows, columns, *qkv.shape[3:])
    padded[:, :height, :width] = qkv
    # A region is what stays together: on either side of the seam that rolling makes, and on the map or off it.
    region = torch.zeros(rows, columns, 3)
    region[:shift, :, 0] = 1
    region[:, :shift, 1] = 1
    region[height:, :, 2] = region[:, width:, 2] = 1
    rolled, region = padded.roll((-shift, -shift), (1, 2)), region.roll((-shift, -shift), (0, 1))
    out, bias = torch.zeros(*rolled.shape[:4], 32), _position_bias(table)
    for top in range(0, rows, SIDE):
        for left in range(0, columns, SIDE):
            here = slice(top, top + SIDE), slice(left, left + SIDE)
            of_key = region[here].reshape(49, 3)
            together = (of_key[:, None] == of_key[None]).all(-1)
            query, key, value = (
                part.movedim(3, 1).flatten(2, 3) for part in rolled[:, *here].split((key_width, key_width, 32), dim=-1)
            )
            scores = torch.einsum("bhqc,bhkc->bhqk", query, key) + bias
            mixed = scores.masked_fill(~together, -torch.inf).softmax(-1) @ value
            out[:, *here] = mixed.unflatten(2, (SIDE, SIDE)).movedim(1, 3)
    return out.roll((shift, shift), (1, 2))[:, :height, :width].flatten(3)


def _position_bias(table: Tensor) -> Tensor:
    """Return the bias of each query and key of a window (heads, 49, 49), one by one."""
    bias = torch.zeros(table.shape[1], 49, 49)
    for query in range(49):
        for key in range(49):
            down, right = query // SIDE - key // SIDE, query % SIDE - key % SIDE
            bias[:, query, key] = table[13 * (down + 6) + right + 6]
    return bias
