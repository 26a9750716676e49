"""SAM, SCM and TCM: what joins the scales (paper eq. 3-5) besides the global blocks that follow each of them."""

from torch import Tensor, nn
from torch.nn import functional

from nas.blocks import Block, Upsample
from supernet.layers.axes import Axis
from supernet.layers.conv_bn import ConvBN
from supernet.layers.layout import first_rows, first_spatial, to_rows, to_spatial
from supernet.layers.linear_bn import LinearBN
from supernet.layers.mlp import make_activation
from supernet.layers.stem import convolution


class DoubleUp(nn.Module):
    """Learnt x2 up-sampling: a Linear to 4 sub-pixels per channel, then pixel shuffle; a 2x2 deconvolution, exactly."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.expand = LinearBN(channels, 4 * channels, reads=Axis.SECOND_IN, writes=Axis.OUT_SUBPIXELS)

    def forward(self, rows: Tensor) -> Tensor:
        """Take rows (B*h*w, C), return (B, C, 2h, 2w)."""
        x: Tensor = self.expand(rows)
        x = x.view(-1, self.height, self.width, x.shape[1] // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(x.shape[0], x.shape[1], 2 * self.height, 2 * self.width)


class NearestUp(nn.Module):
    """x2 up-sampling without weights: each cell four times."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, rows: Tensor) -> Tensor:
        """Take rows (B*h*w, C), return (B, C, 2h, 2w)."""
        x = rows.view(-1, self.height, self.width, rows.shape[1]).permute(0, 3, 1, 2)
        return functional.interpolate(x, scale_factor=2, mode="nearest")


def _make_up(block: Block) -> nn.Module:
    """Return what brings the coarse map to the resolution of a block's first input."""
    height, width = block.height // 2, block.width // 2
    if block.upsample is Upsample.NEAREST:
        return NearestUp(height, width)
    return DoubleUp(block.channels_out, height, width)


class SAM(nn.Module):
    """A_lo(low) + up(high): the merge of a semantic-augmented module, at the resolution of `low`: (B, C_out, H, W)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.align = convolution(block)
        self.activation = make_activation(block.activation)
        self.up = _make_up(block)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Merge the fine map (H, W) with the coarse one (H/2, W/2)."""
        fine = self.activation(self.align(first_spatial(low, self.block)))
        y: Tensor = fine + self.up(to_rows(high, self.block.layouts[1]))
        return y


class SCM(nn.Module):
    """The down-sampling attention of eq. 5 on the fine map, plus the coarse one: (B, C_out, H/2, W/2).

    I = pool(fine); I += BN(1x1(act(BN(1x1(I))))); a convolution with BN where the widths differ; + coarse.

    Attributes:
        spare_kernel: side of a convolution to keep although the widths agree: narrower subnets may need it.
    """

    def __init__(self, block: Block, *, spare_kernel: int | None = None) -> None:
        super().__init__()
        self.block = block
        channels = block.channels_in
        self.pool = nn.AvgPool2d(2)
        self.expand = ConvBN(channels, block.hidden, 1, reads=Axis.IN, writes=Axis.INNER)
        self.activation = make_activation(block.activation)
        self.reduce = ConvBN(block.hidden, channels, 1, reads=Axis.INNER, writes=Axis.IN, last=True)
        self.widens = channels != block.channels_out
        if self.widens:
            self.project = convolution(block)
        elif spare_kernel is not None:
            self.project = convolution(block.model_copy(update={"kernel": spare_kernel}))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Combine the fine map (H, W) with the coarse one (H/2, W/2)."""
        block = self.block
        x = self.pool(first_spatial(fine, block))
        x = x + self.reduce(self.activation(self.expand(x)))
        if self.widens:
            x = self.project(x)
        y: Tensor = x + to_spatial(coarse, block.layouts[1], block.height // 2, block.width // 2)
        return y


class Up(nn.Module):
    """s3 + up(l4): (B, C, H, W)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.up = _make_up(block)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Add the up-sampled coarse map to the fine one."""
        y: Tensor = first_spatial(fine, self.block) + self.up(to_rows(coarse, self.block.layouts[1]))
        return y


class Project(nn.Module):
    """Linear - BN - activation on tokens: (B, N, C_out); opens T1 of the task-coupled module."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.linear = LinearBN(block.channels_in, block.channels_out, reads=Axis.IN, writes=Axis.OUT)
        self.activation = make_activation(block.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, C_out)."""
        y: Tensor = self.activation(self.linear(first_rows(x, self.block)))
        return y.view(-1, self.block.tokens, y.shape[1])


class SplitProject(nn.Module):
    """The same on the second half of the channels, T1's regression half; opens T2."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.middle = block.channels_in // 2
        self.linear = LinearBN(self.middle, block.channels_out, reads=Axis.IN_SECOND_HALF, writes=Axis.OUT)
        self.activation = make_activation(block.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, C_out)."""
        y: Tensor = self.activation(self.linear(first_rows(x, self.block)[:, self.middle :]))
        return y.view(-1, self.block.tokens, y.shape[1])
