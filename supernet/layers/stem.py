"""Convolutions that open a resolution: stem (paper eq. 2), stage entry, alignment, and the pooling between stages."""

from torch import Tensor, nn

from nas.blocks import Block
from supernet.layers.axes import Axis
from supernet.layers.conv_bn import ConvBN
from supernet.layers.layout import first_spatial
from supernet.layers.mlp import make_activation


class Stem(nn.Module):
    """Three 3x3 convolutions with stride 2, BN after each, activation between: (B, 3, H, W) -> (B, D1, H/8, W/8)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        out = block.channels_out
        self.first = ConvBN(block.channels_in, out // 4, reads=Axis.WHOLE, writes=Axis.INNER, stride=2)
        self.second = ConvBN(out // 4, out // 2, reads=Axis.INNER, writes=Axis.INNER, stride=2)
        self.third = ConvBN(out // 2, out, reads=Axis.INNER, writes=Axis.OUT, stride=2)
        self.activation = make_activation(block.activation)

    def forward(self, images: Tensor) -> Tensor:
        """Take RGB in [0, 1]; the first BatchNorm does what a pixel normalisation would."""
        x = self.activation(self.first(images))
        y: Tensor = self.third(self.activation(self.second(x)))
        return y


class Entry(nn.Module):
    """E_i: 3x3 convolution with stride 2 and BN that opens a stage: (B, C_out, H/2, W/2)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.conv = ConvBN(block.channels_in, block.channels_out, reads=Axis.IN, writes=Axis.OUT, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        y: Tensor = self.conv(first_spatial(x, self.block))
        return y


class Align(nn.Module):
    """A_hi of SAM2: 3x3 convolution, BN, activation: (B, C_out, H, W)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.conv = ConvBN(block.channels_in, block.channels_out, reads=Axis.IN, writes=Axis.OUT)
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
