"""Batches of augmented samples, in an order and with changes that (seed, epoch) alone decide."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supernet.augment import Augmentation, augment
from supernet.dataset import CocoDataset, Sample
from supernet.evaluation import images_to_floats
from supernet.losses import Target
from supernet.processes import ALONE, Processes

Place = tuple[int, int]
"""Epoch and index of a sample."""


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


class Loader:
    """Draws the batches of one process.

    The images of a step are dealt to the processes in turn and cut into micro-batches, so that a step sees the same
    images however many processes share it.

    Attributes:
        steps: optimiser steps in an epoch: whole batches, and at least one, which then repeats images.
    """

    def __init__(
        self,
        data: CocoDataset,
        *,
        image: tuple[int, int],
        batch: int,
        micro_batch: int | None,
        augmentation: Augmentation,
        seed: int,
        workers: int,
        processes: Processes = ALONE,
    ) -> None:
        """Prepare to draw.

        Args:
            data: samples at any size.
            image: height and width of the network's input.
            batch: images of a step, over all processes.
            micro_batch: images that this process runs at once; None for its whole share.
            augmentation: how samples are changed.
            seed: decides order and changes.
            workers: child processes that read and change samples; 0 does it in this one.
            processes: which process this is.
        """
        self.steps = max(1, len(data) // batch)
        self._places = _Places(len(data), self.steps, batch, micro_batch, seed, processes)
        self._loader = DataLoader(
            _Augmented(data, image, augmentation, seed),
            batch_sampler=self._places,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=processes.device.type == "cuda",
        )

    def epoch(self, number: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step of an epoch."""
        self._places.epoch = number
        batches = iter(self._loader)
        for _ in range(self.steps):
            yield [next(batches) for _ in range(self._places.parts)]


class _Places:
    """The samples of each micro-batch of an epoch."""

    def __init__(
        self, length: int, steps: int, batch: int, micro_batch: int | None, seed: int, processes: Processes
    ) -> None:
        self.epoch = 0
        self._length, self._steps, self._batch, self._seed = length, steps, batch, seed
        self._mine = range(processes.rank, batch, processes.size)
        self._micro = micro_batch or len(self._mine)
        self.parts = -(-len(self._mine) // self._micro)

    def __len__(self) -> int:
        return self._steps * self.parts

    def __iter__(self) -> Iterator[list[Place]]:
        order = np.random.default_rng((self._seed, 1, self.epoch)).permutation(self._length)
        for step in range(self._steps):
            mine = [(self.epoch, int(order[(step * self._batch + place) % self._length])) for place in self._mine]
            for start in range(0, len(mine), self._micro):
                yield mine[start : start + self._micro]


class _Augmented(Dataset[Sample]):
    """Samples changed as (seed, epoch, index) decides."""

    def __init__(self, data: CocoDataset, image: tuple[int, int], augmentation: Augmentation, seed: int) -> None:
        self._data, self._image, self._augmentation, self._seed = data, image, augmentation, seed

    def __getitem__(self, place: Place) -> Sample:
        rng = np.random.default_rng((self._seed, 2, *place))
        return augment(self._data[place[1]], rng, self._augmentation, image=self._image)


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples of one size together."""
    images = torch.from_numpy(images_to_floats(np.stack([sample.pixels for sample in samples])))
    return Batch(images, [Target(torch.from_numpy(one.boxes), torch.from_numpy(one.labels)) for one in samples])
