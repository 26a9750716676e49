"""Random changes of a training sample that leave its objects what they are: mirror, zoom and shift, light."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from supernet.dataset import Sample

ZOOM = (0.75, 1.3)
"""Smallest and largest magnification."""

MIN_VISIBLE = 0.4
"""Share of a box's area that must stay inside the image; objects with less are dropped."""

LIGHT = 0.25
"""Largest relative change of contrast and of each channel's gain."""


def augment(sample: Sample, rng: np.random.Generator) -> Sample:
    """Return a changed copy of the sample, of the same size; equal generators give equal copies."""
    if rng.random() < 0.5:
        sample = mirror(sample)
    if rng.random() < 0.5:
        height, width = sample.pixels.shape[:2]
        zoom = float(rng.uniform(*ZOOM))
        slack = np.abs(1 - zoom) * np.array((width, height))
        corner = np.minimum(0, (1 - zoom) * np.array((width, height))) + slack * rng.random(2)
        sample = zoomed(sample, zoom=zoom, corner=(float(corner[0]), float(corner[1])))
    gains = 1 + LIGHT * rng.uniform(-1, 1) + 0.5 * LIGHT * rng.uniform(-1, 1, size=3)
    return sample._replace(pixels=relit(sample.pixels, gains=gains))


def mirror(sample: Sample) -> Sample:
    """Swap left and right."""
    width = sample.pixels.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, 0], boxes[:, 2] = width - sample.boxes[:, 2], width - sample.boxes[:, 0]
    return sample._replace(pixels=np.ascontiguousarray(sample.pixels[:, ::-1]), boxes=boxes)


def zoomed(sample: Sample, *, zoom: float, corner: tuple[float, float]) -> Sample:
    """Magnify by `zoom` and put the image's top left corner at `corner` (x, y); the rest becomes grey.

    Boxes are clipped to the image; objects of which less than 40 % stays are dropped.
    """
    height, width = sample.pixels.shape[:2]
    back = (1 / zoom, 0.0, -corner[0] / zoom, 0.0, 1 / zoom, -corner[1] / zoom)
    picture = Image.fromarray(sample.pixels).transform(
        (width, height), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor=(114, 114, 114)
    )
    moved = sample.boxes * np.float32(zoom) + np.array(corner * 2, dtype=np.float32)
    inside = np.clip(moved, 0, np.array((width, height) * 2, dtype=np.float32))
    kept = _areas(inside) >= MIN_VISIBLE * _areas(moved)
    return Sample(np.asarray(picture), inside[kept], sample.labels[kept])


def relit(pixels: NDArray[np.uint8], *, gains: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Multiply each channel's distance from mid-grey by its gain (3,)."""
    levels = np.arange(256)[:, None]
    table = np.clip((levels - 128) * gains + 128, 0, 255).astype(np.uint8)
    return np.stack([table[pixels[..., channel], channel] for channel in range(3)], axis=-1)


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]
