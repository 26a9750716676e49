import math
from collections import defaultdict
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nas.blocks import Activation, Block, Kind, Layout
from nas.macs import macs, parameters, weights
from supernet.detector import build_block
from supernet.export import randomise_statistics
from supernet.fusing import fuse
from supernet.layers.global_attention import Attention, set_sparsity
from supernet.layers.head import RawPrediction, decode, make_anchors, score
from supernet.layers.layout import to_spatial, to_tokens
from supernet.layers.linear_bn import ChannelLinear
from supernet.layers.window_attention import Constant, RelativePosition, WindowAttention
from tests.supernet.block_samples import BLOCKS, DEVIANT_BLOCKS, MAP_BLOCKS, SPARSE, random_inputs

WIDE = [
    Block(kind=Kind.SWMSA, channels_in=384, channels_out=384, height=25, width=42, activation=Activation.GELU),
    Block(kind=Kind.SPARSE_ATTENTION, channels_in=384, channels_out=384, height=25, width=42, kept_tokens=861),
    Block(kind=Kind.XCA, channels_in=192, channels_out=192, height=100, width=168, activation=Activation.GELU),
]


@pytest.mark.parametrize("block", [*BLOCKS, *DEVIANT_BLOCKS, *MAP_BLOCKS, SPARSE, *WIDE], ids=lambda block: block.label)
def test_multiply_adds_of_the_deployed_module_are_those_of_the_arithmetic(block: Block) -> None:
    module = fuse(build_block(block)).to("meta")
    with FlopCounterMode(display=False) as counter:
        module(*(tensor.to("meta") for tensor in random_inputs(block)))
    assert counter.get_total_flops() == 2 * macs(block)


@pytest.mark.parametrize("block", [*BLOCKS, *DEVIANT_BLOCKS, *MAP_BLOCKS, *WIDE], ids=lambda block: block.label)
def test_numbers_of_the_deployed_module_are_those_of_the_arithmetic(block: Block) -> None:
    module = fuse(build_block(block))
    biases = sum(layer.value.numel() for layer in module.modules() if isinstance(layer, Constant))
    assert biases + sum(weight.numel() for weight in module.parameters()) == parameters(block)


@pytest.mark.parametrize("block", [*BLOCKS, *DEVIANT_BLOCKS, *MAP_BLOCKS, *WIDE], ids=lambda block: block.label)
def test_weights_of_the_deployed_module_are_those_of_the_arithmetic(block: Block) -> None:
    module = build_block(block)
    tables = sum(layer.table.numel() for layer in module.modules() if isinstance(layer, RelativePosition))
    layers = [layer for layer in fuse(module).modules() if isinstance(layer, nn.Conv2d | nn.Linear | ChannelLinear)]
    assert tables + sum(layer.weight.numel() for layer in layers) == weights(block)


@pytest.mark.parametrize("block", [*BLOCKS, *MAP_BLOCKS], ids=lambda block: block.label)
def test_output_has_the_layout_the_block_gives(block: Block) -> None:
    output = build_block(block).eval()(*random_inputs(block, batch=2))
    if block.kind is Kind.HEAD:
        cells = block.tokens * len(block.anchor_px or ())
        assert [tuple(part.shape) for part in output] == [(2, cells, 3), (2, cells, 4), (2, cells)]
    else:
        shrink = {Kind.STEM: 8, Kind.ENTRY: 2, Kind.POOL: 2, Kind.SCM: 2}.get(block.kind, 1)
        height, width = block.height // shrink, block.width // shrink
        spatial = (2, block.channels_out, height, width)
        tokens = (2, height * width, block.channels_out)
        assert tuple(output.shape) == (tokens if block.gives is Layout.TOKENS else spatial)


@pytest.mark.parametrize("block", [b for b in (*BLOCKS, *MAP_BLOCKS) if b.kind is not Kind.STEM], ids=lambda b: b.label)
def test_layout_of_an_input_changes_neither_weights_nor_result(block: Block) -> None:
    module = build_block(block)
    randomise_statistics(module)
    turned = block.model_copy(update={"layouts": tuple(_other(layout) for layout in block.layouts)})
    twin = build_block(turned)
    twin.load_state_dict(module.state_dict())
    inputs = random_inputs(block)
    sides = [
        (block.height, block.width),
        *([(block.height // 2, block.width // 2)] * (block.kind is not Kind.HEAD)),
    ] * 2
    converted = [
        to_spatial(x, layout, *side) if layout is Layout.TOKENS else to_tokens(x, layout)
        for x, layout, side in zip(inputs, block.layouts, sides, strict=False)
    ]
    for given, wanted in zip(_parts(twin.eval()(*converted)), _parts(module.eval()(*inputs)), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Kind.WMSA, Kind.SWMSA, Kind.XCA, Kind.ATTENTION])
def test_residual_blocks_start_as_the_identity(kind: Kind) -> None:
    block = Block(kind=kind, channels_in=64, channels_out=64, height=9, width=8, activation=Activation.GELU)
    (x,) = random_inputs(block, batch=2)
    assert torch.equal(build_block(block)(x), to_tokens(x, Layout.SPATIAL))


def test_no_layer_norm_and_no_linear_bias() -> None:
    for block in BLOCKS:
        for layer in build_block(block).modules():
            assert not isinstance(layer, nn.LayerNorm)
            assert not isinstance(layer, nn.Linear) or layer.bias is None


def test_rep_cnn_ends_in_relu_whatever_the_activation_of_the_space() -> None:
    block = Block(kind=Kind.REP_CNN, channels_in=32, channels_out=32, height=6, width=6)
    module = build_block(block)
    randomise_statistics(module)
    output = module.eval()(*random_inputs(block))
    assert output.min() == 0
    assert output.max() > 0


def test_padded_keys_get_no_attention_and_the_batch_does_not_mix() -> None:
    block = Block(kind=Kind.WMSA, channels_in=32, channels_out=32, height=3, width=9)
    module = build_block(block)
    assert isinstance(module, WindowAttention)
    qkv = torch.zeros(2, 27, 64)
    qkv[..., 32:] = torch.arange(54.0).view(2, 27, 1)
    nn.init.zeros_(module.position.table)
    mean = module.attend(qkv.flatten(0, 1)).view(2, 3, 9, 32)
    values = torch.arange(54.0).view(2, 3, 9)
    left, right = (part.mean((1, 2), keepdim=True)[:, 0] for part in (values[..., :7], values[..., 7:]))
    expected = torch.cat((left.expand(2, 7), right.expand(2, 2)), 1)
    torch.testing.assert_close(mean, expected[:, None, :, None].expand(2, 3, 9, 32))


def test_xca_survives_a_map_of_zeros_and_large_values_in_float16() -> None:
    block = Block(kind=Kind.XCA, channels_in=32, channels_out=32, height=64, width=64, activation=Activation.RELU)
    module = fuse(build_block(block))
    assert torch.isfinite(module(torch.zeros(1, 32, 64, 64))).all()
    qkv = torch.full((1, 96, 4096), 8 / 64, dtype=torch.float16)
    assert torch.isfinite(module.half().attend(qkv)).all()


class Seen(TorchDispatchMode):
    """Keeps the types that operators work on, as autocast has left them."""

    def __init__(self) -> None:
        super().__init__()
        self.types: defaultdict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.types[func.overloadpacket.__name__] |= {part.dtype for part in args if isinstance(part, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("linear_layout", [None, Layout.SPATIAL])
def test_xca_normalises_in_float32_under_autocast(
    linear_layout: Literal[Layout.SPATIAL] | None, training: bool
) -> None:
    block = Block(kind=Kind.XCA, channels_in=64, channels_out=64, height=6, width=10, linear_layout=linear_layout)
    module = build_block(block)
    given: list[Tensor] = []
    module.qkv.register_forward_hook(lambda *call: given.append(call[-1]))
    with torch.autocast("cpu", torch.bfloat16), Seen() as seen:
        module.train(training)(*random_inputs(block))
    assert torch.bfloat16 in seen.types["bmm"]  # autocast was there
    assert [qkv.dtype for qkv in given] == [torch.float32]
    assert [seen.types[name] for name in ("sum", "sqrt", "_softmax")] == [{torch.float32}] * 3


def test_sparsity_comes_little_by_little_while_training_and_holds_when_deployed() -> None:
    attention = build_block(SPARSE)
    assert isinstance(attention, Attention)
    chosen = []
    for share in (0.0, 0.5, 1.0):
        set_sparsity(attention, share)
        chosen.append((attention.train().order.now, attention.eval().order.now))
    assert chosen == [(60, 50), (55, 50), (50, 50)]
    set_sparsity(attention, 0.0)
    dense = build_block(SPARSE.model_copy(update={"kept_tokens": None})).train()
    dense.load_state_dict(attention.train().state_dict())
    tokens = torch.rand(2, 60, 64, generator=torch.Generator().manual_seed(0))
    assert (attention(tokens) - dense(tokens)).abs().max() <= 1e-6


def test_sparse_attention_changes_only_the_kept_tokens_by_the_mlp() -> None:
    module = build_block(SPARSE)
    randomise_statistics(module)
    dense = build_block(SPARSE.model_copy(update={"kept_tokens": None}))
    dense.load_state_dict(module.state_dict())
    attention = build_block(SPARSE.model_copy(update={"kept_tokens": None}))
    attention.load_state_dict(module.state_dict())
    nn.init.zeros_(attention.mlp.reduce.norm.weight)
    nn.init.zeros_(attention.mlp.reduce.norm.bias)
    attention.mlp.reduce.norm.running_mean.zero_()
    (x,) = random_inputs(SPARSE)
    sparse, full, before = (net.eval()(x)[0] for net in (module, dense, attention))
    like_full = torch.isclose(sparse, full, atol=1e-5).all(1)
    untouched = torch.isclose(sparse, before, atol=1e-5).all(1)
    assert int(like_full.sum()) == 50
    assert int(untouched.sum()) == 10
    assert bool((like_full ^ untouched).all())


def test_sparse_attention_keeps_the_tokens_that_receive_most() -> None:
    module = build_block(SPARSE)
    randomise_statistics(module)
    module.eval()
    (x,) = random_inputs(SPARSE)
    mixed, weights = module.attend(module.qkv(x[0]))
    before = x + module.proj(mixed)
    received = weights.mean((1, 2))[0]
    changed = (module(x) - before)[0].abs().amax(1) > 1e-6
    assert set(changed.nonzero().flatten().tolist()) == set(received.topk(50).indices.tolist())


def test_anchors_are_ordered_by_row_column_and_size() -> None:
    block = _head(anchor_px=(32, 64))
    anchors = make_anchors(block)
    assert anchors.shape == (2 * 3 * 2, 4)
    assert anchors[0].tolist() == [0, 0, 32, 32]
    assert anchors[1].tolist() == [0, 0, 64, 64]
    assert anchors[2].tolist() == [32, 0, 32, 32]
    assert anchors[6].tolist() == [0, 32, 32, 32]


def test_decoding_moves_the_centre_by_at_most_32_pixels_and_scales_by_at_most_62_5() -> None:
    anchors = torch.tensor([[64.0, 32.0, 16.0, 16.0]] * 3)
    deltas = torch.tensor([[[0.5, -1, 0, 0], [100, -100, 0, math.log(2)], [0, 0, 50, -1]]])
    first, second, third = decode(deltas, anchors)[0]
    assert first.tolist() == [64, 8, 80, 24]
    assert second.tolist() == pytest.approx([88, -16, 104, 16])
    assert third.tolist() == pytest.approx([64 - 500, 32 - 8 / math.e, 64 + 500, 32 + 8 / math.e], rel=1e-5)


def test_decoding_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(1, 400, 4, generator=generator, dtype=torch.float64) * 3
    anchors = torch.rand(400, 4, generator=generator, dtype=torch.float64) * 200 + 1
    expected = []
    for (dx, dy, dw, dh), (ax, ay, aw, ah) in zip(deltas[0].tolist(), anchors.tolist(), strict=True):
        cx, cy = ax + max(-32.0, min(32.0, dx * aw)), ay + max(-32.0, min(32.0, dy * ah))
        w, h = aw * math.exp(min(dw, math.log(62.5))), ah * math.exp(min(dh, math.log(62.5)))
        expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    wanted = torch.tensor(expected, dtype=torch.float64)
    assert (decode(deltas, anchors)[0] - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    assert (deltas[0, :, :2] * anchors[:, 2:] > 32).any()
    assert (deltas[0, :, 2:] > math.log(62.5)).any()


def test_score_is_class_times_objectness() -> None:
    prediction = RawPrediction(torch.tensor([[[0.0, 2.0]]]), torch.zeros(1, 1, 4), torch.tensor([[1.0]]))
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0, 2, 1)]
    assert score(prediction)[0, 0].tolist() == pytest.approx([sigmoid[0] * sigmoid[2], sigmoid[1] * sigmoid[2]])


def test_classification_reads_the_first_half_of_t1_and_location_t2() -> None:
    block = _head(anchor_px=(32, 64))
    module = build_block(block)
    t1, t2 = random_inputs(block)
    base = module(t1, t2)
    changed = t1.clone()
    changed[..., 32:] += 1
    assert all(torch.equal(a, b) for a, b in zip(base, module(changed, t2), strict=True))
    other = module(t1, t2 + 1)
    assert torch.equal(other.logits, base.logits)
    assert not torch.equal(other.deltas, base.deltas)
    assert not torch.equal(other.objectness, base.objectness)


def test_classes_start_at_a_probability_of_one_percent() -> None:
    module = build_block(_head(anchor_px=(32,)))
    zeros = torch.zeros(1, 6, 64)
    torch.testing.assert_close(module(zeros, zeros).logits.sigmoid(), torch.full((1, 6, 3), 0.01))


def test_split_project_reads_the_second_half() -> None:
    block = Block(kind=Kind.SPLIT_PROJECT, channels_in=64, channels_out=64, height=2, width=2, layouts=(Layout.TOKENS,))
    module = build_block(block).eval()
    (x,) = random_inputs(block)
    changed = x.clone()
    changed[..., :32] += 1
    assert torch.equal(module(x), module(changed))
    assert not torch.equal(module(x), module(x + 1))


def _head(*, anchor_px: tuple[int, ...]) -> Block:
    layouts = (Layout.TOKENS, Layout.TOKENS)
    return Block(
        kind=Kind.HEAD, channels_in=64, channels_out=3, height=2, width=3, layouts=layouts, anchor_px=anchor_px
    )


def _other(layout: Layout) -> Layout:
    return Layout.SPATIAL if layout is Layout.TOKENS else Layout.TOKENS


def _parts(output: Tensor | RawPrediction) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)
