import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from supernet.checkpoint import (
    BACKBONE,
    DETECTOR,
    BackboneHeader,
    Header,
    load_any_run,
    load_checkpoint,
    load_detector,
    load_supernet,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
    supernet_tensors,
)
from supernet.errors import BadCheckpoint
from supernet.training import fresh_supernet
from tests.supernet.exported import bold_checkpoint
from tests.supernet.tiny_space import TINY

HEADER = Header(space=TINY, settings={"steps": 3}, data="shapes", data_sha256="0" * 64, step=2)


def test_a_supernet_comes_back_as_it_was(tmp_path: Path) -> None:
    supernet = fresh_supernet(TINY, seed=4)
    with torch.no_grad():
        for r in supernet.architecture_parameters():
            r.add_(torch.arange(len(r)))
    path = tmp_path / "new" / "folder" / "supernet.safetensors"
    sha256 = save_checkpoint(path, supernet_tensors(supernet), HEADER)
    assert len(sha256) == 64
    again = load_supernet(path)
    assert not again.training
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert load_checkpoint(path, Header)[1] == HEADER
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no partial file stays


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = supernet_tensors(fresh_supernet(TINY, seed=4))
    one, two = tmp_path / "one", tmp_path / "two"
    assert save_checkpoint(one, tensors, HEADER) == save_checkpoint(two, tensors, HEADER)
    assert one.read_bytes() == two.read_bytes()


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    save_checkpoint(path, supernet_tensors(fresh_supernet(TINY, seed=4)), HEADER)
    state = torch.random.get_rng_state()
    load_supernet(path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_optimiser_goes_on_beside_another_with_the_moments_it_had() -> None:
    """Eleven parameters, so that the numbers of their names have one digit and two."""

    def stepped(weights: list[torch.nn.Parameter], optimiser: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            for number, weight in enumerate(weights):
                weight.grad = torch.full_like(weight, 1.0 + number)
            optimiser.step()

    whole = [torch.nn.Parameter(torch.full((2,), float(number))) for number in range(11)]
    optimiser = torch.optim.AdamW(whole, lr=0.1)
    stepped(whole, optimiser, 3)
    found = optimiser_tensors("optimiser.one.", optimiser)
    assert {key.rsplit(".", 1)[0] for key in found} == {f"optimiser.one.{number}" for number in range(11)}
    assert found["optimiser.one.10.step"].item() == 3
    again = [torch.nn.Parameter(weight.detach().clone()) for weight in whole]
    other = torch.optim.AdamW(again, lr=0.1)
    stray = {"optimiser.two.0.step": torch.tensor(9.0), "supernet.stem": torch.zeros(1)}
    restore_optimiser("optimiser.one.", other, {name: tensor.clone() for name, tensor in (found | stray).items()})
    stepped(whole, optimiser, 1)
    stepped(again, other, 1)
    assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"nowhere is no usable checkpoint: it cannot be read .*Train again"):
        load_supernet(tmp_path / "nowhere")


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    save_checkpoint(path, {"a": torch.zeros(1000)}, HEADER)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match="it cannot be read"):
        load_supernet(path)


def test_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(BadCheckpoint, match="it has no header of this product"):
        load_supernet(path)
    save_file({"a": torch.zeros(1)}, path, {"heatnas": '{"format": 1}'})
    with pytest.raises(BadCheckpoint, match="its header is of another kind or version"):
        load_supernet(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    save_checkpoint(path, {"a": torch.zeros(1)}, HEADER.model_copy(update={"format": 2}))
    with pytest.raises(BadCheckpoint, match="its format is 2, this version reads 1"):
        load_supernet(path)


def test_tensors_of_another_space_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    tensors = supernet_tensors(fresh_supernet(TINY, seed=4))
    tensors.popitem()
    save_checkpoint(path, tensors, HEADER)
    with pytest.raises(BadCheckpoint, match="its tensors do not fit its search space"):
        load_supernet(path)


def test_the_hash_is_of_the_bytes_that_were_loaded_even_if_a_training_replaces_the_file(tmp_path: Path) -> None:
    path = bold_checkpoint(tmp_path / "best.safetensors")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_detector(path)
    found = load_any_run(path)
    path.write_bytes(b"the next epoch")
    assert (loaded.sha256, found.sha256) == (before, before)
    weights = loaded.detector.state_dict()
    assert all(torch.equal(tensor, weights[name.removeprefix(DETECTOR)]) for name, tensor in found.tensors.items())


def test_a_backbone_in_the_place_of_a_detector_is_called_one_and_what_it_is_for_is_said(tmp_path: Path) -> None:
    header = BackboneHeader(
        space=TINY, config=TINY.largest(), classes=("cat", "dog"), recipe={}, data="photos", data_sha256="0" * 64,
        version="0.0.0",
    )  # fmt: skip
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, {f"{BACKBONE}stem": torch.zeros(1)}, header)
    with pytest.raises(BadCheckpoint) as refused:
        load_detector(path)
    assert str(refused.value) == (
        f"{path} is no usable checkpoint: it holds a backbone of `heatnas pretrain`, and a detector is wanted. "
        "Start one from it with `heatnas train --init`, or name another file."
    )
    assert load_any_run(path).header == header
