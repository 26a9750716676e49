"""RepCNN: the re-parametrised 3x3 convolution of the paper's HeatPaths (RepVGG), without a feed-forward part."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.blocks import Block
from supernet.layers.axes import NORM_TENSORS, Axis, Writer
from supernet.layers.conv_bn import ConvBN, conv_with_bias
from supernet.layers.layout import first_spatial
from supernet.layers.linear_bn import fold_batch_norm


class IdentityBN(nn.Module, Writer):
    """BatchNorm of the input itself: the third branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.writes = Axis.OUT
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        y: Tensor = self.norm(x)
        return y

    def channel_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return what each axis of the BatchNorm stands for."""
        return dict.fromkeys(NORM_TENSORS, (self.writes,))

    def strength(self) -> Tensor:
        """Return |gamma| (C,): the weights of an identity sum to 1."""
        return self.norm.weight.abs().detach()


class RepConv(nn.Module):
    """BN(3x3) + BN(1x1) + BN(identity); one 3x3 convolution when fused."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = ConvBN(channels, channels, 3, reads=Axis.IN, writes=Axis.OUT)
        self.point = ConvBN(channels, channels, 1, reads=Axis.IN, writes=Axis.OUT)
        self.skip = IdentityBN(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Sum the three branches."""
        y: Tensor = self.wide(x) + self.point(x) + self.skip(x)
        return y

    def fused(self) -> nn.Module:
        """Return the one convolution: the 1x1 padded to the centre, the identity as a diagonal centre tap."""
        weight, bias = torch.zeros_like(self.wide.conv.weight), torch.zeros_like(self.wide.norm.bias)
        identity = torch.eye(len(bias), dtype=weight.dtype, device=weight.device)[:, :, None, None]
        branches = (
            (self.wide.norm, self.wide.conv.weight),
            (self.point.norm, functional.pad(self.point.conv.weight, (1, 1, 1, 1))),
            (self.skip.norm, functional.pad(identity, (1, 1, 1, 1))),
        )
        for norm, kernel in branches:
            factor, offset = fold_batch_norm(norm)
            weight, bias = weight + kernel.detach() * factor[:, None, None, None], bias + offset
        return conv_with_bias(self.wide.conv, weight.detach(), bias.detach())


class RepCNN(nn.Module):
    """ReLU(RepConv(x)) on (B, C, H, W)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.conv = RepConv(block.channels_in)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        y: Tensor = self.activation(self.conv(first_spatial(x, self.block)))
        return y
