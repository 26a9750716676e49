import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from supernet.boxes import area, iou_matrix, paired_giou, paired_iou, to_centres, to_corners

_SIDES = st.tuples(*[st.integers(0, 200)] * 4)


def _corners(numbers: tuple[int, int, int, int]) -> Tensor:
    x, y, width, height = numbers
    return torch.tensor([[x, y, x + width + 1, y + height + 1]], dtype=torch.float32)


def _counted_iou(one: Tensor, other: Tensor) -> float:
    """Count the pixels that integer boxes share."""
    sheets = torch.zeros(2, 420, 420, dtype=torch.bool)
    for sheet, (x1, y1, x2, y2) in zip(sheets, (one[0].int().tolist(), other[0].int().tolist()), strict=True):
        sheet[y1:y2, x1:x2] = True
    return float((sheets[0] & sheets[1]).sum() / (sheets[0] | sheets[1]).sum())


@given(_SIDES, _SIDES)
def test_iou_is_the_share_of_common_pixels(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> None:
    first, second = _corners(one), _corners(other)
    assert float(paired_iou(first, second)) == pytest.approx(_counted_iou(first, second), abs=1e-6)
    assert torch.equal(iou_matrix(first, second)[0], paired_iou(first, second))


@given(_SIDES, _SIDES)
def test_giou_never_exceeds_iou_and_is_symmetric(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    first, second = _corners(one), _corners(other)
    giou = paired_giou(first, second)
    assert float(giou) <= float(paired_iou(first, second)) + 1e-6
    assert float(giou) > -1
    assert torch.equal(giou, paired_giou(second, first))


def _restated_giou(one: list[float], other: list[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - width * height
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (max(one[3], other[3]) - min(one[1], other[1]))
    return width * height / union - (hull - union) / hull


def test_giou_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    low, sides = torch.rand(2, 2, 500, 2, generator=generator, dtype=torch.float64) * 100
    one, other = torch.cat((low, low + sides + 0.1), dim=-1)
    expected = [_restated_giou(*pair) for pair in zip(one.tolist(), other.tolist(), strict=True)]
    assert paired_giou(one, other).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert min(expected) < -0.3  # some lie apart, some share much
    assert max(expected) > 0.3


def test_giou_of_known_boxes() -> None:
    one = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1]])
    other = torch.tensor([[0.0, 0, 2, 2], [2, 0, 4, 2], [3, 0, 4, 1]])
    # Equal; touching (hull full, nothing shared); apart (half of the hull is empty).
    assert paired_giou(one, other).tolist() == pytest.approx([1.0, 0.0, -0.5])


@given(_SIDES)
def test_notations_convert_both_ways(numbers: tuple[int, int, int, int]) -> None:
    corners = _corners(numbers)
    assert torch.equal(to_corners(to_centres(corners)), corners)
    assert float(area(corners)) == (numbers[2] + 1) * (numbers[3] + 1)


def test_inside_out_and_empty_boxes_have_no_area_and_share_nothing() -> None:
    broken = torch.tensor([[5.0, 5, 1, 9], [3, 3, 3, 3]])
    assert area(broken).tolist() == [0, 0]
    assert iou_matrix(broken, broken).tolist() == [[0, 0], [0, 0]]
    assert torch.isfinite(paired_giou(broken, broken)).all()


def test_every_row_meets_every_column() -> None:
    rows, columns = (
        torch.tensor([[0.0, 0, 2, 2], [0, 0, 4, 4]]),
        torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1], [9, 9, 10, 10]]),
    )
    assert iou_matrix(rows, columns).tolist() == [[1, 0.5, 0], [0.25, 0.125, 0]]
