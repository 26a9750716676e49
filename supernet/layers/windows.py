"""Attention windows: a map cut into 7x7 tokens and put together again, by one transpose each way."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from nas.blocks import WINDOW

MASKED = -1e4
"""Bias of a padded key: its weight underflows to exactly 0, and it fits float16."""


class Windows(ABC):
    """Cuts a map of a known height and width into windows, padded where they do not fit.

    Attributes:
        rows: windows from top to bottom.
        columns: windows from left to right.
        before: padded rows at the top and columns at the left.
        below: padded rows at the bottom.
        right: padded columns at the right.
    """

    def __init__(self, height: int, width: int, *, before: int) -> None:
        self.height, self.width, self.before = height, width, before
        self.rows, self.columns = (-(-(side + before) // WINDOW) for side in (height, width))
        self.below = self.rows * WINDOW - height - before
        self.right = self.columns * WINDOW - width - before

    @property
    def padded(self) -> bool:
        """Whether any window holds padding."""
        return bool(self.before or self.below or self.right)

    @abstractmethod
    def cut(self, x: Tensor, heads: int) -> Tensor:
        """Cut heads * c channels into windows of tokens: (B, ..., 49, c), windows and heads in the order of `bias`."""

    @abstractmethod
    def merge(self, x: Tensor) -> Tensor:
        """Undo `cut`, leaving the padding out."""

    @abstractmethod
    def bias(self, position: Tensor) -> Tensor:
        """Give the bias of each head (heads, 49, 49) the axes of `cut`."""

    @abstractmethod
    def mask(self) -> Tensor | None:
        """Return the bias over the axes of `cut` and the keys that hides padded ones, or None without padding."""

    def _padded_keys(self) -> Tensor:
        """Return the bias of each key, by window: (windows, 49)."""
        edges = (self.before, self.right, self.before, self.below)
        tokens = functional.pad(torch.zeros(self.height, self.width), edges, value=MASKED)
        return tokens.view(self.rows, WINDOW, self.columns, WINDOW).transpose(1, 2).reshape(-1, WINDOW**2)


class RowWindows(Windows):
    """Cuts rows (B*H*W, heads * c) into (B, windows, heads, 49, c)."""

    def cut(self, x: Tensor, heads: int) -> Tensor:
        """Cut rows (B*H*W, heads * c) into (B, windows, heads, 49, c)."""
        x = x.view(-1, self.height, self.width, x.shape[1])
        if self.padded:
            x = functional.pad(x, (0, 0, self.before, self.right, self.before, self.below), value=0.0)
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

    def bias(self, position: Tensor) -> Tensor:
        """Return (heads, 49, 49): heads come last of all axes."""
        return position

    def mask(self) -> Tensor | None:
        """Return (1, windows, 1, 1, 49)."""
        return self._padded_keys()[None, :, None, None] if self.padded else None


class MapWindows(Windows):
    """Cuts maps (B, heads * c, H, W) into (B, heads, windows, 49, c): one transpose of 6 axes."""

    def cut(self, x: Tensor, heads: int) -> Tensor:
        """Cut maps (B, heads * c, H, W) into (B, heads, windows, 49, c)."""
        if self.padded:
            x = functional.pad(x, (self.before, self.right, self.before, self.below), value=0.0)
        batch, channels = x.shape[:2]
        x = x.reshape(batch * heads, channels // heads, self.rows, WINDOW, self.columns, WINDOW)
        x = x.permute(0, 2, 4, 3, 5, 1)
        return x.reshape(batch, heads, self.rows * self.columns, WINDOW**2, channels // heads)

    def merge(self, x: Tensor) -> Tensor:
        """Merge (B, heads, windows, 49, c) into maps (B, heads * c, H, W), leaving the padding out."""
        batch, heads, channels = x.shape[0], x.shape[1], x.shape[4]
        x = x.reshape(batch * heads, self.rows, self.columns, WINDOW, WINDOW, channels).permute(0, 5, 1, 3, 2, 4)
        x = x.reshape(batch, heads * channels, self.rows * WINDOW, self.columns * WINDOW)
        if self.padded:
            x = x[:, :, self.before : self.before + self.height, self.before : self.before + self.width]
        return x

    def bias(self, position: Tensor) -> Tensor:
        """Return (heads, 1, 49, 49): the same in every window."""
        return position.unsqueeze(1)

    def mask(self) -> Tensor | None:
        """Return (windows, 1, 49)."""
        return self._padded_keys()[:, None] if self.padded else None
