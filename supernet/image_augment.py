"""Random changes of a whole image that leave its class what it is, and mixtures of two images and their classes."""

import math

import numpy as np
from PIL import Image
from pydantic import Field

from nas.values import Value
from supernet.augment import relit
from supernet.pictures import Pixels

TRIES = 10
"""How often a crop is drawn before the largest one in the middle is taken."""


class ImageAugmentation(Value):
    """How much images are changed; the defaults are Swin's on ImageNet-1k.

    Attributes:
        area: smallest and largest share of the image that is cropped.
        aspect: narrowest and widest crop, as width over height relative to the network's input.
        mirror: chance of swapping left and right.
        light: largest relative change of contrast; that of each channel's gain is half of it.
        erasing: chance that a rectangle of 2 to 33 % of the area becomes noise.
        mixup: alpha of the share that an image has in its mean with another one; 0 never blends.
        cutmix: alpha of the share that an image keeps when a rectangle of another one is laid over it; 0 never does.
            With both, each image takes one of them, by the toss of a coin.
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: float = Field(0.5, ge=0, le=1)
    light: float = Field(0.4, ge=0, le=0.5)
    erasing: float = Field(0.25, ge=0, le=1)
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)


def changed(pixels: Pixels, rng: np.random.Generator, how: ImageAugmentation, image: tuple[int, int]) -> Pixels:
    """Return a changed copy (height, width, 3) of an image at any size; equal generators give equal copies."""
    pixels = cropped(pixels, crop_box(pixels.shape[:2], rng, how, image), image)
    if rng.random() < how.mirror:
        pixels = pixels[:, ::-1]
    if how.light:
        gains = 1 + how.light * rng.uniform(-1, 1) + 0.5 * how.light * rng.uniform(-1, 1, size=3)
        pixels = relit(pixels, gains=gains)
    if rng.random() < how.erasing:
        pixels = erased(pixels, rng)
    return np.ascontiguousarray(pixels)


Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels."""


def crop_box(size: tuple[int, int], rng: np.random.Generator, how: ImageAugmentation, image: tuple[int, int]) -> Box:
    """Draw the part of an image of `size` (height, width) that is looked at."""
    height, width = size
    for _ in range(TRIES):
        area = height * width * rng.uniform(*how.area)
        aspect = image[1] / image[0] * math.exp(rng.uniform(*np.log(how.aspect)))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
            return left, top, left + across, top + down
    return middle_box(size, image)


def middle_box(size: tuple[int, int], image: tuple[int, int]) -> Box:
    """Return the largest part in the middle that has the shape of `image` (height, width)."""
    height, width = size
    scale = min(height / image[0], width / image[1])
    down, across = max(1, round(image[0] * scale)), max(1, round(image[1] * scale))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def cropped(pixels: Pixels, box: Box, image: tuple[int, int]) -> Pixels:
    """Stretch a part of an image to `image` (height, width)."""
    height, width = image
    if box == (0, 0, width, height) and pixels.shape[:2] == image:
        return pixels
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture)


def erased(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a copy with noise in a rectangle of 2 to 33 % of the area, which is 0.3 to 3.3 times as wide as high."""
    height, width = pixels.shape[:2]
    area, aspect = height * width * rng.uniform(0.02, 0.33), math.exp(rng.uniform(-math.log(3.3), math.log(3.3)))
    across = min(width, max(1, round(math.sqrt(area * aspect))))
    down = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
    found = pixels.copy()
    found[top : top + down, left : left + across] = rng.integers(0, 256, (down, across, 3), dtype=np.uint8)
    return found


def mixes(how: ImageAugmentation) -> bool:
    """Tell whether images are mixed with others."""
    return how.mixup > 0 or how.cutmix > 0


def mixed(one: Pixels, other: Pixels, rng: np.random.Generator, how: ImageAugmentation) -> tuple[Pixels, float]:
    """Mix two images of one size; return the mixture and the share that the first one has in it."""
    if how.mixup > 0 and (how.cutmix == 0 or rng.random() < 0.5):
        share = float(rng.beta(how.mixup, how.mixup))
        return np.rint(share * one + (1 - share) * other.astype(np.float64)).astype(np.uint8), share
    height, width = one.shape[:2]
    side = math.sqrt(1 - rng.beta(how.cutmix, how.cutmix))
    x, y = rng.integers(width), rng.integers(height)
    left, right = np.clip((x - side * width / 2, x + side * width / 2), 0, width).astype(int)
    top, bottom = np.clip((y - side * height / 2, y + side * height / 2), 0, height).astype(int)
    found = one.copy()
    found[top:bottom, left:right] = other[top:bottom, left:right]
    return found, 1 - float((right - left) * (bottom - top)) / (height * width)
