"""SAM, SCM and TCM: what joins the scales (paper eq. 3-5) besides the global blocks that follow each of them."""

from torch import Tensor, nn
from torch.nn import functional

from nas.blocks import Block, Upsample
from supernet.layers.axes import Axis
from supernet.layers.conv_bn import ConvBN
from supernet.layers.forms import form_of
from supernet.layers.layout import first_spatial, to_spatial
from supernet.layers.mlp import make_activation
from supernet.layers.stem import convolution


class DoubleUp(nn.Module):
    """Learnt x2 up-sampling: a Linear to 4 sub-pixels per channel, then pixel shuffle; a 2x2 deconvolution, exactly."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.layout = block.layouts[1]
        self.form = form_of(block, coarse=True)
        channels = block.channels_out
        self.expand = self.form.linear(channels, 4 * channels, reads=Axis.SECOND_IN, writes=Axis.OUT_SUBPIXELS)

    def forward(self, coarse: Tensor) -> Tensor:
        """Take the block's second input, return (B, C, H, W)."""
        return self.form.shuffle(self.expand(self.form.enter(coarse, self.layout)))


class NearestUp(nn.Module):
    """x2 up-sampling without weights: each cell four times."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.layout = block.layouts[1]
        self.height, self.width = block.height // 2, block.width // 2

    def forward(self, coarse: Tensor) -> Tensor:
        """Take the block's second input, return (B, C, H, W)."""
        x = to_spatial(coarse, self.layout, self.height, self.width)
        return functional.interpolate(x, scale_factor=2, mode="nearest")


def _make_up(block: Block) -> nn.Module:
    """Return what brings a block's second input to the resolution of its first."""
    return NearestUp(block) if block.upsample is Upsample.NEAREST else DoubleUp(block)


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
        y: Tensor = fine + self.up(high)
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
        y: Tensor = first_spatial(fine, self.block) + self.up(coarse)
        return y


class Project(nn.Module):
    """Linear - BN - activation: C_out channels; opens T1 of the task-coupled module."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.form = form_of(block)
        self.linear = self.form.linear(block.channels_in, block.channels_out, reads=Axis.IN, writes=Axis.OUT)
        self.activation = make_activation(block.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map in the layout that the block gives."""
        x = self.form.enter(x, self.block.layouts[0])
        return self.form.leave(self.activation(self.linear(x)))


class SplitProject(nn.Module):
    """The same on the second half of the channels, T1's regression half; opens T2."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.form = form_of(block)
        self.middle = block.channels_in // 2
        self.linear = self.form.linear(self.middle, block.channels_out, reads=Axis.IN_SECOND_HALF, writes=Axis.OUT)
        self.activation = make_activation(block.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map in the layout that the block gives."""
        x = self.form.enter(x, self.block.layouts[0])
        return self.form.leave(self.activation(self.linear(x[:, self.middle :])))
