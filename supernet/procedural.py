"""A detection data set that the product makes itself: textured shapes on textured grounds, in COCO format.

A class is an outline and a texture: blotched discs, striped rings, chequered crosses. Colours say nothing, and the
grounds have the same textures, but faint ones.
All arithmetic on pixels is on integers, so that a seed gives the same images on every machine.
"""

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from supernet.errors import DatasetExists
from supernet.files import whole_folder
from supernet.pictures import Pixels

SHAPES = ("disc", "ring", "cross")
"""The classes, in the order of their category ids 1, 2, 3."""

TEXTURES = ("clouds", "stripes", "checks")
"""The texture of each class; with outlines alone, 400 steps of training reach less than half the AP50."""

RECIPE_VERSION = 2
"""Raised whenever the same seed would give other images."""

MAX_OBJECTS = 4
SMALLEST_SHARE, LARGEST_SHARE = 20, 60
"""Diameter of an object, in percent of the image side."""

MAX_OVERLAP = 0.25
"""IoU of the bounding boxes of two objects that may cover each other."""

MIN_VISIBLE = 0.6
"""Share of an object's pixels that later objects leave uncovered."""

MIN_CONTRAST = 200
"""Sum over the channels of the mean colour difference between an object and the ground behind it."""

GROUND_RELIEF = (0, 35)
"""Smallest and largest difference between the two colours of a ground's texture, in each channel."""

OBJECT_RELIEF = (90, 140)
"""The same for objects."""

HOLE = 0.5
"""Inner diameter of a ring over its outer one."""

ARM = 0.33
"""Width of a cross's arms over its length."""

DRAWING_THREADS = 2
"""Images drawn at once: two take 0.6 of the time of one; beyond, Python's lock is what they wait for."""

Mask = NDArray[np.bool_]
Weights = NDArray[np.int32]


@dataclass(frozen=True)
class Shape:
    """One object of an image.

    Attributes:
        category: its class, 1-based.
        mask: the pixels of its whole outline (size, size), covered ones included.
        box: x, y, width, height of the outline.
    """

    category: int
    mask: Mask
    box: tuple[int, int, int, int]


def make_dataset(
    folder: Path,
    *,
    images: int,
    size: int,
    seed: int,
    held_out: int = 160,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `images` training and `held_out` validation images with their annotations; return the folder.

    The folder appears at once, complete: `train/` and `val/` (PNG), `annotations/train.json` and `val.json`,
    `recipe.json`. A folder of the same recipe is kept as it is.

    Args:
        folder: where to; must not exist, or hold this very data set.
        images: training images, at least 1.
        size: side of the square images in pixels, at least 48.
        seed: decides every pixel; the two splits share none.
        held_out: validation images, at least 1.
        progress: told the images made and to make, after each.

    Raises:
        DatasetExists: the folder holds something else.
        ValueError: a number is out of range.
    """
    if images < 1 or held_out < 1 or size < 48 or seed < 0:
        raise ValueError(
            f"images={images}, held_out={held_out}, size={size}, seed={seed}: ask for at least 1 image in each split, "
            "48 pixels and a seed of 0 or more"
        )
    recipe = {"version": RECIPE_VERSION, "images": images, "held_out": held_out, "size": size, "seed": seed}
    if _holds(folder, recipe):
        return folder
    try:
        with whole_folder(folder) as unfinished:
            _write_splits(unfinished, recipe, progress)
    except OSError:
        # Somebody else was faster: fine if it is the same data set.
        if not _holds(folder, recipe):
            raise
    return folder


def draw_image(size: int, rng: np.random.Generator) -> tuple[Pixels, list[Shape]]:
    """Draw one image (size, size, 3) and list its 1 to 4 objects, all at least 60 % visible."""
    colours, pattern = _texture(size, TEXTURES[int(rng.integers(0, len(TEXTURES)))], GROUND_RELIEF, rng)
    ground = colours[pattern]
    canvas = ground.copy()
    shapes: list[Shape] = []
    wanted = int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(wanted):
        shape = _place(size, shapes, rng)
        if shape is not None:
            shapes.append(shape)
            canvas[shape.mask] = _contrasting(size, ground, shape, rng)
    return _with_noise(canvas, rng), shapes


def _holds(folder: Path, recipe: dict[str, int]) -> bool:
    if not folder.exists():
        return False
    stamp = folder / "recipe.json"
    found = json.loads(stamp.read_text()) if stamp.exists() else None
    if found != recipe:
        raise DatasetExists(folder, wanted=recipe, found=found)
    return True


def _write_splits(folder: Path, recipe: dict[str, int], progress: Callable[[int, int], None] | None) -> None:
    (folder / "annotations").mkdir()
    splits = {"train": recipe["images"], "val": recipe["held_out"]}
    done, total = 0, sum(splits.values())
    with ThreadPoolExecutor(DRAWING_THREADS) as pool:
        for number, (split, count) in enumerate(splits.items()):
            (folder / split).mkdir()
            write = partial(_write_image, folder / split, recipe["size"], (recipe["seed"], number))
            annotations: list[dict[str, Any]] = []
            for noted in pool.map(write, range(1, count + 1)):
                annotations += [{"id": len(annotations) + place, **note} for place, note in enumerate(noted, start=1)]
                done += 1
                if progress is not None:
                    progress(done, total)
            text = json.dumps(_coco(split, recipe["size"], count, annotations), sort_keys=True)
            (folder / "annotations" / f"{split}.json").write_text(text)
    (folder / "recipe.json").write_text(json.dumps(recipe, sort_keys=True))


def _write_image(folder: Path, size: int, seed: tuple[int, int], image_id: int) -> list[dict[str, Any]]:
    """Draw and save one image; return the annotations of its objects, without their ids."""
    pixels, shapes = draw_image(size, np.random.default_rng((*seed, image_id)))
    Image.fromarray(pixels).save(folder / _file_name(image_id), compress_level=1)
    return [_annotation(image_id, shape) for shape in shapes]


def _coco(split: str, size: int, count: int, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {"description": f"procedural shapes, {split}"},
        "images": [
            {"id": image_id, "file_name": _file_name(image_id), "width": size, "height": size}
            for image_id in range(1, count + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": category, "name": name} for category, name in enumerate(SHAPES, start=1)],
    }


def _annotation(image_id: int, shape: Shape) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": shape.category,
        "bbox": list(shape.box),
        "area": int(shape.mask.sum()),
        "iscrowd": 0,
    }


def _file_name(image_id: int) -> str:
    return f"{image_id:06d}.png"


def _place(size: int, others: list[Shape], rng: np.random.Generator) -> Shape | None:
    """Try places for one more object, a few where there are others; None where each would hide too much of them."""
    for _ in repeat(None, 12) if others else repeat(None):
        shape = _outline(size, rng)
        if shape is not None and _fits(shape, others):
            return shape
    return None


def _fits(shape: Shape, others: list[Shape]) -> bool:
    for position, other in enumerate(others):
        covered = shape.mask.copy()
        for later in others[position + 1 :]:
            covered |= later.mask
        visible = int((other.mask & ~covered).sum())
        if _box_iou(shape.box, other.box) > MAX_OVERLAP or visible < MIN_VISIBLE * int(other.mask.sum()):
            return False
    return True


def _outline(size: int, rng: np.random.Generator) -> Shape | None:
    """Draw one outline at a random place, size and turn; None if it leaves the image."""
    category = int(rng.integers(1, len(SHAPES) + 1))
    # The logarithm of the diameter is even: small objects are as frequent as large ones.
    low, high = math.log(SMALLEST_SHARE), math.log(LARGEST_SHARE)
    radius = math.exp(low + (high - low) * int(rng.integers(0, 1001)) / 1000) * size / 200
    middle = (int(rng.integers(0, size)), int(rng.integers(0, size)))
    turn, squeeze = math.radians(int(rng.integers(0, 360))), int(rng.integers(70, 101)) / 100
    outer, *holes = (
        [_turned(x * radius, y * radius * squeeze, turn, middle) for x, y in corners]
        for corners in _corners(SHAPES[category - 1])
    )
    if any(not 1 <= value < size - 1 for point in outer for value in point):
        return None
    sheet = Image.new("1", (size, size))
    pen = ImageDraw.Draw(sheet)
    pen.polygon(outer, fill=1)
    for hole in holes:
        pen.polygon(hole, fill=0)
    mask: Mask = np.asarray(sheet, dtype=bool)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return Shape(category, mask, (left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top))


def _corners(name: str) -> list[list[tuple[float, float]]]:
    """Return the corners of a shape of radius 1 around the origin, then those of its hole if it has one."""
    circle = [(math.cos(math.radians(9 * i)), math.sin(math.radians(9 * i))) for i in range(40)]
    match name:
        case "disc":
            return [circle]
        case "ring":
            return [circle, [(HOLE * x, HOLE * y) for x, y in circle]]
        case _:
            quarter = [(ARM, -1.0), (ARM, -ARM), (1.0, -ARM)]
            half = quarter + [(-y, x) for x, y in quarter]
            return [half + [(-x, -y) for x, y in half]]


def _turned(x: float, y: float, turn: float, middle: tuple[int, int]) -> tuple[int, int]:
    cosine, sine = math.cos(turn), math.sin(turn)
    return middle[0] + round(x * cosine - y * sine), middle[1] + round(x * sine + y * cosine)


def _box_iou(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    shared = 1
    for axis in range(2):
        low = max(one[axis], other[axis])
        high = min(one[axis] + one[axis + 2], other[axis] + other[axis + 2])
        shared *= max(high - low, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def _contrasting(size: int, ground: Pixels, shape: Shape, rng: np.random.Generator) -> Pixels:
    """Draw textures of the shape's class until one differs from the ground behind it; the last stands after ten.

    Return the colours of the shape's pixels (pixels, 3).
    """
    behind = ground[shape.mask].mean(axis=0)
    for _ in range(10):
        colours, pattern = _texture(size, TEXTURES[shape.category - 1], OBJECT_RELIEF, rng)
        pixels: Pixels = colours[pattern[shape.mask]]
        if np.abs(pixels.mean(axis=0) - behind).sum() >= MIN_CONTRAST:
            break
    return pixels


def _texture(size: int, name: str, relief: tuple[int, int], rng: np.random.Generator) -> tuple[Pixels, Weights]:
    """Draw two colours that differ by `relief` in each channel, and the pattern by which they are mixed.

    Return the 256 mixtures (256, 3), and which of them stands at each pixel (size, size).
    """
    one = rng.integers(20, 236, size=3).astype(np.int32)
    step = rng.integers(relief[0], relief[1] + 1, size=3).astype(np.int32) * rng.choice((-1, 1), size=3)
    other = np.where((one + step < 0) | (one + step > 255), one - step, one + step)
    colours = ((one * 256 + (other - one) * np.arange(256)[:, None]) >> 8).astype(np.uint8)
    return colours, _pattern(size, name, rng)


def _pattern(size: int, name: str, rng: np.random.Generator) -> Weights:
    """Draw a pattern of weights in 0..255 (size, size)."""
    rows, columns = np.arange(size, dtype=np.int32)[:, None], np.arange(size, dtype=np.int32)[None]
    period = int(rng.integers(4, 10))
    pattern: Weights
    match name:
        case "stripes":
            turn = math.radians(int(rng.integers(0, 180)))
            down, across = round(8 * math.cos(turn)), round(8 * math.sin(turn))
            pattern = ((rows * down + columns * across) // 8 // period % 2) * 255
        case "checks":
            pattern = ((rows // period + columns // period) % 2) * 255
        case _:
            coarse = rng.integers(0, 256, size=(int(rng.integers(3, 9)),) * 2).astype(np.uint8)
            clouds = Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR)
            pattern = np.asarray(clouds, dtype=np.int32)
    return pattern


def _with_noise(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    """Add sensor noise of at most 8 grey levels, the same in all channels."""
    noise = rng.integers(-8, 9, size=(*canvas.shape[:2], 1), dtype=np.int16)
    noisy: Pixels = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    return noisy
