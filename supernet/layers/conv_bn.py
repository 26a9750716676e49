"""Convolutions followed by BatchNorm, without bias: one Conv each when deployed."""

from torch import Tensor, nn

from supernet.layers.axes import NORM_TENSORS, Axis, Writer
from supernet.layers.linear_bn import fold_batch_norm


class ConvBN(nn.Module, Writer):
    """BN(conv(x)), padded so that a stride divides the map: (B, C_in, H, W) -> (B, C_out, H/s, W/s).

    Attributes:
        reads: what the input channels stand for.
        writes: what the output channels stand for.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        *,
        reads: Axis,
        writes: Axis,
        stride: int = 1,
        depthwise: bool = False,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.reads, self.writes = reads, writes
        groups = channels_in if depthwise else 1
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride=stride, padding=(kernel - 1) // 2, groups=groups, bias=False
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.norm = nn.BatchNorm2d(channels_out)
        if last:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise."""
        y: Tensor = self.norm(self.conv(x))
        return y

    def channel_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return what each axis of weight and BatchNorm stands for."""
        weight = (self.writes, self.reads, Axis.WHOLE, Axis.WHOLE)
        return {"conv.weight": weight} | dict.fromkeys(NORM_TENSORS, (self.writes,))

    def strength(self) -> Tensor:
        """Return |gamma| * L1 per output channel (C_out,)."""
        return (self.norm.weight.abs() * self.conv.weight.abs().sum((1, 2, 3))).detach()

    def fused(self) -> nn.Module:
        """Return the equivalent nn.Conv2d with bias."""
        factor, bias = fold_batch_norm(self.norm)
        return conv_with_bias(self.conv, self.conv.weight.detach() * factor[:, None, None, None], bias)


def conv_with_bias(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Make a convolution with the geometry of `like` and the given weight (C_out, C_in/groups, k, k) and bias."""
    conv = nn.Conv2d(
        like.in_channels, like.out_channels, like.kernel_size[0],
        stride=like.stride[0], padding=int(like.padding[0]), groups=like.groups,
    )  # fmt: skip
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
    return conv
