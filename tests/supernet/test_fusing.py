import pytest
import torch
from torch import nn

from nas.blocks import Block, Kind
from nas.config import Config
from supernet.detector import HeatDETR, build_block
from supernet.export import randomise_detector, randomise_statistics
from supernet.fusing import fuse
from supernet.layers.head import RawPrediction, decode, score
from supernet.layers.window_attention import RelativePosition
from tests.supernet.block_samples import BLOCKS, MAP_BLOCKS, NANO, random_inputs


@pytest.mark.parametrize("block", [b for b in (*BLOCKS, *MAP_BLOCKS) if b.kind is not Kind.HEAD], ids=lambda b: b.label)
@torch.no_grad()
def test_fused_computes_what_the_training_form_computes(block: Block) -> None:
    torch.manual_seed(0)
    module = build_block(block)
    randomise_statistics(module)
    inputs = random_inputs(block)
    expected = module.eval()(*inputs)
    # float32 resolves 1e-7 of a value: outputs of up to 10 and sums over 576 products differ by rounding alone.
    assert (fuse(module)(*inputs) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    exact = [x.double() for x in inputs]
    assert (fuse(module.double())(*exact) - module(*exact)).abs().max() <= 1e-11


def test_fused_head_gives_boxes_and_scores() -> None:
    block = next(block for block in BLOCKS if block.kind is Kind.HEAD)
    head = build_block(block)
    first, second = random_inputs(block)
    raw = head(first, second)
    boxes, scores = fuse(head)(first, second)
    assert torch.equal(boxes, decode(raw.deltas, head.anchors))
    assert torch.equal(scores, score(raw))


@pytest.mark.parametrize("config", [NANO.smallest(), NANO.largest()], ids=["smallest", "largest"])
def test_fused_detector_gives_the_decoded_prediction(config: Config) -> None:
    torch.manual_seed(0)
    detector = HeatDETR(NANO, config)
    randomise_detector(detector)
    images = torch.rand(2, 3, 192, 192).double()
    detector.double().eval()  # in single precision, rounding alone is worth hundredths of a pixel
    raw = detector(images)
    boxes, scores = fuse(detector)(images)
    assert isinstance(raw, RawPrediction)
    assert (boxes - decode(raw.deltas, detector.head.anchors)).abs().max() <= 1e-9
    assert (scores - score(raw)).abs().max() <= 1e-11


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
