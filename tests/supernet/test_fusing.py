import pytest
import torch
from torch import nn

from nas.blocks import Block, Kind
from supernet.detector import build_block
from supernet.fusing import fuse
from supernet.layers.window_attention import RelativePosition
from tests.supernet.block_samples import BLOCKS, MAP_BLOCKS


@pytest.mark.parametrize("block", [*BLOCKS, *MAP_BLOCKS], ids=lambda block: block.label)
def test_no_training_layer_is_left(block: Block) -> None:
    deployed = fuse(build_block(block))
    assert not any(
        isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | RelativePosition) or layer.training
        for layer in deployed.modules()
    )
    assert not any(parameter.requires_grad for parameter in deployed.parameters())


def test_rep_cnn_becomes_one_convolution() -> None:
    block = next(block for block in BLOCKS if block.kind is Kind.REP_CNN)
    leaves = [layer for layer in fuse(build_block(block)).modules() if not list(layer.children())]
    assert [type(layer) for layer in leaves] == [nn.Conv2d, nn.ReLU]


def test_the_original_is_left_as_it_was() -> None:
    module = build_block(BLOCKS[1])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fuse(module)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
