"""Images for classification, one folder for each class: checked when they are opened, kept in memory where they fit."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from supernet.dataset import MEMORY_MIB
from supernet.errors import BadDataset, BadImage
from supernet.image_files import opened, read_upright
from supernet.pictures import SUFFIXES, Pixels


class Picture(NamedTuple):
    """One image with its class.

    Attributes:
        pixels: RGB (height, width, 3), uint8, at its own size, upright.
        label: index of the class.
    """

    pixels: Pixels
    label: int


class ImageFolder:
    """Images of some classes.

    Images are kept in memory if all of them fit; more are checked by their headers and read each time.

    Attributes:
        folder: what the paths are relative to.
        classes: names of the folders, in alphabetical order; the index is the label.
        paths: of each image.
        labels: the class of each image (n,).
        content_sha256: hash of classes, paths and the bytes of the files, or of their sizes where images are not kept.
    """

    def __init__(
        self, folder: Path, classes: tuple[str, ...], items: Sequence[tuple[Path, int]], *, memory_mib: float
    ) -> None:
        """Check images.

        Raises:
            BadDataset: some cannot be read; names each of them.
        """
        self.folder, self.classes = folder, classes
        self.paths = tuple(path for path, _ in items)
        self.labels = np.array([label for _, label in items], dtype=np.int64)
        sizes = self._sizes()
        self._kept: tuple[Pixels, ...] | None = None
        keep = sum(3 * width * height for width, height in sizes) <= memory_mib * 2**20
        self._kept, self.content_sha256 = self._load(keep=keep)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Picture:
        """Return one image.

        Raises:
            BadDataset: the file is damaged, or has changed since it was checked.
        """
        label = int(self.labels[index])
        if self._kept is not None:
            return Picture(self._kept[index], label)
        try:
            return Picture(read_upright(self.folder / self.paths[index]), label)
        except BadImage as fault:
            raise BadDataset(self.folder, [f"image {self.paths[index]}: {fault}"]) from fault

    def _sizes(self) -> list[tuple[int, int]]:
        sizes, faults = [], []
        for path in self.paths:
            try:
                with opened(self.folder / path) as picture:
                    sizes.append(picture.size)
            except BadImage as fault:
                faults.append(f"image {path}: {fault}")
        if faults:
            raise BadDataset(self.folder, faults)
        return sizes

    def _load(self, *, keep: bool) -> tuple[tuple[Pixels, ...] | None, str]:
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        kept, faults = [], []
        for path in self.paths:
            digest.update(str(path).encode())
            if not keep:
                digest.update(f" {(self.folder / path).stat().st_size}".encode())
                continue
            try:
                kept.append(read_upright(self.folder / path))
                digest.update((self.folder / path).read_bytes())
            except BadImage as fault:
                faults.append(f"image {path}: {fault}")
        if faults:
            raise BadDataset(self.folder, faults)
        return tuple(kept) if keep else None, digest.hexdigest()


def open_image_folder(
    folder: Path, *, held_out: float, seed: int, memory_mib: float = MEMORY_MIB
) -> tuple[ImageFolder, ImageFolder]:
    """Return the training images and the held-out ones of `folder/train/<class>/*` and `folder/val/<class>/*`.

    Without `val`, a share of each class is held out: of a class with two images or more at least one.

    Args:
        folder: where they lie.
        held_out: the share.
        seed: decides which.
        memory_mib: images that take more than this are not kept in memory.

    Raises:
        BadDataset: names every folder and file that cannot be used.
    """
    if not (folder / "train").is_dir():
        raise BadDataset(folder, ["there is no folder train with one folder for each class"])
    classes = tuple(sorted(path.name for path in (folder / "train").iterdir() if path.is_dir()))
    train = list(_items(folder, "train", classes))
    faults = [f"train/{name} holds no image" for name in _without(train, classes)]
    if len(classes) < 2:
        faults.append(f"train has {len(classes)} classes: two or more are told apart")
    if (folder / "val").is_dir():
        others = sorted(path.name for path in (folder / "val").iterdir() if path.is_dir() and path.name not in classes)
        faults += [f"val/{name} is no class of train" for name in others]
        held = list(_items(folder, "val", classes))
    else:
        train, held = _split(train, held_out, seed)
    if not held:
        faults.append("no image is held out: add images, or a folder val")
    if faults:
        raise BadDataset(folder, faults)
    return (
        ImageFolder(folder, classes, train, memory_mib=memory_mib),
        ImageFolder(folder, classes, held, memory_mib=memory_mib),
    )


def _items(folder: Path, split: str, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
    for label, name in enumerate(classes):
        for path in sorted((folder / split / name).glob("**/*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path.relative_to(folder), label


def _without(items: Sequence[tuple[Path, int]], classes: Sequence[str]) -> list[str]:
    seen = {label for _, label in items}
    return [name for label, name in enumerate(classes) if label not in seen]


def _split(
    items: Sequence[tuple[Path, int]], share: float, seed: int
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Hold a share of each class out; the order stays."""
    held: set[Path] = set()
    for label in sorted({label for _, label in items}):
        paths = [path for path, other in items if other == label]
        count = min(max(1, round(share * len(paths))), len(paths) - 1)
        order = np.random.default_rng((seed, 4, label)).permutation(len(paths))
        held.update(paths[place] for place in order[:count])
    return [item for item in items if item[0] not in held], [item for item in items if item[0] in held]
