import pytest

from nas.blocks import Activation, Block, Kind
from nas.config import Config, Stage
from nas.macs import gmacs, macs, parameters, shift_padding, windows
from nas.network import Structure, sites, tcm_width

R, W, S = Kind.REP_CNN, Kind.WMSA, Kind.SWMSA

TABLE_3 = {
    "tiny": ((128, 128, 256, 384), ((R,), (R,), (W, S) * 3, (W,)), 66.94),
    "small": ((128, 128, 256, 384), ((R, R), (R, S), (R, S, *(W, S) * 2), (R, S)), 70.42),
    "medium": ((128, 128, 224, 384), ((R, R), (R, S), (R, S) * 4 + (W, S) * 5, (R, S)), 74.44),
    "large": ((192, 192, 256, 384), ((R, R), (R, S), (R, S) * 4 + (W, S) * 5, (R, S)), 106.97),
}


@pytest.mark.parametrize("name", TABLE_3)
def test_reading_r_star_of_table_3_at_800x1333(name: str) -> None:
    widths, slots, expected = TABLE_3[name]
    globals_ = (Kind.XCA, Kind.XCA, Kind.XCA, Kind.ATTENTION)
    stages = tuple(
        Stage(width=width, slots=kinds, global_kind=kind)
        for width, kinds, kind in zip(widths, slots, globals_, strict=True)
    )
    config = Config(space="table-3", image=(800, 1333), stages=stages)
    structure = Structure(classes=80, context_kind=Kind.ATTENTION, keep=0.82)
    assert gmacs(site.block for site in sites(structure, config)) == pytest.approx(expected, abs=0.005)


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
