"""One block of each kind for each combination of layouts it receives in a network, and inputs for it."""

import torch
from torch import Tensor

from nas.blocks import Activation, Block, Kind, Layout
from nas.space import named_space
from supernet.export import input_shapes

NANO = named_space("heatdetr-nano", classes=3)

BLOCKS = [
    *{(block.kind, block.layouts): block for block in NANO.all_blocks()}.values(),
    # What the nano space has not: other activations, sparse attention, oblong maps, maps that need no padding.
    Block(kind=Kind.WMSA, channels_in=64, channels_out=64, height=14, width=21, activation=Activation.GELU),
    Block(kind=Kind.SWMSA, channels_in=32, channels_out=32, height=5, width=14, activation=Activation.HARDSWISH),
    Block(kind=Kind.XCA, channels_in=96, channels_out=96, height=6, width=10, activation=Activation.GELU),
    Block(kind=Kind.ATTENTION, channels_in=64, channels_out=64, height=5, width=6, activation=Activation.GELU),
]

SPARSE = Block(
    kind=Kind.ATTENTION,
    channels_in=64,
    channels_out=64,
    height=6,
    width=10,
    layouts=(Layout.TOKENS,),
    activation=Activation.RELU,
    kept_tokens=50,
)
"""Top-k is discontinuous, so it is compared apart from the others."""


def random_inputs(block: Block, *, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((batch, *shape[1:]), generator=generator) for shape in input_shapes(block)]
