"""Draw detections on an image: a box, a class name and a score for each, the best on top."""

import colorsys
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from supernet.detection import Detected
from supernet.pictures import Pixels

PALETTE = (
    (230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 225, 25), (245, 130, 48), (145, 30, 180),
    (70, 240, 240), (240, 50, 230), (170, 110, 40), (170, 255, 195), (0, 0, 128), (250, 190, 212),
)  # fmt: skip
"""Colours that are told apart at a glance."""

READABLE_PX = 480

_GOLDEN = 0.618034


class _Mark(NamedTuple):
    object: Detected
    zoom: int
    fill: tuple[int, int, int]

    @property
    def box(self) -> tuple[float, ...]:
        """Return its corners on the enlarged image."""
        return tuple(self.zoom * side for side in self.object.box)


class _Style(NamedTuple):
    line: int
    text: int


def draw(pixels: Pixels, found: Sequence[Detected], classes: Sequence[str]) -> Image.Image:
    """Return the image with its detections, which are in its pixels, drawn on it.

    An image whose sides are all below `READABLE_PX` is enlarged by a whole number: labels would cover it.
    """
    height, width = pixels.shape[:2]
    zoom = max(1, math.ceil(READABLE_PX / max(height, width)))
    picture = Image.fromarray(pixels).resize((zoom * width, zoom * height), Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(picture)
    style = _style(picture.size)
    marks = [_Mark(one, zoom, colour(classes.index(one.label))) for one in reversed(found)]  # they come best first
    for mark in marks:
        _draw_box(canvas, mark, style)
    for mark in marks:
        _draw_label(canvas, mark, style, picture.size)
    return picture


def colour(label: int) -> tuple[int, int, int]:
    """Return the colour of a class: a fixed list first, then hues far from their predecessors."""
    if label < len(PALETTE):
        return PALETTE[label]
    hue, tier = (label * _GOLDEN) % 1, (label - len(PALETTE)) % 3
    red, green, blue = colorsys.hsv_to_rgb(hue, (1.0, 0.6, 0.85)[tier], (0.9, 1.0, 0.6)[tier])
    return round(255 * red), round(255 * green), round(255 * blue)


def _style(size: tuple[int, int]) -> _Style:
    """Choose line width and height of letters so that they look alike on any size."""
    side = (size[0] * size[1]) ** 0.5
    return _Style(line=max(1, round(side / 320)), text=max(10, round(side / 45)))


def _draw_box(canvas: ImageDraw.ImageDraw, mark: _Mark, style: _Style) -> None:
    x1, y1, x2, y2 = mark.box
    canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=mark.fill, width=style.line)


def _draw_label(canvas: ImageDraw.ImageDraw, mark: _Mark, style: _Style, size: tuple[int, int]) -> None:
    """Write above the box, or inside it at the upper edge of the image, never beyond the image."""
    text = f"{mark.object.label} {mark.object.score:.2f}"
    font = ImageFont.load_default(style.text)
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    pad = max(1, style.text // 8)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x1, y1, *_ = mark.box
    x = max(0.0, min(x1, size[0] - width))
    y = y1 - height if y1 >= height else y1
    canvas.rectangle((x, y, x + width, y + height), fill=mark.fill)
    dark = float(np.dot(mark.fill, (0.299, 0.587, 0.114))) < 140
    canvas.text((x + pad - left, y + pad - top), text, fill="white" if dark else "black", font=font)
