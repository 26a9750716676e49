"""Both forms of a block compute the same from the same weights; deployed, maps stay maps."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from nas.blocks import LINEAR_KINDS, Block, Kind, Layout
from nas.config import Config
from nas.space import SearchSpace
from supernet.detector import HeatDETR, build_block
from supernet.export import export_blocks, export_detector, randomise_detector, randomise_statistics
from supernet.extraction import extract
from supernet.fusing import fuse
from supernet.layers.axes import Sliceable
from supernet.layers.global_attention import XCA
from supernet.layers.layout import to_spatial
from supernet.sandwich import Sandwich
from supernet.supernet import Mixture, Supernet
from tests.supernet.block_samples import BLOCKS, DEVIANT_BLOCKS, MAP_BLOCKS, SPARSE, random_inputs
from tests.supernet.tiny_space import TINY

MAPS = TINY.model_copy(update={"structure": TINY.structure.model_copy(update={"linear_layout": Layout.SPATIAL})})
"""The tiny space with Linears on maps."""

LINEAR_BLOCKS = [block for block in (*BLOCKS, *DEVIANT_BLOCKS) if block.kind in LINEAR_KINDS]
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def twins(block: Block) -> tuple[nn.Module, nn.Module]:
    """The block's module and, with the same weights, the one that works on maps."""
    torch.manual_seed(0)
    tokens = build_block(block)
    randomise_statistics(tokens)
    maps = build_block(block.model_copy(update={"linear_layout": Layout.SPATIAL}))
    maps.load_state_dict(tokens.state_dict())
    return tokens, maps


def moved(config: Config, space: SearchSpace) -> Config:
    return space.check(config.model_copy(update={"space": space.id}))


@pytest.mark.parametrize("block", LINEAR_BLOCKS, ids=lambda block: block.label)
def test_weights_of_one_layout_compute_the_same_in_the_other(block: Block) -> None:
    tokens, maps = twins(block)
    assert [(name, part.shape) for name, part in tokens.state_dict().items()] == [
        (name, part.shape) for name, part in maps.state_dict().items()
    ]
    inputs = random_inputs(block, batch=2)
    with torch.no_grad():
        for one, two in ((tokens.eval(), maps.eval()), (fuse(tokens), fuse(maps))):
            wanted = to_spatial(one(*inputs), block.gives, block.height, block.width)
            assert (two(*inputs) - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())


@pytest.mark.parametrize(
    "block", [b for b in LINEAR_BLOCKS if b.kind is not Kind.UP or b.upsample is None], ids=lambda b: b.label
)
def test_training_does_the_same_to_weights_and_statistics_in_both_layouts(block: Block) -> None:
    tokens, maps = (module.double().train() for module in twins(block))
    inputs = [x.double() for x in random_inputs(block, batch=2)]
    wanted = to_spatial(tokens(*inputs), block.gives, block.height, block.width)
    given = maps(*inputs)
    weight = torch.rand(given.shape, generator=torch.Generator().manual_seed(1), dtype=given.dtype)
    (wanted * weight).sum().backward()
    (given * weight).sum().backward()
    for (name, one), two in zip(tokens.named_parameters(), maps.parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-6, atol=1e-8, msg=name)
    for (name, one), two in zip(tokens.named_buffers(), maps.buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("block", LINEAR_BLOCKS, ids=lambda block: block.label)
def test_axes_and_strengths_that_subnets_are_cut_by_are_the_same(block: Block) -> None:
    found = [
        {name: layer.channel_axes() for name, layer in module.named_modules() if isinstance(layer, Sliceable)}
        for module in twins(block)
    ]
    assert found[0] == found[1]
    assert found[0] or block.upsample is not None


def test_a_detector_trained_on_tokens_runs_on_maps() -> None:
    config = TINY.largest()
    tokens, maps = HeatDETR(TINY, config), HeatDETR(MAPS, moved(config, MAPS))
    randomise_detector(tokens)
    maps.load_state_dict(tokens.state_dict())
    with torch.no_grad():
        for wanted, got in zip(tokens.eval()(IMAGES), maps.eval()(IMAGES), strict=True):
            assert (wanted - got).abs().max() <= 1e-5 * max(1, wanted.abs().max())


def test_sparse_attention_takes_the_same_tokens_in_both_layouts() -> None:
    tokens, maps = (module.eval() for module in twins(SPARSE))
    inputs = random_inputs(SPARSE, batch=2)
    with torch.no_grad():
        wanted = to_spatial(tokens(*inputs), Layout.TOKENS, SPARSE.height, SPARSE.width)
        assert (maps(*inputs) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_channel_attention_on_maps_survives_zeros_and_large_values_in_float16() -> None:
    block = next(block for block in MAP_BLOCKS if block.kind is Kind.XCA)
    module = build_block(block.model_copy(update={"height": 64, "width": 64}))
    assert isinstance(module, XCA)
    assert torch.isfinite(fuse(module)(torch.zeros(1, block.channels_in, 64, 64))).all()
    qkv = torch.full((1, 3 * block.channels_in, 64, 64), 8 / 64, dtype=torch.float16)
    mixed = module.half().attend(qkv)
    assert mixed.shape == (1, block.channels_in, 64, 64)
    assert torch.isfinite(mixed).all()


TRANSPOSES = {
    Kind.WMSA: 3,
    Kind.SWMSA: 3,
    Kind.XCA: 2,
    Kind.ATTENTION: 3,
    Kind.SAM: 0,
    Kind.UP: 0,
    Kind.PROJECT: 0,
    Kind.SPLIT_PROJECT: 0,
    Kind.HEAD: 3,
}
"""Cut, merge and k^T of windows; k^T and the norms' of XCA; into heads, k^T and back; anchors of the head."""

RESHAPES = {Kind.WMSA: 4, Kind.SWMSA: 4, Kind.XCA: 2, Kind.ATTENTION: 2, Kind.HEAD: 6}
"""Two around each transpose of windows, and around the products of heads."""


def operators(content: bytes) -> tuple[onnx.GraphProto, Counter[str]]:
    graph = onnx.load_from_string(content).graph
    return graph, Counter(node.op_type for node in graph.node)


def weighted_products(graph: onnx.GraphProto) -> list[str]:
    """Names of the matrix products that hold weights."""
    weights = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in {"Gemm", "MatMul"}]
    return [node.name for node in products if {*node.input} & weights]


def test_deployed_on_maps_every_linear_is_a_convolution_and_only_attention_transposes() -> None:
    blocks = list({block.kind: block for block in MAP_BLOCKS}.values())
    assert set(TRANSPOSES) <= {block.kind for block in blocks}
    for block, exported in zip(blocks, export_blocks(blocks), strict=True):
        graph, found = operators(exported.onnx)
        assert weighted_products(graph) == [], block.label
        assert (found["Transpose"], found["Reshape"]) == (
            TRANSPOSES.get(block.kind, 0),
            RESHAPES.get(block.kind, 0),
        ), block.label


def test_windows_are_cut_from_maps_and_merged_by_one_transpose_of_six_axes_each() -> None:
    block = next(block for block in MAP_BLOCKS if block.kind is Kind.SWMSA)
    graph, found = operators(export_blocks([block])[0].onnx)
    turns = [list(next(iter(node.attribute)).ints) for node in graph.node if node.op_type == "Transpose"]
    assert turns == [[0, 2, 4, 3, 5, 1], [0, 1, 2, 4, 3], [0, 5, 1, 3, 2, 4]]
    assert [found[name] for name in ("Unsqueeze", "Expand", "Gather", "Shape")] == [0, 0, 0, 0]


def test_no_transpose_or_reshape_stands_between_the_blocks_of_a_detector_on_maps() -> None:
    config = MAPS.largest()
    config = config.with_stage(0, config.stages[0].model_copy(update={"slots": (Kind.WMSA,)}))
    config = config.with_stage(3, config.stages[3].model_copy(update={"global_kind": Kind.ATTENTION}))
    torch.manual_seed(0)
    detector = HeatDETR(MAPS, config)
    randomise_detector(detector)
    exported = export_detector(detector)
    assert exported.parity.max_abs_diff <= 1e-4 * exported.parity.scale
    graph, found = operators(exported.onnx)
    kinds = [block.kind for block in MAPS.blocks(config)]
    assert {Kind.WMSA, Kind.SWMSA, Kind.XCA, Kind.ATTENTION} <= set(kinds)
    assert weighted_products(graph) == []
    assert found["Transpose"] == sum(TRANSPOSES.get(kind, 0) for kind in kinds)
    assert found["Reshape"] == sum(RESHAPES.get(kind, 0) for kind in kinds)


def test_nothing_inside_a_supernet_on_maps_is_turned_into_tokens() -> None:
    supernet = Supernet(MAPS)
    mixtures = [module for module in supernet.blocks.values() if isinstance(module, Mixture)]
    assert {mixture.gives for mixture in mixtures} == {Layout.SPATIAL}
    blocks = [block for mixture in mixtures for block in mixture.blocks.values()]
    assert {layout for block in blocks for layout in (*block.layouts, block.gives)} == {Layout.SPATIAL}


def test_a_supernet_on_maps_mixes_and_is_cut_like_the_one_on_tokens() -> None:
    torch.manual_seed(0)
    tokens, maps = Supernet(TINY), Supernet(MAPS)
    randomise_statistics(tokens)
    maps.load_state_dict(tokens.state_dict())
    tokens.eval()
    maps.eval()
    gates = tokens.sample_gates(1.0, torch.Generator().manual_seed(3), images=2)
    with torch.no_grad():
        config = moved(TINY.largest(), MAPS)
        pairs = [
            (tokens(IMAGES, gates, 32), maps(IMAGES, gates, 32)),
            (maps(IMAGES, maps.one_hot_gates(config), 32), extract(maps, config)(IMAGES)),
            *(
                (extract(tokens, config)(IMAGES), extract(maps, moved(config, MAPS))(IMAGES))
                for config in (TINY.smallest(), TINY.largest())
            ),
        ]
    for one, two in pairs:
        for wanted, got in zip(one, two, strict=True):
            assert (wanted - got).abs().max() <= 1e-5 * max(1, wanted.abs().max())


def test_narrow_subnets_of_a_supernet_on_maps_train_its_weights() -> None:
    torch.manual_seed(0)
    supernet = Supernet(MAPS)
    config = MAPS.smallest()
    found = Sandwich(supernet).predict(config.widths, IMAGES, supernet.one_hot_gates(config), 32)
    (found.logits.square().mean() + found.deltas.square().mean()).backward()
    gradient = supernet.get_parameter("blocks.tcm_project1.linear.linear.weight").grad
    assert gradient is not None
    touched = gradient.abs().sum(0) > 0
    assert int(touched.sum()) == config.widths[-1] < len(touched)
