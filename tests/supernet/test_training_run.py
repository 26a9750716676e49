"""What a folder of a run promises: no kill, at whatever write, loses more than an epoch or mixes two states."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.values import Value
from supernet.checkpoint import (
    BACKBONE,
    BackboneHeader,
    DetectorHeader,
    load_any_run,
    load_checkpoint,
    load_detector,
)
from supernet.curves import BACKBONE_CHART, BackboneEpoch, Epoch
from supernet.dataset import CocoDataset
from supernet.detector_training import Splits, TrainedDetector, train_detector
from supernet.errors import BadCheckpoint, BadCurve, CheckpointMismatch, FolderInUse
from supernet.loading import Loader
from supernet.pretraining import LabelledBatch
from supernet.recipe import Recipe
from supernet.stepping import Loss
from supernet.training_run import BEST, LAST, RUN, Progress, Task, run_training
from tests.supernet.tiny_space import TINY, tiny_data
from tests.supernet.trainings import RECIPE, splits

SHORT = RECIPE.model_copy(update={"epochs": 2, "evaluate_every": 1})
WRITES = [LAST, BEST, "curve.csv", "curve.png", RUN] * 2
"""Files that two epochs rename into place; neither has found anything, and the later weights have learned more."""


class PulledPlug(BaseException):
    pass


class _Plug:
    """Stops the process right before the rename of this number, as often as it is set; the hook itself stays."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.left is None or event != "os.rename":
            return
        if self.left == 0:
            self.left = None
            raise PulledPlug
        self.left -= 1
        self.seen.append(Path(str(arguments[1])).name)

    @contextmanager
    def before(self, number: int) -> Iterator[None]:
        self.left, self.seen = number, []
        try:
            yield
        finally:
            self.left = None


PLUG = _Plug()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("run") / "data")


def train(data: Path | Splits, out: Path, recipe: Recipe = SHORT, steps: list[int] | None = None) -> TrainedDetector:
    def note(progress: Progress) -> None:
        if steps is not None:
            steps.append(progress.step)

    found = data if isinstance(data, Splits) else splits(data)
    return train_detector(TINY, TINY.largest(), found, out, recipe=recipe, progress=note, clock=count(0.0).__next__)


def contents(path: Path) -> tuple[dict[str, torch.Tensor], DetectorHeader]:
    return load_checkpoint(path, DetectorHeader)


def assert_equal(one: Path, other: Path) -> None:
    """Two checkpoints are equal, tensor by tensor, bit by bit, and say the same of themselves."""
    (mine, my_header), (theirs, their_header) = contents(one), contents(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert my_header == their_header


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedDetector:
    with PLUG.before(10**6):
        found = train(data, tmp_path_factory.mktemp("whole"))
        assert PLUG.seen == WRITES
    return found


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4, 6, 7, 9])
def test_a_kill_between_two_writes_costs_an_epoch_at_most(
    writes: int, data: Path, tmp_path: Path, whole: TrainedDetector
) -> None:
    with pytest.raises(PulledPlug), PLUG.before(writes):
        train(data, tmp_path)
    assert list(tmp_path.glob(".*.partial")) == []
    steps: list[int] = []
    ended = train(data, tmp_path, steps=steps)
    finished = WRITES[:writes].count(RUN)
    assert steps == list(range(3 * finished + 1, 7))
    assert [row.epoch for row in ended.rows] == [1, 2]
    for name in (LAST, BEST, RUN):
        assert_equal(tmp_path / name, whole.last.with_name(name))


def test_what_goes_on_holds_the_average_and_both_moments(whole: TrainedDetector) -> None:
    state, header = contents(whole.last.with_name(RUN))
    weights = [name.removeprefix("detector.") for name in state if name.startswith("detector.")]
    assert {f"average.module.{name}" for name in weights} < state.keys()
    assert state["average.n_averaged"].item() == header.step == 6
    moments = [name for name in state if name.startswith("optimiser.")]
    assert {name.rsplit(".", 1)[1] for name in moments} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(state[name].item() == 6 for name in moments if name.endswith(".step"))


def test_what_a_run_goes_on_from_is_no_detector(whole: TrainedDetector) -> None:
    """Its weights are those before averaging: a score or an export of it would be of another network."""
    kept = whole.last.with_name(RUN)
    for read in (load_detector, load_any_run):
        with pytest.raises(BadCheckpoint) as refused:
            read(kept)
        assert str(refused.value) == (
            f"{kept} is no usable checkpoint: it is what a run goes on from, not the weights that it keeps. "
            "Name best.safetensors or last.safetensors beside it."
        )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_run_in_16_bits_goes_on_with_the_same_scale_of_its_loss(precision: str, data: Path, tmp_path: Path) -> None:
    recipe = SHORT.model_copy(update={"precision": precision, "evaluate_every": 2})
    whole = train(data, tmp_path / "whole", recipe)
    with pytest.raises(PulledPlug), PLUG.before(4):  # four files an epoch without an evaluation
        train(data, tmp_path / "killed", recipe)
    ended = train(data, tmp_path / "killed", recipe)
    assert_equal(ended.last.with_name(RUN), whole.last.with_name(RUN))
    state, _ = contents(ended.last.with_name(RUN))
    assert ("loss_scale_age" in state) == (precision == "fp16")
    if precision == "fp16":
        assert state["loss_scale_age"].item() > 0


def test_a_process_killed_for_good_while_it_writes_goes_on_in_another(
    data: Path, tmp_path: Path, whole: TrainedDetector
) -> None:
    """No exception, no clean-up: SIGKILL, right before the first epoch's last file stands."""
    program = f"""
import os, signal, sys
from pathlib import Path
from tests.supernet.test_training_run import train

def kill(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("{RUN}"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
train(Path({str(data)!r}), Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (tmp_path / LAST).exists()
    assert not (tmp_path / RUN).exists()
    assert [path.name.split(".")[1] for path in tmp_path.glob(".*.partial")] == [RUN.split(".")[0]]
    ended = train(data, tmp_path)
    assert list(tmp_path.glob(".*.partial")) == []
    assert_equal(ended.last.with_name(RUN), whole.last.with_name(RUN))


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        (lambda text: text.replace(b",", b";"), 2, r"epoch: Field required"),
        (lambda text: text.replace(b"\n1,3,", b"\n1,three,"), 2, "step: Input should be a valid integer"),
        (lambda text: text + b"my notes\n", 3, "epoch: Input should be a valid integer"),
        (lambda text: text + b"1,3,0,0,0,0,0,0,0,0,0,0,0,0\n", 3, "more columns: Extra inputs are not permitted"),
        (lambda text: text.decode().encode("utf-16"), 1, "'utf-8' codec can't decode byte 0xff"),
    ],
    ids=["semicolons", "words", "more lines", "more columns", "other encoding"],
)
def test_a_curve_that_another_program_rewrote_is_named_with_its_line(
    change: Callable[[bytes], bytes], line: int, reason: str, data: Path, tmp_path: Path
) -> None:
    once = SHORT.model_copy(update={"epochs": 1})
    train(data, tmp_path, once)
    curve = tmp_path / "curve.csv"
    curve.write_bytes(change(curve.read_bytes()))
    with pytest.raises(BadCurve) as refused:
        train(data, tmp_path, once)
    assert str(refused.value).startswith(f"line {line} of {curve} is no epoch of this training ({reason}")
    assert str(refused.value).endswith("): remove the file, the weights are not affected.")
    curve.unlink()
    assert train(data, tmp_path, once).rows == ()


def test_two_runs_in_one_folder_do_not_remove_what_the_other_is_writing(data: Path, tmp_path: Path) -> None:
    """The second is refused while the first lives; a kill frees the folder at once, with children that load images."""
    program = f"""
import sys
from pathlib import Path
from supernet.detector_training import train_detector
from tests.supernet.test_training_run import SHORT, TINY, splits

def stop(*_):
    print("trains", flush=True)
    sys.stdin.read()

data, out = Path({str(data)!r}), Path({str(tmp_path)!r})
train_detector(TINY, TINY.largest(), splits(data), out, recipe=SHORT, workers=1, progress=stop)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "trains\n"
            writing = tmp_path / f".{RUN}.{first.pid}.partial"
            writing.write_bytes(b"half of it")
            with pytest.raises(FolderInUse) as refused:
                train(data, tmp_path)
            assert str(refused.value) == (
                f"another process trains in {tmp_path}: wait for it or stop it, or give this run a folder of its own."
            )
            assert writing.exists()
        finally:
            first.kill()
    assert len(train(data, tmp_path).rows) == 2
    assert not writing.exists()


def test_the_leavings_of_another_run_are_not_mixed_in(data: Path, tmp_path: Path) -> None:
    with pytest.raises(PulledPlug), PLUG.before(WRITES.index(RUN)):  # all but what takes it up
        train(data, tmp_path)
    other = SHORT.model_copy(update={"seed": 1})
    with pytest.raises(CheckpointMismatch, match=rf"{LAST} belongs to a run that differs in seed \(0, now 1\)"):
        train(data, tmp_path, other)
    (tmp_path / LAST).unlink()
    with pytest.raises(CheckpointMismatch, match=rf"{BEST} belongs to a run") as refused:
        train(data, tmp_path, other)
    # Advice that a caller of this training can follow: there is no `resume` to pass, here or on the command line.
    assert str(refused.value).endswith(f": give this run another folder, or remove {tmp_path} to start over.")


def without_objects(data: Path, folder: Path) -> Splits:
    """The data with nothing annotated in the held-out split: COCO defines no AP there."""
    shutil.copytree(data, folder)
    path = folder / "annotations" / "val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    return Splits("empty", CocoDataset(folder, "train", image=None), CocoDataset(folder, "val", image=(64, 64)))


def test_where_no_epoch_can_be_told_better_the_latest_weights_are_the_best(data: Path, tmp_path: Path) -> None:
    empty = without_objects(data, tmp_path / "data")
    ended = train(empty, tmp_path / "run")
    assert [row.ap for row in ended.rows] == [None, None]
    assert contents(ended.best)[1].epoch == 2
    assert_equal(ended.best, ended.last)


def test_a_run_judged_on_another_held_out_split_is_not_taken_up(data: Path, tmp_path: Path) -> None:
    """Its best weights would be those that were best on either of two splits."""
    once = SHORT.model_copy(update={"epochs": 1})
    train(data, tmp_path / "run", once)
    other = without_objects(data, tmp_path / "data")
    with pytest.raises(CheckpointMismatch, match=r"differs in held_out_sha256 \(\w{64}, now \w{64}\): give"):
        train(other, tmp_path / "run", once)


class Quality(Value):
    told: float | None


class Told(Task[LabelledBatch, Quality, BackboneEpoch]):
    """Learns next to nothing, and is told how good it is after each epoch."""

    prefix = BACKBONE
    chart = BACKBONE_CHART

    def __init__(self, qualities: Sequence[float | None]) -> None:
        self._qualities = iter(qualities)

    def loss(self, output: torch.Tensor, batch: LabelledBatch) -> Loss:
        return Loss((output.square().sum(),), len(batch.images))

    def score(self, network: nn.Module) -> Quality:  # noqa: ARG002 - whatever it has learned
        return Quality(told=next(self._qualities))

    def quality(self, score: Quality) -> float | None:
        return score.told

    def row(self, epoch: Epoch, parts: tuple[float, ...], score: Quality | None) -> BackboneEpoch:  # noqa: ARG002
        return BackboneEpoch(**epoch.model_dump())


@pytest.mark.parametrize(
    ("qualities", "best"),
    [
        ((0.5, 0.5), 1),  # an equal score keeps the earlier weights
        ((0.2, 0.3, 0.1), 2),
        ((0.0, 0.0, 0.0), 3),  # none found anything: the first ones have learned least
        ((0.0, 0.2, 0.0), 2),
        ((None, 0.0, 0.0), 3),
        ((0.2, None), 1),
    ],
)
def test_the_best_weights_are_the_earliest_of_the_best_and_the_latest_where_none_found_anything(
    qualities: tuple[float | None, ...], best: int, tmp_path: Path
) -> None:
    recipe = SHORT.model_copy(update={"epochs": len(qualities)})
    header = BackboneHeader(
        space=TINY, config=TINY.largest(), classes=("cat", "dog"), recipe={}, data="none", data_sha256="0" * 64,
        version="0",
    )  # fmt: skip
    images = LabelledBatch(torch.ones(4, 3, 2, 2), torch.ones(4, 2))
    loader = Loader(lambda *_: images, lambda samples: samples[0], images=4, recipe=recipe, workers=0)
    ended = run_training(Told(qualities), nn.Conv2d(3, 2, 1), loader, header, tmp_path, recipe=recipe)
    assert load_checkpoint(ended.best, BackboneHeader)[1].epoch == best


def test_a_warm_up_takes_at_most_half_of_a_run() -> None:
    recipe = Recipe(epochs=12, batch=32, warmup_steps=500)
    assert recipe.epoch_steps(205) == 6
    assert (recipe.wanted_warmup(6), recipe.warmup(6)) == (500, 36)
    assert (recipe.wanted_warmup(600), recipe.warmup(600)) == (500, 500)
    in_epochs = recipe.model_copy(update={"warmup_epochs": 2})
    assert (in_epochs.warmup(600), in_epochs.warmup(6)) == (1200, 36)
    assert Recipe(epochs=1, batch=64).warmup(1) == 0
