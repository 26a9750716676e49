"""Convolutions that open a resolution: stem (paper eq. 2), stage entry, alignment, and the pooling between stages."""

from torch import Tensor, nn

from nas.blocks import KERNEL, Block
from supernet.layers.axes import Axis
from supernet.layers.conv_bn import ConvBN
from supernet.layers.layout import first_spatial
from supernet.layers.mlp import make_activation


class Stem(nn.Module):
    """Three 3x3 convolutions with stride 2, BN after each, activation between: (B, 3, H, W) -> (B, D1, H/8, W/8)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        first, second = block.stem_widths
        self.first = ConvBN(block.channels_in, first, reads=Axis.WHOLE, writes=Axis.INNER, stride=2)
        self.second = ConvBN(first, second, reads=Axis.INNER, writes=Axis.INNER, stride=2)
        self.third = ConvBN(second, block.channels_out, reads=Axis.INNER, writes=Axis.OUT, stride=2)
        self.activation = make_activation(block.activation)

    def forward(self, images: Tensor) -> Tensor:
        """Take RGB in [0, 1]; the first BatchNorm does what a pixel normalisation would."""
        x = self.activation(self.first(images))
        y: Tensor = self.third(self.activation(self.second(x)))
        return y


def convolution(block: Block, *, stride: int = 1) -> ConvBN:
    """Return the convolution with BN from the channels of a block's first input to those of its output."""
    kernel = block.kernel or KERNEL
    return ConvBN(block.channels_in, block.channels_out, kernel, reads=Axis.IN, writes=Axis.OUT, stride=stride)


class Entry(nn.Module):
    """E_i: convolution (3x3, or 2x2) with stride 2 and BN that opens a stage: (B, C_out, H/2, W/2)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.conv = convolution(block, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        y: Tensor = self.conv(first_spatial(x, self.block))
        return y


class Align(nn.Module):
    """A_hi of SAM2: convolution (3x3, or 1x1), BN, activation: (B, C_out, H, W)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.conv = convolution(block)
        self.activation = make_activation(block.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map at its own resolution."""
        y: Tensor = self.activation(self.conv(first_spatial(x, self.block)))
        return y


class Pool(nn.Module):
    """2x2 average pooling of a SAM output: (B, C, H/2, W/2)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        y: Tensor = self.pool(first_spatial(x, self.block))
        return y
