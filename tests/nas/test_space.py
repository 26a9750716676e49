import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nas.blocks import Block, Kind
from nas.config import Config
from nas.errors import InvalidConfig, UnknownSpace
from nas.macs import gmacs
from nas.sampling import random_config
from nas.space import SPACE_NAMES, Move, SearchSpace, StageChoices, named_space

SPACES = {name: named_space(name, classes=3) for name in SPACE_NAMES}
BLOCKS = {name: frozenset(space.all_blocks()) for name, space in SPACES.items()}


@pytest.mark.parametrize("name", SPACE_NAMES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_all_blocks_holds_every_block_of_every_config(name: str, seed: int) -> None:
    space = SPACES[name]
    config = random_config(space, np.random.default_rng(seed))
    assert set(space.blocks(config)) <= BLOCKS[name]


def test_all_blocks_holds_nothing_that_no_config_needs(space: SearchSpace, configs: list[Config]) -> None:
    needed = {block for config in configs for block in space.blocks(config)}
    assert set(space.all_blocks()) == needed


@pytest.mark.parametrize("name", SPACE_NAMES)
def test_site_stage_tells_the_only_widths_a_block_depends_on(name: str) -> None:
    space, rng = SPACES[name], np.random.default_rng(7)
    for _ in range(20):
        one, other = random_config(space, rng), random_config(space, rng)
        other = other.model_copy(update={"image": one.image})
        for site in space.sites(one):
            index = site.stage - 1
            low = max(0, index - 1)
            same_widths = one.widths[low : index + 1] == other.widths[low : index + 1]
            same_slots = one.stages[low : index + 1] == other.stages[low : index + 1]
            if same_widths and same_slots:
                assert site.block in space.blocks(other)


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
    assert space.slot_count == 24


def test_unknown_space_lists_those_there_are() -> None:
    with pytest.raises(UnknownSpace, match="'resnet' is unknown: choose one of heatdetr, heatdetr-edge, heatdetr-nano"):
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


def test_a_space_whose_widths_fall_is_refused(space: SearchSpace) -> None:
    first, *rest = space.stages
    wide = first.model_copy(update={"widths": (128,)})
    with pytest.raises(ValidationError, match="widths must not fall from a stage to the next"):
        SearchSpace(name="bad", structure=space.structure, stages=(wide, *rest), images=space.images)


def test_input_sides_are_multiples_of_64(space: SearchSpace) -> None:
    with pytest.raises(ValidationError, match="input size 100x128: both sides must be positive multiples of 64"):
        space.model_copy(update={"images": ((100, 128),)})


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


def test_neighbours_are_the_legal_configs_one_reduction_away(space: SearchSpace, configs: list[Config]) -> None:
    legal = set(configs)
    for config in configs[::31]:
        found = {neighbour for _, neighbour in space.neighbours(config)}
        assert found <= legal
        assert found == {other for other in legal if _one_reduction(config, other)}


def _one_reduction(config: Config, other: Config) -> bool:
    changed = [(a, b) for a, b in zip(config.stages, other.stages, strict=True) if a != b]
    if len(changed) != 1:
        return False
    (before, after) = changed[0]
    if before.slots == after.slots and before.global_kind == after.global_kind:
        return before.width - after.width == 32
    emptied = [a is not b for a, b in zip(before.slots, after.slots, strict=True)]
    return (
        before.width == after.width
        and before.global_kind == after.global_kind
        and sum(emptied) == 1
        and after.slots[emptied.index(True)] is Kind.IDENTITY
    )


def test_moves_say_what_they_do() -> None:
    assert Move(stage=2, slot=1, kind=Kind.WMSA).label == "remove wmsa from stage 2 slot 1"
    assert Move(stage=4, width=96).label == "narrow stage 4 to 96"


def test_block_labels_are_readable() -> None:
    block = Block(kind=Kind.ENTRY, channels_in=64, channels_out=96, height=24, width=24)
    assert block.label == "entry 64->96 @24x24 spatial"
