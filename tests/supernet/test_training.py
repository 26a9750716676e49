import json
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.blocks import Kind
from nas.config import Config
from supernet.batch_norm import reestimate_batch_norm
from supernet.checkpoint import Header, load_checkpoint, load_supernet
from supernet.dataset import CocoDataset
from supernet.errors import BadDataset, CheckpointMismatch, TrainingDiverged
from supernet.evaluation import images_to_floats
from supernet.extraction import extract
from supernet.layers.global_attention import Attention
from supernet.mixture_scores import evaluate_mixture, reestimate_mixture
from supernet.sandwich import Sandwich, sample_config
from supernet.supernet import Supernet
from supernet.training import Progress, TrainedSupernet, TrainSettings, fresh_supernet, train_supernet
from tests.supernet.block_samples import NANO
from tests.supernet.tiny_space import TINY, tiny_data

SETTINGS = TrainSettings(
    steps=6, batch=4, mixture_every=2, ranking_steps=2, checkpoint_seconds=0, logits_share=0.3, learning_rate=1e-3
)


class _PulledPlug(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedSupernet, list[Progress]]:
    """Train once without interruption, by a clock that ticks a second at each look."""
    told: list[Progress] = []
    out = tmp_path_factory.mktemp("whole")
    return train_supernet(TINY, data, out, settings=SETTINGS, progress=told.append, clock=_ticking()), told


def _ticking() -> Callable[[], float]:
    return count(0.0).__next__


def _train(data: Path, out: Path, **changes: object) -> TrainedSupernet:
    settings = SETTINGS.model_copy(update=changes)
    return train_supernet(TINY, data, out, settings=settings, progress=lambda _: None)


def test_every_step_is_told_with_the_time_left(whole: tuple[TrainedSupernet, list[Progress]]) -> None:
    _, told = whole
    assert [(progress.step, progress.total) for progress in told] == [(step, 8) for step in range(1, 9)]
    assert all(np.isfinite(progress.loss) for progress in told)
    assert told[0].seconds_left is None
    assert told[-1].seconds_left == 0
    assert told[3].seconds_left > told[6].seconds_left > 0


def test_the_result_is_bound_to_its_file(whole: tuple[TrainedSupernet, list[Progress]], data: Path) -> None:
    trained, told = whole
    assert trained.checkpoint.name == "supernet.safetensors"
    assert [file.name for file in trained.checkpoint.parent.iterdir()] == ["supernet.safetensors"]
    provenance = trained.importance.check(TINY).provenance
    assert provenance.checkpoint_sha256 == trained.sha256
    assert (provenance.seed, provenance.steps, provenance.noise) == (0, 6, "gumbel")
    assert provenance.data.startswith("data ")
    assert provenance.data.endswith(CocoDataset(data, "train", image=(64, 64)).content_sha256[:16])
    assert trained.metrics.images == 4
    assert trained.metrics.loss == pytest.approx(told[-1].loss)


def test_weights_and_logits_have_moved(whole: tuple[TrainedSupernet, list[Progress]]) -> None:
    fresh, supernet = fresh_supernet(TINY, seed=0), load_supernet(whole[0].checkpoint)
    for name, weight in supernet.named_parameters():
        # A single candidate has nothing to decide, and in a map of one cell no key has another position.
        idle = (name.startswith("logits") and len(weight) == 1) or name.endswith("swmsa.position.table")
        assert torch.equal(weight, dict(fresh.named_parameters())[name]) is idle, name


@pytest.mark.parametrize("plug", [1, 4, 8])
def test_an_interrupted_training_ends_with_the_same_bits(
    whole: tuple[TrainedSupernet, list[Progress]], data: Path, tmp_path: Path, plug: int
) -> None:
    def pull(progress: Progress) -> None:
        if progress.step == plug:
            raise _PulledPlug

    with pytest.raises(_PulledPlug):
        train_supernet(TINY, data, tmp_path, settings=SETTINGS, progress=pull)
    saved = tmp_path / "training.safetensors"
    assert (load_checkpoint(saved, Header)[1].step if saved.exists() else 0) == (plug - 1) // 2 * 2
    told: list[Progress] = []
    again = train_supernet(TINY, data, tmp_path, settings=SETTINGS, progress=told.append)
    assert told[0].step == (plug - 1) // 2 * 2 + 1
    assert [progress.loss for progress in told] == [progress.loss for progress in whole[1][told[0].step - 1 :]]
    ours, theirs = load_supernet(again.checkpoint).state_dict(), load_supernet(whole[0].checkpoint).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert again.importance.stages == whole[0].importance.stages


def test_a_finished_training_is_read_back_without_a_step(
    whole: tuple[TrainedSupernet, list[Progress]], data: Path
) -> None:
    told: list[Progress] = []
    out = whole[0].checkpoint.parent
    again = train_supernet(TINY, data, out, settings=SETTINGS, progress=told.append)
    assert told == []
    assert again == whole[0]


def test_another_seed_is_another_supernet(
    whole: tuple[TrainedSupernet, list[Progress]], data: Path, tmp_path: Path
) -> None:
    other = _train(data, tmp_path, seed=1, steps=2)
    assert other.importance.stages != whole[0].importance.stages


def test_a_folder_of_another_run_is_refused_unless_told_to_start_over(data: Path, tmp_path: Path) -> None:
    _train(data, tmp_path, steps=1)
    with pytest.raises(CheckpointMismatch, match=r"differs in settings .*'steps': 1.* now .*'steps': 2.*resume=False"):
        _train(data, tmp_path, steps=2)
    over = train_supernet(
        TINY, data, tmp_path, settings=SETTINGS.model_copy(update={"steps": 2}), progress=lambda _: None, resume=False
    )
    assert load_checkpoint(over.checkpoint, Header)[1].step == 3


def test_another_space_is_refused(data: Path, tmp_path: Path) -> None:
    _train(data, tmp_path, steps=1)
    other = TINY.model_copy(update={"name": "other"})
    with pytest.raises(CheckpointMismatch, match=rf"differs in space \(tiny {TINY.id}, now {other.id}\)"):
        train_supernet(
            other, data, tmp_path, settings=SETTINGS.model_copy(update={"steps": 1}), progress=lambda _: None
        )


def test_first_the_weights_move_then_r_alone(
    whole: tuple[TrainedSupernet, list[Progress]], data: Path, tmp_path: Path
) -> None:
    weights_only = load_supernet(_train(data, tmp_path, logits_share=0.0).checkpoint)
    for (name, weight), (_, settled) in zip(
        weights_only.named_parameters(), load_supernet(whole[0].checkpoint).named_parameters(), strict=True
    ):
        if name.startswith("logits"):
            assert not weight.any(), name
        else:
            assert torch.equal(weight, settled), name


@pytest.mark.parametrize(("steps", "total"), [(1, 2), (7, 11), (320, 480)])
def test_r_has_its_share_of_the_steps_and_at_least_one(steps: int, total: int) -> None:
    assert TrainSettings(steps=steps).total_steps == total


def test_each_step_of_r_has_the_same_length(whole: tuple[TrainedSupernet, list[Progress]]) -> None:
    logits = torch.cat([*load_supernet(whole[0].checkpoint).architecture_parameters()])
    assert 0 < logits.norm().item() <= 2 * SETTINGS.logits_learning_rate


def test_a_step_in_bf16_is_a_rounded_step_in_fp32(data: Path, tmp_path: Path) -> None:
    rounded, exact, other = (
        _train(data, tmp_path / name, steps=1, precision=precision, seed=seed)
        for name, precision, seed in (("rounded", "bf16", 0), ("exact", "fp32", 0), ("other", "fp32", 1))
    )
    assert rounded.metrics.loss != exact.metrics.loss
    assert rounded.metrics.loss == pytest.approx(exact.metrics.loss, rel=0.02)
    assert rounded.metrics.loss != pytest.approx(other.metrics.loss, rel=0.02)
    assert {weight.dtype for weight in load_supernet(rounded.checkpoint).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({}, "fp32"), ({"avx512_bf16": False}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")],
)
def test_auto_is_bf16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert TrainSettings().computed_in == precision
    assert TrainSettings(precision="fp32").computed_in == "fp32"
    assert TrainSettings(precision="bf16").computed_in == "bf16"


def test_a_pytorch_that_does_not_tell_what_the_processor_has_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert TrainSettings().computed_in == "fp32"


def test_a_diverging_loss_stops_the_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step \d+: lower the learning rate"):
        _train(data, tmp_path, learning_rate=1e30, warmup=0.0, clip_norm=1e30)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=r"annotations/train.json cannot be read"):
        _train(tmp_path / "nothing", tmp_path / "out")


def test_drawn_subnets_are_legal_and_reach_every_choice() -> None:
    supernet = fresh_supernet(TINY, seed=0)
    configs = [sample_config(supernet, turn, seed=3) for turn in range(60)]
    assert all(TINY.contains(config) for config in configs)
    assert {config.widths for config in configs} == {(32, 32, 32, 32), (32, 32, 32, 64), (32, 32, 64, 64)}
    assert {config.stages[0].slots for config in configs} == {(Kind.REP_CNN,), (Kind.WMSA,)}
    assert {config.stages[3].global_kind for config in configs} == {Kind.XCA, Kind.ATTENTION}
    assert configs == [sample_config(supernet, turn, seed=3) for turn in range(60)]
    assert configs != [sample_config(supernet, turn, seed=4) for turn in range(60)]


def test_each_kind_has_its_turn_equally_often() -> None:
    supernet = fresh_supernet(NANO, seed=0)
    configs = [sample_config(supernet, turn, seed=0) for turn in range(4 * 3 * 20)]
    for slot in range(3):
        counts = Counter(config.stages[2].slots[slot] for config in configs)
        if slot:
            assert set(counts.values()) == {60}
        else:  # stands in when all three slots are empty
            assert 60 <= min(counts[kind] for kind in NANO.stages[2].local_kinds) <= max(counts.values()) <= 66
    assert set(Counter(config.stages[0].slots for config in configs).values()) == {80}
    assert set(Counter(config.stages[3].global_kind for config in configs).values()) == {120}


def test_subnet_steps_take_their_turns_without_gaps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []

    def spy(supernet: Supernet, turn: int, *, seed: int) -> Config:
        turns.append(turn)
        return sample_config(supernet, turn, seed=seed)

    monkeypatch.setattr("supernet.training.sample_config", spy)
    _train(data, tmp_path, steps=9, mixture_every=3)
    assert turns == [0, 1, 2, 3, 4, 5]


def test_a_subnet_on_slices_computes_what_the_extracted_one_does(data: Path) -> None:
    supernet = fresh_supernet(TINY, seed=0).train()
    with torch.no_grad():
        for weight in supernet.weight_parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    sample = CocoDataset(data, "train", image=(64, 64))
    images = torch.from_numpy(images_to_floats(np.stack([sample[i].pixels for i in range(4)])))
    sandwich = Sandwich(supernet)
    for turn in range(6):
        config = sample_config(supernet, turn, seed=0)
        ours = sandwich.predict(config.widths, images, supernet.one_hot_gates(config), config.prediction_stride)
        theirs = extract(supernet, config)(images)
        # The gates multiply by exactly 1.
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_gradients_of_a_subnet_reach_the_slices_alone() -> None:
    supernet = fresh_supernet(TINY, seed=0).train()
    config = TINY.smallest()
    sandwich = Sandwich(supernet)
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    prediction = sandwich.predict(config.widths, torch.rand(2, 3, 64, 64), supernet.one_hot_gates(config), 32)
    sum(part.sum() for part in prediction).backward()
    unused = supernet.blocks["stage1_slot0"].candidates[Kind.WMSA.value]
    assert all(weight.grad is None for weight in unused.parameters())
    entry = supernet.blocks["stage4_entry"].conv.conv.weight
    assert entry.grad is not None
    touched = entry.grad.abs().sum((1, 2, 3)) > 0
    assert int(touched.sum()) == 32  # of 64 channels
    assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())


def test_narrow_subnets_keep_their_channels_until_the_next_ranking() -> None:
    supernet = fresh_supernet(TINY, seed=0).train()
    sandwich, config, images = Sandwich(supernet), TINY.smallest(), torch.rand(2, 3, 64, 64)
    gates = supernet.one_hot_gates(config)

    def touched() -> list[int]:
        supernet.zero_grad()
        sum(part.sum() for part in sandwich.predict(config.widths, images, gates, 32)).backward()
        gradient = supernet.blocks["stage4_entry"].conv.conv.weight.grad
        assert gradient is not None
        return gradient.abs().sum((1, 2, 3)).nonzero().flatten().tolist()

    first = touched()
    with torch.no_grad():
        weight = supernet.blocks["stage4_entry"].conv.norm.weight
        weight[torch.tensor([channel for channel in range(64) if channel not in first])] += 100
    assert touched() == first
    sandwich.rank()
    assert not set(touched()) & set(first)


@pytest.mark.parametrize("logits_share", [0.3, 0.0])
def test_sparse_attention_fades_in_with_the_weights_in_narrow_subnets_too(
    logits_share: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structure = TINY.structure.model_copy(update={"sam2_kind": Kind.SPARSE_ATTENTION, "keep": 0.5})
    kept: list[list[int]] = [[]]  # of the 64 tokens of SAM2, by step
    original = Attention._sparse_mlp

    def spy(self: Attention, x: torch.Tensor, **given: Any) -> torch.Tensor:
        kept[-1].append(given["kept"])
        return original(self, x, **given)

    monkeypatch.setattr(Attention, "_sparse_mlp", spy)
    settings = SETTINGS.model_copy(update={"logits_share": logits_share})
    sparse = TINY.model_copy(update={"structure": structure})
    train_supernet(sparse, data, tmp_path, settings=settings, progress=lambda _: kept.append([]))
    *steps, judged = kept
    faded = [[64], [62], [56], [48], [40], [34]]
    assert steps == faded + [[32]] * (settings.total_steps - settings.steps)
    assert set(judged) == {32}  # statistics of BatchNorm are those of what is deployed


BOTH = TINY.model_copy(update={"strides": (16, 32)})


def test_both_prediction_maps_are_trained_and_compared_on_training_images(data: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 8})
    trained = train_supernet(BOTH, data, tmp_path, settings=settings, progress=lambda _: None)
    fresh, supernet = fresh_supernet(BOTH, seed=0), load_supernet(trained.checkpoint)
    for name in ("head_classify", "head16_classify", "tcm_project1_linear", "tcm16_project1_linear"):
        module, layer = name.rsplit("_", 1)
        before, after = (dict(one.blocks[module].get_submodule(layer).named_parameters()) for one in (fresh, supernet))
        assert any(not torch.equal(before[key], after[key]) for key in before), name
    assert trained.importance.check(BOTH).stride_ap50 == trained.metrics.stride_ap50
    assert set(trained.metrics.stride_ap50 or ()) == {16, 32}
    again = train_supernet(BOTH, data, tmp_path, settings=settings, progress=lambda _: None)
    assert again.importance == trained.importance


def test_statistics_are_estimated_once_for_all_strides(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.nn.Module] = []

    def spy(module: torch.nn.Module, train: CocoDataset, **how: Any) -> None:
        seen.append(module)
        reestimate_batch_norm(module, train, **how)

    monkeypatch.setattr("supernet.mixture_scores.reestimate_batch_norm", spy)
    settings = SETTINGS.model_copy(update={"steps": 2})
    trained = train_supernet(BOTH, data, tmp_path, settings=settings, progress=lambda _: None)
    assert len(seen) == 1
    supernet, train = load_supernet(trained.checkpoint), CocoDataset(data, "train", image=(64, 64))
    found = {}
    for stride in (16, 32):  # each with statistics of its own
        reestimate_mixture(supernet, train)
        found[stride] = evaluate_mixture(supernet, train, stride=stride).ap50
    assert trained.metrics.stride_ap50 == found


def test_strides_that_cannot_be_compared_are_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    """COCO defines no AP50 where nothing is to be found: it is not 0."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    path = folder / "annotations" / "train.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"annotations": [note | {"iscrowd": 1} for note in found["annotations"]]}))
    told: list[Progress] = []
    message = (
        "none of the 12 images of train on which prediction strides are compared shows an object. "
        "Annotate some of them, or train a space with one stride"
    )
    with pytest.raises(BadDataset, match=message):
        train_supernet(BOTH, folder, tmp_path / "out", settings=SETTINGS, progress=told.append)
    assert told == []


def test_each_stride_of_the_mixture_has_its_turn(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Supernet.forward

    def spy(self: Supernet, images: torch.Tensor, gates: object, stride: int) -> object:
        if self.training and self.frame.stride == 16 and len(images) == SETTINGS.batch:
            seen.append(stride)
        return original(self, images, gates, stride)  # type: ignore[arg-type]

    monkeypatch.setattr(Supernet, "forward", spy)
    monkeypatch.setattr("supernet.training.stride_ap50", lambda *_: {16: 0.2, 32: 0.1})
    train_supernet(
        BOTH, data, tmp_path, settings=SETTINGS.model_copy(update={"mixture_every": 1}), progress=lambda _: None
    )
    assert seen[:8] == [16, 32] * 4


def test_settings_survive_json() -> None:
    assert TrainSettings.model_validate_json(SETTINGS.model_dump_json()) == SETTINGS
