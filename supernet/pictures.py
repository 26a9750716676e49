"""From a picture, whatever its form, to what a detector takes: the same steps in training, scoring and detection."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
"""RGB (height, width, 3)."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")
"""Files of a folder that count as images, the commonest first."""


def to_rgb(picture: Image.Image) -> Pixels:
    """Return the pixels as 8-bit RGB: grey three times, 16 bits by their upper 8, transparency left out.

    Raises:
        ValueError: the pixels are floating-point numbers, of which nobody knows which one is white.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # Pillow clips them to 255 by itself: all would be white
        grey = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(picture.convert("RGB"))


def stretch(pixels: Pixels, image: tuple[int, int]) -> Pixels:
    """Resize to (height, width), whatever the proportions were."""
    height, width = image
    if pixels.shape[:2] == image:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
