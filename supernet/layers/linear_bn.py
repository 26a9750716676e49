"""Linear layers followed by BatchNorm, without bias (LeViT; paper Fig. 3): one Gemm each when deployed."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.layers.axes import NORM_TENSORS, Axis, Writer


class LinearBN(nn.Module, Writer):
    """BN(x W^T) on rows (B*N, C_in) -> (B*N, C_out), times a constant per output channel if one is given.

    Attributes:
        reads: what the input channels stand for.
        writes: what the output channels stand for.
        last: whether it ends a residual branch; its gamma then starts at 0.
        norm_type: the BatchNorm for the form that it works on.
    """

    row_scale: Tensor | None
    norm_type: type[nn.BatchNorm1d | nn.BatchNorm2d] = nn.BatchNorm1d

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        reads: Axis,
        writes: Axis,
        last: bool = False,
        row_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.reads, self.writes = reads, writes
        self.linear = nn.Linear(channels_in, channels_out, bias=False)
        nn.init.trunc_normal_(self.linear.weight, std=channels_in**-0.5)
        self.norm = self.norm_type(channels_out)
        if last:
            nn.init.zeros_(self.norm.weight)
        self.register_buffer("row_scale", row_scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over batch and tokens."""
        y: Tensor = self.norm(self.linear(x))
        return y if self.row_scale is None else y * self.row_scale

    def channel_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return what each axis of weight and BatchNorm stands for."""
        return {"linear.weight": (self.writes, self.reads)} | dict.fromkeys(NORM_TENSORS, (self.writes,))

    def strength(self) -> Tensor:
        """Return |gamma| * L1 per output channel (C_out,)."""
        return (self.norm.weight.abs() * self.linear.weight.abs().sum(1)).detach()

    def fused(self) -> nn.Module:
        """Return the equivalent nn.Linear with bias."""
        weight, bias = self.folded()
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
        return linear

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight (C_out, C_in) and bias (C_out,) with BatchNorm and constant folded in."""
        factor, bias = fold_batch_norm(self.norm)
        scale = torch.ones_like(bias) if self.row_scale is None else self.row_scale
        return self.linear.weight.detach() * (factor * scale)[:, None], bias * scale


class ChannelLinearBN(LinearBN):
    """The same weights on channel-major maps: (B, C_in, N) -> (B, C_out, N)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over batch and tokens."""
        y: Tensor = self.norm(torch.matmul(self.linear.weight, x))
        return y if self.row_scale is None else y * self.row_scale[:, None]

    def fused(self) -> nn.Module:
        """Return the equivalent product with bias."""
        return ChannelLinear(*self.folded())


class ChannelLinear(nn.Module):
    """W x + b on channel-major maps: (B, C_in, N) -> (B, C_out, N)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Multiply from the left."""
        return torch.matmul(self.weight, x) + self.bias


class MapLinearBN(LinearBN):
    """The same weights on maps: (B, C_in, H, W) -> (B, C_out, H, W); a 1x1 convolution when deployed."""

    norm_type = nn.BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over batch and positions."""
        y: Tensor = self.norm(functional.conv2d(x, self.linear.weight[:, :, None, None]))
        return y if self.row_scale is None else y * self.row_scale[:, None, None]

    def fused(self) -> nn.Module:
        """Return the equivalent 1x1 convolution with bias."""
        weight, bias = self.folded()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        conv.weight, conv.bias = nn.Parameter(weight[:, :, None, None]), nn.Parameter(bias)
        return conv


def fold_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return factor and offset per channel: in evaluation BN(y) = factor * y + offset."""
    mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
    factor = norm.weight.detach() / torch.sqrt(variance + norm.eps)
    return factor, norm.bias.detach() - mean * factor
