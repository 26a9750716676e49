import pytest
from torch import nn

from supernet.layers.axes import Axis
from supernet.layers.forms import Rows
from supernet.layers.linear_bn import LinearBN
from supernet.layers.window_attention import RelativePosition
from supernet.optimisers import cosine_share, make_adamw, stepped_share


def test_the_cosine_rate_climbs_then_falls_to_nothing() -> None:
    shares = [cosine_share(step, 100, warmup=10) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1
    assert shares == sorted(shares[:10]) + sorted(shares[10:], reverse=True)
    assert 0 < shares[-1] < 0.001
    assert cosine_share(0, 100, warmup=0) == 1


def test_the_stepped_rate_climbs_then_falls_to_a_tenth_at_each_milestone() -> None:
    shares = [stepped_share(step, milestones=(8, 11), warmup=4) for step in range(12)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, *[1] * 5, 0.1, 0.1, 0.1, 0.01])
    assert stepped_share(0, milestones=(), warmup=0) == 1


def test_only_weights_of_linears_and_convolutions_decay() -> None:
    linear = LinearBN(32, 64, reads=Axis.IN, writes=Axis.OUT)
    module = nn.ModuleList([linear, RelativePosition(2, Rows(7, 7).windows(0)), nn.Conv2d(3, 4, 1)])
    decayed, others = make_adamw(module, learning_rate=0.1, weight_decay=0.05, betas=(0.9, 0.99)).param_groups
    assert [(group["lr"], group["weight_decay"], group["betas"]) for group in (decayed, others)] == [
        (0.1, 0.05, (0.9, 0.99)),
        (0.1, 0.0, (0.9, 0.99)),
    ]
    assert [tuple(weight.shape) for weight in decayed["params"]] == [(64, 32), (4, 3, 1, 1)]
    assert {tuple(weight.shape) for weight in others["params"]} == {(64,), (169, 2), (4,)}
