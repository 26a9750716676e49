"""The activation of a space, and the two-layer perceptron with BatchNorm after each Linear."""

from typing import assert_never

from torch import Tensor, nn

from nas.blocks import Activation, Block
from supernet.layers.axes import Axis
from supernet.layers.forms import Form


def make_activation(activation: Activation | None) -> nn.Module:
    """Return the module of an activation; None is the identity."""
    match activation:
        case None:
            return nn.Identity()
        case Activation.RELU:
            return nn.ReLU()
        case Activation.GELU:
            return nn.GELU()
        case Activation.HARDSWISH:
            return nn.Hardswish()
    assert_never(activation)


class MLP(nn.Module):
    """Linear-BN to the hidden channels, activation, Linear-BN back, on a form; the caller adds the residual."""

    def __init__(self, block: Block, form: Form) -> None:
        super().__init__()
        channels, hidden = block.channels_in, block.hidden
        self.expand = form.linear(channels, hidden, reads=Axis.IN, writes=Axis.INNER)
        self.activation = make_activation(block.activation)
        self.reduce = form.linear(hidden, channels, reads=Axis.INNER, writes=Axis.OUT, last=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, without the residual."""
        y: Tensor = self.reduce(self.activation(self.expand(x)))
        return y
