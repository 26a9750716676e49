"""What the readers of foreign data sets have in common: images with boxes in pixels, and the faults they found."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from supernet.annotations import box_fault, clipped
from supernet.faults import Fault, FaultKind
from supernet.image_files import READERS, SIDEWAYS, opened, orientation

SourceFormat = Literal["voc", "yolo"]

Progress = Callable[[str, int, int], None]
"""Told what is done, how many images are, and how many there are."""

DECIMALS = 3
"""Boxes are kept to a thousandth of a pixel: six digits of a normalised coordinate hold no more."""


class SourceBox(NamedTuple):
    """One object.

    Attributes:
        name: its class.
        box: x, y, width, height in pixels.
        is_crowd: it is neither trained on nor counted as missed.
    """

    name: str
    box: list[float]
    is_crowd: bool = False


class SourceImage(NamedTuple):
    """One image with its objects.

    Attributes:
        path: of the file.
        size: width and height, upright.
        is_turned: the file becomes upright only when it is turned as its EXIF data say.
        boxes: its objects, upright.
        labels: the file they stand in; an image without one is background.
    """

    path: Path
    size: tuple[int, int]
    is_turned: bool
    boxes: tuple[SourceBox, ...]
    labels: Path


class Source(NamedTuple):
    """A foreign data set.

    Attributes:
        folder: where it lies.
        format: how it is written.
        classes: names, in the order of their labels; None where the boxes alone say them.
        splits: the images of each split; without `val`, one is to be split off.
        faults: what is wrong in it; the bad entries are not in `splits`.
        remarks: what is no fault but worth knowing.
    """

    folder: Path
    format: SourceFormat
    classes: tuple[str, ...] | None
    splits: dict[str, tuple[SourceImage, ...]]
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...]


Entry = TypeVar("Entry")


def read_images(
    splits: Mapping[str, Sequence[Entry]],
    read: Callable[[Entry], tuple[SourceImage | None, list[Fault]]],
    progress: Progress,
) -> tuple[dict[str, tuple[SourceImage, ...]], list[Fault]]:
    """Read the entries of every split, some at once, in their order."""
    found: dict[str, tuple[SourceImage, ...]] = {}
    faults: list[Fault] = []
    with ThreadPoolExecutor(READERS) as pool:
        for split, entries in splits.items():
            images = []
            for done, (image, wrong) in enumerate(pool.map(read, entries), start=1):
                images += [image] if image is not None else []
                faults += wrong
                progress(f"reading {split}", done, len(entries))
            found[split] = tuple(images)
    return found, faults


def apart(splits: dict[str, list[Path]], folder: Path) -> tuple[dict[str, list[Path]], list[Fault]]:
    """Keep each file in the last split that names it; return the splits and the faults."""
    faults = []
    kept: dict[str, list[Path]] = {}
    later: dict[Path, str] = {}
    for split in reversed(splits):
        files = list(dict.fromkeys(splits[split]))
        both = [path for path in files if path in later]
        faults += [
            Fault(FaultKind.SHARED_IMAGE, f"is in {split} and in {later[path]}", shown(path, folder)) for path in both
        ]
        kept[split] = [path for path in files if path not in later]
        later |= dict.fromkeys(kept[split], split)
    return dict(reversed(kept.items())), faults


def each_once(
    splits: Mapping[str, Sequence[SourceImage]], folder: Path
) -> tuple[dict[str, tuple[SourceImage, ...]], list[Fault]]:
    """Keep each image once: in the last split that has it, with the labels of its own name or else the first."""
    faults = []
    kept: dict[str, tuple[SourceImage, ...]] = {}
    later: dict[Path, str] = {}
    for split in reversed(list(splits)):
        images = splits[split]
        used: dict[Path, SourceImage] = {}
        for image in sorted(images, key=lambda image: image.labels.stem != image.path.stem):
            used.setdefault(image.path, image)
        for image in images:
            name, where = shown(image.path, folder), shown(image.labels, folder)
            other = used[image.path]
            if image.path in later:
                faults.append(Fault(FaultKind.SHARED_IMAGE, f"its image {name} is in {later[image.path]} too", where))
            elif other is not image:
                text = f"its image {name} is that of {shown(other.labels, folder)} too"
                faults.append(Fault(FaultKind.TWO_ANNOTATIONS, text, where))
        kept[split] = tuple(image for image in images if used[image.path] is image and image.path not in later)
        later |= dict.fromkeys((image.path for image in kept[split]), split)
    return dict(reversed(kept.items())), faults


def read_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Read an image file in full; return its size as stored, its size upright, and its EXIF orientation.

    Raises:
        BadImage: it is missing or cannot be read.
    """
    with opened(path) as picture:
        picture.load()
        turn = orientation(picture)
        return picture.size, picture.size[::-1] if turn >= SIDEWAYS else picture.size, turn


def turned(box: Sequence[float], stored: tuple[int, int], turn: int) -> list[float]:
    """Turn a box x, y, width, height of the stored pixels as an EXIF orientation of `SIDEWAYS` or more says."""
    x, y, width, height = box
    if turn in (6, 7):  # the lower edge comes to the left
        y = stored[1] - y - height
    if turn in (7, 8):  # the right edge comes to the top
        x = stored[0] - x - width
    return [round(side, DECIMALS) for side in (y, x, height, width)]


def placed(
    box: Sequence[float], size: tuple[int, int], name: str, where: str
) -> tuple[list[float] | None, list[Fault]]:
    """Clip a box x, y, width, height to its image; return it, unless nothing is left, and what was wrong with it."""
    rounded = [round(side, DECIMALS) for side in box]
    wrong = box_fault(rounded, size)
    faults = [] if wrong is None else [Fault(wrong[0], f"{name} {wrong[1]}", where)]
    if wrong is not None and wrong[0] is not FaultKind.BOX_PARTLY_OUTSIDE:
        return None, faults
    return [round(side, DECIMALS) for side in clipped(rounded, size)], faults


def shown(path: Path, folder: Path) -> str:
    """Write a path as seen from the data set."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
