"""Annotation files in COCO format: what is wrong in them, and what is left without it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from supernet.errors import BadDataset
from supernet.faults import Fault, FaultKind, counted, remedy

Json = dict[str, Any]

OUTSIDE_PX = 1.0
"""How far a box may stick out of its image: rounding; such boxes are clipped."""

LARGEST = 2**53
"""Integers beyond are no longer told apart as floats."""

SHOWN = 4
"""Kinds of faults that the one line of an error counts."""


class Checked(NamedTuple):
    """An annotation file without its bad entries.

    Attributes:
        coco: the entries that can be used; boxes that were partly outside their image are clipped.
        faults: what was wrong, in the order of the file.
    """

    coco: Json
    faults: tuple[Fault, ...]


def annotation_path(split: str) -> str:
    """Return where in a data set the annotations of a split are."""
    return f"annotations/{split}.json"


def read_annotations(folder: Path, split: str) -> Json:
    """Read the annotation file of a split.

    Raises:
        BadDataset: it cannot be read or is not in COCO format.
    """
    name = annotation_path(split)
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8-sig"))
    except OSError as fault:
        raise BadDataset(folder, [f"{name} cannot be read ({fault.strerror})"]) from fault
    except ValueError as fault:
        raise BadDataset(folder, [f"{name} is not JSON ({fault})"]) from fault
    lists = ("images", "annotations", "categories")
    missing = [key for key in lists if not isinstance(found, dict) or key not in found]
    if missing:
        raise BadDataset(folder, [f"{name} lacks {', '.join(missing)}: it is not in COCO format"])
    wrong = [key for key in lists if not isinstance(found[key], list)]
    if wrong:
        raise BadDataset(folder, [f"in {name} {', '.join(wrong)} is no list: it is not in COCO format"])
    return dict(found)


def check_annotations(found: Json, where: str) -> Checked:
    """Look at every entry of an annotation file, but not at the image files."""
    faults = [Fault(FaultKind.NOTHING_LISTED, text, where) for text in _missing_lists(found)]
    faults += [Fault(FaultKind.CATEGORY, text, where) for text in _category_faults(found["categories"])]
    images, known, image_faults = _usable_images(found["images"], where)
    categories = [{**entry, "id": int(entry["id"])} for entry in found["categories"] if _is_category(entry)]
    notes, note_faults = _usable_notes(found["annotations"], known, {entry["id"] for entry in categories}, where)
    usable = {entry["id"] for entry in images}
    kept = [note for note in notes if note["image_id"] in usable]
    return Checked(
        {"categories": categories, "images": images, "annotations": kept}, (*faults, *image_faults, *note_faults)
    )


def refuse(folder: Path, faults: tuple[Fault, ...], *, shown_by: str = "") -> BadDataset:
    """Make one error of all faults: counted by kind where there are several.

    Args:
        folder: the data set.
        faults: of it.
        shown_by: the command that shows all of them; empty for a data set in COCO format.
    """
    shown_by = shown_by or f"`heatnas data check {folder}`"
    counts = counted(faults)
    kinds = [f"{count} x {kind}" for kind, count in counts.items()]
    summary = f" ({', '.join(kinds[:SHOWN])}{', ...' if len(kinds) > SHOWN else ''})" if len(kinds) > 1 else ""
    advice = f"Correct or remove these entries ({shown_by} shows them by kind)"
    if all(remedy(fault.kind) for fault in faults):
        advice += ", or go on without them with --drop-bad"
    return BadDataset(folder, [fault.text for fault in faults], summary=summary, advice=advice)


def without_bad(folder: Path, faults: tuple[Fault, ...], *, drop_bad: bool) -> tuple[Fault, ...]:
    """Return the faults that can be gone on without, where that is asked for.

    Raises:
        BadDataset: there are faults and it is not asked for, or some stand in the way of everything.
    """
    if drop_bad:
        faults_left = tuple(fault for fault in faults if remedy(fault.kind) is None)
        if not faults_left:
            return faults
        raise refuse(folder, faults_left)
    if faults:
        raise refuse(folder, faults)
    return ()


def box_fault(box: object, size: tuple[float, float]) -> tuple[FaultKind, str] | None:
    """Say what is wrong with a box x, y, width, height in an image of (width, height)."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return FaultKind.BOX, f"has the box {box}, not four finite numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return FaultKind.EMPTY_BOX, f"has the empty box {box}: width and height must be positive"
    text = f"has the box {box} outside its image of {size[0]}x{size[1]}"
    if min(x + width, size[0]) <= max(x, 0) or min(y + height, size[1]) <= max(y, 0):
        return FaultKind.BOX_OUTSIDE, text
    if x < -OUTSIDE_PX or y < -OUTSIDE_PX or x + width > size[0] + OUTSIDE_PX or y + height > size[1] + OUTSIDE_PX:
        return FaultKind.BOX_PARTLY_OUTSIDE, text
    return None


def clipped(box: list[float], size: tuple[float, float]) -> list[float]:
    """Return the part of a box x, y, width, height that lies in an image of (width, height)."""
    left, top = max(box[0], 0), max(box[1], 0)
    return [left, top, min(box[0] + box[2], size[0]) - left, min(box[1] + box[3], size[1]) - top]


def _missing_lists(found: Json) -> Iterator[str]:
    if not found["images"]:
        yield "no image is listed"
    if not found["categories"]:
        yield "no category is listed"


def _category_faults(categories: list[Any]) -> Iterator[str]:
    ids: set[int] = set()
    names: set[str] = set()
    for place, entry in enumerate(categories, start=1):
        if not _is_category(entry):
            yield f"category number {place} ({_short(entry)}) needs an id that is an integer and a name"
            continue
        if entry["id"] in ids:
            yield f"category id {entry['id']} occurs twice"
        if entry["name"] in names:
            yield f"category name {entry['name']} occurs twice"
        ids.add(entry["id"])
        names.add(entry["name"])


def _is_category(entry: object) -> bool:
    return isinstance(entry, dict) and _is_whole(entry.get("id")) and isinstance(entry.get("name"), str)


def _usable_images(entries: list[Any], where: str) -> tuple[list[Json], dict[int, Json], list[Fault]]:
    """Return the entries to use, those by id that are known (their annotations are no strangers), and the faults."""
    faults: list[Fault] = []
    usable: dict[int, Json] = {}
    known: dict[int, Json] = {}
    ambiguous = set()
    for place, entry in enumerate(entries, start=1):
        wrong = _entry_fault(entry, place)
        if wrong is not None:
            faults.append(Fault(FaultKind.IMAGE_ENTRY, wrong, where))
            if isinstance(entry, dict) and _is_whole(entry.get("id")):
                known.setdefault(int(entry["id"]), {})
            continue
        number = int(entry["id"])
        whole = {**entry, "id": number, "width": int(entry["width"]), "height": int(entry["height"])}
        if number in usable:
            faults.append(Fault(FaultKind.REPEATED_IMAGE, f"image id {number} occurs twice", where))
            if usable[number] != whole:  # nothing says which of the two an annotation means
                ambiguous.add(number)
            continue
        usable[number] = known[number] = whole
    return [entry for number, entry in usable.items() if number not in ambiguous], known, faults


def _entry_fault(entry: object, place: int) -> str | None:
    if not isinstance(entry, dict):
        return f"image number {place} ({_short(entry)}) is no entry of an image"
    name = f"image number {place} ({entry.get('file_name', 'without file_name')})"
    missing = [key for key in ("id", "file_name", "width", "height") if key not in entry]
    if missing:
        return f"{name} lacks {', '.join(missing)}"
    if not _is_whole(entry["id"]):
        return f"{name} has the id {_short(entry['id'])}, not an integer"
    if not isinstance(entry["file_name"], str) or not entry["file_name"]:
        return f"{name} has no file name but {_short(entry['file_name'])}"
    if not all(_is_whole(entry[side]) and entry[side] > 0 for side in ("width", "height")):
        return f"{name} has the size {_short(entry['width'])}x{_short(entry['height'])}, not two positive integers"
    return None


def _usable_notes(
    notes: list[Any], images: Mapping[int, Json], categories: set[int], where: str
) -> tuple[list[Json], list[Fault]]:
    faults: list[Fault] = []
    usable: list[Json] = []
    seen: dict[int, Json] = {}
    for place, note in enumerate(notes, start=1):
        number = note.get("id") if isinstance(note, dict) else None
        name = f"annotation {number}" if number is not None else f"annotation number {place}"
        found, use = _check_note(note, name, images, categories)
        if use is not None:
            again = _repetition(note, seen)
            if again is not None:
                found.append((again, f"{name} {_REPETITION[again]}"))
            if again is not FaultKind.REPEATED_ANNOTATION:
                usable.append(use)
        if found:
            image = images[note["image_id"]] if isinstance(note, dict) and _names_image(note, images) else {}
            place_of = f"{where}, on {image['file_name']}" if image else where
            faults += [Fault(kind, text, place_of, image.get("id")) for kind, text in found]
    return usable, faults


_REPETITION = {
    FaultKind.REPEATED_ANNOTATION: "stands there twice, word for word",
    FaultKind.ANNOTATION_ID: "has no id of its own: ids are integers that occur once",
}


def _repetition(note: Json, seen: dict[int, Json]) -> FaultKind | None:
    if not _is_whole(note.get("id")):
        return FaultKind.ANNOTATION_ID
    first = seen.setdefault(int(note["id"]), note)
    if first is note:
        return None
    return FaultKind.REPEATED_ANNOTATION if first == note else FaultKind.ANNOTATION_ID


def _names_image(note: Json, images: Mapping[int, Json]) -> bool:
    return _is_whole(note.get("image_id")) and note["image_id"] in images


def _check_note(
    note: object, name: str, images: Mapping[int, Json], categories: set[int]
) -> tuple[list[tuple[FaultKind, str]], Json | None]:
    """Return what is wrong with an annotation, and what can be used of it."""
    if not isinstance(note, dict):
        return [(FaultKind.ANNOTATION, f"{name} ({_short(note)}) is no annotation")], None
    missing = [key for key in ("image_id", "category_id", "bbox") if key not in note]
    if missing:
        return [(FaultKind.ANNOTATION, f"{name} lacks {', '.join(missing)}")], None
    if not _names_image(note, images):
        return [(FaultKind.UNKNOWN_IMAGE, f"{name} belongs to the unknown image {_short(note['image_id'])}")], None
    if not _is_whole(note["category_id"]) or note["category_id"] not in categories:
        return [(FaultKind.UNKNOWN_CATEGORY, f"{name} has the unknown category {_short(note['category_id'])}")], None
    faults, use = [], dict(note)
    if "area" in note and not (_is_number(note["area"]) and note["area"] >= 0):
        faults.append((FaultKind.AREA, f"{name} has the area {_short(note['area'])}, not a number"))
        del use["area"]
    if "iscrowd" in note:
        if note["iscrowd"] not in (0, 1):  # 1.0 and true are 1
            faults.append((FaultKind.CROWD, f"{name} has iscrowd {_short(note['iscrowd'])}, neither 0 nor 1"))
        use["iscrowd"] = int(note["iscrowd"] in (0, 1) and note["iscrowd"])
    image = images[note["image_id"]]
    if not image:  # the entry of its image is reported
        return faults, None
    size = (image["width"], image["height"])
    match box_fault(note["bbox"], size):
        case None:
            return faults, use
        case FaultKind.BOX_PARTLY_OUTSIDE as kind, text:
            box = clipped(note["bbox"], size)
            use["bbox"] = box
            if "area" in use:
                use["area"] = min(use["area"], box[2] * box[3])
            return [*faults, (kind, f"{name} {text}")], use
        case kind, text:
            return [*faults, (kind, f"{name} {text}")], None


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_whole(value: object) -> bool:
    """Tell whether a value is an integer, written with a decimal point or not."""
    return _is_number(value) and (isinstance(value, int) or cast("float", value).is_integer())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
