"""Check (c), the values: every block computes what the specification's section 2 defines.

Each definition is restated below in plain torch on maps (B, C, H, W), from the block's own weights read by name,
without the product's windows, masks, constants and layouts. All weights and statistics are random: neither is a branch
switched off, as in a fresh block, nor a BatchNorm trivial.
"""

from collections.abc import Callable
from itertools import product, zip_longest
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nas.blocks import LINEAR_KINDS, Block, Kind, Layout, Upsample
from supernet.detector import build_block
from supernet.export import randomise_statistics
from supernet.fusing import fuse
from tests.specification.blocks import block_of
from tests.supernet.block_samples import random_inputs

TOLERANCE = 1e-6
"""In double precision; 1/sqrt(32) is a constant in float32."""

C, D = 64, 96
"""Channels in; channels out where a block changes the width."""

H, W = 12, 18
"""2 x 3 windows, or 3 x 4 where they are moved; neither side is a multiple of 7."""

KEPT = 150
ANCHORS = (32, 64, 128)
EPSILON = 1e-5

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """Linear, BN."""
    return batch_norm(w, name, torch.einsum("oc,bchw->bohw", w[f"{name}.linear.weight"], x))


def conv(w: Weights, name: str, x: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
    """Convolution, BN; 3x3 on a map padded by one, 1x1 and 2x2 on the map as it is."""
    kernel = w[f"{name}.conv.weight"]
    padding = 1 if kernel.shape[-1] == 3 else 0
    return batch_norm(w, name, functional.conv2d(x, kernel, stride=stride, padding=padding, groups=groups))


def batch_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance, gamma, beta = (part.view(-1, 1, 1) for part in statistics(w, name))
    return gamma * (x - mean) / (variance + EPSILON).sqrt() + beta


def statistics(w: Weights, name: str) -> list[Tensor]:
    return [w[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]


def mlp(w: Weights, x: Tensor) -> Tensor:
    return linear(w, "mlp.reduce", functional.gelu(linear(w, "mlp.expand", x)))


def mean_of_four(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4


def rep_cnn(w: Weights, x: Tensor) -> Tensor:
    """ReLU(BN(3x3) + BN(1x1) + BN(x)), and nothing behind it."""
    return (conv(w, "conv.wide", x) + conv(w, "conv.point", x) + batch_norm(w, "conv.skip", x)).relu()


def xca(w: Weights, x: Tensor) -> Tensor:
    """x += proj(softmax(t q^ k^T) v); x += LPI(x); x += MLP(x): q, k, v one after another, 8 heads in each."""
    query, key, value = linear(w, "qkv", x).flatten(2).unflatten(1, (3, 8, -1)).unbind(1)
    query, key = (part / part.square().sum(-1, keepdim=True).sqrt() for part in (query, key))
    weights = (w["temperature"] * torch.einsum("bhqn,bhkn->bhqk", query, key)).softmax(-1)
    x = x + linear(w, "proj", torch.einsum("bhqk,bhkn->bhqn", weights, value).reshape(x.shape))
    neighbours = functional.gelu(conv(w, "lpi.first", x, groups=x.shape[1]))
    x = x + conv(w, "lpi.second", neighbours, groups=x.shape[1])
    return x + mlp(w, x)


def attention(w: Weights, x: Tensor, *, kept: int = H * W) -> Tensor:
    """x += proj(softmax(q k^T / sqrt(32)) v); x += MLP(x) where most attention arrives: q, k, v of head after head."""
    query, key, value = linear(w, "qkv", x).flatten(2).unflatten(1, (-1, 96)).split(32, dim=2)
    weights = (torch.einsum("bhcq,bhck->bhqk", query, key) / 32**0.5).softmax(-1)
    x = x + linear(w, "proj", torch.einsum("bhqk,bhck->bhcq", weights, value).reshape(x.shape))
    score = weights.mean((1, 2))
    chosen = score >= score.sort(descending=True).values[:, [kept - 1]]
    assert chosen.sum(1).tolist() == [kept] * len(x)
    return torch.where(chosen.view(-1, 1, *x.shape[2:]), x + mlp(w, x), x)


def sparse_attention(w: Weights, x: Tensor) -> Tensor:
    return attention(w, x, kept=KEPT)


def windows(w: Weights, x: Tensor, *, first: int = 7, keys: int = 16) -> Tensor:
    """x += proj(attention in windows); x += MLP(x).

    Args:
        w: the block's weights.
        x: the map.
        first: rows and columns of the map in its first windows; a window at an edge holds what there is.
        keys: channels of a query or key.
    """
    qkv = linear(w, "qkv", x).unflatten(1, (-1, 2 * keys + 32))
    mixed = torch.zeros_like(qkv[:, :, :32])
    for rows, columns in product(*(spans(side, first) for side in x.shape[2:])):
        query, key, value = qkv[..., rows, columns].flatten(3).split((keys, keys, 32), dim=2)
        scores = torch.einsum("bhcq,bhck->bhqk", query, key) / keys**0.5
        cells = list(product(range(rows.start, rows.stop), range(columns.start, columns.stop)))
        offsets = [
            [13 * (row - key_row + 6) + column - key_column + 6 for key_row, key_column in cells]
            for row, column in cells
        ]
        weights = (scores + w["position.table"][torch.tensor(offsets)].permute(2, 0, 1)).softmax(-1)
        here = mixed[..., rows, columns]
        here += torch.einsum("bhqk,bhck->bhcq", weights, value).reshape(here.shape)
    x = x + linear(w, "proj", mixed.flatten(1, 2))
    return x + mlp(w, x)


def spans(side: int, first: int) -> list[slice]:
    starts = [0, *range(first, side, 7)]
    return [slice(start, stop) for start, stop in zip_longest(starts, starts[1:], fillvalue=side)]


def shifted_windows(w: Weights, x: Tensor) -> Tensor:
    """Windows moved by 3: the first ones end after 3 rows and columns."""
    return windows(w, x, first=3)


def wide_keys(w: Weights, x: Tensor) -> Tensor:
    return windows(w, x, keys=32)


def stem(w: Weights, x: Tensor) -> Tensor:
    x = functional.gelu(conv(w, "first", x, stride=2))
    x = functional.gelu(conv(w, "second", x, stride=2))
    return conv(w, "third", x, stride=2)


def entry(w: Weights, x: Tensor) -> Tensor:
    return conv(w, "conv", x, stride=2)


def align(w: Weights, x: Tensor) -> Tensor:
    return functional.gelu(conv(w, "conv", x))


def pool(_: Weights, x: Tensor) -> Tensor:
    return mean_of_four(x)


def deconvolution(w: Weights, x: Tensor) -> Tensor:
    """2x2 with stride 2, and the BN of a Linear to 4C: each of the four sub-pixels of a channel has its own."""
    kernel = w["up.expand.linear.weight"].unflatten(0, (-1, 2, 2)).permute(3, 0, 1, 2)
    y = functional.conv_transpose2d(x, kernel, stride=2)
    mean, variance, gamma, beta = (part.view(-1, 2, 2).tile(1, *x.shape[2:]) for part in statistics(w, "up.expand"))
    return gamma * (y - mean) / (variance + EPSILON).sqrt() + beta


def nearest(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def sam(w: Weights, low: Tensor, high: Tensor) -> Tensor:
    """A_lo(low) + up(high)."""
    return functional.gelu(conv(w, "align", low)) + deconvolution(w, high)


def sam_nearest(w: Weights, low: Tensor, high: Tensor) -> Tensor:
    return functional.gelu(conv(w, "align", low)) + nearest(high)


def scm(w: Weights, fine: Tensor, coarse: Tensor) -> Tensor:
    """I = pool(fine); I += BN(1x1(GELU(BN(1x1(I))))); + coarse."""
    return down_attention(w, fine) + coarse


def scm_widening(w: Weights, fine: Tensor, coarse: Tensor) -> Tensor:
    """The same, with a convolution and its BN before the coarse map is added."""
    return conv(w, "project", down_attention(w, fine)) + coarse


def down_attention(w: Weights, fine: Tensor) -> Tensor:
    x = mean_of_four(fine)
    return x + conv(w, "reduce", functional.gelu(conv(w, "expand", x)))


def up(w: Weights, fine: Tensor, coarse: Tensor) -> Tensor:
    return fine + deconvolution(w, coarse)


def up_nearest(_: Weights, fine: Tensor, coarse: Tensor) -> Tensor:
    return fine + nearest(coarse)


def project(w: Weights, x: Tensor) -> Tensor:
    return functional.gelu(linear(w, "linear", x))


def split_project(w: Weights, x: Tensor) -> Tensor:
    return project(w, x[:, C // 2 :])


def head(w: Weights, first: Tensor, second: Tensor) -> Tensor:
    """3x3: classes from the first half of T1, dx, dy, dw, dh and objectness from T2: (B, N, classes + 5)."""
    found = [
        functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1).unflatten(1, (len(ANCHORS), -1))
        for name, x in (("classify", first[:, : C // 2]), ("locate", second), ("object", second))
    ]
    by_anchor = torch.cat(found, dim=2)  # (B, anchors, values, H, W)
    cells = [by_anchor[:, size, :, y, x] for y in range(H) for x in range(W) for size in range(len(ANCHORS))]
    return torch.stack(cells, dim=1)


class Case(NamedTuple):
    block: Block
    restated: Callable[..., Tensor]


def case(
    kind: Kind,
    restated: Callable[..., Tensor],
    size: tuple[int, int] = (H, W),
    channels: tuple[int, int] = (C, C),
    **deviations: Any,
) -> Case:
    return Case(block_of(kind, channels, size, **deviations), restated)


CASES = {
    "RepCNN": case(Kind.REP_CNN, rep_cnn),
    "WMSA": case(Kind.WMSA, windows),
    "WMSA on one whole window": case(Kind.WMSA, windows, (7, 7)),
    "WMSA on one window": case(Kind.WMSA, windows, (5, 6)),
    "WMSA on whole windows": case(Kind.WMSA, windows, (14, 21)),
    "WMSA, kd 32": case(Kind.WMSA, wide_keys, key_width=32),
    "SWMSA": case(Kind.SWMSA, shifted_windows),
    "SWMSA on one window": case(Kind.SWMSA, windows, (7, 6)),
    "XCA": case(Kind.XCA, xca),
    "XCA, MLP 2": case(Kind.XCA, xca, mlp_ratio=2),
    "SA": case(Kind.ATTENTION, attention),
    "SA, keep < 1": case(Kind.SPARSE_ATTENTION, sparse_attention, kept_tokens=KEPT),
    "stem": case(Kind.STEM, stem, (64, 80), (3, D)),
    "entry, 3x3": case(Kind.ENTRY, entry, channels=(C, D)),
    "entry, 2x2": case(Kind.ENTRY, entry, channels=(C, D), kernel=2),
    "A_hi, 3x3": case(Kind.ALIGN, align, channels=(C, D)),
    "A_hi, 1x1": case(Kind.ALIGN, align, channels=(C, D), kernel=1),
    "down": case(Kind.POOL, pool),
    "A_lo and deconv up": case(Kind.SAM, sam, channels=(C, D)),
    "A_lo where widths agree": case(Kind.SAM, sam),
    "A_lo and nearest up": case(Kind.SAM, sam_nearest, channels=(C, D), upsample=Upsample.NEAREST),
    "DA": case(Kind.SCM, scm),
    "DA and P, 3x3": case(Kind.SCM, scm_widening, channels=(C, D)),
    "DA and P, 1x1": case(Kind.SCM, scm_widening, channels=(C, D), kernel=1),
    "deconv up": case(Kind.UP, up),
    "nearest up": case(Kind.UP, up_nearest, upsample=Upsample.NEAREST),
    "T1's 1x1": case(Kind.PROJECT, project, channels=(C, D)),
    "T2's 1x1": case(Kind.SPLIT_PROJECT, split_project, channels=(C, D)),
    "head": case(Kind.HEAD, head, channels=(C, 7), anchor_px=ANCHORS),
}

ON_MAPS = {
    f"{name}, Linears as 1x1": Case(block.model_copy(update={"linear_layout": Layout.SPATIAL}), restated)
    for name, (block, restated) in CASES.items()
    if block.kind in LINEAR_KINDS
}


def test_every_kind_is_restated() -> None:
    assert {block.kind for block, _ in CASES.values()} == set(Kind) - {Kind.IDENTITY}


@pytest.mark.parametrize(("block", "restated"), (CASES | ON_MAPS).values(), ids=CASES | ON_MAPS)
@torch.no_grad()
def test_a_block_computes_its_definition(block: Block, restated: Callable[..., Tensor]) -> None:
    module = trained(block)
    inputs = [x.double() for x in random_inputs(block, batch=2)]
    found = module(*inputs)
    if block.kind is Kind.HEAD:
        logits, deltas, objectness = found
        found = torch.cat((logits, deltas, objectness[..., None]), dim=-1)
    elif found.dim() == 3:
        found = found.transpose(1, 2).unflatten(2, (block.height, block.width))
    wanted = restated(module.state_dict(), *inputs)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= TOLERANCE * max(1, wanted.abs().max())


@torch.no_grad()
def test_objectness_is_implicit_and_multiplies_every_class() -> None:
    block = CASES["head"].block
    module = trained(block)
    inputs = [x.double() for x in random_inputs(block)]
    classes, _, objectness = head(module.state_dict(), *inputs).split((7, 4, 1), dim=-1)
    _, scores = fuse(module)(*inputs)
    assert (scores - classes.sigmoid() * objectness.sigmoid()).abs().max() <= TOLERANCE


def trained(block: Block) -> torch.nn.Module:
    """Return a block in double precision in which nothing is 0, 1 or equal to its neighbour."""
    torch.manual_seed(0)
    module = build_block(block).double().eval()
    randomise_statistics(module)
    for name, weight in module.named_parameters():
        if name.endswith(("bias", "table", "temperature")):
            weight.normal_()
    return module
