"""Detection data in COCO format: checked in full when it is opened, kept in memory where it fits."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from supernet.errors import BadDataset
from supernet.pictures import Pixels, stretch, to_rgb

OUTSIDE_PX = 1.0
"""How far a box may stick out of its image: rounding; such boxes are clipped."""


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

    Attributes:
        folder: where it lies.
        split: name of the split.
        image: height and width of every sample, in pixels; None where samples keep their original size.
        classes: names of the categories, ordered by category id; the index is the label.
        category_ids: the id of each class.
        ground_truth: the annotations of the samples, as the file has them.
        image_ids: COCO id of each sample.
        scales: original width and height over those of the sample (n, 2).
        content_sha256: hash of boxes, classes and images at their original size: of their pixels, or where they are not
            kept in memory, of the names and sizes of their files.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        image: tuple[int, int] | None,
        most: int | None = None,
        memory_mib: float = MEMORY_MIB,
    ) -> None:
        self.folder, self.split, self.image = folder, split, image
        self.ground_truth = _with_images(_read_annotations(folder, split), most)
        categories = sorted(self.ground_truth["categories"], key=lambda category: int(category["id"]))
        self.classes = tuple(str(category["name"]) for category in categories)
        self.category_ids = tuple(int(category["id"]) for category in categories)
        self.image_ids = tuple(int(entry["id"]) for entry in self.ground_truth["images"])
        self._entries = tuple(self.ground_truth["images"])
        self._objects = self._boxes_of_each()
        self.scales = np.array([self._scale(entry) for entry in self._entries], dtype=np.float32).reshape(-1, 2)
        self._samples: tuple[Sample, ...] | None = None
        self._samples, self.content_sha256 = self._load(keep=self._mib() <= memory_mib)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        if self._samples is not None:
            return self._samples[index]
        return self._sample(index, self.original(index))

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples in the order of the file."""
        return (self[index] for index in range(len(self)))

    def original(self, index: int) -> Pixels:
        """Read one image again, at the size that it has on disk."""
        return _read_image(self._path(index), self._entries[index])

    def _load(self, *, keep: bool) -> tuple[tuple[Sample, ...] | None, str]:
        """Check every image; return the samples if they are to be kept, and the content hash."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        samples, faults = [], []
        for index, entry in enumerate(self._entries):
            try:
                if keep:
                    pixels = self.original(index)
                    samples.append(self._sample(index, pixels))
                    digest.update(np.ascontiguousarray(pixels).tobytes())
                else:
                    digest.update(_check_image(self._path(index), entry).encode())
            except (OSError, ValueError) as fault:
                faults.append(f"image {entry['file_name']}: {fault}")
                continue
            for part in self._objects[index]:
                digest.update(part.tobytes())
        if faults:
            raise BadDataset(self.folder, faults)
        return tuple(samples) if keep else None, digest.hexdigest()

    def _sample(self, index: int, pixels: Pixels) -> Sample:
        boxes, labels = self._objects[index]
        resized = pixels if self.image is None else stretch(pixels, self.image)
        return Sample(resized, _shrunk(boxes, self.scales[index]), labels)

    def _boxes_of_each(self) -> tuple[tuple[NDArray[np.float32], NDArray[np.int64]], ...]:
        objects = _objects_by_image(self.ground_truth)
        labels = {category: label for label, category in enumerate(self.category_ids)}
        return tuple(_boxes(objects.get(int(entry["id"]), []), entry, labels) for entry in self._entries)

    def _scale(self, entry: Mapping[str, Any]) -> tuple[float, float]:
        if self.image is None:
            return 1.0, 1.0
        return entry["width"] / self.image[1], entry["height"] / self.image[0]

    def _path(self, index: int) -> Path:
        return self.folder / self.split / str(self._entries[index]["file_name"])

    def _mib(self) -> float:
        """Return what all samples take in memory."""
        sides = (self.image or (entry["height"], entry["width"]) for entry in self._entries)
        return sum(3 * height * width for height, width in sides) / 2**20


def _read_annotations(folder: Path, split: str) -> dict[str, Any]:
    path = folder / "annotations" / f"{split}.json"
    try:
        found = json.loads(path.read_text())
    except OSError as fault:
        raise BadDataset(folder, [f"annotations/{split}.json cannot be read ({fault.strerror})"]) from fault
    except json.JSONDecodeError as fault:
        raise BadDataset(folder, [f"annotations/{split}.json is not JSON ({fault})"]) from fault
    missing = [
        key for key in ("images", "annotations", "categories") if not isinstance(found, dict) or key not in found
    ]
    if missing:
        raise BadDataset(folder, [f"annotations/{split}.json lacks {', '.join(missing)}: it is not in COCO format"])
    faults = [*_image_faults(found), *_object_faults(found)]
    if faults:
        raise BadDataset(folder, faults)
    return dict(found)


def _with_images(found: dict[str, Any], most: int | None) -> dict[str, Any]:
    """Keep at most so many images, spread evenly, and what is annotated on them."""
    images = [found["images"][index] for index in spread_evenly(len(found["images"]), most)]
    kept = {entry["id"] for entry in images}
    return {
        **found,
        "images": images,
        "annotations": [note for note in found["annotations"] if note["image_id"] in kept],
    }


def spread_evenly(count: int, most: int | None) -> range:
    """Return at most so many of the indices 0 .. count - 1, all of them for None, at even distances."""
    if most is None:
        return range(count)
    return range(0, count, max(1, count // most))[:most]


def _image_faults(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["images"]:
        yield "no image is listed"
    if not found["categories"]:
        yield "no category is listed"
    seen: set[int] = set()
    for entry in found["images"]:
        if entry["id"] in seen:
            yield f"image id {entry['id']} occurs twice"
        seen.add(entry["id"])


def _object_faults(found: Mapping[str, Any]) -> Iterator[str]:
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in found["images"]}
    categories = {category["id"] for category in found["categories"]}
    for note in found["annotations"]:
        name = f"annotation {note['id']}"
        if note["image_id"] not in sizes:
            yield f"{name} belongs to the unknown image {note['image_id']}"
        elif note["category_id"] not in categories:
            yield f"{name} has the unknown category {note['category_id']}"
        else:
            yield from (f"{name} {fault}" for fault in _box_faults(note["bbox"], sizes[note["image_id"]]))


def _box_faults(box: list[float], size: tuple[int, int]) -> Iterator[str]:
    if len(box) != 4 or not np.isfinite(np.asarray(box, dtype=float)).all():
        yield f"has the box {box}, not four finite numbers"
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield f"has the empty box {box}: width and height must be positive"
    elif x < -OUTSIDE_PX or y < -OUTSIDE_PX or x + width > size[0] + OUTSIDE_PX or y + height > size[1] + OUTSIDE_PX:
        yield f"has the box {box} outside its image of {size[0]}x{size[1]}"


def _objects_by_image(found: Mapping[str, Any]) -> dict[int, list[Mapping[str, Any]]]:
    objects: dict[int, list[Mapping[str, Any]]] = {}
    for note in found["annotations"]:
        if not note.get("iscrowd", 0):
            objects.setdefault(int(note["image_id"]), []).append(note)
    return objects


def _boxes(
    notes: list[Mapping[str, Any]], entry: Mapping[str, Any], labels: Mapping[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    corners = np.array([note["bbox"] for note in notes], dtype=np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    limits = np.array((entry["width"], entry["height"]) * 2, dtype=np.float32)
    kinds = np.array([labels[int(note["category_id"])] for note in notes], dtype=np.int64)
    return np.clip(corners, 0, limits), kinds


def _shrunk(boxes: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    shrunk: NDArray[np.float32] = np.divide(boxes, np.concatenate((scale, scale)), dtype=np.float32)
    return shrunk


def _read_image(path: Path, entry: Mapping[str, Any]) -> Pixels:
    with _opened(path, entry) as picture:
        return to_rgb(picture)


def _check_image(path: Path, entry: Mapping[str, Any]) -> str:
    """Check an image by its header; return its name and the bytes it takes."""
    with _opened(path, entry):
        return f"{entry['file_name']} {path.stat().st_size}"


@contextmanager
def _opened(path: Path, entry: Mapping[str, Any]) -> Iterator[Image.Image]:
    try:
        picture = Image.open(path)
    except FileNotFoundError as fault:
        raise OSError(f"{path} is missing") from fault
    with picture:
        width, height = picture.size
        if (width, height) != (entry["width"], entry["height"]):
            raise ValueError(f"is {width}x{height}, its entry says {entry['width']}x{entry['height']}")
        yield picture
