"""WMSA_bn and SWMSA_bn: attention in 7x7 windows, plain or shifted, BatchNorm after every Linear (paper Fig. 3)."""

import torch
from torch import Tensor, nn

from nas.blocks import HEAD_WIDTH, KEY_WIDTH, WINDOW, Block
from nas.macs import shift_padding
from supernet.layers.axes import Axis, Sliceable
from supernet.layers.drop_path import DropPath
from supernet.layers.forms import form_of
from supernet.layers.mlp import MLP
from supernet.layers.windows import Windows


class WindowAttention(nn.Module):
    """x += proj(attention in windows); x += MLP(x).

    Queries, keys and values are computed before padding, so that zeros never pass a BatchNorm. Shifted windows come
    from padding 4 rows and columns at the top and left instead of rolling the map.
    """

    mask: Tensor | None

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        channels = block.channels_in
        self.heads = channels // HEAD_WIDTH
        self.form = form_of(block)
        self.windows = self.form.windows(shift_padding(block))
        self.key_width = block.key_width or KEY_WIDTH
        per_head = torch.ones(2 * self.key_width + HEAD_WIDTH)
        per_head[: self.key_width] = self.key_width**-0.5
        row_scale = per_head.repeat(self.heads)
        self.qkv = self.form.linear(channels, len(row_scale), reads=Axis.IN, writes=Axis.INNER, row_scale=row_scale)
        self.position = RelativePosition(self.heads, self.windows)
        self.proj = self.form.linear(channels, channels, reads=Axis.INNER, writes=Axis.OUT, last=True)
        self.mlp = MLP(block, self.form)
        self.drop = DropPath()
        self.register_buffer("mask", self.windows.mask(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map in the layout that the block gives."""
        images = len(x)
        x = self.form.enter(x, self.block.layouts[0])
        x = x + self.drop(self.proj(self.attend(self.qkv(x))), images)
        x = x + self.drop(self.mlp(x), images)
        return self.form.leave(x)

    def attend(self, qkv: Tensor) -> Tensor:
        """Attend within windows, in the block's form: heads * (2 * key width + 32) -> heads * 32 channels."""
        parts = self.windows.cut(qkv, self.heads)
        query, key, value = torch.split(parts, [self.key_width, self.key_width, HEAD_WIDTH], dim=-1)
        scores = query @ key.transpose(-2, -1) + self.position()
        if self.mask is not None:
            scores = scores + self.mask
        return self.windows.merge(scores.softmax(dim=-1) @ value)


class RelativePosition(nn.Module, Sliceable):
    """A learnt bias for each offset between two tokens of a window, per head (Swin)."""

    index: Tensor

    def __init__(self, heads: int, windows: Windows) -> None:
        super().__init__()
        self.windows = windows
        self.table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", _offsets(), persistent=False)

    def channel_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return what each axis of the table stands for."""
        return {"table": (Axis.WHOLE, Axis.INNER)}

    def forward(self) -> Tensor:
        """Return the bias of each head, query and key, with the axes of the windows: (heads, 49, 49) for rows."""
        return self.windows.bias(self.table[self.index].permute(2, 0, 1))

    def fused(self) -> nn.Module:
        """Return the expanded bias as a constant."""
        return Constant(self().detach().contiguous())


class Constant(nn.Module):
    """A tensor that belongs to a deployed graph."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """Return it."""
        return self.value


def _offsets() -> Tensor:
    """Index into the 13x13 table for each (query, key) of a window: (49, 49)."""
    cells = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    offset = cells[:, None] - cells[None] + WINDOW - 1
    return offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]
