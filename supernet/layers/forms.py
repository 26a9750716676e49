"""The two forms that a feature map has inside a block, and all that tells them apart.

`Rows` suit runtimes where a Linear is one plain matrix product (ONNX Runtime on CPUs), `Maps` those that are fastest in
(batch, channels, height, width) (TensorRT). Channels are axis 1 in both, and the weights are the same: a block asks
once which form it works in, and none of its layers asks again.
"""

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn import functional

from nas.blocks import Block, Layout
from supernet.layers.layout import to_rows, to_spatial
from supernet.layers.linear_bn import ChannelLinearBN, LinearBN, MapLinearBN
from supernet.layers.windows import MapWindows, RowWindows, Windows


class Form(ABC):
    """How a map of a known height and width lies while a block works on it.

    Attributes:
        linear: the Linear-BN that works on this form.
        channel_linear: the Linear-BN that works on what `channels_first` gives.
    """

    linear: type[LinearBN]
    channel_linear: type[LinearBN]

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    @abstractmethod
    def enter(self, x: Tensor, layout: Layout) -> Tensor:
        """Bring what another block left in a layout into this form."""

    @abstractmethod
    def leave(self, x: Tensor) -> Tensor:
        """Bring this form into the layout that is left to the next block."""

    @abstractmethod
    def channels_first(self, x: Tensor, layout: Layout) -> Tensor:
        """Bring what another block left into (B, C, ...positions), where channels attend to each other."""

    @abstractmethod
    def spatial(self, x: Tensor) -> Tensor:
        """Bring (B, C, ...positions) into (B, C, H, W)."""

    @abstractmethod
    def heads(self, x: Tensor, count: int) -> Tensor:
        """Split the channels into heads: (B, heads, H*W, c)."""

    @abstractmethod
    def join(self, x: Tensor) -> Tensor:
        """Undo `heads`."""

    @abstractmethod
    def windows(self, before: int) -> Windows:
        """Return what cuts this form into windows, with `before` rows and columns of padding at the top and left."""

    @abstractmethod
    def shuffle(self, x: Tensor) -> Tensor:
        """Spread the four sub-pixels of each channel: this form of (B, 4 * C, H, W) to the map (B, C, 2H, 2W)."""


class Rows(Form):
    """Tokens as rows (B*H*W, C): every Linear is one matrix product, and tokens are left."""

    linear = LinearBN
    channel_linear = ChannelLinearBN

    def enter(self, x: Tensor, layout: Layout) -> Tensor:
        """Return (B*H*W, C)."""
        return to_rows(x, layout)

    def leave(self, x: Tensor) -> Tensor:
        """Return tokens (B, H*W, C)."""
        return x.view(-1, self.height * self.width, x.shape[1])

    def channels_first(self, x: Tensor, layout: Layout) -> Tensor:
        """Return (B, C, H*W)."""
        return x.transpose(1, 2) if layout is Layout.TOKENS else x.flatten(2)

    def spatial(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return x.view(*x.shape[:2], self.height, self.width)

    def heads(self, x: Tensor, count: int) -> Tensor:
        """Split rows (B*N, heads * c) into (B, heads, N, c)."""
        return x.view(-1, self.height * self.width, count, x.shape[1] // count).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """Return rows (B*N, heads * c)."""
        return x.transpose(1, 2).reshape(-1, x.shape[1] * x.shape[3])

    def windows(self, before: int) -> Windows:
        """Return what cuts rows."""
        return RowWindows(self.height, self.width, before=before)

    def shuffle(self, x: Tensor) -> Tensor:
        """Take rows (B*H*W, 4 * C)."""
        x = x.view(-1, self.height, self.width, x.shape[1] // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(x.shape[0], x.shape[1], 2 * self.height, 2 * self.width)


class Maps(Form):
    """Maps (B, C, H, W) from end to end: every Linear is a 1x1 convolution."""

    linear = MapLinearBN
    channel_linear = MapLinearBN

    def enter(self, x: Tensor, layout: Layout) -> Tensor:
        """Return (B, C, H, W)."""
        return to_spatial(x, layout, self.height, self.width)

    def leave(self, x: Tensor) -> Tensor:
        """Return the map."""
        return x

    def channels_first(self, x: Tensor, layout: Layout) -> Tensor:
        """Return (B, C, H, W)."""
        return self.enter(x, layout)

    def spatial(self, x: Tensor) -> Tensor:
        """Return the map."""
        return x

    def heads(self, x: Tensor, count: int) -> Tensor:
        """Split maps (B, heads * c, H, W) into (B, heads, H*W, c)."""
        return x.reshape(x.shape[0], count, x.shape[1] // count, self.height * self.width).transpose(2, 3)

    def join(self, x: Tensor) -> Tensor:
        """Return the map (B, heads * c, H, W)."""
        return x.transpose(2, 3).reshape(x.shape[0], x.shape[1] * x.shape[3], self.height, self.width)

    def windows(self, before: int) -> Windows:
        """Return what cuts maps."""
        return MapWindows(self.height, self.width, before=before)

    def shuffle(self, x: Tensor) -> Tensor:
        """Take (B, 4 * C, H, W)."""
        return functional.pixel_shuffle(x, 2)


def form_of(block: Block, *, coarse: bool = False) -> Form:
    """Return the form that a block works in, at the resolution of its first input or of the coarse second one."""
    height, width = (block.height // 2, block.width // 2) if coarse else (block.height, block.width)
    return Rows(height, width) if block.linear_layout is None else Maps(height, width)
