"""Train one detector on a data set in COCO format (paper section 9.2, specification section 5)."""

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import nn

from nas.config import Config
from nas.space import SearchSpace
from supernet.checkpoint import DETECTOR, DetectorHeader
from supernet.curves import DETECTOR_CHART, DetectorEpoch, Epoch
from supernet.dataset import CocoDataset
from supernet.detector import HeatDETR
from supernet.evaluation import Evaluation, evaluate_module
from supernet.faults import counted
from supernet.layers.drop_path import set_drop_path
from supernet.layers.global_attention import faded_sparsity, set_sparsity
from supernet.layers.head import RawPrediction
from supernet.loading import Batch, detector_loader
from supernet.losses import detection_losses
from supernet.pretrained import Transfer, start_from
from supernet.processes import ALONE, Processes
from supernet.recipe import Recipe
from supernet.stepping import Loss
from supernet.training_run import Progress, Task, Trained, run_training

TrainedDetector = Trained[DetectorEpoch]


class Splits(NamedTuple):
    """What a detector is trained on, and judged on.

    Attributes:
        name: of the data set.
        train: samples at any size.
        held_out: samples at the size of the network.
    """

    name: str
    train: CocoDataset
    held_out: CocoDataset


def train_detector(
    space: SearchSpace,
    config: Config,
    data: Splits,
    out: Path,
    *,
    recipe: Recipe,
    init: Path | None = None,
    workers: int = 0,
    processes: Processes = ALONE,
    progress: Callable[[Progress], None] = lambda _: None,
    on_init: Callable[[Transfer], None] = lambda _: None,
    on_epoch: Callable[[DetectorEpoch, Evaluation | None], None] = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainedDetector:
    """Train a detector; leave its best and last weights and the curves in `out`.

    A run that was interrupted there goes on after its last finished epoch, a finished one is read back.

    Args:
        space: of the config.
        config: what to train.
        data: what to train and judge it on.
        out: folder of the run.
        recipe: how.
        init: backbone or detector whose weights it starts from (`supernet.pretrained`).
        workers: child processes that read and change samples.
        processes: which of several processes this is; only the first writes and tells.
        progress: told after each optimiser step.
        on_init: told what was taken from `init`, unless the run only goes on.
        on_epoch: told after each epoch.
        clock: counts seconds.

    Raises:
        BadCheckpoint: `init` is neither a backbone nor a detector.
        NothingInCommon: nothing of `init` fits.
        FolderInUse: another process trains in `out`.
        CheckpointMismatch: `out` holds a run with another config, recipe, data or `init`.
        TrainingDiverged: the loss is no longer finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        detector = HeatDETR(space, config)
    taken = None if init is None else start_from(init, detector, classes=data.train.classes)
    set_drop_path(detector.blocks.values(), recipe.drop_path)
    header = DetectorHeader(
        space=space,
        config=config,
        classes=data.train.classes,
        category_ids=data.train.category_ids,
        recipe=recipe.model_dump(mode="json"),
        data=data.name,
        data_sha256=data.train.content_sha256,
        held_out_sha256=data.held_out.content_sha256,
        left_out=counted(data.train.left_out),
        version=version("heatnas"),
        origin=None if taken is None else taken.origin,
    )
    return run_training(
        _Detection(detector, data.held_out),
        detector,
        detector_loader(data.train, config.image, recipe, workers=workers, processes=processes),
        header,
        out,
        recipe=recipe,
        processes=processes,
        progress=progress,
        on_start=(lambda: None) if taken is None else partial(_note, taken, out, on_init),
        on_epoch=on_epoch,
        clock=clock,
    )


def _note(taken: Transfer, out: Path, on_init: Callable[[Transfer], None]) -> None:
    """Say what was taken, in the folder of the run and to the caller."""
    taken.save(out)
    on_init(taken)


class _Detection(Task[Batch, Evaluation, DetectorEpoch]):
    """Find objects: focal and GIoU loss, judged by COCO's AP."""

    prefix = DETECTOR
    chart = DETECTOR_CHART

    def __init__(self, detector: HeatDETR, held_out: CocoDataset) -> None:
        self._detector, self._held_out = detector, held_out

    def begin_step(self, done: float) -> None:
        """Leave out more and more tokens of sparse attention."""
        set_sparsity(self._detector, faded_sparsity(done))

    def loss(self, output: RawPrediction, batch: Batch) -> Loss:
        """Sum both losses over the batch; their mean is over positive anchors."""
        whole = RawPrediction(*(part.float() for part in output))
        losses = detection_losses(whole, self._detector.head.anchors, batch.targets)
        return Loss((losses.focal_sum, losses.giou_sum), losses.positives)

    def score(self, network: nn.Module) -> Evaluation:
        """Score the detections on the held-out split."""
        detector = cast("HeatDETR", network)
        return evaluate_module(detector, detector.head.anchors, self._held_out)

    def quality(self, score: Evaluation) -> float | None:
        """Return AP; a split without objects has none."""
        return score.ap

    def row(self, epoch: Epoch, parts: tuple[float, ...], score: Evaluation | None) -> DetectorEpoch:
        """Write down an epoch."""
        focal, giou = parts
        ap, ap50, ap75 = (None, None, None) if score is None else (score.ap, score.ap50, score.ap75)
        return DetectorEpoch(**epoch.model_dump(), focal=focal, giou=giou, ap=ap, ap50=ap50, ap75=ap75)
