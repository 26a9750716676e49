import pytest

from nas.blocks import Activation, Block, Kind
from nas.errors import InvalidConfig
from nas.macs import gmacs, macs, parameters, shift_padding, weight_macs, windows
from nas.named import CONFIG_NAMES, named_config
from nas.network import tcm_width
from nas.space import named_space

SPACE = named_space("heatdetr", classes=80)


@pytest.mark.parametrize(
    ("name", "at_800x1333", "mmdet"),
    [
        ("heatdetr-tiny", 66.94, 54.5),
        ("heatdetr-small", 70.42, 57.8),
        ("heatdetr-medium", 74.44, 61.5),
        ("heatdetr-large", 106.97, 92.3),
    ],
)
def test_reading_r_star_of_table_3(name: str, at_800x1333: float, mmdet: float) -> None:
    full = SPACE.blocks(named_config(name, SPACE, image=(800, 1333)))
    assert gmacs(full) == pytest.approx(at_800x1333, abs=0.005)
    small = SPACE.blocks(named_config(name, SPACE, image=(800, 1280)))
    assert sum(weight_macs(block) for block in small) / 1e9 == pytest.approx(mmdet, abs=0.05)


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


def block(kind: Kind, channels_in: int, channels_out: int, height: int, width: int, kept: int | None = None) -> Block:
    return Block(
        kind=kind, channels_in=channels_in, channels_out=channels_out, height=height, width=width,
        activation=Activation.RELU, kept_tokens=kept, anchor_px=(32, 64),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "expected_macs", "expected_parameters"),
    [
        (block(Kind.REP_CNN, 32, 32, 4, 5), 9 * 32 * 32 * 20, 9 * 32 * 32),
        (block(Kind.WMSA, 64, 64, 8, 8), 11 * 64 * 64 * 64 + 4 * 49 * 49 * 96, 11 * 64 * 64 + 169 * 2),
        (block(Kind.SWMSA, 64, 64, 8, 8), 11 * 64 * 64 * 64 + 4 * 49 * 49 * 96, 11 * 64 * 64 + 169 * 2),
        (block(Kind.XCA, 32, 32, 3, 3), (12 * 1024 + 18 * 32) * 9 + 2 * 9 * 1024 // 8, 12 * 1024 + 18 * 32),
        (block(Kind.ATTENTION, 32, 32, 3, 3), 12 * 1024 * 9 + 2 * 81 * 32, 12 * 1024),
        (block(Kind.ATTENTION, 32, 32, 3, 3, 8), 4 * 1024 * 9 + 8 * 1024 * 8 + 2 * 81 * 32, 12 * 1024),
        (block(Kind.SPLIT_PROJECT, 64, 64, 2, 2), 32 * 64 * 4, 32 * 64),
        (block(Kind.HEAD, 64, 3, 2, 2), 9 * 2 * (32 * 3 + 64 * 5) * 4, 9 * 2 * (32 * 3 + 64 * 5)),
        (block(Kind.SCM, 32, 32, 4, 4), 8 * 1024 * 4, 8 * 1024),
        (block(Kind.POOL, 32, 32, 4, 4), 0, 0),
    ],
    ids=lambda value: value.kind.value if isinstance(value, Block) else "",
)
def test_formulas_of_the_specification(measured: Block, expected_macs: int, expected_parameters: int) -> None:
    assert macs(measured) == expected_macs
    assert parameters(measured) == expected_parameters


def test_shifted_windows_are_padded_only_where_there_are_several() -> None:
    assert windows(block(Kind.SWMSA, 64, 64, 25, 42)) == 35
    assert windows(block(Kind.WMSA, 64, 64, 25, 42)) == 24
    assert shift_padding(block(Kind.SWMSA, 64, 64, 7, 7)) == 0
    assert shift_padding(block(Kind.SWMSA, 64, 64, 7, 8)) == 4


def test_tcm_width_follows_the_last_stage() -> None:
    assert [tcm_width(width) for width in (64, 96, 128, 384)] == [96, 128, 160, 512]
