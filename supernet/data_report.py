"""What is in a data set and what is wrong with it: every entry and every image file is looked at."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.values import Value
from supernet.annotations import annotation_path, check_annotations, read_annotations
from supernet.dataset import image_fault
from supernet.errors import BadDataset, BadImage
from supernet.faults import Fault, FaultKind, causes, remedy
from supernet.files import file_sha256
from supernet.image_files import READERS, read_image

SPLITS = ("train", "val")

SMALL_PX, MEDIUM_PX = 32, 96
"""Sides of the squares below which COCO calls an object small, or medium."""

SHARES = (0, 10, 50, 90, 100)
"""Percentiles of box sides that are told."""

EXAMPLES = 5


class SplitReport(Value):
    """What can be used of one split.

    Attributes:
        split: its name.
        listed: images that the annotation file lists.
        images: images that can be used.
        backgrounds: those without any box.
        boxes: boxes on them, crowds left out.
        crowds: regions that are neither trained on nor counted as missed.
        class_boxes: boxes of each class.
        class_images: images that show each class.
        small: boxes below 32x32 pixels.
        medium: boxes below 96x96 pixels that are not small.
        large: the other boxes.
        side_px: percentiles (0, 10, 50, 90, 100) of the square root of the area of a box; None without boxes.
        image_sizes: images of each size, width x height.
    """

    split: str
    listed: int
    images: int
    backgrounds: int
    boxes: int
    crowds: int
    class_boxes: dict[str, int]
    class_images: dict[str, int]
    small: int
    medium: int
    large: int
    side_px: tuple[float, ...] | None
    image_sizes: dict[str, int]


class FaultGroup(Value):
    """The faults of one kind.

    Attributes:
        kind: what they have in common.
        count: how many there are.
        remedy: what becomes of them where bad entries are left out; None if they stand in the way of everything.
        examples: the first few, each with the file it stands in.
    """

    kind: str
    count: int
    remedy: str | None
    examples: tuple[str, ...]


class DataReport(Value):
    """A data set, looked at in full.

    Attributes:
        splits: what can be used; a split whose annotation file cannot be read is missing.
        faults: what is refused, by kind.
        remarks: what is no fault but may be a mistake.
    """

    splits: tuple[SplitReport, ...]
    faults: tuple[FaultGroup, ...]
    remarks: tuple[str, ...]


class _Split(NamedTuple):
    report: SplitReport
    faults: tuple[Fault, ...]
    hashes: dict[str, str]
    """File name by the hash of the file."""


def report_data(
    folder: Path,
    *,
    splits: Sequence[str] = SPLITS,
    image: tuple[int, int] | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> DataReport:
    """Read all of a data set in COCO format and say what is in it and what is wrong.

    Args:
        folder: where it lies.
        splits: which parts to look at.
        image: height and width of a network's input; boxes are then counted at the size they have in it.
        progress: told the split, the images read and those to read, after each.
    """
    found, faults = [], []
    for name in splits:
        try:
            split = _look_at(folder, name, image, progress)
        except BadDataset as error:
            faults += [Fault(FaultKind.ANNOTATION_FILE, text, annotation_path(name)) for text in error.faults]
            continue
        found.append(split)
        faults += split.faults
    reports = tuple(split.report for split in found)
    faults += _class_faults(reports)
    remarks = (*_remarks(reports), *_shared(found))
    return DataReport(splits=reports, faults=grouped(faults), remarks=remarks)


def grouped(faults: Sequence[Fault]) -> tuple[FaultGroup, ...]:
    """Gather faults by kind."""
    groups = []
    for kind in FaultKind:
        same = [fault for fault in faults if fault.kind is kind]
        if same:
            examples = tuple(map(_example, same[:EXAMPLES]))
            groups.append(FaultGroup(kind=kind, count=len(same), remedy=remedy(kind), examples=examples))
    return tuple(groups)


def _example(fault: Fault) -> str:
    return fault.text if fault.text.startswith(fault.where) else f"{fault.where}: {fault.text}"


def _look_at(
    folder: Path, split: str, image: tuple[int, int] | None, progress: Callable[[str, int, int], None]
) -> _Split:
    found = read_annotations(folder, split)
    checked = check_annotations(found, annotation_path(split))
    listed = checked.coco["images"]
    usable, faults, hashes = [], [], {}

    def look(entry: Mapping[str, Any]) -> str | Fault:
        path = folder / split / str(entry["file_name"])
        try:
            read_image(path, (entry["width"], entry["height"]))
        except BadImage as fault:
            return image_fault(fault, entry, split)
        return file_sha256(path)

    with ThreadPoolExecutor(READERS) as pool:
        for done, (entry, seen) in enumerate(zip(listed, pool.map(look, listed), strict=True), start=1):
            if isinstance(seen, Fault):
                faults.append(seen)
            else:
                usable.append(entry)
                hashes[seen] = str(entry["file_name"])
            progress(split, done, len(listed))
    report = _count(split, len(found["images"]), {**checked.coco, "images": usable}, image)
    return _Split(report, causes(checked.faults, faults), hashes)


def _count(split: str, listed: int, coco: Mapping[str, Any], image: tuple[int, int] | None) -> SplitReport:
    entries = {entry["id"]: entry for entry in coco["images"]}
    names = {entry["id"]: str(entry["name"]) for entry in sorted(coco["categories"], key=lambda entry: entry["id"])}
    notes = [note for note in coco["annotations"] if note["image_id"] in entries]
    objects = [note for note in notes if not note.get("iscrowd", 0)]
    boxes = Counter(names[note["category_id"]] for note in objects)
    shown = Counter(names[category] for _, category in {(note["image_id"], note["category_id"]) for note in objects})
    sides = _sides(objects, entries, image)
    sizes = Counter(f"{entry['width']}x{entry['height']}" for entry in entries.values())
    return SplitReport(
        split=split,
        listed=listed,
        images=len(entries),
        backgrounds=len(entries) - len({note["image_id"] for note in objects}),
        boxes=len(objects),
        crowds=len(notes) - len(objects),
        class_boxes={name: boxes[name] for name in names.values()},
        class_images={name: shown[name] for name in names.values()},
        small=int((sides < SMALL_PX).sum()),
        medium=int(((sides >= SMALL_PX) & (sides < MEDIUM_PX)).sum()),
        large=int((sides >= MEDIUM_PX).sum()),
        side_px=tuple(round(float(side), 1) for side in np.percentile(sides, SHARES)) if len(sides) else None,
        image_sizes=dict(sizes.most_common()),
    )


def _sides(
    notes: Sequence[Mapping[str, Any]], entries: Mapping[int, Mapping[str, Any]], image: tuple[int, int] | None
) -> NDArray[np.float64]:
    """Return the square root of the area of each box, in pixels of its image or of a network's input."""
    areas: NDArray[np.float64] = np.array([note["bbox"][2] * note["bbox"][3] for note in notes], dtype=float)
    if image is not None:
        originals = [entries[note["image_id"]] for note in notes]
        areas *= image[0] * image[1] / np.array([entry["width"] * entry["height"] for entry in originals], dtype=float)
    sides: NDArray[np.float64] = np.sqrt(areas)
    return sides


def _class_faults(reports: Sequence[SplitReport]) -> Iterator[Fault]:
    for report in reports[1:]:
        first = reports[0]
        one, other = tuple(first.class_boxes), tuple(report.class_boxes)
        if one != other:
            yield Fault(
                FaultKind.CLASSES,
                f"{report.split} has the classes {', '.join(other)}; {first.split} has {', '.join(one)}: "
                "list the same categories, in the order of their ids, in both",
                annotation_path(report.split),
            )


def _remarks(reports: Sequence[SplitReport]) -> Iterator[str]:
    for report in reports:
        unseen = [name for name, count in report.class_boxes.items() if not count]
        if unseen:
            yield (
                f"no image of {report.split} shows {', '.join(unseen)}: what is not seen is not learned, and AP leaves "
                "it out; add images, or remove the category from every split"
            )


def _shared(splits: Sequence[_Split]) -> Iterator[str]:
    for place, one in enumerate(splits):
        for other in splits[place + 1 :]:
            same = one.hashes.keys() & other.hashes.keys()
            names = sorted(other.hashes[digest] for digest in same)
            if names:
                yield (
                    f"{len(names)} image(s) of {other.report.split} are in {one.report.split} too "
                    f"({', '.join(names[:EXAMPLES])}{', ...' if len(names) > EXAMPLES else ''}): "
                    "scores on seen images are too good; keep each image in one split"
                )
