"""One block of each kind for each combination of layouts it receives in a network, and inputs for it."""

import torch
from torch import Tensor

from nas.blocks import Activation, Block, Kind, Layout, Upsample
from nas.named import named_space
from nas.network import Structure
from nas.space import SearchSpace, StageChoices
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

MAP_BLOCKS = [
    *{
        (block.kind, block.layouts): block for block in named_space("heatdetr-nano@cuda", classes=3).all_blocks()
    }.values(),
    # Maps that need no padding, and some at both ends.
    *(
        Block(kind=kind, channels_in=64, channels_out=64, height=height, width=width, linear_layout=Layout.SPATIAL)
        for kind, height, width in ((Kind.WMSA, 14, 21), (Kind.SWMSA, 5, 14))
    ),
]
"""What a network consists of whose Linears are 1x1 convolutions."""

DEVIANT = Structure(
    classes=3,
    activation=Activation.GELU,
    context_kind=Kind.ATTENTION,
    tcm_depths=(1, 1),
    anchor_px=(16, 32),
    stem_divisors=(2, 1),
    entry_kernel=2,
    align_kernel=1,
    project_kernel=1,
    upsample=Upsample.NEAREST,
    key_width=32,
    window_mlp=2,
    channel_mlp=3,
    token_mlp=2,
    tcm_mlp=1,
    scm_mlp=2,
)
"""A reading of the paper that differs from R* in every open point but the widths of SAM and TCM."""

DEVIANT_SPACE = SearchSpace(
    name="deviant",
    structure=DEVIANT,
    stages=(
        StageChoices(slots=1, widths=(32,)),
        StageChoices(slots=1, widths=(32, 64)),
        StageChoices(slots=1, widths=(64, 96)),
        StageChoices(slots=1, widths=(64, 96), global_kinds=(Kind.ATTENTION, Kind.XCA)),
    ),
    images=((128, 192),),
    strides=(16, 32),
)

LOW_SPACE = SearchSpace(
    name="low",
    structure=DEVIANT.model_copy(update={"sam_width": "low", "tcm_width": 96, "align_kernel": None}),
    stages=(
        StageChoices(slots=1, widths=(32,)),
        StageChoices(slots=1, widths=(32,)),
        StageChoices(slots=1, widths=(64,)),
        StageChoices(slots=1, widths=(128,), global_kinds=(Kind.ATTENTION,)),
    ),
    images=((128, 192),),
    strides=(16, 32),
)
"""Its SAMs are as wide as the stage below, which no space with a choice of widths can have."""

DEVIANT_BLOCKS = [
    *{
        (block.kind, block.stride, block.channels_in == block.channels_out): block
        for block in DEVIANT_SPACE.all_blocks()
    }.values()
]

SPARSE = Block(
    kind=Kind.SPARSE_ATTENTION,
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
