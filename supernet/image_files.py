"""The one place that opens image files: as an annotation file describes them, or upright, however they were held.

Both give the same pixels: an image of a data set that would have to be turned to be upright is refused.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from supernet.errors import BadImage, UnreadableImage
from supernet.faults import FaultKind
from supernet.pictures import Pixels, to_rgb

TURNS = range(2, 9)
"""EXIF orientations of images that are not stored upright; cameras write 0 for unknown."""

SIDEWAYS = 5
"""From this EXIF orientation on, an image is shown with width and height exchanged."""

READERS = min(8, os.cpu_count() or 1)
"""Images decoded at once."""


def read_image(path: Path, size: tuple[int, int]) -> Pixels:
    """Return the pixels of an image of (width, height): RGB (height, width, 3).

    Raises:
        BadImage: it is missing, cannot be read, has another size, or is not stored upright.
    """
    with opened(path) as picture:
        _check_size(picture, size)
        picture.load()  # a PNG may say its orientation behind its pixels
        _check_upright(picture)
        return to_rgb(picture)


def check_header(path: Path, size: tuple[int, int]) -> int:
    """Check an image by its header alone; return the bytes that it takes.

    Raises:
        BadImage: it is missing, no image, has another size, or is not stored upright.
    """
    with opened(path) as picture:
        _check_size(picture, size)
        _check_upright(picture)
    return path.stat().st_size


def read_upright(path: Path) -> Pixels:
    """Return the pixels of an image as it was held: RGB (height, width, 3).

    Raises:
        BadImage: it is missing or cannot be read.
    """
    with opened(path) as picture:
        return to_rgb(ImageOps.exif_transpose(picture))


def read_picture(path: Path) -> Pixels:
    """Read an image that stands for itself, in no data set, upright.

    Raises:
        UnreadableImage: it is missing, damaged, or none.
    """
    try:
        return read_upright(path)
    except BadImage as fault:
        reason = "it does not exist" if fault.kind is FaultKind.MISSING_IMAGE else str(fault)
        raise UnreadableImage(path, reason) from fault


def orientation(picture: Image.Image) -> int:
    """Return how EXIF says that the pixels must be turned to be upright; 1 is not at all."""
    if picture.format == "TIFF":  # Pillow turns these by itself
        return 1
    # A PNG's own `getexif` would decode it, to look behind its pixels.
    said = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    return int(said) if said in TURNS else 1


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong inside is said to be its fault."""
    try:
        with Image.open(path) as picture:
            yield picture
    except BadImage:
        raise
    except FileNotFoundError as fault:
        raise BadImage(FaultKind.MISSING_IMAGE, f"{path} is missing") from fault
    except UnidentifiedImageError as fault:  # its own words repeat the whole path
        raise BadImage(FaultKind.UNREADABLE_IMAGE, "cannot identify image file") from fault
    except Exception as fault:
        # Pillow has a dozen classes for files that are no images, struct.error and AttributeError among them.
        text = " ".join(str(fault).split()) or type(fault).__name__
        raise BadImage(FaultKind.UNREADABLE_IMAGE, text) from fault


def _check_size(picture: Image.Image, size: tuple[int, int]) -> None:
    if picture.size == size:
        return
    if picture.size == size[::-1] and orientation(picture) >= SIDEWAYS:
        _check_upright(picture)
    text = f"is {picture.width}x{picture.height}, its entry says {size[0]}x{size[1]}"
    raise BadImage(FaultKind.IMAGE_SIZE, text)


def _check_upright(picture: Image.Image) -> None:
    if orientation(picture) != 1:
        raise BadImage(FaultKind.TURNED_IMAGE, "its EXIF orientation turns it: save it upright")
