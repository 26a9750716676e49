"""Conventions in which papers count the multiply-adds of a detector: the paper's own tables mix them.

"GFLOPs" there are units of 1e9 multiply-adds.
"""

from enum import StrEnum
from typing import assert_never

from nas.blocks import Block, Kind
from nas.config import Config
from nas.macs import gmacs, outputs, parameters, weight_macs
from nas.network import Structure, sites

COCO_MEAN = 0.846
"""Mean over COCO images over the count at 800x1333, for DETR-R50: 86 printed, 101.7 counted."""


class Convention(StrEnum):
    """Which multiply-adds are counted, at which input size."""

    A = "A"
    """1280x800, convolutions and Linears only (mmdetection)"""
    B = "B"
    """800x1333, products of attention as well (the size at which FPS is stated)"""
    C = "C"
    """the mean over COCO images, taken as a share of B (DETR)"""


def gmacs_by(convention: Convention, structure: Structure, config: Config) -> float:
    """Count the multiply-adds of a detector in units of 1e9; the input size is the convention's, not the config's."""
    match convention:
        case Convention.A:
            return sum(map(weight_macs, blocks_at((800, 1280), structure, config))) / 1e9
        case Convention.B:
            return gmacs(blocks_at((800, 1333), structure, config))
        case Convention.C:
            return COCO_MEAN * gmacs_by(Convention.B, structure, config)
    assert_never(convention)


def parameters_m(structure: Structure, config: Config) -> float:
    """Count the parameters in millions as the specification's table does.

    As deployed, position biases expanded, but with gamma and beta of each BatchNorm where the deployed network has one
    bias; the head has biases anyway.
    """
    blocks = blocks_at(config.image, structure, config)
    return sum(parameters(block) + (0 if block.kind is Kind.HEAD else outputs(block)) for block in blocks) / 1e6


def blocks_at(image: tuple[int, int], structure: Structure, config: Config) -> tuple[Block, ...]:
    """List the blocks of a config at an input size (height, width) that its space need not offer."""
    return tuple(site.block for site in sites(structure, config.model_copy(update={"image": image})))
