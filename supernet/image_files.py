"""Image files as a data set names them: opened, checked against what is said about them, read."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image

from supernet.errors import BadImage
from supernet.faults import FaultKind
from supernet.pictures import Pixels, to_rgb

SIDEWAYS = 5
"""From this EXIF orientation on, an image is shown with width and height exchanged."""


def read_image(path: Path, size: tuple[int, int]) -> Pixels:
    """Return the pixels of an image of (width, height): RGB (height, width, 3).

    Raises:
        BadImage: it is missing, cannot be read, or has another size.
    """
    with opened(path) as picture:
        _check_size(picture, size)
        return to_rgb(picture)


def check_header(path: Path, size: tuple[int, int]) -> int:
    """Check an image by its header alone; return the bytes that it takes.

    Raises:
        BadImage: it is missing, no image, or has another size.
    """
    with opened(path) as picture:
        _check_size(picture, size)
    return path.stat().st_size


def check_content(path: Path, size: tuple[int, int] | None = None) -> tuple[tuple[int, int], str]:
    """Read all of an image, if given of (width, height); return its size and the hash of the file.

    Raises:
        BadImage: it is missing, cannot be read, or has another size.
    """
    with opened(path) as picture:
        if size is not None:
            _check_size(picture, size)
        picture.load()
        return picture.size, hashlib.sha256(path.read_bytes()).hexdigest()


def orientation(picture: Image.Image) -> int:
    """Return how EXIF says that an image must be turned to be upright; 1 is not at all."""
    return int(picture.getexif().get(ExifTags.Base.Orientation, 1))


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
    except Exception as fault:
        # Pillow has a dozen classes for files that are no images.
        raise BadImage(FaultKind.UNREADABLE_IMAGE, str(fault) or type(fault).__name__) from fault


def _check_size(picture: Image.Image, size: tuple[int, int]) -> None:
    if picture.size == size:
        return
    text = f"is {picture.width}x{picture.height}, its entry says {size[0]}x{size[1]}"
    if picture.size == size[::-1] and orientation(picture) >= SIDEWAYS:
        text += " (its EXIF orientation turns it: save it upright)"
    raise BadImage(FaultKind.IMAGE_SIZE, text)
