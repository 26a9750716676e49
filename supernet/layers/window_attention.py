"""WMSA_bn and SWMSA_bn: attention in 7x7 windows, plain or shifted, BatchNorm after every Linear (paper Fig. 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.blocks import HEAD_WIDTH, KEY_WIDTH, WINDOW, Block
from nas.macs import shift_padding
from supernet.layers.axes import Axis, Sliceable
from supernet.layers.drop_path import DropPath
from supernet.layers.layout import first_rows
from supernet.layers.linear_bn import LinearBN
from supernet.layers.mlp import MLP

MASKED = -1e4
"""Bias of a padded key: its weight underflows to exactly 0, and it fits float16."""


class WindowAttention(nn.Module):
    """x += proj(attention in windows); x += MLP(x), on tokens (B, H*W, C).

    Queries, keys and values are computed before padding, so that zeros never pass a BatchNorm. Shifted windows come
    from padding 4 rows and columns at the top and left instead of rolling the map.
    """

    mask: Tensor | None

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        channels = block.channels_in
        self.heads = channels // HEAD_WIDTH
        self.windows = _Windows(block)
        self.key_width = block.key_width or KEY_WIDTH
        per_head = torch.ones(2 * self.key_width + HEAD_WIDTH)
        per_head[: self.key_width] = self.key_width**-0.5
        row_scale = per_head.repeat(self.heads)
        self.qkv = LinearBN(channels, len(row_scale), reads=Axis.IN, writes=Axis.INNER, row_scale=row_scale)
        self.position = RelativePosition(self.heads)
        self.proj = LinearBN(channels, channels, reads=Axis.INNER, writes=Axis.OUT, last=True)
        self.mlp = MLP(block)
        self.drop = DropPath()
        self.register_buffer("mask", self.windows.mask(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, H*W, C)."""
        x = first_rows(x, self.block)
        images = len(x) // self.block.tokens
        x = x + self.drop(self.proj(self.attend(self.qkv(x))), images)
        x = x + self.drop(self.mlp(x), images)
        return x.view(-1, self.block.tokens, x.shape[1])

    def attend(self, qkv: Tensor) -> Tensor:
        """Attend within windows: (B*H*W, heads * (2 * key width + 32)) -> (B*H*W, heads * 32)."""
        parts = self.windows.cut(qkv, self.heads)
        query, key, value = torch.split(parts, [self.key_width, self.key_width, HEAD_WIDTH], dim=-1)
        scores = query @ key.transpose(-2, -1) + self.position()
        if self.mask is not None:
            scores = scores + self.mask
        return self.windows.merge(scores.softmax(dim=-1) @ value)


class RelativePosition(nn.Module, Sliceable):
    """A learnt bias for each offset between two tokens of a window, per head (Swin)."""

    index: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", _offsets(), persistent=False)

    def channel_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return what each axis of the table stands for."""
        return {"table": (Axis.WHOLE, Axis.INNER)}

    def forward(self) -> Tensor:
        """Return the bias (heads, 49, 49): query, key."""
        return self.table[self.index].permute(2, 0, 1)

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


class _Windows:
    """Cut a map of tokens into 7x7 windows and put it together again: one transpose each way."""

    def __init__(self, block: Block) -> None:
        self.height, self.width = block.height, block.width
        self.before = shift_padding(block)
        self.rows, self.columns = (-(-(side + self.before) // WINDOW) for side in (self.height, self.width))
        self.below = self.rows * WINDOW - self.height - self.before
        self.right = self.columns * WINDOW - self.width - self.before

    @property
    def padded(self) -> bool:
        """Whether any window holds padding."""
        return bool(self.before or self.below or self.right)

    def mask(self) -> Tensor | None:
        """Return the bias (1, windows, 1, 1, 49) that hides padded keys, or None without padding."""
        if not self.padded:
            return None
        return self.cut(torch.zeros(self.height * self.width, 1), 1, fill=MASKED).transpose(-2, -1)

    def cut(self, x: Tensor, heads: int, *, fill: float = 0.0) -> Tensor:
        """Cut rows (B*H*W, heads * c) into (B, windows, heads, 49, c)."""
        x = x.view(-1, self.height, self.width, x.shape[1])
        if self.padded:
            x = functional.pad(x, (0, 0, self.before, self.right, self.before, self.below), value=fill)
        batch = x.shape[0]
        x = x.view(batch, self.rows, WINDOW, self.columns, WINDOW, heads, -1).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(batch, self.rows * self.columns, heads, WINDOW**2, -1)

    def merge(self, x: Tensor) -> Tensor:
        """Merge (B, windows, heads, 49, c) into rows (B*H*W, heads * c), leaving the padding out."""
        heads, channels = x.shape[2], x.shape[4]
        x = x.view(-1, self.rows, self.columns, heads, WINDOW, WINDOW, channels).permute(0, 1, 4, 2, 5, 3, 6)
        x = x.reshape(-1, self.rows * WINDOW, self.columns * WINDOW, heads * channels)
        if self.padded:
            x = x[:, self.before : self.before + self.height, self.before : self.before + self.width]
        return x.reshape(-1, heads * channels)


def _offsets() -> Tensor:
    """Index into the 13x13 table for each (query, key) of a window: (49, 49)."""
    cells = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    offset = cells[:, None] - cells[None] + WINDOW - 1
    return offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]
