"""ONNX files of blocks and detectors, each with a record that it computes what its module does.

The dynamo exporter at opset 20 (the first with Gelu as one operator), static shapes, a static batch. A file depends on
its module's weights alone: equal weights, equal bytes, so that graphs can be fetched and cached by their hash.
"""

import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

from nas.blocks import Block, Kind, Layout
from nas.values import Value
from supernet.detector import HeatDETR, build_block
from supernet.errors import ParityError
from supernet.fusing import fuse
from supernet.onnx_pieces import Piece, clean, split
from supernet.onnx_session import run_graph
from supernet.token_choice import PASSED_OVER, WrongChoice, choosing, token_orders, with_orders

OPSET = 20
"""ONNX operator set of every exported file."""

TOLERANCE = 1e-4
"""Largest difference allowed between a file and its module, in units of `ParityRecord.scale`."""


BRANCH_GAIN = 0.1
"""Gamma at the end of a residual branch over gamma elsewhere, in weights that stand for trained ones."""


class ParityRecord(Value):
    """What the comparison of an exported file with its module found, on one seeded random input.

    Attributes:
        max_abs_diff: largest absolute difference between the outputs in ONNX Runtime and in PyTorch.
        scale: max(1, largest absolute output), over which a difference is judged: boxes count in pixels.
        tolerance: largest `max_abs_diff / scale` allowed.
        seed: seed of the input.
        opset: ONNX operator set.
        token_choices: places where PyTorch was given the file's choice of tokens (`supernet.token_choice`).
        token_excess: most attention that a token left out there received beyond one kept, over the most that any
            received; None without such a place.
        torch: version that exported.
        onnxruntime: version that was compared.
    """

    max_abs_diff: float
    scale: float
    tolerance: float
    seed: int
    opset: int
    token_choices: int = 0
    token_excess: float | None = None
    torch: str
    onnxruntime: str


@dataclass(frozen=True)
class ExportedGraph:
    """An ONNX file, its SHA-256 and the proof that it computes the right thing."""

    onnx: bytes
    sha256: str
    parity: ParityRecord


def export_block(block: Block, *, seed: int = 0) -> ExportedGraph:
    """Export one block with seeded random weights: the graph whose time is the block's row.

    Inputs are `first` (and `second`), in `block.layouts`; the output is `output` in `block.gives`, or `boxes` and
    `scores` for a HEAD.

    Raises:
        ParityError: the file and the module disagree.
    """
    return export_blocks((block,), seed=seed)[0]


def export_blocks(blocks: Sequence[Block], *, seed: int = 0) -> tuple[ExportedGraph, ...]:
    """Export blocks as `export_block` would, byte for byte, but in one pass of the exporter: 10 take the time of 3.

    Raises:
        ParityError: a file and its module disagree.
    """
    modules = [_sample_module(block, seed) for block in blocks]
    inputs = [_random_inputs(input_shapes(block), seed) for block in blocks]
    pieces = [_piece(block, number) for number, block in enumerate(blocks)]
    model = _to_onnx(
        _Bundle(modules),
        tuple(inputs),
        input_names=[name for piece in pieces for name in piece.inputs],
        output_names=[name for piece in pieces for name in piece.outputs],
    )
    return tuple(
        _checked(part, module, given, label=block.label, seed=seed)
        for block, part, module, given in zip(blocks, split(model, pieces), modules, inputs, strict=True)
    )


def export_detector(detector: HeatDETR, *, seed: int = 0, batch: int = 1) -> ExportedGraph:
    """Export a whole detector for images of its config's size: `images` (batch, 3, H, W) to `boxes` and `scores`.

    Raises:
        ParityError: the file and the module disagree.
    """
    module, images = fuse(detector), _random_inputs(((batch, 3, *detector.config.image),), seed)
    model = _to_onnx(module, images, input_names=["images"], output_names=["boxes", "scores"])
    return _checked(clean(model), module, images, label=f"detector {detector.config.id}", seed=seed)


def compare(content: bytes, module: nn.Module, inputs: tuple[Tensor, ...], *, label: str, seed: int) -> ParityRecord:
    """Run a file in ONNX Runtime and its module in PyTorch on the same inputs.

    Raises:
        ParityError: they differ by more than `TOLERANCE`, or the file chose other tokens than attention bears out.
    """
    places = token_orders(module)
    told, names = with_orders(content) if places else (content, [])
    results = run_graph(told, [tensor.numpy() for tensor in inputs])
    got = results[: len(results) - len(names)]
    try:
        with torch.no_grad(), choosing(places, results[len(got) :], tolerance=TOLERANCE) as found:
            given = module(*inputs)
    except WrongChoice as error:
        raise ParityError(
            label=label,
            quantity=PASSED_OVER.format(reference="PyTorch's reckoning"),
            found=error.excess,
            tolerance=TOLERANCE,
            advice="The file sorts tokens otherwise: export with another ONNX Runtime version",
        ) from error
    wanted = [output.numpy() for output in (given if isinstance(given, tuple) else (given,))]
    differences = [float(np.abs(a - b).max()) for a, b in zip(wanted, got, strict=True)]
    scales = [max(1.0, float(np.abs(a).max())) for a in wanted]  # scores are small beside boxes in pixels
    worst = max(range(len(wanted)), key=lambda output: _badness(differences[output] / scales[output]))
    if not differences[worst] <= TOLERANCE * scales[worst]:  # NaN is no parity either
        name = onnx.load_from_string(content).graph.output[worst].name
        raise _difference(label, name, differences[worst] / scales[worst])
    return ParityRecord(
        max_abs_diff=differences[worst],
        scale=scales[worst],
        tolerance=TOLERANCE,
        seed=seed,
        opset=OPSET,
        token_choices=len(places),
        token_excess=max(found, default=None),
        torch=torch.__version__,
        onnxruntime=onnxruntime.__version__,
    )


def _difference(label: str, output: str, found: float) -> ParityError:
    if math.isfinite(found):
        advice = "Look for exploding activations, or export with another ONNX Runtime version"
    else:
        advice = "Weights or activations overflow: name a checkpoint from before its training diverged"
    return ParityError(
        label=label,
        quantity=f"the largest difference of {output} from PyTorch's, over its largest absolute value (at least 1),",
        found=found,
        tolerance=TOLERANCE,
        advice=advice,
    )


def _badness(difference: float) -> float:
    """Put NaN above all numbers."""
    return math.inf if math.isnan(difference) else difference


def input_shapes(block: Block) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each input of a block at batch 1, in its layout."""
    fine = (block.channels_in, block.height, block.width)
    second = fine if block.kind is Kind.HEAD else (block.channels_out, block.height // 2, block.width // 2)
    return tuple(
        (1, channels, height, width) if layout is Layout.SPATIAL else (1, height * width, channels)
        for (channels, height, width), layout in zip((fine, second), block.layouts, strict=False)
    )


@torch.no_grad()
def randomise_statistics(module: nn.Module) -> None:
    """Give every BatchNorm random statistics, gamma and beta, as if trained: fresh ones fold to trivial weights."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-0.5, 0.5)
            layer.get_buffer("running_mean").uniform_(-0.5, 0.5)
            layer.get_buffer("running_var").uniform_(0.5, 2)


@torch.no_grad()
def randomise_detector(detector: HeatDETR, *, seed: int = 0) -> None:
    """Give a fresh detector weights as if trained: no branch is switched off, and no activation explodes.

    Random gamma and beta, those that end a residual branch (in a fresh detector they are 0) smaller, as training leaves
    them: else the outputs of twenty blocks grow until rounding hides what a graph computes. Then the statistics that
    random images leave.
    """
    norms = [layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    ends = [norm for norm in norms if not norm.weight.any()]
    randomise_statistics(detector)
    for norm in ends:
        norm.weight.mul_(BRANCH_GAIN)
    momenta, training = [norm.momentum for norm in norms], detector.training
    for norm in norms:
        norm.momentum = 1.0
    detector.train()
    detector(*_random_inputs(((2, 3, *detector.config.image),), seed))
    detector.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _random_inputs(shapes: Sequence[tuple[int, ...]], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


def _sample_module(block: Block, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module = build_block(block)
        randomise_statistics(module)
    return fuse(module)


def _piece(block: Block, number: int) -> Piece:
    inputs = ("first", "second")[: len(block.layouts)]
    outputs = ("boxes", "scores") if block.kind is Kind.HEAD else ("output",)
    return Piece({f"{number}.{name}": name for name in inputs}, {f"{number}.{name}": name for name in outputs})


class _Bundle(nn.Module):
    """Independent modules side by side, so that the exporter's fixed costs are paid once."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs: tuple[Tensor, ...]) -> list[Tensor | tuple[Tensor, ...]]:
        return [part(*given) for part, given in zip(self.parts, inputs, strict=True)]


def _to_onnx(
    module: nn.Module, inputs: tuple[Any, ...], *, input_names: Sequence[str], output_names: Sequence[str]
) -> onnx.ModelProto:
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            inputs,
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            optimize=False,
        )
    if program is None:
        raise TypeError("torch.onnx.export(dynamo=True) returned no program: install torch >= 2.10")
    _simplify(program.model)
    return program.model_proto


def _simplify(model: onnx_ir.Model) -> None:
    """Do what the exporter's own optimiser does to these graphs.

    It also tries a hundred rules that never fit here, on every node, and takes a third of an export for it.
    """
    fold_constants(model, onnx_shape_inference=True)
    tidy = onnx_ir.passes.Sequential(
        RewritePass([rules.no_op_cast_rule, rules.reshape_reshape_rule]),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(),
    )
    tidy(model)


def _checked(
    model: onnx.ModelProto, module: nn.Module, inputs: tuple[Tensor, ...], *, label: str, seed: int
) -> ExportedGraph:
    content = model.SerializeToString(deterministic=True)
    parity = compare(content, module, inputs, label=label, seed=seed)
    return ExportedGraph(content, hashlib.sha256(content).hexdigest(), parity)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks (torchvision is missing, deprecations of its own) out of the log while it runs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
