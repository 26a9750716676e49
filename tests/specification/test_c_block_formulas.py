"""Check (c): weights and multiply-adds of every block are exactly the formulas of the specification's section 2.

The formulas are written out once more for each case, with C channels, n tokens and so on. They are held against the
product's arithmetic (`nas.macs`), and against what PyTorch counts in the deployed module.
"""

from math import ceil
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.blocks import Block, Kind, Upsample
from nas.macs import attention_macs, macs, weight_macs, weights
from supernet.detector import build_block
from supernet.export import input_shapes
from supernet.fusing import fuse
from supernet.layers.window_attention import RelativePosition
from tests.specification.blocks import block_of

C, D = 64, 96
"""Channels in; channels out where a block changes the width."""

H, W = 20, 26
N = H * W
LOW = (H // 2) * (W // 2)
"""Cells of a map of half the sides."""

WINDOWS, SHIFTED = ceil(20 / 7) * ceil(26 / 7), ceil((20 + 4) / 7) * ceil((26 + 4) / 7)
"""3 x 4 windows; 4 x 5 where four rows and columns are padded to move them."""

KEPT = 427


class Formula(NamedTuple):
    """What the table of section 2 says of one block.

    Attributes:
        weights: after folding, one bias per output left out.
        linear: multiply-adds of convolutions and Linears.
        products: multiply-adds between activations.
    """

    block: Block
    weights: int
    linear: int
    products: int = 0


def as_wide(kind: Kind, **deviations: Any) -> Block:
    return block_of(kind, (C, C), (H, W), **deviations)


def widening(kind: Kind, **deviations: Any) -> Block:
    return block_of(kind, (C, D), (H, W), **deviations)


FORMULAS = {
    "RepCNN": Formula(as_wide(Kind.REP_CNN), 9 * C**2, 9 * C**2 * N),
    "WMSA": Formula(as_wide(Kind.WMSA), 11 * C**2 + 169 * C // 32, 11 * C**2 * N, WINDOWS * 49**2 * 3 * C // 2),
    "SWMSA": Formula(as_wide(Kind.SWMSA), 11 * C**2 + 169 * C // 32, 11 * C**2 * N, SHIFTED * 49**2 * 3 * C // 2),
    "SWMSA on a map that needs no padding but the shift's": Formula(
        block_of(Kind.SWMSA, (C, C), (21, 28)),
        11 * C**2 + 169 * C // 32,
        11 * C**2 * 21 * 28,
        4 * 5 * 49**2 * 3 * C // 2,
    ),
    "SWMSA on a map of one window": Formula(
        block_of(Kind.SWMSA, (C, C), (7, 5)), 11 * C**2 + 169 * C // 32, 11 * C**2 * 35, 49**2 * 3 * C // 2
    ),
    "WMSA, kd 32": Formula(
        as_wide(Kind.WMSA, key_width=32), 12 * C**2 + 169 * C // 32, 12 * C**2 * N, WINDOWS * 49**2 * 2 * C
    ),
    "SWMSA, kd 32": Formula(
        as_wide(Kind.SWMSA, key_width=32), 12 * C**2 + 169 * C // 32, 12 * C**2 * N, SHIFTED * 49**2 * 2 * C
    ),
    "WMSA, MLP 2": Formula(
        as_wide(Kind.WMSA, mlp_ratio=2), 7 * C**2 + 169 * C // 32, 7 * C**2 * N, WINDOWS * 49**2 * 3 * C // 2
    ),
    "XCA": Formula(as_wide(Kind.XCA), 12 * C**2 + 18 * C, (12 * C**2 + 18 * C) * N, 2 * N * C**2 // 8),
    "XCA, MLP 2": Formula(
        as_wide(Kind.XCA, mlp_ratio=2), 8 * C**2 + 18 * C, (8 * C**2 + 18 * C) * N, 2 * N * C**2 // 8
    ),
    "SA": Formula(as_wide(Kind.ATTENTION), 12 * C**2, 12 * C**2 * N, 2 * N**2 * C),
    "SA, keep < 1": Formula(
        as_wide(Kind.SPARSE_ATTENTION, kept_tokens=KEPT), 12 * C**2, 4 * C**2 * N + 8 * C**2 * KEPT, 2 * N**2 * C
    ),
    "SA, keep < 1, MLP 2": Formula(
        as_wide(Kind.SPARSE_ATTENTION, kept_tokens=KEPT, mlp_ratio=2),
        8 * C**2,
        4 * C**2 * N + 4 * C**2 * KEPT,
        2 * N**2 * C,
    ),
    "DA": Formula(as_wide(Kind.SCM), 8 * C**2, 2 * C**2 * N),
    "DA, MLP 2": Formula(as_wide(Kind.SCM, mlp_ratio=2), 4 * C**2, C**2 * N),
    "DA and P, 3x3": Formula(widening(Kind.SCM), 8 * C**2 + 9 * C * D, 2 * C**2 * N + 9 * C * D * LOW),
    "DA and P, 1x1": Formula(widening(Kind.SCM, kernel=1), 8 * C**2 + C * D, 2 * C**2 * N + C * D * LOW),
    "stem": Formula(
        block_of(Kind.STEM, (3, D), (80, 104)),
        27 * D // 4 + 9 * D**2 // 8 + 9 * D**2 // 2,
        27 * D // 4 * (40 * 52) + 9 * D**2 // 8 * (20 * 26) + 9 * D**2 // 2 * (10 * 13),
    ),
    "stem of D/2, D": Formula(
        block_of(Kind.STEM, (3, D), (80, 104), stem_divisors=(2, 1)),
        27 * D // 2 + 9 * D**2 // 2 + 9 * D**2,
        27 * D // 2 * (40 * 52) + 9 * D**2 // 2 * (20 * 26) + 9 * D**2 * (10 * 13),
    ),
    "entry, 3x3": Formula(widening(Kind.ENTRY), 9 * C * D, 9 * C * D * LOW),
    "entry, 2x2": Formula(widening(Kind.ENTRY, kernel=2), 4 * C * D, 4 * C * D * LOW),
    "A_hi, 3x3": Formula(widening(Kind.ALIGN), 9 * C * D, 9 * C * D * N),
    "A_hi, 1x1": Formula(widening(Kind.ALIGN, kernel=1), C * D, C * D * N),
    "A_lo and deconv up": Formula(
        widening(Kind.SAM), 9 * C * D + 4 * D**2, 9 * C * D * N + 4 * D**2 * LOW
    ),
    "A_lo 1x1 and deconv up": Formula(
        widening(Kind.SAM, kernel=1), C * D + 4 * D**2, C * D * N + 4 * D**2 * LOW
    ),
    "A_lo and nearest up": Formula(widening(Kind.SAM, upsample=Upsample.NEAREST), 9 * C * D, 9 * C * D * N),
    "deconv up": Formula(as_wide(Kind.UP), 4 * C**2, 4 * C**2 * LOW),
    "nearest up": Formula(as_wide(Kind.UP, upsample=Upsample.NEAREST), 0, 0),
    "T1's 1x1": Formula(widening(Kind.PROJECT), C * D, C * D * N),
    "T2's 1x1 on half the channels": Formula(widening(Kind.SPLIT_PROJECT), C // 2 * D, C // 2 * D * N),
    "head": Formula(
        block_of(Kind.HEAD, (C, 80), (H, W), anchor_px=(32, 64, 128, 256, 512)),
        9 * (C // 2 * 5 * 80 + C * 5 * 4 + C * 5),
        9 * (C // 2 * 5 * 80 + C * 5 * 4 + C * 5) * N,
    ),
    "down": Formula(as_wide(Kind.POOL), 0, 0),
    "I": Formula(as_wide(Kind.IDENTITY), 0, 0),
}  # fmt: skip

EVERY_FORMULA = pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)


def test_every_kind_has_its_formula() -> None:
    assert {formula.block.kind for formula in FORMULAS.values()} == set(Kind)


@EVERY_FORMULA
def test_arithmetic_is_the_formula(formula: Formula) -> None:
    block = formula.block
    assert weights(block) == formula.weights
    assert weight_macs(block) == formula.linear
    assert attention_macs(block) == formula.products
    assert macs(block) == formula.linear + formula.products


@EVERY_FORMULA
def test_the_deployed_module_multiplies_what_the_formula_says(formula: Formula) -> None:
    assert _counted(fuse(build_block(formula.block)), formula.block) == formula.linear + formula.products


@EVERY_FORMULA
def test_the_deployed_module_holds_the_weights_that_the_formula_says(formula: Formula) -> None:
    module = build_block(formula.block)
    # Position biases are counted as they are learnt; deployed, they are expanded.
    tables = [layer.table for layer in module.modules() if isinstance(layer, RelativePosition)]
    parameters = dict(fuse(module).named_parameters())
    kernels = [tensor for name, tensor in parameters.items() if not name.endswith(("bias", "temperature"))]
    assert sum(tensor.numel() for tensor in tables + kernels) == formula.weights


def test_rep_cnn_in_training_is_ten_ninths_of_the_deployed_one() -> None:
    block = as_wide(Kind.REP_CNN)
    module = build_block(block)
    assert sum(weight.numel() for weight in module.parameters() if weight.dim() > 1) == 10 * C**2
    assert _counted(module, block) == 10 * C**2 * N


def _counted(module: nn.Module, block: Block) -> int:
    """Count the multiply-adds that PyTorch sees at batch 1, without computing anything."""
    inputs = [torch.zeros(shape, device="meta") for shape in input_shapes(block)]
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(*inputs)
    operations: int = counter.get_total_flops()
    assert operations % 2 == 0
    return operations // 2
