from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nas.blocks import Block, Kind
from nas.config import Config
from nas.errors import InvalidConfig, UnknownSpace
from nas.macs import gmacs
from nas.named import SPACE_NAMES, named_space
from nas.network import Structure
from nas.sampling import random_config
from nas.space import Move, SearchSpace, StageChoices
from tests.planted_space import blocks_of, every_config, every_walk, small_space

SPACES = {name: named_space(name, classes=3) for name in SPACE_NAMES} | {
    "stride 16": small_space((16,)),
    "both strides": small_space((16, 32)),
    "heatdetr-nano@cuda": named_space("heatdetr-nano@cuda", classes=3),
}


@cache
def held_by(space: SearchSpace) -> frozenset[Block]:
    return frozenset(blocks_of(space))


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_all_blocks_holds_every_block_of_every_config(name: str, seed: int) -> None:
    space = SPACES[name]
    config = random_config(space, np.random.default_rng(seed))
    assert set(space.blocks(config)) <= held_by(space)


def test_all_blocks_holds_nothing_that_no_config_needs(space: SearchSpace) -> None:
    needed = {block for blocks in every_walk(space) for block in blocks}
    assert set(space.all_blocks()) == needed


@pytest.mark.parametrize("name", SPACES)
def test_site_stage_tells_the_only_widths_a_block_depends_on(name: str) -> None:
    space, rng = SPACES[name], np.random.default_rng(7)
    compared = dict.fromkeys((1, 2, 3, 4), 0)
    for _ in range(40):
        one, drawn = random_config(space, rng, image=space.images[0]), random_config(space, rng, image=space.images[0])
        for number in compared:
            kept = range(max(0, number - 2), number)
            stages = tuple((one if index in kept else drawn).stages[index] for index in range(4))
            other = one.model_copy(update={"stages": stages})
            if space.contains(other) and other != one:
                assert _blocks_of_stage(space, one, number) == _blocks_of_stage(space, other, number)
                compared[number] += 1
    assert min(compared.values()) > 0, compared


def _blocks_of_stage(space: SearchSpace, config: Config, number: int) -> Counter[Block]:
    return Counter(site.block for site in space.sites(config) if site.stage == number)


def test_walk_names_are_unique_and_inputs_come_first() -> None:
    for space in SPACES.values():
        seen = {"image"}
        for site in space.sites(space.largest()):
            assert set(site.inputs) <= seen
            assert site.name not in seen
            seen.add(site.name)


def test_layouts_are_those_the_producers_leave(space: SearchSpace, configs: list[Config]) -> None:
    for config in configs[::17]:
        sites = {site.name: site for site in space.sites(config)}
        for site in sites.values():
            received = [sites[name].block.gives if name != "image" else "spatial" for name in site.inputs]
            assert list(site.block.layouts) == received


def test_edge_space_spans_ten_times_in_macs() -> None:
    space = SPACES["heatdetr-edge"]
    assert gmacs(space.blocks(space.largest())) >= 10 * gmacs(space.blocks(space.smallest()))


def test_named_spaces_are_the_papers() -> None:
    space = SPACES["heatdetr"]
    assert space.largest().widths == (192, 192, 256, 384)
    assert tuple(stage.slots for stage in space.stages) == (2, 2, 18, 2)
    assert sum(len(stage.slots) for stage in space.largest().stages) == 24


def test_unknown_space_lists_those_there_are() -> None:
    with pytest.raises(UnknownSpace, match="'resnet' is unknown: choose one of heatdetr, heatdetr-xca, heatdetr-edge"):
        named_space("resnet", classes=3)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (48, "width 48 is not a positive multiple of 32: use 64"),
        (-32, "width -32 is not a positive multiple of 32: use 32"),
    ],
)
def test_widths_are_multiples_of_32(width: int, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StageChoices(slots=1, widths=(width,))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((96, 128), "stage 1 is 96 wide at its narrowest and stage 2 only 32: .* raise stage 2 to 96"),
        ((32, 128), "stage 1 is 128 wide at its widest and stage 2 only 64: .* raise stage 2 to 128"),
    ],
)
def test_a_space_whose_widths_fall_is_refused(space: SearchSpace, widths: tuple[int, ...], message: str) -> None:
    first, *rest = space.stages
    wide = first.model_copy(update={"widths": widths})
    with pytest.raises(ValidationError, match=message):
        SearchSpace(name="bad", structure=space.structure, stages=(wide, *rest), images=space.images)


@pytest.mark.parametrize("field", ["local_kinds", "global_kinds"])
def test_a_kind_is_a_choice_only_once(field: str) -> None:
    kind = Kind.WMSA if field == "local_kinds" else Kind.XCA
    with pytest.raises(ValidationError, match=f"kinds {kind}, {kind} repeat: name each once"):
        StageChoices.model_validate({"slots": 1, "widths": (32,), field: (kind, kind)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 0}, "classes 0 must be at least 1: count the classes of the data"),
        ({"context_kind": Kind.POOL}, "context_kind pool must be one of xca, attention, sparse_attention"),
        ({"scm_kind": Kind.WMSA}, "scm_kind wmsa must be one of xca, attention, sparse_attention"),
        ({"scm_kind": Kind.XCA}, "scm_kind is xca without being named: leave it out"),
        ({"sam2_kind": Kind.XCA}, "sam2_kind is xca without being named: leave it out"),
        ({"keep": -0.5}, "keep -0.5 must be above 0 and at most 1: 1 keeps every token"),
        ({"keep": 0.0}, "keep 0.0 must be above 0"),
        ({"keep": 1.7}, "keep 1.7 must be above 0 and at most 1"),
        ({"tcm_depths": (-1, 2)}, r"tcm_depths \(-1, 2\) must not be negative"),
        ({"anchor_px": ()}, r"anchor_px \(\) must be positive sides in pixels: name at least one"),
        ({"anchor_px": (32, 0)}, r"anchor_px \(32, 0\) must be positive sides"),
        ({"stem_divisors": (0, 1)}, r"stem_divisors \(0, 1\) must be one of \(\(2, 2\), \(2, 1\), \(1, 1\)\)"),
        ({"stem_divisors": (4, 2)}, r"stem_divisors \(4, 2\) must be one of .*, or None for \(4, 2\)"),
        ({"window_mlp": 4}, "window_mlp 4 must be 1 to 8, and None for 4: change it"),
        ({"tcm_mlp": 0}, "tcm_mlp 0 must be 1 to 8"),
        ({"scm_mlp": 9}, "scm_mlp 9 must be 1 to 8"),
        ({"tcm_width": 48}, "tcm_width 48 must be a positive multiple of 32, as heads are wide"),
        ({"tcm_width": 0}, "tcm_width 0 must be a positive multiple of 32"),
        ({"sam_width": "high"}, "Input should be 'low'"),
        ({"entry_kernel": 3}, "Input should be 2"),
        ({"align_kernel": 3}, "Input should be 1"),
        ({"key_width": 16}, "Input should be 32"),
    ],
)
def test_a_structure_that_no_detector_has_is_refused(
    space: SearchSpace, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        space.structure.model_copy(update=change)


@pytest.mark.parametrize("change", [{"keep": 0.5}, {"tcm_kind": Kind.SPARSE_ATTENTION}])
def test_tokens_are_left_out_by_sparse_attention_and_by_nothing_else(
    space: SearchSpace, change: dict[str, object]
) -> None:
    structure = space.structure.model_copy(update=change)
    with pytest.raises(ValidationError, match=r"keep \S+ must be below 1 with sparse_attention, .* and 1 without"):
        space.model_copy(update={"structure": structure})


def test_sams_as_wide_as_the_stage_below_need_stages_of_one_width(space: SearchSpace) -> None:
    low = space.structure.model_copy(update={"sam_width": "low", "tcm_width": 96})
    with pytest.raises(ValidationError, match=r"sam_width low needs stages of one width each, .* one width a stage"):
        space.model_copy(update={"structure": low})

    widths = (32, 64, 96, 128)
    stages = [choices.model_copy(update={"widths": (w,)}) for choices, w in zip(space.stages, widths, strict=True)]
    found = {
        stride: {site.name: site.block for site in fixed.sites(fixed.with_stride(fixed.largest(), stride))}
        for fixed in [space.model_copy(update={"structure": low, "stages": stages, "strides": (16, 32)})]
        for stride in fixed.prediction_strides
    }
    for blocks in found.values():
        assert [blocks[f"sam{stage}.global"].channels_out for stage in (2, 3, 4)] == [32, 64, 96]
        assert [blocks[f"stage{stage}.entry"].channels_in for stage in (2, 3, 4)] == [32, 32, 64]
        assert [blocks[f"sam{stage}.merge"].kind for stage in (2, 3, 4)] == [Kind.UP, Kind.SAM, Kind.SAM]
    assert [found[32][f"scm.{name}"].channels_out for name in ("down1", "down2", "align", "up")] == [64, 96, 128, 128]
    assert [found[16][name].channels_out for name in ("scm.down1", "scm16.align", "scm16.up")] == [64, 64, 64]
    assert {found[32]["tcm.project1"].channels_out, found[16]["tcm16.project1"].channels_out} == {96}


def test_an_attention_block_keeps_at_least_one_token(space: SearchSpace) -> None:
    sparse = space.structure.model_copy(update={"context_kind": Kind.SPARSE_ATTENTION, "keep": 1e-15})
    kept = [block.kept_tokens for block in _sparse(space, sparse) if block.kind is Kind.SPARSE_ATTENTION]
    assert kept
    assert set(kept) == {1}


def _sparse(space: SearchSpace, structure: Structure) -> tuple[Block, ...]:
    other = space.model_copy(update={"structure": structure})
    return other.blocks(other.largest())


def test_input_sides_are_multiples_of_64(space: SearchSpace) -> None:
    with pytest.raises(ValidationError, match="input size 100x128: both sides must be positive multiples of 64"):
        space.model_copy(update={"images": ((100, 128),)})


@pytest.mark.parametrize(
    "ask",
    [
        lambda space: space.largest((320, 320)),
        lambda space: space.all_blocks((320, 320)),
        lambda space: random_config(space, np.random.default_rng(0), image=(320, 320)),
        lambda space: next(space.moves(space.largest().model_copy(update={"image": (320, 320)}))),
    ],
    ids=["largest", "all_blocks", "random_config", "moves"],
)
def test_an_input_size_outside_the_space_is_named(space: SearchSpace, ask: Callable[[SearchSpace], object]) -> None:
    with pytest.raises(InvalidConfig, match="input size 320x320 is not in small: choose one of 64x128"):
        ask(space)


def _broken(config: Config, stage: int, **changes: object) -> Config:
    return config.with_stage(stage - 1, config.stages[stage - 1].model_copy(update=changes))


def test_check_names_value_rule_and_next_action(space: SearchSpace) -> None:
    config = space.largest()
    cases = [
        (_broken(config, 1, width=40), "stage 1 width 40 is not a multiple of 32: choose one of 32, 64"),
        (_broken(config, 1, width=96), "stage 1 width 96 is not one of the space's widths: choose one of 32, 64"),
        (
            _broken(config, 3, width=32),
            "stage 2 is 64 wide and stage 3 only 32: widths must not fall, narrow stage 2 first",
        ),
        (_broken(config, 2, slots=(Kind.WMSA,)), "stage 2 has 1 slots, the space 2: fill the rest with identity"),
        (
            _broken(config, 1, slots=(Kind.SWMSA,)),
            "stage 1 slot 0 holds swmsa: choose one of rep_cnn, wmsa or identity",
        ),
        (_broken(config, 1, slots=(Kind.IDENTITY,)), "stage 1 has no local block left: keep at least one"),
        (_broken(config, 1, global_kind=Kind.ATTENTION), "stage 1 closes with attention: choose one of xca"),
        (config.model_copy(update={"image": (64, 64)}), "input size 64x64 is not in small: choose one of 64x128"),
        (config.model_copy(update={"space": "beef"}), "config belongs to space beef, not to small"),
    ]
    for broken, message in cases:
        with pytest.raises(InvalidConfig, match=message):
            space.check(broken)


def test_moves_lead_to_the_legal_configs_one_reduction_away() -> None:
    first, second, third, fourth = small_space().stages
    wider = fourth.model_copy(update={"widths": (64, 96, 128)})
    space = small_space().model_copy(update={"stages": (first, second, third, wider)})
    legal = set(every_config(space))
    for config in sorted(legal, key=lambda config: config.id)[::61]:
        moves = list(space.moves(config))
        assert {other for _, other in moves} == {other for other in legal if _one_reduction(config, other)}
        narrowed = [move.width for move, _ in moves if move.width is not None and move.stage == 4]
        assert narrowed == sorted(narrowed, reverse=True)


def _one_reduction(config: Config, other: Config) -> bool:
    changed = [(a, b) for a, b in zip(config.stages, other.stages, strict=True) if a != b]
    if len(changed) != 1:
        return False
    (before, after) = changed[0]
    if before.slots == after.slots and before.global_kind == after.global_kind:
        return before.width > after.width
    emptied = [a is not b for a, b in zip(before.slots, after.slots, strict=True)]
    return (
        before.width == after.width
        and before.global_kind == after.global_kind
        and sum(emptied) == 1
        and after.slots[emptied.index(True)] is Kind.IDENTITY
    )


def test_a_coarser_prediction_map_is_a_reduction_and_a_finer_one_is_not() -> None:
    space = small_space((16, 32))
    fine, coarse = space.largest(), space.with_stride(space.largest(), 32)
    assert fine.prediction_stride == 16
    found = [(move, config) for move, config in space.moves(fine) if move.stride is not None]
    assert found == [(Move(stride=32), coarse)]
    assert all(move.stride is None for move, _ in space.moves(coarse))
    only_fine = small_space((16,))
    assert all(move.stride is None for move, _ in only_fine.moves(only_fine.largest()))
    with pytest.raises(InvalidConfig, match="stride 32 is not in small: choose 16, or another space"):
        only_fine.check(coarse.model_copy(update={"space": only_fine.id}))


def test_prediction_maps_share_what_stands_before_them() -> None:
    space = small_space((16, 32))
    fine, coarse = (
        {site.name: site for site in space.sites(space.with_stride(space.largest(), stride))} for stride in (16, 32)
    )
    shared = fine.keys() & coarse.keys()
    assert all(fine[name] == coarse[name] for name in shared)
    assert "scm.down1" in shared
    assert sorted(fine.keys() - shared) == [
        "head16", "scm16.align", "scm16.global1", "scm16.global2", "scm16.up", "tcm16.project1", "tcm16.project2",
        "tcm16.task1_0", "tcm16.task2_0",
    ]  # fmt: skip
    assert not {site.stream for name, site in fine.items() if name.startswith(("tcm", "head"))} & {
        site.stream for site in coarse.values()
    }


def test_each_module_has_the_global_kind_it_is_given(space: SearchSpace) -> None:
    structure = space.structure.model_copy(
        update={
            "context_kind": Kind.ATTENTION,
            "keep": 0.5,
            "sam2_kind": Kind.ATTENTION,
            "sam3_kind": Kind.SPARSE_ATTENTION,
            "sam4_kind": Kind.XCA,
            "tcm_kind": Kind.SPARSE_ATTENTION,
        }
    )
    other = space.model_copy(update={"structure": structure})
    found = {site.name: site.block for site in other.sites(other.largest())}
    kinds = {name: found[name].kind for name in found if "global" in name or "task" in name}
    assert kinds == {
        **{f"stage{number}.global": Kind.XCA for number in range(1, 5)},
        "sam2.global": Kind.ATTENTION,
        "sam3.global": Kind.SPARSE_ATTENTION,
        "sam4.global": Kind.XCA,
        "scm.global1": Kind.ATTENTION,
        "scm.global2": Kind.ATTENTION,
        "tcm.task1_0": Kind.SPARSE_ATTENTION,
        "tcm.task2_0": Kind.SPARSE_ATTENTION,
    }
    assert found["sam3.global"].kept_tokens == found["sam3.global"].tokens // 2
    assert found["scm.global1"].kept_tokens is None


def test_moves_say_what_they_do() -> None:
    assert Move(stride=32).label == "predict at stride 32"
    assert Move(stage=2, slot=1, kind=Kind.WMSA).label == "remove wmsa from stage 2 slot 1"
    assert Move(stage=4, width=96).label == "narrow stage 4 to 96"


def test_block_labels_are_readable() -> None:
    block = Block(kind=Kind.ENTRY, channels_in=64, channels_out=96, height=24, width=24)
    assert block.label == "entry 64->96 @24x24 spatial"
