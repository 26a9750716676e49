import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from nas.blocks import Kind
from nas.config import Config, Stage
from nas.network import tcm_width
from nas.space import SearchSpace
from supernet.detector import HeatDETR
from supernet.export import randomise_statistics
from supernet.extraction import cut, extract, group_share, sliced_parameters, slices
from supernet.supernet import Supernet
from tests.supernet.block_samples import DEVIANT, DEVIANT_SPACE, NANO

IMAGES = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(5))


def _supernet(space: SearchSpace) -> Supernet:
    torch.manual_seed(0)
    supernet = Supernet(space)
    randomise_statistics(supernet)
    return supernet.eval()


SUPERNET = _supernet(NANO)


def _configs(*, full_width: bool) -> st.SearchStrategy[Config]:
    def legal(config: Config) -> bool:
        return NANO.contains(config)

    stages = [
        st.builds(
            Stage,
            width=st.just(choices.widths[-1]) if full_width else st.sampled_from(choices.widths),
            slots=st.tuples(*[st.sampled_from((*choices.local_kinds, Kind.IDENTITY))] * choices.slots),
            global_kind=st.sampled_from(choices.global_kinds),
        )
        for choices in NANO.stages
    ]
    return st.builds(Config, space=st.just(NANO.id), image=st.just((192, 192)), stages=st.tuples(*stages)).filter(legal)


@settings(max_examples=12, derandomize=True, phases=[Phase.generate])
@given(_configs(full_width=True))
def test_a_full_width_subnet_is_the_path_of_the_supernet(config: Config) -> None:
    with torch.no_grad():
        path = SUPERNET(IMAGES, SUPERNET.one_hot_gates(config), 32)
        alone = extract(SUPERNET, config)(IMAGES)
    for wanted, got in zip(path, alone, strict=True):
        assert (wanted - got).abs().max() <= 1e-5 * max(1, wanted.abs().max())


@settings(max_examples=8, derandomize=True, phases=[Phase.generate])
@given(_configs(full_width=False))
def test_slices_run_in_place_are_the_extracted_subnet(config: Config) -> None:
    subnet = extract(SUPERNET, config)
    assert dict(sliced_parameters(SUPERNET, config)).keys() == dict(subnet.named_parameters()).keys()
    template = HeatDETR(NANO, config).eval()
    template.load_state_dict(
        {name: tensor for name, tensor in subnet.state_dict().items() if "norm." in name}, strict=False
    )
    with torch.no_grad():
        in_place = functional_call(template, sliced_parameters(SUPERNET, config), (IMAGES,))
        for wanted, got in zip(subnet(IMAGES), in_place, strict=True):
            assert (wanted - got).abs().max() <= 1e-5 * max(1, wanted.abs().max())


LEARNT_UP = DEVIANT_SPACE.model_copy(update={"structure": DEVIANT.model_copy(update={"upsample": None})})


@pytest.mark.parametrize("space", [DEVIANT_SPACE, LEARNT_UP], ids=["nearest", "learnt"])
def test_other_readings_of_the_paper_are_cut_out_alike(space: SearchSpace) -> None:
    supernet, images = _supernet(space).double(), IMAGES[:, :, :128].double()
    seen = set()
    with torch.no_grad():
        for config in list(space.covering_configs((128, 192)))[:14]:  # all widths at both strides come first
            subnet = extract(supernet, config).double()
            template = HeatDETR(space, config).double().eval()
            template.load_state_dict(
                {name: tensor for name, tensor in subnet.state_dict().items() if "norm." in name}, strict=False
            )
            found = subnet(images)
            in_place = functional_call(template, sliced_parameters(supernet, config), (images,))
            compared = [in_place]
            if config.widths == (32, 64, 96, 96):
                gates = {name: gate.double() for name, gate in supernet.one_hot_gates(config).items()}
                compared.append(supernet(images, gates, config.prediction_stride))
            for other in compared:
                for wanted, got in zip(other, found, strict=True):
                    assert (wanted - got).abs().max() <= 1e-9 * max(1, wanted.abs().max())
            seen.add((config.widths, config.prediction_stride, len(compared)))
    for stride in (16, 32):
        assert ((32, 64, 96, 96), stride, 2) in seen
        assert ((32, 64, 64, 64), stride, 1) in seen


def test_what_meets_at_stride_16_keeps_the_same_channels_of_stage_3() -> None:
    supernet = _supernet(LEARNT_UP)
    for layer in ("scm16_up.up.expand", "scm16_global1.mlp.reduce", "scm16_align.conv"):
        with torch.no_grad():
            supernet.get_parameter(f"blocks.{layer}.norm.weight")[-32:] = 100  # the last group is the strongest
    parts = slices(supernet, LEARNT_UP.with_stride(LEARNT_UP.smallest(), 16))
    [kept] = {
        tuple(axis.tolist())
        for name, number in (
            ("scm16_align.conv.conv.weight", 0),
            ("scm_down1.project.conv.weight", 0),
            ("scm16_up.up.expand.linear.weight", 1),
            ("tcm16_project1.linear.linear.weight", 1),
            ("stage3_entry.conv.conv.weight", 0),
        )
        if (axis := parts[f"blocks.{name}"].axes[number]) is not None
    }
    assert len(kept) == 64
    assert set(range(64, 96)) <= set(kept)


def test_a_prediction_map_at_stride_16_has_the_width_of_stage_3() -> None:
    supernet = _supernet(DEVIANT_SPACE)
    narrow = extract(supernet, DEVIANT_SPACE.with_stride(DEVIANT_SPACE.smallest(), 16))
    by_name = {site.name: site for site in narrow.sites}
    assert by_name["scm16.align"].block.channels_out == by_name["scm16.global2"].block.channels_in == 64
    assert by_name["tcm16.project1"].block.channels_out == tcm_width(64)
    assert (by_name["head16"].block.height, by_name["head16"].block.width) == (8, 12)
    [shape] = {tuple(narrow.head.anchors[:, :2].max(dim=0).values.tolist())}
    assert shape == (11 * 16, 7 * 16)


def test_training_a_narrow_subnet_teaches_the_supernet() -> None:
    config = NANO.smallest()
    supernet = Supernet(NANO)
    randomise_statistics(supernet)
    template = HeatDETR(NANO, config)
    prediction = functional_call(template, sliced_parameters(supernet, config), (IMAGES,))
    sum(part.square().mean() for part in prediction).backward()
    stem = supernet.get_parameter("blocks.stem.third.conv.weight").grad
    assert stem is not None
    rows = stem.abs().sum((1, 2, 3)) > 0
    assert int(rows.sum()) == 32  # the kept group of the 64
    assert supernet.get_parameter("blocks.stage1_slot0.candidates.wmsa.qkv.linear.weight").grad is None


def test_extraction_copies() -> None:
    subnet = extract(SUPERNET, NANO.largest())
    weight = subnet.get_parameter("blocks.stem.first.conv.weight")
    assert torch.equal(weight, SUPERNET.get_parameter("blocks.stem.first.conv.weight"))
    with torch.no_grad():
        weight.zero_()
    assert SUPERNET.get_parameter("blocks.stem.first.conv.weight").abs().sum() > 0


def test_extraction_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    extract(SUPERNET, NANO.smallest())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_keeps_its_strongest_groups() -> None:
    supernet = _supernet(NANO)
    config = NANO.smallest()
    for name, parameter in supernet.named_parameters():
        # Everything that adds to stage 3 is strongest in channels 32..63 and weakest in 64..95.
        writes_stage3 = name.startswith(("blocks.stage3_", "blocks.sam3_", "blocks.scm_down1.project"))
        if writes_stage3 and name.endswith("norm.weight") and len(parameter) == 96:
            with torch.no_grad():
                parameter.fill_(1)
                parameter[32:64] = 9
                parameter[64:] = 0.01
    kept = slices(supernet, config)["blocks.stage3_entry.conv.norm.weight"]
    assert kept.axes[0] is not None
    assert kept.axes[0].tolist() == list(range(64))
    shares = group_share(supernet, 3)
    assert shares[0] > 2 * shares[1] > 4 * shares[2]


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_group_shares_descend_and_sum_to_one(stage: int) -> None:
    shares = group_share(SUPERNET, stage)
    assert len(shares) == NANO.stages[stage - 1].widths[-1] // 32
    assert list(shares) == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


def test_group_shares_are_equal_when_nothing_is_written() -> None:
    supernet = Supernet(NANO)
    for parameter in supernet.weight_parameters():
        torch.nn.init.zeros_(parameter)
    assert group_share(supernet, 3) == (1 / 3, 1 / 3, 1 / 3)


def test_window_attention_loses_whole_heads_and_xca_channels_of_every_head() -> None:
    config = NANO.smallest()
    kinds = (Kind.WMSA, Kind.IDENTITY, Kind.IDENTITY)
    config = config.with_stage(2, config.stages[2].model_copy(update={"slots": kinds}))
    found = slices(SUPERNET, config)
    window = found["blocks.stage3_slot0.qkv.linear.weight"].axes[0]
    assert window is not None
    assert window.tolist() == list(range(2 * 64))
    channelwise = found["blocks.stage3_global.qkv.linear.weight"].axes[0]
    assert channelwise is not None
    assert channelwise.view(3, 8, 8)[1, 2].tolist() == [96 + 2 * 12 + i for i in range(8)]


def test_both_halves_of_t1_are_narrowed_alike() -> None:
    config = NANO.smallest()
    wide, narrow = tcm_width(128), tcm_width(64)
    found = slices(SUPERNET, config)
    t1 = found["blocks.tcm_project1.linear.linear.weight"].axes[0]
    assert t1 is not None
    assert len(t1) == narrow
    assert int((t1 < wide // 2).sum()) == narrow // 2
    classify = found["blocks.head.classify.weight"].axes[1]
    regress = found["blocks.tcm_project2.linear.linear.weight"].axes[1]
    assert classify is not None
    assert regress is not None
    assert torch.equal(classify, t1[: narrow // 2])
    assert torch.equal(regress, t1[narrow // 2 :] - wide // 2)


def test_where_the_widest_stages_agree_narrower_ones_still_get_their_projection() -> None:
    stages = (*NANO.stages[:1], *(NANO.stages[0].model_copy(update={"slots": 1}),) * 3)
    space = NANO.model_copy(update={"stages": stages})
    supernet = _supernet(space)
    widest = space.largest()
    with torch.no_grad():
        path = supernet(IMAGES, supernet.one_hot_gates(widest), 32)
        for wanted, got in zip(path, extract(supernet, widest)(IMAGES), strict=True):
            assert torch.equal(wanted, got)
    narrow = widest.with_stage(0, widest.stages[0].model_copy(update={"width": 32}))
    narrow = narrow.with_stage(1, narrow.stages[1].model_copy(update={"width": 32}))
    subnet = extract(supernet, narrow)
    spare = supernet.get_parameter("blocks.scm_down1.project.conv.weight")
    part = slices(supernet, narrow)["blocks.scm_down1.project.conv.weight"]
    assert torch.equal(subnet.get_parameter("blocks.scm_down1.project.conv.weight"), cut(spare, part))
    assert tuple(subnet(IMAGES).logits.shape) == (2, 144, 3)
