import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from nas.blocks import Activation, Block, Kind
from nas.config import Config
from nas.space import SearchSpace
from supernet.detector import HeatDETR, build_block
from supernet.errors import ParityError
from supernet.export import (
    OPSET,
    ExportedGraph,
    compare,
    export_block,
    export_blocks,
    export_detector,
    input_shapes,
    randomise_detector,
    randomise_statistics,
)
from supernet.fusing import fuse
from tests.supernet.block_samples import BLOCKS, DEVIANT_SPACE, LOW_SPACE, MAP_BLOCKS, NANO, random_inputs

EVERY_BLOCK = list(dict.fromkeys((*BLOCKS, *MAP_BLOCKS)))


@pytest.fixture(scope="module")
def graphs() -> dict[Block, ExportedGraph]:
    return dict(zip(EVERY_BLOCK, export_blocks(EVERY_BLOCK), strict=True))


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=lambda block: block.label)
def test_file_computes_what_the_module_computes(block: Block, graphs: dict[Block, ExportedGraph]) -> None:
    graph = graphs[block]
    assert graph.parity.max_abs_diff <= 1e-4 * graph.parity.scale
    # And on an input the export has not seen.
    torch.manual_seed(0)
    module = build_block(block)
    randomise_statistics(module)
    inputs = random_inputs(block)
    expected = fuse(module)(*inputs)
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for got, want in zip(_run(graph.onnx, [x.numpy() for x in inputs]), wanted, strict=True):
        assert np.abs(got - want.numpy()).max() <= 1e-4 * max(1, want.abs().max())


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=lambda block: block.label)
def test_file_is_static_and_named(block: Block, graphs: dict[Block, ExportedGraph]) -> None:
    graph = onnx.load_from_string(graphs[block].onnx).graph
    inputs = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in graph.input}
    assert inputs == dict(zip(("first", "second"), input_shapes(block), strict=False))
    outputs = [value.name for value in graph.output]
    assert outputs == (["boxes", "scores"] if block.kind is Kind.HEAD else ["output"])


def test_files_hold_no_shape_arithmetic_and_one_operator_per_activation(graphs: dict[Block, ExportedGraph]) -> None:
    wanted = {Activation.GELU: "Gelu", Activation.HARDSWISH: "HardSwish", Activation.RELU: "Relu"}
    for block, graph in graphs.items():
        model = onnx.load_from_string(graph.onnx)
        operators = Counter(node.op_type for node in model.graph.node)
        assert not {"Shape", "Constant", "Identity", "Erf", "Cast", "Expand", "Gather", "Tile"} & set(operators), (
            block.label
        )
        assert {node.domain for node in model.graph.node} == {""}
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        if block.activation is not None:
            assert operators[wanted[block.activation]] > 0, block.label


@pytest.mark.parametrize(
    ("kind", "transposes"),
    [(Kind.WMSA, 3), (Kind.SWMSA, 3), (Kind.XCA, 4), (Kind.ATTENTION, 3), (Kind.PROJECT, 0), (Kind.SPLIT_PROJECT, 0)],
)
def test_token_blocks_exchange_no_transposes(kind: Kind, transposes: int, graphs: dict[Block, ExportedGraph]) -> None:
    """Windows are cut and merged by one transpose each; ONNX Runtime fuses the third, k^T, into its product."""
    block = next(b for b in graphs if b.kind is kind and b.layouts[0].value == "tokens")
    operators = Counter(node.op_type for node in onnx.load_from_string(graphs[block].onnx).graph.node)
    assert operators["Transpose"] == transposes


def test_files_tell_nothing_about_the_machine(graphs: dict[Block, ExportedGraph]) -> None:
    for graph in graphs.values():
        model = onnx.load_from_string(graph.onnx)
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        text = model.SerializeToString()
        for word in (b".py", sys.prefix.encode(), b"stack", b"namespace", b"torch.nn"):
            assert word not in text


def test_a_block_is_the_same_file_alone_and_among_others(graphs: dict[Block, ExportedGraph]) -> None:
    for block in (BLOCKS[2], BLOCKS[-4]):
        torch.rand(3)
        assert export_block(block) == graphs[block]
    assert export_block(BLOCKS[2], seed=1).sha256 != graphs[BLOCKS[2]].sha256


def test_a_block_is_the_same_file_in_another_process(graphs: dict[Block, ExportedGraph]) -> None:
    block = BLOCKS[1]
    program = (
        "import sys; from nas.blocks import Block; from supernet.export import export_block; "
        "print(export_block(Block.model_validate_json(sys.argv[1])).sha256)"
    )
    command = [sys.executable, "-W", "error", "-c", program, block.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [graphs[block].sha256]
    assert done.stderr == ""


def test_export_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    export_block(BLOCKS[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "config", [NANO.smallest(), *list(NANO.covering_configs((192, 192)))[3:40:20]], ids=lambda c: c.id
)
def test_whole_detectors_compute_what_their_modules_compute(config: Config) -> None:
    torch.manual_seed(0)
    detector = HeatDETR(NANO, config)
    randomise_detector(detector)  # fresh statistics would switch the residual branches off
    graph = export_detector(detector)
    assert graph.sha256 == hashlib.sha256(graph.onnx).hexdigest()
    assert graph.parity.max_abs_diff <= 1e-4 * graph.parity.scale
    assert detector.training
    model = onnx.load_from_string(graph.onnx)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["boxes", "scores"]
    assert not {"Shape", "BatchNormalization"} & {node.op_type for node in model.graph.node}
    boxes, scores = _run(graph.onnx, [np.zeros((1, 3, 192, 192), np.float32)])
    assert (boxes.shape, scores.shape) == ((1, 144, 4), (1, 144, 3))


@pytest.mark.parametrize("space", [DEVIANT_SPACE, LOW_SPACE], ids=lambda space: space.name)
def test_other_readings_of_the_paper_compute_what_their_modules_compute(space: SearchSpace) -> None:
    torch.manual_seed(0)
    kinds = [(Kind.WMSA,), (Kind.SWMSA,), (Kind.WMSA,), (Kind.SWMSA,)]
    config = space.with_stride(space.smallest(), 16)
    for index, slots in enumerate(kinds):
        config = config.with_stage(index, config.stages[index].model_copy(update={"slots": slots}))
    detector = HeatDETR(space, config)
    randomise_detector(detector)
    graph = export_detector(detector)
    assert graph.parity.max_abs_diff <= 1e-4 * graph.parity.scale
    boxes, scores = _run(graph.onnx, [np.zeros((1, 3, 128, 192), np.float32)])
    assert (boxes.shape, scores.shape) == ((1, 8 * 12 * 2, 4), (1, 8 * 12 * 2, 3))


class Two(nn.Module):
    """A large output and a small one, which is `shift` off."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 1000 * x, 0.001 * x + self.shift


def test_each_output_is_judged_on_its_own_scale() -> None:
    tensors = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "large", "small")]
    factors = [helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [by]) for name, by in (("a", 1000.0), ("b", 0.001))]
    nodes = [helper.make_node("Mul", ["x", "a"], ["large"]), helper.make_node("Mul", ["x", "b"], ["small"])]
    graph = helper.make_graph(nodes, "two", tensors[:1], tensors[1:], factors)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9).SerializeToString()
    ones = (torch.ones(4),)

    parity = compare(file, Two(5e-5), ones, label="two", seed=0)
    assert (parity.max_abs_diff, parity.scale) == (pytest.approx(5e-5, rel=1e-2), 1.0)
    with pytest.raises(ParityError, match=r"difference of small from PyTorch's, .* \(at least 1\), is 0\.0002, "):
        compare(file, Two(2e-4), ones, label="two", seed=0)  # little beside an output of 1000, much for one of 0.001


def test_a_file_of_another_module_is_refused(graphs: dict[Block, ExportedGraph]) -> None:
    block = BLOCKS[1]
    torch.manual_seed(1)
    stranger = fuse(build_block(block))
    with pytest.raises(
        ParityError,
        match=r"^the exported graph of rep_cnn .* is not kept: the largest difference of output from PyTorch's, over "
        r"its largest absolute value \(at least 1\), is [\d.]+, allowed is 0\.0001\. Look for exploding activations",
    ) as caught:
        compare(graphs[block].onnx, stranger, tuple(random_inputs(block)), label=block.label, seed=0)
    assert caught.value.found > caught.value.tolerance


def test_an_output_that_is_not_a_number_is_refused(graphs: dict[Block, ExportedGraph]) -> None:
    block = BLOCKS[1]
    torch.manual_seed(1)
    broken = fuse(build_block(block))
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ParityError, match=r"from PyTorch's, .* is not a number, .* overflow: name a checkpoint"):
        compare(graphs[block].onnx, broken, tuple(random_inputs(block)), label=block.label, seed=0)


def _run(content: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {node.name: x for node, x in zip(session.get_inputs(), inputs, strict=True)})
