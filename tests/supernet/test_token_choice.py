import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from nas.blocks import Block, Kind
from nas.space import StageChoices
from supernet.detector import HeatDETR, build_block
from supernet.errors import ParityError
from supernet.export import (
    compare,
    export_block,
    export_detector,
    randomise_detector,
    randomise_statistics,
)
from supernet.float16 import BOX_TOLERANCE, SMALL_PX, compare_float16, to_float16
from supernet.fusing import fuse
from supernet.onnx_session import run_graph
from supernet.token_choice import WrongChoice, choosing, passed_over, token_orders, with_given_orders, with_orders
from tests.supernet.block_samples import NANO, SPARSE

LARGE = SPARSE.model_copy(update={"height": 20, "width": 21, "kept_tokens": 345})
"""So many tokens that some receive the same attention to the last bits."""

SPARSE_SPACE = NANO.model_copy(
    update={
        "name": "sparse",
        "structure": NANO.structure.model_copy(update={"context_kind": Kind.SPARSE_ATTENTION, "keep": 0.82}),
        "stages": (
            *NANO.stages[:3],
            StageChoices(slots=1, widths=(96, 128), global_kinds=(Kind.SPARSE_ATTENTION, Kind.ATTENTION, Kind.XCA)),
        ),
    }
)


@pytest.mark.parametrize("block", [SPARSE, LARGE], ids=lambda block: f"{block.tokens} tokens")
def test_a_sparse_block_can_be_exported(block: Block) -> None:
    graph = export_block(block)
    assert graph.parity.token_choices == 1
    assert graph.parity.token_excess is not None
    assert 0 <= graph.parity.token_excess <= 1e-4
    assert graph.parity.max_abs_diff <= 1e-4 * graph.parity.scale
    assert [output.name for output in onnx.load_from_string(graph.onnx).graph.output] == ["output"]


def test_a_detector_with_sparse_blocks_can_be_exported() -> None:
    torch.manual_seed(0)
    detector = HeatDETR(SPARSE_SPACE, SPARSE_SPACE.largest())
    randomise_detector(detector)
    graph = export_detector(detector)
    sparse = sum(site.block.kind is Kind.SPARSE_ATTENTION for site in detector.sites)
    assert graph.parity.token_choices == sparse == 6
    assert graph.parity.max_abs_diff <= 1e-4 * graph.parity.scale


def test_a_file_that_keeps_the_wrong_tokens_is_refused() -> None:
    torch.manual_seed(0)
    module = build_block(SPARSE)
    randomise_statistics(module)
    fused = fuse(module)
    inputs = (torch.rand(1, 60, 64),)
    content = export_block(SPARSE).onnx
    compare(content, fused, inputs, label="sparse", seed=0)
    refusal = (
        r"^the exported graph of sparse is not kept: the attention that a token left out received beyond one kept, "
        r"over the most received, by PyTorch's reckoning, is 0\.\d+, allowed is 0\.0001\. "
        r"The file sorts tokens otherwise: export with another ONNX Runtime version\.$"
    )
    with pytest.raises(ParityError, match=refusal):
        compare(_keeping_the_least(content), fused, inputs, label="sparse", seed=0)


def _keeping_the_least(content: bytes) -> bytes:
    """Have the first TopK of a file sort the other way round."""
    model = onnx.load_from_string(content)
    first = next(node for node in model.graph.node if node.op_type == "TopK")
    next(attribute for attribute in first.attribute if attribute.name == "largest").i = 0
    return model.SerializeToString()


def test_orders_become_outputs_of_a_copy_alone() -> None:
    content = export_block(SPARSE).onnx
    told, names = with_orders(content)
    assert len(names) == 1
    assert [output.name for output in onnx.load_from_string(told).graph.output] == ["output", *names]
    assert _weights(told) == _weights(content)


def _weights(content: bytes) -> dict[str, bytes]:
    tensors = onnx.load_from_string(content).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in tensors}


def test_a_choice_within_rounding_is_taken_over_and_one_beyond_it_is_named() -> None:
    [place] = token_orders(build_block(SPARSE))
    received = torch.linspace(1, 0, 60)[None].clone()
    received[0, 50] = received[0, 49] - 5e-5  # left out by a hair
    swapped = np.arange(60)
    swapped[[49, 50]] = 50, 49
    with choosing([place], [swapped[None]], tolerance=1e-4) as found:
        assert place(received).tolist() == [swapped.tolist()]
    assert found == [pytest.approx(5e-5, rel=1e-2)]
    assert place(received).tolist() == [list(range(60))]
    far = np.roll(np.arange(60), 1)
    with choosing([place], [far[None]], tolerance=1e-4), pytest.raises(WrongChoice) as caught:
        place(received)
    assert caught.value.excess == pytest.approx(received[0, 49].item() - received[0, 59].item())


def test_a_token_is_passed_over_by_those_that_are_kept_and_not_by_their_order() -> None:
    received = np.array([[0.4, 0.1, 0.3, 0.2], [0.5, 0.5, 0.0, 0.0]], np.float32)
    assert passed_over(received, np.array([[0, 2, 3, 1], [1, 0, 3, 2]]), 2) == 0
    assert passed_over(received, np.array([[2, 0, 1, 3], [0, 1, 2, 3]]), 2) == 0  # the same two are kept
    assert passed_over(received, np.array([[0, 1, 2, 3], [0, 1, 2, 3]]), 2) == pytest.approx((0.3 - 0.1) / 0.4)
    assert np.isnan(passed_over(received * np.float32(np.nan), np.array([[0, 1, 2, 3]] * 2), 2))


def test_how_many_tokens_a_file_keeps_is_read_off_it() -> None:
    for block, kept in ((SPARSE, 50), (LARGE, 345)):
        for content in (export_block(block).onnx, to_float16(export_block(block).onnx)):
            assert with_given_orders(content)[1] == [kept]


def test_a_float16_file_may_choose_other_tokens_and_is_compared_on_its_own() -> None:
    torch.manual_seed(2)
    detector = HeatDETR(SPARSE_SPACE, SPARSE_SPACE.largest())
    randomise_detector(detector)
    with torch.no_grad():
        detector.head.locate.weight.mul_(0.1)  # random weights move boxes farther than trained ones
    whole = export_detector(detector).onnx
    half = to_float16(whole)
    images = np.random.default_rng(0).random((1, 3, 192, 192), dtype=np.float32)
    parity = compare_float16(half, whole, images, label="sparse", described="noise")
    assert 0 < parity.box < BOX_TOLERANCE
    assert parity.token_choices == 6
    assert parity.token_excess is not None
    assert 0 < parity.token_excess < parity.token_tolerance == 0.02
    boxes, others = run_graph(whole, [images])[0], run_graph(half, [images])[0]
    assert np.abs(boxes - others).max() > 3 * parity.box * SMALL_PX  # each with its own choice
    with pytest.raises(ParityError, match=r"token left out .* by the float32 file's reckoning, is .* is 0\.02\. "):
        compare_float16(_keeping_the_least(half), whole, images, label="sparse", described="noise")
