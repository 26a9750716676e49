"""The blocks a HeatDETR is made of: what one row of a lookup table describes.

A `Block` is everything that decides the deployed graph of one piece of the network, and nothing else. Two networks that
contain equal blocks share one measured row. The names are those of the paper; where it abbreviates:

    RepCNN    re-parametrised 3x3 convolution (RepVGG): three branches in training, one convolution when deployed
    WMSA      window multi-head self-attention with BatchNorm after every Linear; SWMSA: the same on shifted windows
    XCA       cross-covariance (channel-wise) attention; ATTENTION: the original token attention; SPARSE_ATTENTION: the
              same, with an MLP that only the most attended tokens pass
    SAM       semantic-augmented module;  SCM: scale-combined module;  TCM: task-coupled module
"""

from enum import StrEnum
from functools import cached_property
from typing import Literal

from pydantic import Field

from nas.values import Value

PREDICTION_STRIDE = 32
"""Stride of the single prediction map in input pixels, unless a block says otherwise."""

WINDOW = 7
"""Side of an attention window, in tokens (paper section 4.3, Swin)."""

HEAD_WIDTH = 32
"""Value channels per head of window and token attention, and the step of every width."""

XCA_HEADS = 8
"""Heads of channel-wise attention at every width (each has width / 8 channels)."""

MLP_RATIO = 4
"""Hidden channels of an MLP for each of its channels, unless a block says otherwise."""

KEY_WIDTH = 16
"""Query and key channels per head of window attention, unless a block says otherwise."""

KERNEL = 3
"""Side of the convolutions of entries, alignments and projections, unless a block says otherwise."""

STEM_DIVISORS = (4, 2)
"""The first two convolutions of the stem have D1/4 and D1/2 channels, unless a block says otherwise."""


class Kind(StrEnum):
    """What a block computes. Values are stored in tables: never rename one."""

    STEM = "stem"
    ENTRY = "entry"
    REP_CNN = "rep_cnn"
    WMSA = "wmsa"
    SWMSA = "swmsa"
    IDENTITY = "identity"
    XCA = "xca"
    ATTENTION = "attention"
    SPARSE_ATTENTION = "sparse_attention"
    POOL = "pool"
    ALIGN = "align"
    SAM = "sam"
    SCM = "scm"
    UP = "up"
    PROJECT = "project"
    SPLIT_PROJECT = "split_project"
    HEAD = "head"


class Layout(StrEnum):
    """How a feature map lies in memory between two blocks."""

    SPATIAL = "spatial"
    """(batch, channels, height, width)"""
    TOKENS = "tokens"
    """(batch, height * width, channels), rows first"""


class Activation(StrEnum):
    """The non-linearity of a space; part of the weights, hence chosen before training."""

    RELU = "relu"
    GELU = "gelu"
    HARDSWISH = "hardswish"


class Upsample(StrEnum):
    """How a coarse map is brought to twice its size."""

    DECONVOLUTION = "deconvolution"
    """learnt: 2x2 with stride 2"""
    NEAREST = "nearest"
    """each cell four times"""


LOCAL_KINDS = (Kind.REP_CNN, Kind.WMSA, Kind.SWMSA)
GLOBAL_KINDS = (Kind.XCA, Kind.ATTENTION, Kind.SPARSE_ATTENTION)
TOKEN_KINDS = frozenset({Kind.WMSA, Kind.SWMSA, *GLOBAL_KINDS, Kind.PROJECT, Kind.SPLIT_PROJECT})
LINEAR_KINDS = TOKEN_KINDS | {Kind.SAM, Kind.UP}


class Block(Value):
    """One piece of a detector at one resolution: the key of one table row.

    The paper leaves some of its structure open. Fields that deviate from how this product reads it (reading R* of the
    specification) are None where they do not.

    Attributes:
        kind: what it computes.
        channels_in: channels of the first input (SPLIT_PROJECT receives all, uses the second half).
        channels_out: channels of the output; for HEAD the number of classes.
        height: rows of the first input, in cells of its own map (pixels for the stem).
        width: columns of the first input.
        layouts: the layout of each input as the producing block leaves it.
        activation: the non-linearity inside, where there is one.
        kept_tokens: tokens that pass the MLP (SPARSE_ATTENTION only).
        anchor_px: anchor sides in input pixels (HEAD only).
        stride: input pixels between two cells of the prediction map (HEAD only); None for 32.
        mlp_ratio: hidden channels per channel, where there is an MLP; None for 4.
        key_width: query and key channels per head (WMSA and SWMSA only); None for 16.
        kernel: side of the convolution of ENTRY, ALIGN, SAM and SCM; None for 3.
        stem_divisors: D1 over the channels of the first two convolutions (STEM only); None for 4 and 2.
        upsample: how SAM and UP enlarge the coarse map; None for the deconvolution.
        linear_layout: the layout that the Linears of LINEAR_KINDS work in, spatial (as 1x1 convolutions); None for
            tokens.
    """

    kind: Kind
    channels_in: int = Field(gt=0)
    channels_out: int = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    layouts: tuple[Layout, ...] = (Layout.SPATIAL,)
    activation: Activation | None = None
    kept_tokens: int | None = Field(None, ge=1)
    anchor_px: tuple[int, ...] | None = None
    stride: int | None = Field(None, gt=0)
    mlp_ratio: int | None = Field(None, ge=1)
    key_width: int | None = Field(None, ge=1)
    kernel: int | None = Field(None, ge=1)
    stem_divisors: tuple[int, int] | None = None
    upsample: Upsample | None = None
    linear_layout: Literal[Layout.SPATIAL] | None = None

    @cached_property
    def key(self) -> str:
        """Return the identity of the row; opaque to the agent."""
        return f"{self.kind.value}-{self.id}"

    @property
    def tokens(self) -> int:
        """Cells of the first input's map."""
        return self.height * self.width

    @property
    def stem_widths(self) -> tuple[int, int]:
        """Channels of the stem's first two convolutions."""
        first, second = self.stem_divisors or STEM_DIVISORS
        return self.channels_out // first, self.channels_out // second

    @property
    def hidden(self) -> int:
        """Hidden channels of the MLP."""
        return (self.mlp_ratio or MLP_RATIO) * self.channels_in

    @property
    def gives(self) -> Layout:
        """The layout in which the block leaves its output."""
        return gives(self.kind, self.linear_layout)

    @property
    def label(self) -> str:
        """A short name for people, such as `wmsa 96 @24x24 tokens`, with `1x1` where its Linears are convolutions."""
        channels = str(self.channels_in)
        if self.channels_in != self.channels_out:
            channels = f"{self.channels_in}->{self.channels_out}"
        received = "+".join(layout.value for layout in self.layouts)
        convolves = " 1x1" if self.linear_layout is Layout.SPATIAL else ""
        return f"{self.kind.value} {channels} @{self.height}x{self.width} {received}{convolves}"


def gives(kind: Kind, linear_layout: Layout | None) -> Layout:
    """Return the layout in which blocks of a kind leave their output, by the layout that their Linears work in."""
    return Layout.TOKENS if kind in TOKEN_KINDS and linear_layout is not Layout.SPATIAL else Layout.SPATIAL
