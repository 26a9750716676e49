"""Batches of changed samples, in an order and with changes that (seed, epoch, image) alone decide."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supernet.augment import Augmentation, augment
from supernet.dataset import CocoDataset, Sample
from supernet.errors import BadDataset, BatchTooSmall, UnevenShares
from supernet.evaluation import images_to_floats
from supernet.losses import Target
from supernet.processes import ALONE, Processes
from supernet.recipe import Recipe, RunRecipe

Place = tuple[int, int]
"""Epoch and index of a sample."""

T = TypeVar("T")
B = TypeVar("B")


class Batch(NamedTuple):
    """What goes through the network at once.

    Attributes:
        images: (B, 3, H, W), RGB in [0, 1].
        targets: the objects of each image.
    """

    images: Tensor
    targets: list[Target]

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        targets = [Target(*(part.to(device, non_blocking=True) for part in target)) for target in self.targets]
        return type(self)(self.images.to(device, non_blocking=True), targets)


class Loader(Generic[T, B]):
    """Draws the batches of one process.

    The images of a step are dealt to the processes in turn and cut into micro-batches, so that a step sees the same
    images however many processes share it. All processes cut their share into equally many micro-batches, of sizes that
    differ by one at most: SyncBatchNorm waits for all of them in each.

    Attributes:
        steps: optimiser steps in an epoch.
    """

    def __init__(
        self,
        draw: Callable[[int, np.random.Generator], T],
        collate: Callable[[Sequence[T]], B],
        *,
        images: int,
        recipe: RunRecipe,
        workers: int,
        processes: Processes = ALONE,
    ) -> None:
        """Prepare to draw.

        Args:
            draw: gives the sample of an index, changed as a generator decides; child processes get a copy of it.
            collate: puts samples together.
            images: how many indices there are.
            recipe: says batch, micro-batch and seed.
            workers: child processes that draw; 0 does it in this one.
            processes: which process this is.

        Raises:
            BatchTooSmall: a process would have no image in a step.
            UnevenShares: a process would have no image in a micro-batch.
        """
        if recipe.batch < processes.size:
            raise BatchTooSmall(recipe.batch, processes.size)
        self.steps = recipe.epoch_steps(images)
        self._places = _Places(images, self.steps, recipe, processes)
        self._loader: DataLoader[T | BadDataset] = DataLoader(
            _Drawn(draw, recipe.seed),
            batch_sampler=self._places,
            collate_fn=partial(_collated, collate),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=processes.device.type == "cuda",
        )

    def epoch(self, number: int) -> Iterator[list[B]]:
        """Yield the micro-batches of each step of an epoch.

        Raises:
            BadDataset: an image, sound by its header, cannot be read.
        """
        self._places.epoch = number
        batches: Iterator[B | BadDataset] = iter(self._loader)
        for _ in range(self.steps):
            yield [_sound(next(batches)) for _ in range(self._places.parts)]


def detector_loader(
    data: CocoDataset, image: tuple[int, int], recipe: Recipe, *, workers: int, processes: Processes = ALONE
) -> Loader[Sample, Batch]:
    """Return what draws samples of a detection data set, at the input size `image` (height, width)."""
    return Loader(
        partial(_augmented, data, image, recipe.augmentation),
        collate,
        images=len(data),
        recipe=recipe,
        workers=workers,
        processes=processes,
    )


class _Places:
    """The samples of each micro-batch of an epoch."""

    def __init__(self, images: int, steps: int, recipe: RunRecipe, processes: Processes) -> None:
        self.epoch = 0
        self._images, self._steps, self._batch, self._seed = images, steps, recipe.batch, recipe.seed
        self._mine = range(processes.rank, recipe.batch, processes.size)
        least, most = recipe.batch // processes.size, -(-recipe.batch // processes.size)
        self.parts = -(-most // (recipe.micro_batch or most))
        if least < self.parts:
            raise UnevenShares(recipe.batch, processes.size, parts=self.parts)

    def __len__(self) -> int:
        return self._steps * self.parts

    def __iter__(self) -> Iterator[list[Place]]:
        order = np.random.default_rng((self._seed, 1, self.epoch)).permutation(self._images)
        for step in range(self._steps):
            mine = [(self.epoch, int(order[(step * self._batch + place) % self._images])) for place in self._mine]
            ends = [len(mine) * part // self.parts for part in range(self.parts + 1)]
            yield from (mine[start:end] for start, end in pairwise(ends))


class _Drawn(Dataset[T | BadDataset]):
    """Samples changed as (seed, epoch, index) decides; of one that cannot be read the error, in its place.

    What a child process raises reaches this one as its text in a RuntimeError; what it returns arrives as it is.
    """

    def __init__(self, draw: Callable[[int, np.random.Generator], T], seed: int) -> None:
        self._draw, self._seed = draw, seed

    def __getitem__(self, place: Place) -> T | BadDataset:
        try:
            return self._draw(place[1], np.random.default_rng((self._seed, 2, *place)))
        except BadDataset as error:
            return error


def _collated(collate: Callable[[Sequence[T]], B], drawn: Sequence[T | BadDataset]) -> B | BadDataset:
    """Put samples together, or return the first error that stands in the place of one."""
    samples = []
    for one in drawn:
        if isinstance(one, BadDataset):
            return one
        samples.append(one)
    return collate(samples)


def _sound(batch: B | BadDataset) -> B:
    if isinstance(batch, BadDataset):
        raise batch
    return batch


def _augmented(
    data: CocoDataset, image: tuple[int, int], how: Augmentation, index: int, rng: np.random.Generator
) -> Sample:
    return augment(data[index], rng, how, image=image)


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples of one size together."""
    images = torch.from_numpy(images_to_floats(np.stack([sample.pixels for sample in samples])))
    return Batch(images, [Target(torch.from_numpy(one.boxes), torch.from_numpy(one.labels)) for one in samples])
