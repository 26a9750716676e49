"""Detection data in COCO format: loaded once, checked in full, kept in memory at the size of the network."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from supernet.errors import BadDataset

Pixels = NDArray[np.uint8]

OUTSIDE_PX = 1.0
"""How far a box may stick out of its image: rounding; such boxes are clipped."""


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

    Attributes:
        folder: where it lies.
        split: name of the split.
        image: height and width of every sample, in pixels.
        classes: names of the categories, ordered by category id; the index is the label.
        ground_truth: the annotations of the samples, as the file has them.
        image_ids: COCO id of each sample.
        scales: original width and height over those of the sample (n, 2).
        content_sha256: hash of all samples, boxes and classes at their original size.
    """

    def __init__(self, folder: Path, split: str, *, image: tuple[int, int], most: int | None = None) -> None:
        self.folder, self.split, self.image = folder, split, image
        self.ground_truth = _with_images(_read_annotations(folder, split), most)
        categories = sorted(self.ground_truth["categories"], key=lambda category: int(category["id"]))
        self.classes = tuple(str(category["name"]) for category in categories)
        self.category_ids = tuple(int(category["id"]) for category in categories)
        self.image_ids = tuple(int(entry["id"]) for entry in self.ground_truth["images"])
        self.samples, self.scales, self.content_sha256 = self._load()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples in the order of the file."""
        return iter(self.samples)

    def _load(self) -> tuple[tuple[Sample, ...], NDArray[np.float32], str]:
        objects = _objects_by_image(self.ground_truth)
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        labels = {category: label for label, category in enumerate(self.category_ids)}
        samples, scales, faults = [], [], []
        for entry in self.ground_truth["images"]:
            try:
                pixels = _read_image(self.folder / self.split / entry["file_name"], entry)
            except (OSError, ValueError) as fault:
                faults.append(f"image {entry['file_name']}: {fault}")
                continue
            boxes, kinds = _boxes(objects.get(int(entry["id"]), []), entry, labels)
            for part in (pixels, boxes, kinds):
                digest.update(np.ascontiguousarray(part).tobytes())
            scale = np.array((entry["width"] / self.image[1], entry["height"] / self.image[0]), dtype=np.float32)
            samples.append(Sample(_resized(pixels, self.image), _shrunk(boxes, scale), kinds))
            scales.append(scale)
        if faults:
            raise BadDataset(self.folder, faults)
        return tuple(samples), np.array(scales, dtype=np.float32).reshape(-1, 2), digest.hexdigest()


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
    try:
        with Image.open(path) as picture:
            pixels: Pixels = np.asarray(picture.convert("RGB"))
    except FileNotFoundError as fault:
        raise OSError(f"{path} is missing") from fault
    height, width = pixels.shape[:2]
    if (width, height) != (entry["width"], entry["height"]):
        raise ValueError(f"is {width}x{height}, its entry says {entry['width']}x{entry['height']}")
    return pixels


def _resized(pixels: Pixels, image: tuple[int, int]) -> Pixels:
    height, width = image
    if pixels.shape[:2] == image:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
