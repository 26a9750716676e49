import pytest
import torch

from nas.blocks import Kind
from nas.errors import InvalidConfig
from supernet.supernet import Mixture, Supernet
from tests.supernet.block_samples import NANO


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(NANO)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_every_slot_and_every_closing_block_is_a_mixture(supernet: Supernet) -> None:
    local = (Kind.REP_CNN, Kind.WMSA, Kind.SWMSA, Kind.IDENTITY)
    assert supernet.choices == {
        "stage1.slot0": local,
        "stage1.global": (Kind.XCA,),
        "stage2.slot0": local,
        "stage2.slot1": local,
        "stage2.global": (Kind.XCA,),
        "stage3.slot0": local,
        "stage3.slot1": local,
        "stage3.slot2": local,
        "stage3.global": (Kind.XCA,),
        "stage4.slot0": local,
        "stage4.global": (Kind.XCA, Kind.ATTENTION),
    }


def test_logits_are_apart_from_weights_and_start_undecided(supernet: Supernet) -> None:
    logits, weights = list(supernet.architecture_parameters()), list(supernet.weight_parameters())
    assert len(logits) == 11
    assert all(torch.equal(r, torch.zeros_like(r)) for r in logits)
    assert {id(p) for p in logits + weights} == {id(p) for p in supernet.parameters()}
    assert not {id(p) for p in logits} & {id(p) for p in weights}


@pytest.mark.parametrize("noise", ["gumbel", "uniform"])
def test_gates_are_probabilities_drawn_from_the_generator(supernet: Supernet, noise: str) -> None:
    first = supernet.sample_gates(1.0, _generator(), noise, images=3)
    again = supernet.sample_gates(1.0, _generator(), noise, images=3)
    assert list(first) == list(supernet.choices)
    for name, gates in first.items():
        assert torch.equal(gates, again[name])
        assert gates.shape == (3, len(supernet.choices[name]))
        assert gates.detach().sum(dim=1).numpy() == pytest.approx(1)
        assert float(gates.detach().min()) > 0
        assert len(supernet.choices[name]) == 1 or not torch.equal(gates[0], gates[1])


def test_gumbel_noise_chooses_each_candidate_by_its_probability(supernet: Supernet) -> None:
    name, generator = "stage1.slot0", _generator()
    logits = supernet.logits_of(name)
    with torch.no_grad():
        logits.copy_(torch.tensor([1.0, 0.0, -1.0, 0.5]))
        draws = supernet.sample_gates(1.0, generator, images=1500)[name].argmax(dim=1)
        wanted = torch.softmax(logits, 0)
        logits.zero_()
    shares = torch.bincount(draws, minlength=4) / len(draws)
    assert (shares - wanted).abs().max() < 0.04  # three standard errors of a share


def test_uniform_noise_as_printed_moves_a_logit_by_less_than_one(supernet: Supernet) -> None:
    generator = _generator()
    gates = supernet.sample_gates(1.0, generator, "uniform", images=50)["stage2.slot0"].detach()
    assert float((gates.max(dim=1).values / gates.min(dim=1).values).max()) < torch.e


def test_gates_of_each_image_mix_as_the_same_gates_for_that_image_alone(supernet: Supernet) -> None:
    images = torch.rand(2, 3, 192, 192, generator=_generator())
    gates = supernet.sample_gates(1.0, _generator(), images=2)
    supernet.eval()  # batch statistics would tie the images to each other
    with torch.no_grad():
        both = supernet(images, gates, 32)
        alone = [supernet(images[i : i + 1], {name: gate[i] for name, gate in gates.items()}, 32) for i in range(2)]
    supernet.train()
    assert (both.logits - torch.cat([one.logits for one in alone])).abs().max() <= 1e-5
    assert (both.deltas - torch.cat([one.deltas for one in alone])).abs().max() <= 1e-5


def test_a_low_temperature_decides(supernet: Supernet) -> None:
    gate = supernet.sample_gates(0.01, _generator(), images=1)["stage3.slot1"].detach()
    assert float(gate.max()) > 0.99


def test_loss_reaches_weights_and_logits(supernet: Supernet) -> None:
    supernet.zero_grad()
    images = torch.rand(2, 3, 192, 192, generator=_generator())
    prediction = supernet(images, supernet.sample_gates(1.0, _generator(), images=2), 32)
    prediction.logits.square().mean().backward()
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in supernet.weight_parameters())
    for number, choices in enumerate(NANO.stages, start=1):
        gradient = supernet.logits_of(f"stage{number}.slot0").grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0, f"stage {number} of {choices}"
    supernet.zero_grad()


def test_one_hot_gates_run_the_blocks_of_the_config_and_no_other(supernet: Supernet) -> None:
    config = NANO.largest()
    stages = [
        stage.model_copy(update={"slots": (kind, *(Kind.IDENTITY,) * (len(stage.slots) - 1))})
        for stage, kind in zip(config.stages, (Kind.WMSA, Kind.SWMSA, Kind.REP_CNN, Kind.REP_CNN), strict=True)
    ]
    stages[3] = stages[3].model_copy(update={"global_kind": Kind.ATTENTION})
    for index, stage in enumerate(stages):
        config = config.with_stage(index, stage)
    ran: list[str] = []
    hooks = [
        candidate.register_forward_hook(lambda *_, label=f"{key}.{kind}": ran.append(label))
        for key, module in supernet.blocks.items()
        if isinstance(module, Mixture)
        for kind, candidate in module.candidates.items()
    ]
    supernet(torch.rand(2, 3, 192, 192), supernet.one_hot_gates(config), 32)
    for hook in hooks:
        hook.remove()
    assert ran == [
        "stage1_slot0.wmsa",
        "stage1_global.xca",
        "stage2_slot0.swmsa",
        "stage2_global.xca",
        "stage3_slot0.rep_cnn",
        "stage3_global.xca",
        "stage4_slot0.rep_cnn",
        "stage4_global.attention",
    ]


def test_a_mixture_is_the_weighted_sum_of_its_candidates(supernet: Supernet) -> None:
    mixture = supernet.blocks["stage2_slot1"]
    assert isinstance(mixture, Mixture)
    mixture.eval()
    x = torch.randn(2, 64, 12, 12)
    singles = [mixture(x, row) for row in torch.eye(4)]
    assert torch.equal(singles[3], x)
    gates = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mixed = sum(gate * single for gate, single in zip(gates, singles, strict=True))
    torch.testing.assert_close(mixture(x, gates), mixed)
    mixture.train()


def test_gates_of_a_config_outside_the_space_are_refused(supernet: Supernet) -> None:
    config = NANO.smallest().model_copy(update={"image": (64, 64)})
    with pytest.raises(InvalidConfig, match="input size 64x64 is not in heatdetr-nano: choose one of 192x192"):
        supernet.one_hot_gates(config)


def test_a_space_without_rep_cnn_has_a_supernet_too() -> None:
    stages = tuple(
        stage.model_copy(update={"local_kinds": (Kind.SWMSA,), "global_kinds": (Kind.ATTENTION, Kind.XCA)})
        for stage in NANO.stages
    )
    space = NANO.model_copy(update={"stages": stages})
    supernet = Supernet(space)
    prediction = supernet(torch.rand(1, 3, 192, 192), supernet.sample_gates(1.0, _generator(), images=1), 32)
    assert tuple(prediction.logits.shape) == (1, 144, 3)
