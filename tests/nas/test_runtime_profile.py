import numpy as np
import pytest

from nas.blocks import LINEAR_KINDS, Activation, Block, Kind, Layout
from nas.budgets import Budget
from nas.errors import UnknownSpace
from nas.exact import optimum
from nas.macs import macs, parameters, weights
from nas.named import SPACE_HELP, SPACE_NAMES, named_space
from nas.quality import AdditiveScore
from nas.runtime_profile import RuntimeProfile, fitted
from nas.space import SearchSpace
from tests.planted_space import every_config, planted_importance, planted_latency, small_space


def spatial_twin(space: SearchSpace) -> SearchSpace:
    """The same space with Linears on maps."""
    return space.model_copy(update={"structure": space.structure.model_copy(update={"linear_layout": Layout.SPATIAL})})


@pytest.mark.parametrize("name", SPACE_NAMES)
def test_a_profile_decides_layout_and_activation_and_nothing_else(name: str) -> None:
    alone = named_space(name, classes=3)
    expected = {
        "cpu": {"activation": Activation.HARDSWISH, "linear_layout": None},
        "cuda": {"activation": Activation.GELU, "linear_layout": Layout.SPATIAL},
    }
    assert set(expected) == set(RuntimeProfile)
    for profile, decided in expected.items():
        space = named_space(f"{name}@{profile}", classes=3)
        assert space.name == f"{name}@{profile}"
        assert (space.stages, space.images, space.strides) == (alone.stages, alone.images, alone.strides)
        assert space.structure == alone.structure.model_copy(update=decided)


def test_a_space_for_a_runtime_is_found_again_by_its_name_and_by_its_json() -> None:
    space = named_space("heatdetr-nano@cuda", classes=3)
    assert named_space(space.name, classes=3) == space
    assert SearchSpace.model_validate_json(space.canonical_json()).id == space.id
    assert len({space.id, *(named_space(name, classes=3).id for name in ("heatdetr-nano", "heatdetr-nano@cpu"))}) == 3


def test_the_space_for_cuda_is_the_papers_with_every_map_in_nchw() -> None:
    space = named_space("heatdetr@cuda", classes=80)
    paper = named_space("heatdetr", classes=80)
    assert space.structure == fitted(paper.structure, RuntimeProfile.CUDA)
    assert (space.structure.context_kind, space.structure.activation) == (Kind.SPARSE_ATTENTION, Activation.GELU)
    assert {layout for block in space.all_blocks() for layout in (*block.layouts, block.gives)} == {Layout.SPATIAL}


@pytest.mark.parametrize("name", ["heatdetr@gpu", "heatdetr@", "heatdetr@CUDA"])
def test_an_unknown_profile_names_those_there_are(name: str) -> None:
    profile = name.partition("@")[2]
    with pytest.raises(UnknownSpace) as caught:
        named_space(name, classes=3)
    assert str(caught.value) == (
        f"space {name!r} asks for the unknown runtime profile {profile!r}: choose one of heatdetr@cpu, heatdetr@cuda, "
        "or heatdetr for none"
    )


def test_an_unknown_space_is_unknown_with_a_profile_too() -> None:
    with pytest.raises(UnknownSpace, match="'resnet@cpu' is unknown: choose one of heatdetr, heatdetr-xca"):
        named_space("resnet@cpu", classes=3)


def test_help_says_how_a_space_is_named() -> None:
    assert SPACE_HELP == (
        "one of heatdetr, heatdetr-xca, heatdetr-edge, heatdetr-nano; NAME@cpu is the space for ONNX Runtime on CPUs, "
        "NAME@cuda is the space for CUDA and TensorRT"
    )


def test_the_layout_is_part_of_the_key_of_the_blocks_that_have_linears_and_of_no_other(space: SearchSpace) -> None:
    tokens, spatial = set(space.all_blocks()), set(spatial_twin(space).all_blocks())
    shared = tokens & spatial
    assert {block.kind for block in shared} == {Kind.STEM, Kind.REP_CNN, Kind.ENTRY}  # they receive maps anyway
    assert {block.kind for block in spatial if block.linear_layout is not None} == LINEAR_KINDS - {
        Kind.SPARSE_ATTENTION
    }
    labels = [block.label for block in tokens | spatial]
    assert len(set(labels)) == len(labels)


def test_a_label_tells_1x1_convolutions() -> None:
    block = Block(kind=Kind.WMSA, channels_in=32, channels_out=32, height=7, width=7, linear_layout=Layout.SPATIAL)
    assert block.label == "wmsa 32 @7x7 spatial 1x1"
    assert block.gives is Layout.SPATIAL


def test_neither_macs_nor_weights_nor_parameters_change_with_the_layout(space: SearchSpace) -> None:
    twin = spatial_twin(space)
    config = space.largest()
    other = config.model_copy(update={"space": twin.id})
    for one, two in zip(space.sites(config), twin.sites(other), strict=True):
        assert one.name == two.name
        for count in (macs, weights, parameters):
            assert count(one.block) == count(two.block), one.name


def test_a_spatial_space_needs_fewer_rows_and_all_of_them(space: SearchSpace) -> None:
    twin = spatial_twin(space)
    needed = {block for config in every_config(twin) for block in twin.blocks(config)}
    assert set(twin.all_blocks()) == needed
    assert len(needed) < len(space.all_blocks())


def test_the_exact_optimum_of_a_spatial_space_equals_brute_force() -> None:
    space = spatial_twin(small_space())
    configs, latency = every_config(space), planted_latency(space, 3)
    score = AdditiveScore.from_importance(space, planted_importance(space, 4))
    times = [latency.bound_ms(space.blocks(config)) for config in configs]
    for limit in np.quantile(times, (0, 0.01, 0.1, 0.5, 1)):
        found = optimum(space, latency, score, Budget(latency_ms=float(limit)))
        expected = max(score(config) for config, ms in zip(configs, times, strict=True) if ms <= limit)
        assert found.score == pytest.approx(expected, abs=1e-9)
        assert found.latency_ms == latency.predict_ms(space.blocks(found.config)) <= limit
