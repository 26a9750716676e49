import pytest
import torch

from nas.blocks import Block, Kind
from nas.config import Config
from nas.errors import InvalidConfig
from supernet.detector import HeatDETR, build_block
from supernet.fusing import fuse
from tests.supernet.block_samples import NANO

SMALLEST = NANO.smallest()


@pytest.mark.parametrize("config", [NANO.smallest(), NANO.largest()], ids=["smallest", "largest"])
def test_predicts_for_every_anchor_of_the_stride_32_map(config: Config) -> None:
    prediction = HeatDETR(NANO, config)(torch.rand(2, 3, 192, 192))
    anchors = 6 * 6 * 4
    assert tuple(prediction.logits.shape) == (2, anchors, 3)
    assert tuple(prediction.deltas.shape) == (2, anchors, 4)
    assert tuple(prediction.objectness.shape) == (2, anchors)


def test_every_parameter_learns() -> None:
    detector = HeatDETR(NANO, SMALLEST)
    # Residual branches start at gamma 0, which holds back what stands before it.
    for name, parameter in detector.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.ones_(parameter)
    sum((part * torch.randn_like(part)).sum() for part in detector(torch.rand(2, 3, 192, 192))).backward()
    silent = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_modules_stand_in_the_order_of_the_walk() -> None:
    detector = HeatDETR(NANO, SMALLEST)
    assert list(detector.blocks) == [site.name.replace(".", "_") for site in NANO.sites(SMALLEST)]


def test_a_config_outside_the_space_is_refused() -> None:
    wrong = SMALLEST.with_stage(0, SMALLEST.stages[0].model_copy(update={"width": 48}))
    with pytest.raises(InvalidConfig, match="stage 1 width 48 is not a multiple of 32: choose one of 32, 64"):
        HeatDETR(NANO, wrong)


def test_the_head_holds_the_anchors_until_it_is_fused() -> None:
    detector = HeatDETR(NANO, SMALLEST)
    assert tuple(detector.head.anchors.shape) == (144, 4)
    deployed = fuse(detector)
    assert isinstance(deployed, HeatDETR)
    with pytest.raises(TypeError, match="decodes its boxes itself: ask the unfused one for anchors"):
        _ = deployed.head


def test_identity_passes_its_input() -> None:
    x = torch.rand(1, 32, 4, 4)
    block = Block(kind=Kind.IDENTITY, channels_in=32, channels_out=32, height=4, width=4)
    assert build_block(block)(x) is x


def test_the_image_size_changes_no_weight() -> None:
    two_sizes = NANO.model_copy(update={"images": ((64, 128), (192, 192))})
    small = HeatDETR(two_sizes, two_sizes.smallest((64, 128)))
    large = HeatDETR(two_sizes, two_sizes.smallest((192, 192)))
    small.load_state_dict(large.state_dict())
    assert tuple(small(torch.rand(2, 3, 64, 128)).logits.shape) == (2, 2 * 4 * 4, 3)
