import pytest
import torch
from torch import nn

from supernet.layers.drop_path import DropPath, set_drop_path


def layer(rate: float) -> DropPath:
    drop = DropPath()
    drop.rate = rate
    return drop


def test_an_image_loses_its_branch_whole_or_has_more_of_it() -> None:
    torch.manual_seed(0)
    rows = layer(0.5)(torch.ones(400 * 6, 5), images=400).view(400, 6, 5)
    values = rows.flatten(1).unique(dim=1)
    assert values.shape == (400, 1)  # all rows of an image alike
    assert set(values.flatten().tolist()) == {0.0, 2.0}
    assert (values == 0).float().mean().item() == pytest.approx(0.5, abs=0.08)


def test_it_keeps_the_mean() -> None:
    torch.manual_seed(0)
    assert layer(0.5)(torch.ones(4000, 2, 3), images=4000).mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("drop", [layer(0), layer(0.9).eval()], ids=["no rate", "evaluation"])
def test_nothing_is_dropped_without_a_rate_or_in_evaluation(drop: DropPath) -> None:
    branch = torch.rand(8, 3)
    assert drop(branch, images=2) is branch


def test_rates_grow_with_depth() -> None:
    blocks = [nn.Sequential(DropPath(), DropPath()), nn.Conv2d(1, 1, 1), DropPath(), DropPath()]
    set_drop_path(blocks, 0.2)
    rates = [[drop.rate for drop in block.modules() if isinstance(drop, DropPath)] for block in blocks]
    assert rates == [[0, 0], [], [pytest.approx(0.1)], [pytest.approx(0.2)]]
