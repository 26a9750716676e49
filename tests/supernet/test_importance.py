import pytest
import torch

from nas.blocks import Kind
from nas.importance import Provenance
from nas.thinning import best_path
from supernet.extraction import group_share
from supernet.importance import read_importance
from supernet.training import fresh_supernet
from tests.supernet.tiny_space import TINY

PROVENANCE = Provenance(
    data="shapes", seed=1, steps=10, noise="gumbel", precision="fp32", version="0.1.0", checkpoint_sha256="a" * 64
)


def test_logits_are_read_slot_by_slot_and_kind_by_kind() -> None:
    supernet = fresh_supernet(TINY, seed=0)
    with torch.no_grad():
        supernet.logits_of("stage1.slot0").copy_(torch.tensor([0.5, 1.5, -1.0]))
        supernet.logits_of("stage4.global").copy_(torch.tensor([-0.25, 0.25]))
    importance = read_importance(supernet, PROVENANCE).check(TINY)
    assert importance.provenance == PROVENANCE
    assert importance.space == TINY.id
    assert importance.stages[0].slots == ({Kind.REP_CNN: 0.5, Kind.WMSA: 1.5, Kind.IDENTITY: -1.0},)
    assert importance.stages[3].global_kinds == {Kind.XCA: -0.25, Kind.ATTENTION: 0.25}
    assert importance.stages[1].global_kinds == {Kind.XCA: 0}
    chosen = best_path(TINY, importance)
    assert chosen.stages[0].slots == (Kind.WMSA,)
    assert chosen.stages[3].global_kind is Kind.ATTENTION


def test_an_untrained_supernet_has_no_opinion() -> None:
    importance = read_importance(fresh_supernet(TINY, seed=0), PROVENANCE)
    assert list(importance.slot_probability(1, 0).values()) == pytest.approx([1 / 3] * 3)


def test_channel_groups_have_a_share_each_and_descend() -> None:
    supernet = fresh_supernet(TINY, seed=0)
    importance = read_importance(supernet, PROVENANCE)
    assert [len(stage.group_share) for stage in importance.stages] == [1, 1, 2, 2]
    for number, stage in enumerate(importance.stages, start=1):
        assert stage.group_share == group_share(supernet, number)
        assert sum(stage.group_share) == pytest.approx(1)


def test_it_survives_json() -> None:
    importance = read_importance(fresh_supernet(TINY, seed=0), PROVENANCE)
    assert type(importance).model_validate_json(importance.model_dump_json()) == importance
