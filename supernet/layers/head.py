"""The detection head: anchors at one stride, three 3x3 convolutions, and the decoding of boxes (YOLOF)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nas.blocks import PREDICTION_STRIDE, Block
from supernet.layers.axes import Axis, Sliceable
from supernet.layers.layout import to_spatial

CENTRE_LIMIT_PX = 32.0
"""Farthest a predicted centre lies from its anchor's, per axis, in input pixels: a cell at stride 32, two at 16."""

LOG_SIZE_LIMIT = math.log(62.5)
"""Largest log ratio of a predicted side to its anchor's."""

CLASS_BIAS = -math.log(99)
"""Initial class logit: a probability of 1 %."""


class RawPrediction(NamedTuple):
    """What the head predicts per anchor; anchors are ordered by row, column, size.

    Attributes:
        logits: class logits (B, N, classes).
        deltas: dx, dy, dw, dh relative to the anchor (B, N, 4).
        objectness: one logit per anchor (B, N); it has no loss of its own.
    """

    logits: Tensor
    deltas: Tensor
    objectness: Tensor


def make_anchors(block: Block) -> Tensor:
    """Return the anchors of a HEAD block as (N, 4): cx, cy, w, h in input pixels.

    Cell (i, j) centres at (stride * j, stride * i).
    """
    stride = block.stride or PREDICTION_STRIDE
    rows, columns = torch.arange(block.height) * stride, torch.arange(block.width) * stride
    sides = torch.tensor(block.anchor_px or ())
    cy, cx, side = torch.meshgrid(rows, columns, sides, indexing="ij")
    return torch.stack((cx, cy, side, side), dim=-1).reshape(-1, 4).to(torch.float32)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Turn deltas (B, N, 4) on anchors (N, 4) into boxes (B, N, 4): x1, y1, x2, y2 in input pixels.

    cx = ax + clamp(dx * aw, +-32 px), w = aw * exp(min(dw, ln 62.5)); y and h likewise.
    """
    centre, size = anchors[:, :2], anchors[:, 2:]
    middle = centre + (deltas[..., :2] * size).clamp(-CENTRE_LIMIT_PX, CENTRE_LIMIT_PX)
    half = size * 0.5 * deltas[..., 2:].clamp(max=LOG_SIZE_LIMIT).exp()
    return torch.cat((middle - half, middle + half), dim=-1)


def score(prediction: RawPrediction) -> Tensor:
    """Return sigmoid(class) * sigmoid(objectness): (B, N, classes)."""
    return prediction.logits.sigmoid() * prediction.objectness.sigmoid().unsqueeze(-1)


class Head(nn.Module):
    """Class logits from the first half of T1's channels, boxes and objectness from T2."""

    anchors: Tensor

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.middle = block.channels_in // 2
        count = len(block.anchor_px or ())
        self.classify = HeadConv(self.middle, count * block.channels_out, reads=Axis.IN_FIRST_HALF, bias=CLASS_BIAS)
        self.locate = HeadConv(block.channels_in, count * 4, reads=Axis.SECOND_IN)
        self.object = HeadConv(block.channels_in, count, reads=Axis.SECOND_IN)
        self.register_buffer("anchors", make_anchors(block), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> RawPrediction:
        """Predict from T1 and T2 maps of equal size."""
        t1, t2 = self._maps(first, second)
        logits = _per_anchor(self.classify(t1[:, : self.middle]), self.block.channels_out)
        deltas, objectness = _per_anchor(self.locate(t2), 4), _per_anchor(self.object(t2), 1)
        return RawPrediction(logits, deltas, objectness.squeeze(-1))

    def _maps(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        one, two = self.block.layouts
        height, width = self.block.height, self.block.width
        return to_spatial(first, one, height, width), to_spatial(second, two, height, width)

    def fused(self) -> nn.Module:
        """Return the head that decodes."""
        return DeployedHead(self)


class HeadConv(nn.Conv2d, Sliceable):
    """3x3 convolution with bias onto anchors."""

    def __init__(self, channels_in: int, channels_out: int, *, reads: Axis, bias: float = 0.0) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self.reads = reads
        nn.init.normal_(self.weight, std=0.01)
        self.bias = nn.Parameter(torch.full((channels_out,), bias))

    def channel_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return what each axis of the weight stands for."""
        return {"weight": (Axis.WHOLE, self.reads, Axis.WHOLE, Axis.WHOLE)}


class DeployedHead(nn.Module):
    """Boxes (B, N, 4) in input pixels and scores (B, N, classes)."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Predict and decode."""
        prediction = self.head(first, second)
        return decode(prediction.deltas, self.head.anchors), score(prediction)


def _per_anchor(x: Tensor, values: int) -> Tensor:
    """Rearrange (B, anchors * values, H, W) to (B, H * W * anchors, values)."""
    batch, channels, height, width = x.shape
    return x.view(batch, channels // values, values, height, width).permute(0, 3, 4, 1, 2).flatten(1, 3)
