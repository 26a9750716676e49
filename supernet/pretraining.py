"""Pretrain the backbone of a detector by classification (paper section 9.2: as Swin on ImageNet)."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nas.config import Config
from nas.space import SearchSpace
from nas.values import Value
from supernet.checkpoint import BACKBONE, BackboneHeader
from supernet.classifier import Classifier
from supernet.curves import BACKBONE_CHART, BackboneEpoch, Epoch
from supernet.evaluation import images_to_floats
from supernet.image_augment import changed, cropped, middle_box, mixed, mixes
from supernet.image_folder import ImageFolder
from supernet.layers.drop_path import set_drop_path
from supernet.loading import Loader
from supernet.pictures import Pixels
from supernet.processes import ALONE, Processes
from supernet.recipe import PretrainRecipe
from supernet.stepping import Loss
from supernet.training_run import Progress, Task, Trained, run_training

PretrainedBackbone = Trained[BackboneEpoch]

EVALUATION_BATCH = 32
"""Images that go through the network at once when it is judged."""


class Accuracy(Value):
    """How often the class of a held-out image is found.

    Attributes:
        top1: share of the images whose class has the highest score.
        top5: share of those whose class is among the five highest, or among all where there are fewer.
        images: images looked at.
        data_sha256: content hash of the split.
    """

    top1: float
    top5: float
    images: int
    data_sha256: str


class Labelled(NamedTuple):
    """One training sample.

    Attributes:
        pixels: RGB (H, W, 3), uint8, at the size of the network.
        shares: of each class in it (C,), float32, adding up to 1.
    """

    pixels: Pixels
    shares: NDArray[np.float32]


class LabelledBatch(NamedTuple):
    """What goes through the network at once.

    Attributes:
        images: (B, 3, H, W), RGB in [0, 1].
        shares: of each class in each image (B, C).
    """

    images: Tensor
    shares: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        return type(self)(*(part.to(device, non_blocking=True) for part in self))


def pretrain_backbone(
    space: SearchSpace,
    config: Config,
    data: tuple[ImageFolder, ImageFolder],
    out: Path,
    *,
    recipe: PretrainRecipe,
    workers: int = 0,
    processes: Processes = ALONE,
    progress: Callable[[Progress], None] = lambda _: None,
    on_epoch: Callable[[BackboneEpoch, Accuracy | None], None] = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> PretrainedBackbone:
    """Train the backbone of a config to tell images apart; leave its best and last weights and the curves in `out`.

    A run that was interrupted there goes on after its last finished epoch, a finished one is read back.

    Args:
        space: of the config.
        config: whose backbone to train, at its input size.
        data: images to train on, and held-out ones.
        out: folder of the run.
        recipe: how.
        workers: child processes that read and change images.
        processes: which of several processes this is; only the first writes and tells.
        progress: told after each optimiser step.
        on_epoch: told after each epoch.
        clock: counts seconds.

    Raises:
        FolderInUse: another process trains in `out`.
        CheckpointMismatch: `out` holds a run with another config, recipe or data.
        TrainingDiverged: the loss is no longer finite.
    """
    train, held_out = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = Classifier(space, config, len(train.classes))
    set_drop_path(network.blocks.values(), recipe.drop_path)
    header = BackboneHeader(
        space=space,
        config=config,
        classes=train.classes,
        recipe=recipe.model_dump(mode="json"),
        data=train.folder.resolve().name,
        data_sha256=train.content_sha256,
        held_out_sha256=held_out.content_sha256,
        version=version("heatnas"),
    )
    loader = Loader(
        partial(draw, train, recipe, config.image),
        collate,
        images=len(train),
        recipe=recipe,
        workers=workers,
        processes=processes,
    )
    return run_training(
        _Classification(held_out, config.image),
        network,
        loader,
        header,
        out,
        recipe=recipe,
        processes=processes,
        progress=progress,
        on_epoch=on_epoch,
        clock=clock,
    )


def draw(
    data: ImageFolder, recipe: PretrainRecipe, image: tuple[int, int], index: int, rng: np.random.Generator
) -> Labelled:
    """Return a training sample at the size `image` (height, width).

    Where images are mixed, each one draws its partner from the whole data set, not from its batch: what a step sees
    depends neither on the micro-batches nor on the processes. It costs reading two images for each.
    """
    how, classes = recipe.augmentation, len(data.classes)
    one = data[index]
    pixels, shares = changed(one.pixels, rng, how, image), np.zeros(classes)
    shares[one.label] = 1
    if mixes(how):
        other = data[int(rng.integers(len(data)))]
        pixels, share = mixed(pixels, changed(other.pixels, rng, how, image), rng, how)
        shares *= share
        shares[other.label] += 1 - share
    shares = (1 - recipe.smoothing) * shares + recipe.smoothing / classes
    return Labelled(pixels, shares.astype(np.float32))


def collate(samples: Sequence[Labelled]) -> LabelledBatch:
    """Put samples of one size together."""
    images = images_to_floats(np.stack([sample.pixels for sample in samples]))
    return LabelledBatch(torch.from_numpy(images), torch.from_numpy(np.stack([sample.shares for sample in samples])))


class _Classification(Task[LabelledBatch, Accuracy, BackboneEpoch]):
    """Name the class of an image: cross entropy, judged by how often it is right."""

    prefix = BACKBONE
    chart = BACKBONE_CHART

    def __init__(self, held_out: ImageFolder, image: tuple[int, int]) -> None:
        self._held_out, self._image = held_out, image

    def loss(self, output: Tensor, batch: LabelledBatch) -> Loss:
        """Sum the cross entropy with the shares of the classes over the images."""
        return Loss((functional.cross_entropy(output.float(), batch.shares, reduction="sum"),), len(batch.images))

    def score(self, network: nn.Module) -> Accuracy:
        """Count how often the classes of the held-out images are found."""
        return accuracy(network, self._held_out, self._image)

    def quality(self, score: Accuracy) -> float:
        """Return how often the first guess is right."""
        return score.top1

    def row(self, epoch: Epoch, parts: tuple[float, ...], score: Accuracy | None) -> BackboneEpoch:  # noqa: ARG002 - one part
        """Write down an epoch."""
        top1, top5 = (None, None) if score is None else (score.top1, score.top5)
        return BackboneEpoch(**epoch.model_dump(), top1=top1, top5=top5)


@torch.no_grad()
def accuracy(network: nn.Module, data: ImageFolder, image: tuple[int, int]) -> Accuracy:
    """Count how often a network in evaluation mode finds the class of an image, looking at the middle of each."""
    device = next(network.parameters()).device
    first = fifth = 0
    for start in range(0, len(data), EVALUATION_BATCH):
        pictures = [data[index] for index in range(start, min(start + EVALUATION_BATCH, len(data)))]
        pixels = [cropped(one.pixels, middle_box(one.pixels.shape[:2], image), image) for one in pictures]
        logits: Tensor = network(torch.from_numpy(images_to_floats(np.stack(pixels))).to(device))
        guesses = logits.float().topk(min(5, logits.shape[1]), dim=1).indices.cpu()
        right = guesses == torch.tensor([one.label for one in pictures])[:, None]
        first, fifth = first + int(right[:, 0].sum()), fifth + int(right.sum())
    return Accuracy(top1=first / len(data), top5=fifth / len(data), images=len(data), data_sha256=data.content_sha256)
