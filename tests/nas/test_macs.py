import pytest

from nas.blocks import GLOBAL_KINDS, Activation, Block, Kind, Upsample
from nas.conventions import Convention, gmacs_by, parameters_m
from nas.errors import InvalidConfig
from nas.macs import shift_padding, windows
from nas.named import CONFIG_NAMES, named_config, named_space
from nas.network import tcm_width

SPACE = named_space("heatdetr", classes=80)
TABLE_3 = [named_config(name, SPACE, image=SPACE.images[-1]) for name in CONFIG_NAMES]
R_STAR = SPACE.structure


@pytest.mark.parametrize(
    ("change", "b", "params_m"),
    [
        ({"key_width": 32}, (67.4, 70.9, 75.4, 108.3), (42.8, 44.3, 49.2, 56.2)),
        ({"window_mlp": 2}, (65.1, 68.6, 71.1, 102.3), (40.1, 41.8, 44.8, 50.7)),
        ({"channel_mlp": 2}, (63.1, 66.6, 70.9, 100.0), (41.5, 43.1, 47.7, 54.2)),
        # The specification leaves 1x1 alignment out where the widths agree: 0.3 to 0.7 G less.
        ({"align_kernel": 1}, (62.3, 65.7, 70.0, 98.3), (40.9, 42.4, 47.1, 53.3)),
        ({"entry_kernel": 2}, (66.3, 69.8, 73.8, 105.8), (41.5, 43.0, 47.6, 54.2)),
        ({"upsample": Upsample.NEAREST}, (66.1, 69.5, 73.6, 105.8), (40.8, 42.3, 46.8, 53.5)),
        ({"tcm_depths": (2, 2)}, (58.9, 62.3, 66.4, 98.9), (36.0,)),
        ({"keep": 1.0}, (70.0, 73.5, 77.5, 110.1), (42.3, 43.8, 48.3, 55.1)),
        ({"project_kernel": 1}, (65.0, 68.5, 72.8, 104.5), (41.2,)),
        ({"scm_mlp": 2}, (66.4, 69.9, 74.0, 106.1), (41.9,)),
        ({"sam_width": "low"}, (57.7, 61.2, 66.2, 95.2), (39.5, 41.0, 45.7, 53.0)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_open_point_costs_what_the_specification_counted(
    change: dict[str, object], b: tuple[float, ...], params_m: tuple[float, ...]
) -> None:
    structure = R_STAR.model_copy(update=change)
    assert [gmacs_by(Convention.B, structure, config) for config in TABLE_3] == pytest.approx(b, abs=0.1)
    counted = [parameters_m(structure, config) for config in TABLE_3]
    assert counted[: len(params_m)] == pytest.approx(params_m, abs=0.1)


def test_table_3_with_channel_wise_attention_alone_has_no_other_kind() -> None:
    space = named_space("heatdetr-xca", classes=80)
    configs = [named_config(name, space, image=space.images[-1]) for name in CONFIG_NAMES]
    assert {block.kind for config in configs for block in space.blocks(config)} & set(GLOBAL_KINDS) == {Kind.XCA}


def test_table_3_at_the_sizes_of_the_space_belongs_to_the_space() -> None:
    for name in CONFIG_NAMES:
        assert SPACE.contains(named_config(name, SPACE, image=(832, 1344)))
    with pytest.raises(
        InvalidConfig, match="config 'heatdetr-huge' is unknown: choose one of heatdetr-tiny, heatdetr-small"
    ):
        named_config("heatdetr-huge", SPACE, image=(640, 640))


def test_a_detector_of_table_3_is_refused_by_a_space_that_cannot_hold_it() -> None:
    nano = named_space("heatdetr-nano", classes=80)
    with pytest.raises(InvalidConfig, match="stage 1 width 192 is not one of the space's widths: choose one of 32, 64"):
        named_config("heatdetr-large", nano, image=(192, 192))


def window_block(kind: Kind, height: int, width: int) -> Block:
    return Block(kind=kind, channels_in=64, channels_out=64, height=height, width=width, activation=Activation.RELU)


def test_shifted_windows_are_padded_only_where_there_are_several() -> None:
    assert windows(window_block(Kind.SWMSA, 25, 42)) == 35
    assert windows(window_block(Kind.WMSA, 25, 42)) == 24
    assert shift_padding(window_block(Kind.SWMSA, 7, 7)) == 0
    assert shift_padding(window_block(Kind.SWMSA, 7, 8)) == 4


def test_tcm_width_follows_the_last_stage() -> None:
    assert [tcm_width(width) for width in (64, 96, 128, 384)] == [96, 128, 160, 512]
