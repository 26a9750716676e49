"""Detection data in COCO format: checked in full when it is opened, kept in memory where it fits."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from supernet.annotations import annotation_path, check_annotations, read_annotations, refuse, without_bad
from supernet.errors import BadDataset, BadImage
from supernet.faults import Fault, FaultKind, causes
from supernet.image_files import check_header, read_image
from supernet.pictures import Pixels, stretch

Json = Mapping[str, Any]

MEMORY_MIB = 2048.0
"""Images that take more than this are not kept in memory."""


class Sample(NamedTuple):
    """One image with its objects, at the size of the network.

    Attributes:
        pixels: RGB (height, width, 3), uint8.
        boxes: x1, y1, x2, y2 in pixels (M, 4), float32.
        labels: class indices (M,), int64.
    """

    pixels: Pixels
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


class CocoDataset:
    """One split of a data set: `folder/<split>/` and `folder/annotations/<split>.json`.

    Images are stretched to the size asked for, boxes with them; `ground_truth` keeps the original pixels, in which AP
    is computed. Crowd regions are no training objects; evaluation ignores what lies in them, as COCO does.
    With `most`, all annotations are checked but only so many images are read, spread evenly over the split.
    Images are kept in memory if they fit; more are checked by their headers and read each time they are asked for.
    Bad entries are refused, all at once; with `drop_bad` they are left out and boxes partly outside are clipped.

    Attributes:
        folder: where it lies.
        split: name of the split.
        image: height and width of every sample, in pixels; None where samples keep their original size.
        classes: names of the categories, ordered by category id; the index is the label.
        category_ids: the id of each class.
        ground_truth: the annotations of the samples, as the file has them, without what was left out.
        image_ids: COCO id of each sample.
        scales: original width and height over those of the sample (n, 2).
        left_out: what was wrong and is left out or clipped.
        content_sha256: hash of boxes and areas, crowds included, classes and images at their original size: of their
            pixels, or where they are not kept in memory, of the names and sizes of their files.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        image: tuple[int, int] | None,
        most: int | None = None,
        memory_mib: float = MEMORY_MIB,
        drop_bad: bool = False,
    ) -> None:
        self.folder, self.split, self.image = folder, split, image
        checked = check_annotations(read_annotations(folder, split), annotation_path(split))
        categories = sorted(checked.coco["categories"], key=lambda category: int(category["id"]))
        self.classes = tuple(str(category["name"]) for category in categories)
        self.category_ids = tuple(int(category["id"]) for category in categories)
        listed = checked.coco["images"]
        self._entries = tuple(listed[index] for index in spread_evenly(len(listed), most))
        notes = _by_image(checked.coco)
        self._objects = self._boxes_of_each(notes)
        self._samples: tuple[Sample, ...] | None = None
        self.content_sha256, faults = self._load(notes, keep=self._mib() <= memory_mib)
        self.left_out = without_bad(folder, causes(checked.faults, faults), drop_bad=drop_bad)
        if not self._entries:
            nothing = Fault(FaultKind.NOTHING_LISTED, "no image is left that can be used", annotation_path(split))
            raise refuse(folder, (nothing, *self.left_out))
        self.ground_truth = _of_images(checked.coco, self._entries)
        self.image_ids = tuple(int(entry["id"]) for entry in self._entries)
        self.scales = np.array([self._scale(entry) for entry in self._entries], dtype=np.float32).reshape(-1, 2)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            BadDataset: the image is not kept in memory and its file, sound by its header, cannot be read.
        """
        if self._samples is not None:
            return self._samples[index]
        return self._sample(self._entries[index], self.original(index))

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples in the order of the file."""
        return (self[index] for index in range(len(self)))

    def original(self, index: int) -> Pixels:
        """Read one image again, at the size that it has on disk.

        Raises:
            BadDataset: its file, sound when the data set was opened, cannot be read.
        """
        entry = self._entries[index]
        try:
            return read_image(self._path(entry), _size(entry))
        except BadImage as fault:
            advice = f"Its header was sound when the data set was opened; `heatnas data check {self.folder}` reads all"
            raise BadDataset(self.folder, [image_fault(fault, entry, self.split).text], advice=advice) from fault

    def _load(self, notes: Mapping[int, Sequence[Json]], *, keep: bool) -> tuple[str, tuple[Fault, ...]]:
        """Check every image and leave out the bad ones; return the content hash and what is wrong."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        usable, samples, faults = [], [], []
        for entry in self._entries:
            path = self._path(entry)
            try:
                if keep:
                    pixels = read_image(path, _size(entry))
                    samples.append(self._sample(entry, pixels))
                    digest.update(np.ascontiguousarray(pixels).tobytes())
                else:
                    digest.update(f"{entry['file_name']} {check_header(path, _size(entry))}".encode())
            except BadImage as fault:
                faults.append(image_fault(fault, entry, self.split))
                continue
            usable.append(entry)
            for part in (*self._objects[entry["id"]], self._judged(notes.get(entry["id"], ()))):
                digest.update(part.tobytes())
        self._entries = tuple(usable)
        self._samples = tuple(samples) if keep else None
        return digest.hexdigest(), tuple(faults)

    def _sample(self, entry: Json, pixels: Pixels) -> Sample:
        boxes, labels = self._objects[entry["id"]]
        resized = pixels if self.image is None else stretch(pixels, self.image)
        return Sample(resized, _shrunk(boxes, np.array(self._scale(entry), dtype=np.float32)), labels)

    def _boxes_of_each(
        self, notes: Mapping[int, Sequence[Json]]
    ) -> dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]]:
        labels = {category: label for label, category in enumerate(self.category_ids)}
        return {entry["id"]: _boxes(notes.get(entry["id"], ()), entry, labels) for entry in self._entries}

    def _judged(self, notes: Sequence[Json]) -> NDArray[np.float64]:
        """Return what AP depends on besides what is learned: crowds are passed over, areas tell small from large."""
        rows = []
        for note in notes:
            x, y, width, height = note["bbox"]
            label = self.category_ids.index(int(note["category_id"]))
            rows.append((note.get("iscrowd", 0), label, note.get("area", width * height), x, y, width, height))
        return np.array(rows, dtype=np.float64)

    def _scale(self, entry: Json) -> tuple[float, float]:
        if self.image is None:
            return 1.0, 1.0
        return entry["width"] / self.image[1], entry["height"] / self.image[0]

    def _path(self, entry: Json) -> Path:
        return self.folder / self.split / str(entry["file_name"])

    def _mib(self) -> float:
        """Return what all samples take in memory."""
        sides = (self.image or (entry["height"], entry["width"]) for entry in self._entries)
        return sum(3 * height * width for height, width in sides) / 2**20


def _of_images(coco: Json, entries: Sequence[Json]) -> dict[str, Any]:
    """Keep some images, and what is annotated on them."""
    kept = {entry["id"] for entry in entries}
    notes = [note for note in coco["annotations"] if note["image_id"] in kept]
    return {**coco, "images": list(entries), "annotations": notes}


def image_fault(fault: BadImage, entry: Json, split: str) -> Fault:
    """Say which entry of a split an image file belongs to that cannot be used."""
    return Fault(fault.kind, f"image {entry['file_name']}: {fault}", annotation_path(split), entry["id"])


def spread_evenly(count: int, most: int | None) -> list[int]:
    """Return at most so many of the indices 0 .. count - 1, all of them for None, spread over the whole range."""
    chosen = count if most is None else min(count, most)
    return [place * count // chosen for place in range(chosen)]


def _by_image(coco: Json) -> dict[int, list[Json]]:
    notes: dict[int, list[Json]] = {}
    for note in coco["annotations"]:
        notes.setdefault(int(note["image_id"]), []).append(note)
    return notes


def _boxes(
    notes: Sequence[Json], entry: Json, labels: Mapping[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    notes = [note for note in notes if not note.get("iscrowd", 0)]
    corners = np.array([note["bbox"] for note in notes], dtype=np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    limits = np.array((entry["width"], entry["height"]) * 2, dtype=np.float32)
    kinds = np.array([labels[int(note["category_id"])] for note in notes], dtype=np.int64)
    return np.clip(corners, 0, limits), kinds


def _shrunk(boxes: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    shrunk: NDArray[np.float32] = np.divide(boxes, np.concatenate((scale, scale)), dtype=np.float32)
    return shrunk


def _size(entry: Json) -> tuple[int, int]:
    return entry["width"], entry["height"]
