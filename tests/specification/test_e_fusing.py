"""Check (e): the deployed (fused) form computes what the training form does, to 1e-5 of the largest output.

float32 resolves 1e-7 of a value, and a detector adds up thousands of products. What is left in double precision is no
rounding, so there both forms are held to far less.
"""

import pytest
import torch
from torch import Tensor, nn

from nas.blocks import Block, Kind
from nas.config import Config
from nas.named import named_space
from nas.space import SearchSpace
from supernet.detector import HeatDETR, build_block
from supernet.export import randomise_detector, randomise_statistics
from supernet.fusing import fuse
from supernet.layers.head import Head, RawPrediction, decode, score
from tests.supernet.block_samples import (
    BLOCKS,
    DEVIANT_BLOCKS,
    DEVIANT_SPACE,
    LOW_SPACE,
    MAP_BLOCKS,
    NANO,
    SPARSE,
    random_inputs,
)

EDGE = named_space("heatdetr-edge", classes=4)
SAMPLES = [*BLOCKS, *DEVIANT_BLOCKS, *MAP_BLOCKS, SPARSE]


def test_the_samples_hold_every_kind() -> None:
    assert {block.kind for block in SAMPLES} == set(Kind) - {Kind.IDENTITY}


@pytest.mark.parametrize("block", SAMPLES, ids=lambda block: block.label)
@torch.no_grad()
def test_fused_block_computes_what_the_training_form_computes(block: Block) -> None:
    torch.manual_seed(0)
    module = build_block(block)
    randomise_statistics(module)
    inputs = random_inputs(block)
    assert _difference(fuse(module)(*inputs), _decoded(module.eval(), module(*inputs))) <= 1e-5
    exact = [x.double() for x in inputs]
    module.double()
    assert _difference(fuse(module)(*exact), _decoded(module, module(*exact))) <= 1e-12


SHALLOW = {
    "smallest": (NANO, NANO.smallest()),
    "largest": (NANO, NANO.largest()),
    "mixed": (NANO, list(NANO.covering_configs((192, 192)))[13]),
    "every open point otherwise": (DEVIANT_SPACE, DEVIANT_SPACE.largest()),
    "narrow SAMs": (LOW_SPACE, LOW_SPACE.with_stride(LOW_SPACE.largest(), 32)),
}
DEEP = {"edge": (EDGE, EDGE.largest((256, 256)))}
"""Behind twelve random blocks rounding alone is worth 1e-5 to 3e-5, of either form against the exact result."""


@pytest.mark.parametrize(("space", "config"), SHALLOW.values(), ids=SHALLOW)
def test_fused_detector_computes_what_the_training_form_computes(space: SearchSpace, config: Config) -> None:
    assert _fused_against_training(space, config, torch.float32) <= 1e-5


@pytest.mark.parametrize(("space", "config"), (SHALLOW | DEEP).values(), ids=SHALLOW | DEEP)
def test_in_double_precision_fused_and_training_form_of_a_detector_are_one(space: SearchSpace, config: Config) -> None:
    assert _fused_against_training(space, config, torch.float64) <= 1e-12


@torch.no_grad()
def _fused_against_training(space: SearchSpace, config: Config, precision: torch.dtype) -> float:
    torch.manual_seed(0)
    detector = HeatDETR(space, config)
    randomise_detector(detector)
    detector.to(precision).eval()
    images = torch.rand(2, 3, *config.image, dtype=precision)
    return _difference(fuse(detector)(images), _decoded(detector.head, detector(images)))


def _decoded(module: nn.Module, output: Tensor | RawPrediction) -> Tensor | tuple[Tensor, Tensor]:
    """Return what the fused form gives: for a head boxes and scores."""
    if not isinstance(output, RawPrediction):
        return output
    assert isinstance(module, Head)
    return decode(output.deltas, module.anchors), score(output)


def _difference(got: Tensor | tuple[Tensor, ...], wanted: Tensor | tuple[Tensor, ...]) -> float:
    """Return the largest difference over the largest value, of the output where it is worst."""
    pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
