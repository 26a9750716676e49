"""What can be wrong with an entry of a data set, and what becomes of it where bad entries are left out."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class FaultKind(StrEnum):
    """Kinds of faults, as they are counted and shown."""

    ANNOTATION_FILE = "annotation file unusable"
    NOTHING_LISTED = "nothing listed"
    CATEGORY = "category unusable"
    CLASSES = "splits of different classes"
    IMAGE_ENTRY = "image entry unusable"
    REPEATED_IMAGE = "image id repeated"
    MISSING_IMAGE = "image file missing"
    UNREADABLE_IMAGE = "image file unreadable"
    IMAGE_SIZE = "image size other than annotated"
    TURNED_IMAGE = "image turned by its EXIF orientation"
    SHARED_IMAGE = "image in two splits"
    TWO_ANNOTATIONS = "image with two annotation files"
    ANNOTATION = "annotation unusable"
    REPEATED_ANNOTATION = "annotation repeated"
    ANNOTATION_ID = "annotation id missing or repeated"
    AREA = "area not a number"
    CROWD = "iscrowd neither 0 nor 1"
    UNKNOWN_IMAGE = "annotation of an unknown image"
    UNKNOWN_CATEGORY = "annotation of an unknown category"
    BOX = "box not four finite numbers"
    EMPTY_BOX = "box empty"
    BOX_OUTSIDE = "box outside its image"
    BOX_PARTLY_OUTSIDE = "box partly outside its image"
    SOURCE_FILE = "file of the source unusable"


class Fault(NamedTuple):
    """One fault.

    Attributes:
        kind: what sort of fault it is.
        text: a sentence that names the entry.
        where: the file it stands in, with its line or the image where that helps to find it.
        image_id: of the image it concerns, in an annotation file.
    """

    kind: FaultKind
    text: str
    where: str
    image_id: int | None = None


def remedy(kind: FaultKind) -> str | None:
    """Say what becomes of such an entry where bad ones are left out; None if nothing can go on with it."""
    match kind:
        case FaultKind.ANNOTATION_FILE | FaultKind.NOTHING_LISTED | FaultKind.CATEGORY | FaultKind.CLASSES:
            return None
        case (
            FaultKind.IMAGE_ENTRY
            | FaultKind.MISSING_IMAGE
            | FaultKind.UNREADABLE_IMAGE
            | FaultKind.IMAGE_SIZE
            | FaultKind.TURNED_IMAGE
        ):
            return "left out with its boxes"
        case FaultKind.REPEATED_IMAGE:
            return "left out; entries that differ, all of them with their boxes"
        case FaultKind.SHARED_IMAGE:
            return "left out of the first of the two"
        case FaultKind.TWO_ANNOTATIONS:
            return "only one of them used"
        case FaultKind.BOX_PARTLY_OUTSIDE:
            return "clipped"
        case FaultKind.ANNOTATION_ID:
            return "numbered anew"
        case FaultKind.AREA:
            return "taken from the box"
        case FaultKind.CROWD:
            return "taken as 0"
        case _:
            return "left out"


def causes(entries: Iterable[Fault], files: Iterable[Fault]) -> tuple[Fault, ...]:
    """Join the faults of an annotation file and of image files.

    Boxes are judged by the size that the entry of their image says: where that is wrong or turned, they are not.
    """
    files = tuple(files)
    unsure = (FaultKind.IMAGE_SIZE, FaultKind.TURNED_IMAGE)
    misjudged = {fault.image_id for fault in files if fault.kind in unsure}
    judged = tuple(fault for fault in entries if fault.image_id is None or fault.image_id not in misjudged)
    return (*judged, *files)


def counted(faults: Iterable[Fault]) -> dict[str, int]:
    """Count faults by kind, in the order of the kinds."""
    counts = Counter(fault.kind for fault in faults)
    return {str(kind): counts[kind] for kind in FaultKind if counts[kind]}


def remedied(counts: dict[str, int]) -> str:
    """Say on one line what became of counted faults, such as `3 x box empty (left out)`."""
    return ", ".join(f"{count} x {kind} ({remedy(FaultKind(kind))})" for kind, count in counts.items())
