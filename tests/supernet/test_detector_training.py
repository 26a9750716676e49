import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from supernet.checkpoint import DetectorHeader, load_checkpoint, load_detector, save_checkpoint
from supernet.curves import DETECTOR_CHART, Curves, DetectorEpoch
from supernet.detector_training import TrainedDetector, train_detector
from supernet.errors import BadCheckpoint, CheckpointMismatch, TrainingDiverged
from supernet.evaluation import Evaluation, evaluate_module
from supernet.recipe import Recipe, named_recipe
from supernet.training_run import BEST, LAST, RUN, Progress
from tests.supernet.tiny_space import TINY, tiny_data
from tests.supernet.trainings import FROZEN, RECIPE, splits

CONFIG = TINY.largest()


class PulledPlug(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("detector") / "data")


def train(
    data: Path,
    out: Path,
    recipe: Recipe = RECIPE,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    init: Path | None = None,
) -> TrainedDetector:
    return train_detector(
        TINY, CONFIG, splits(data), out, recipe=recipe, progress=progress, init=init, clock=count(0.0).__next__
    )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedDetector:
    """A run that was not interrupted."""
    return train(data, tmp_path_factory.mktemp("whole"))


def without_times(rows: tuple[DetectorEpoch, ...]) -> list[DetectorEpoch]:
    return [row.model_copy(update={"seconds": 0, "data_seconds": 0, "evaluation_seconds": 0}) for row in rows]


def equal(one: Path, other: Path) -> bool:
    mine, theirs = (load_checkpoint(path, DetectorHeader)[0] for path in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_each_epoch_leaves_its_row(whole: TrainedDetector) -> None:
    assert [(row.epoch, row.step) for row in whole.rows] == [(1, 3), (2, 6), (3, 9)]
    assert [row.ap is None for row in whole.rows] == [True, False, False]  # every second epoch, and the last
    for row in whole.rows:
        assert row.loss == pytest.approx(row.focal + row.giou)
        assert np.isfinite(row.loss)
        assert row.seconds > row.data_seconds + row.evaluation_seconds > 0
    assert whole.rows[-1].learning_rate < whole.rows[0].learning_rate == 1e-3
    assert whole.rows[-1].loss < whole.rows[0].loss


def test_the_curves_are_kept_as_csv_picture_and_events(whole: TrainedDetector) -> None:
    folder = whole.last.parent
    assert tuple(Curves(folder, DETECTOR_CHART, epochs=3).rows) == whole.rows
    with Image.open(folder / "curve.png") as picture:
        assert picture.size == (880, 660)
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (row.epoch, pytest.approx(row.loss)) for row in whole.rows
    ]
    assert [event.step for event in events.Scalars("ap50")] == [2, 3]


def test_the_file_is_the_detector_that_was_judged(whole: TrainedDetector, data: Path) -> None:
    detector, header, _ = load_detector(whole.last)
    assert not detector.training
    assert (header.config, header.space) == (CONFIG, TINY)
    assert header.classes == ("disc", "ring", "cross")
    assert header.category_ids == (1, 2, 3)
    assert Recipe.model_validate(header.recipe) == RECIPE
    assert (header.epoch, header.step) == (3, 9)
    again = evaluate_module(detector, detector.head.anchors, splits(data).held_out)
    assert header.metrics is not None
    assert Evaluation.model_validate(header.metrics) == again
    assert load_detector(whole.best)[1].epoch in {2, 3}


def test_the_average_is_kept_not_the_last_step(whole: TrainedDetector) -> None:
    kept, _ = load_checkpoint(whole.last, DetectorHeader)
    state, _ = load_checkpoint(whole.last.parent / RUN, DetectorHeader)
    name = "detector.blocks.stem.third.conv.weight"
    assert torch.equal(kept[name], state[f"average.module.{name.removeprefix('detector.')}"])
    assert not torch.equal(kept[name], state[name])


@pytest.mark.parametrize("plug", [1, 4, 6, 8])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    plug: int, data: Path, tmp_path: Path, whole: TrainedDetector
) -> None:
    steps: list[int] = []

    def pull(progress: Progress) -> None:
        steps.append(progress.step)
        if len(steps) == plug:
            raise PulledPlug

    with pytest.raises(PulledPlug):
        train(data, tmp_path, progress=pull)
    ended = train(data, tmp_path, progress=pull)
    lost = (plug - 1) % 3 + 1  # at most the epoch under way
    assert steps[plug:] == list(range(plug - lost + 1, 10))
    assert without_times(ended.rows) == without_times(whole.rows)
    assert equal(ended.last, whole.last)
    assert equal(ended.best, whole.best)
    assert equal(ended.last.with_name(RUN), whole.last.with_name(RUN))  # averages and moments too


def test_a_finished_run_is_read_back(data: Path, tmp_path: Path) -> None:
    short = RECIPE.model_copy(update={"epochs": 1})
    first = train(data, tmp_path, short)
    steps: list[Progress] = []
    assert train(data, tmp_path, short, progress=steps.append) == first
    assert steps == []


def test_a_run_of_other_settings_is_not_taken_up(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, RECIPE.model_copy(update={"epochs": 1}))
    with pytest.raises(CheckpointMismatch, match=r"belongs to a run that differs in epochs \(1, now 3\)"):
        train(data, tmp_path)


def test_progress_tells_epoch_step_and_time_left(data: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    train(data, tmp_path, progress=told.append)
    assert [(one.epoch, one.epochs, one.step, one.total) for one in told] == [
        ((step + 2) // 3, 3, step, 9) for step in range(1, 10)
    ]
    assert told[0].seconds_left is None
    assert told[-1].seconds_left == 0


def test_micro_batches_learn_what_the_whole_batch_learns(data: Path, tmp_path: Path) -> None:
    whole = train(data, tmp_path / "whole", FROZEN)
    parts = train(data, tmp_path / "parts", FROZEN.model_copy(update={"micro_batch": 3}))
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)


def test_two_processes_learn_what_one_learns_from_the_doubled_batch_and_go_on_after_a_kill(
    data: Path, tmp_path: Path
) -> None:
    losses: list[float] = []
    alone = train(data, tmp_path / "alone", FROZEN, progress=lambda progress: losses.append(progress.loss))
    done = torchrun(data, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    size, *shared = json.loads((tmp_path / "two" / "losses.json").read_text())
    assert size == 2
    assert shared == pytest.approx(losses, rel=1e-4)
    assert load_detector(tmp_path / "two" / LAST)[1].step == load_detector(alone.last)[1].step == 6

    assert torchrun(data, tmp_path / "killed", "4").returncode != 0  # in the second epoch
    assert load_checkpoint(tmp_path / "killed" / RUN, DetectorHeader)[1].epoch == 1
    done = torchrun(data, tmp_path / "killed")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "killed" / "losses.json").read_text()) == [2, *shared[3:]]
    for name in (LAST, RUN):
        assert equal(tmp_path / "killed" / name, tmp_path / "two" / name)


def torchrun(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """Run `train_process.py` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    return subprocess.run(
        [*command, "tests.supernet.train_process", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip


def test_a_loss_that_is_no_number_ends_the_run(data: Path, tmp_path: Path, whole: TrainedDetector) -> None:
    tensors, header = load_checkpoint(whole.last, DetectorHeader)
    tensors["detector.blocks.stem.first.norm.weight"].fill_(torch.nan)
    save_checkpoint(tmp_path / "spoilt.safetensors", tensors, header)
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 0: lower the learning rate"):
        train(data, tmp_path / "run", init=tmp_path / "spoilt.safetensors")
    assert not (tmp_path / "run" / BEST).exists()


def test_frozen_statistics_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    ended = train(data, tmp_path, FROZEN.model_copy(update={"ema": 0.0, "epochs": 1}))
    tensors, _ = load_checkpoint(ended.last, DetectorHeader)
    means = [tensor for name, tensor in tensors.items() if name.endswith("running_mean")]
    assert means
    assert not any(mean.any() for mean in means)


def test_checkpoints_of_another_kind_are_refused(tmp_path: Path, whole: TrainedDetector) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(BadCheckpoint, match="it cannot be read"):
        load_detector(tmp_path / "no.safetensors")
    from supernet.checkpoint import load_supernet  # noqa: PLC0415

    with pytest.raises(BadCheckpoint, match="its header is of another kind or version"):
        load_supernet(whole.last)


def test_the_papers_recipes() -> None:
    one, three = named_recipe("1x"), named_recipe("3x")
    assert (one.epochs, one.milestones, three.epochs, three.milestones) == (12, (8, 11), 36, (27, 33))
    for recipe in (one, three):
        assert (recipe.learning_rate, recipe.batch, recipe.weight_decay, recipe.warmup_steps) == (1e-4, 32, 0.05, 500)
        assert (recipe.drop_path, recipe.ema) == (0.2, 0.9998)
    assert one.augmentation.shift_px == 32


def test_a_run_of_other_length_falls_at_the_same_shares_of_it() -> None:
    one, three = named_recipe("1x"), named_recipe("3x")
    assert (one.lasting(6).epochs, one.lasting(6).milestones) == (6, (4, 5.5))
    assert three.lasting(72).milestones == (54, 66)  # and not for 39 epochs at a hundredth
    assert one.lasting(6).milestone_steps(101) == [404, 556]
    assert one.lasting(1).milestone_steps(600) == [400, 550]
    assert (one.lasting(12), three.lasting(36)) == (one, three)
    assert named_recipe("small").lasting(20).milestones == ()


def test_tokens_are_left_out_little_by_little(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr("supernet.detector_training.set_sparsity", lambda _, share: seen.append(share))
    train(data, tmp_path, RECIPE.model_copy(update={"epochs": 2, "batch": 4}))
    assert seen[0] == 0
    assert seen[len(seen) // 2] == pytest.approx(0.5)
    assert seen == sorted(seen)
    assert len(seen) == 6
