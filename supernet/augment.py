"""Random changes of a training sample that leave its objects what they are: mirror, zoom, shift and light."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from nas.values import Value
from supernet.dataset import Sample

MIN_VISIBLE = 0.4
"""Share of a box's area that must stay inside the image; objects with less are dropped."""

GREY = (114, 114, 114)
"""What fills the canvas beside a shrunken or shifted image."""


class Augmentation(Value):
    """How much training samples are changed; the defaults are for the procedural shapes.

    Attributes:
        mirror: chance of swapping left and right.
        zoom: smallest and largest magnification.
        zoom_chance: chance of zooming at all.
        shift_px: farthest a sample that is shifted moves along each axis, in pixels of the network's input.
        shift_chance: chance of shifting at all.
        light: largest relative change of contrast; that of each channel's gain is half of it.
    """

    mirror: float = Field(0.5, ge=0, le=1)
    zoom: tuple[float, float] = (0.75, 1.3)
    zoom_chance: float = Field(0.5, ge=0, le=1)
    shift_px: int = Field(0, ge=0)
    shift_chance: float = Field(0.5, ge=0, le=1)
    light: float = Field(0.25, ge=0, le=0.5)


SHAPES = Augmentation()


def augment(
    sample: Sample, rng: np.random.Generator, how: Augmentation = SHAPES, *, image: tuple[int, int] | None = None
) -> Sample:
    """Return a changed copy of the sample; equal generators give equal copies.

    Args:
        sample: at any size.
        rng: decides everything.
        how: how much it is changed.
        image: height and width of the copy, to which the sample is stretched; None keeps its size.
    """
    height, width = image or sample.pixels.shape[:2]
    if rng.random() < how.mirror:
        sample = mirror(sample)
    zoom, corner = 1.0, np.zeros(2)
    if rng.random() < how.zoom_chance:
        zoom = float(rng.uniform(*how.zoom))
        slack = (1 - zoom) * np.array((width, height))
        corner = np.minimum(0, slack) + np.abs(slack) * rng.random(2)
    if how.shift_px and rng.random() < how.shift_chance:
        corner = corner + rng.integers(-how.shift_px, how.shift_px + 1, size=2)
    sample = framed(sample, (height, width), zoom=zoom, corner=(float(corner[0]), float(corner[1])))
    if how.light:
        gains = 1 + how.light * rng.uniform(-1, 1) + 0.5 * how.light * rng.uniform(-1, 1, size=3)
        sample = sample._replace(pixels=relit(sample.pixels, gains=gains))
    return sample


def mirror(sample: Sample) -> Sample:
    """Swap left and right."""
    width = sample.pixels.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, 0], boxes[:, 2] = width - sample.boxes[:, 2], width - sample.boxes[:, 0]
    return sample._replace(pixels=np.ascontiguousarray(sample.pixels[:, ::-1]), boxes=boxes)


def framed(
    sample: Sample, image: tuple[int, int], *, zoom: float = 1.0, corner: tuple[float, float] = (0, 0)
) -> Sample:
    """Stretch the sample to `image` (height, width), magnify by `zoom`, and put its top left corner at `corner` (x, y).

    What stays free is grey. Boxes are clipped to the canvas; objects of which less than 40 % stays are dropped.
    """
    height, width = image
    rows, columns = sample.pixels.shape[:2]
    if image == (rows, columns) and zoom == 1 and corner == (0, 0):
        return sample
    across, down = _Axis(columns, width, zoom, corner[0]), _Axis(rows, height, zoom, corner[1])
    canvas = Image.new("RGB", (width, height), GREY)
    if across.is_seen and down.is_seen:
        box = (across.from_source, down.from_source, across.to_source, down.to_source)
        size = (across.to - across.start, down.to - down.start)
        part = Image.fromarray(sample.pixels).resize(size, Image.Resampling.BILINEAR, box=box)
        canvas.paste(part, (across.start, down.start))
    scale = np.array((across.scale, down.scale) * 2, dtype=np.float32)
    moved = sample.boxes * scale + np.array(corner * 2, dtype=np.float32)
    inside = np.clip(moved, 0, np.array((width, height) * 2, dtype=np.float32))
    kept = _areas(inside) >= MIN_VISIBLE * _areas(moved)
    return Sample(np.asarray(canvas), inside[kept], sample.labels[kept])


class _Axis:
    """Where the part of a sample that is seen lies along one axis: in whole pixels of the canvas, and in the sample."""

    def __init__(self, length: int, canvas: int, zoom: float, corner: float) -> None:
        self.scale = zoom * canvas / length
        self.start = max(0, math.ceil(corner))
        self.to = min(canvas, math.floor(corner + length * self.scale + 1e-6))
        self.is_seen = self.to > self.start
        self.from_source = max(0.0, (self.start - corner) / self.scale)
        self.to_source = min(float(length), (self.to - corner) / self.scale)


def relit(pixels: NDArray[np.uint8], *, gains: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Multiply each channel's distance from mid-grey by its gain (3,)."""
    levels = np.arange(256)[:, None]
    table = np.clip((levels - 128) * gains + 128, 0, 255).astype(np.uint8)
    return np.stack([table[pixels[..., channel], channel] for channel in range(3)], axis=-1)


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]
