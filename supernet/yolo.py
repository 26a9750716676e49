"""Data sets as YOLO trainers read them: a YAML file with names and splits, images/, labels/ of `class cx cy w h`.

Coordinates are shares of the upright image. A line of more numbers is a polygon, of which the box around it counts, or
where the YAML file says `kpt_shape`, a box with key points, which are left out.
"""

import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from supernet.errors import BadDataset, BadImage
from supernet.faults import Fault, FaultKind
from supernet.pictures import SUFFIXES
from supernet.source_data import (
    Progress,
    Source,
    SourceBox,
    SourceImage,
    apart,
    placed,
    read_images,
    read_sizes,
    shown,
)

Json = Mapping[str, Any]

KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""What the splits are called in the YAML file."""


class _Form(NamedTuple):
    """What a line of a label file may hold."""

    classes: tuple[str, ...]
    key_points: int
    """Numbers behind a box; 0 where a line may be a polygon."""

    @property
    def missed(self) -> str:
        """Say what a line is that is none of it."""
        if self.key_points:
            return f"not `class cx cy w h` with the {self.key_points} numbers of kpt_shape behind it"
        return "neither `class cx cy w h` nor a class with a polygon"


def is_yolo(source: Path) -> bool:
    """Tell whether a path is the YAML file of a data set, or a folder that has one.

    Raises:
        BadDataset: a YAML file cannot be read, or several describe a data set.
    """
    return _description(source) is not None


def read_yolo(source: Path, progress: Progress = lambda *_: None) -> Source:
    """Read a data set from its folder or its YAML file; an image without a label file is background.

    Raises:
        BadDataset: the YAML file does not say where the images are and what the classes are called.
    """
    path = _description(source)
    if path is None:
        raise BadDataset(source, ["no YAML file with names and train here"], advice="Name the folder of data.yaml")
    said = _loaded(path)
    folder = path.parent
    form = _Form(_classes(said, path), _key_points(said, path))
    lists: dict[str, list[Path]] = {}
    faults: list[Fault] = []
    remarks: list[str] = []
    for split, keys in KEYS.items():
        key = next((key for key in keys if said.get(key)), None)
        if key is None:
            continue
        try:
            lists[split], wrong = _images(said[key], said, path, key)
        except BadDataset as fault:
            if split != "test":
                raise
            remarks.append(f"there is no test split: {fault.faults[0]}")
            continue
        faults += wrong
    splits, shared = apart(lists, folder)
    _check_labels(splits, path)
    remarks += _backgrounds(splits, folder)
    found, wrong = read_images(splits, partial(_read, folder, form), progress)
    return Source(folder, "yolo", form.classes, found, (*faults, *shared, *wrong), tuple(remarks))


def label_path(image: Path) -> Path:
    """Return the label file of an image: in `labels` where the image is in `images`, or else beside it."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _description(source: Path) -> Path | None:
    """Return the YAML file that describes a data set."""
    if source.is_file():
        return source if source.suffix in {".yaml", ".yml"} else None
    if not source.is_dir():
        return None
    files = sorted(path for path in source.iterdir() if path.suffix in {".yaml", ".yml"})
    described = [path for path in files if {"names", "train"} <= _loaded(path).keys()]
    if len(described) > 1:
        names = ", ".join(path.name for path in described)
        raise BadDataset(source, [f"several files describe a data set: {names}"], advice="Name the one to convert")
    return described[0] if described else None


def _loaded(path: Path) -> Json:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        text = f"{path.name}{line} is not YAML ({getattr(fault, 'problem', None) or fault})"
        raise BadDataset(path.parent, [text], advice="Correct the file") from fault
    except UnicodeDecodeError as fault:
        raise BadDataset(path.parent, [f"{path.name} is no text ({fault})"], advice="Correct the file") from fault
    return found if isinstance(found, dict) else {}


def _classes(said: Json, path: Path) -> tuple[str, ...]:
    match said.get("names"):
        case list() as names:
            classes = tuple(map(str, names))
        case dict() as names if set(names) == set(range(len(names))):
            classes = tuple(str(names[place]) for place in range(len(names)))
        case names:
            text = f"{path.name}: names is {names!r:.80}, neither a list nor numbered from 0 on without a gap"
            raise BadDataset(path.parent, [text], advice="Correct the file")
    count = said.get("nc", len(classes))
    if not classes or len(set(classes)) < len(classes) or count != len(classes):
        text = f"{path.name}: names are {', '.join(classes) or 'none'}, nc is {count}: each needs a name of its own"
        raise BadDataset(path.parent, [text], advice="Correct the file")
    return classes


def _key_points(said: Json, path: Path) -> int:
    """Return how many numbers stand behind the box of an object: `kpt_shape` says how many points, and of what each."""
    match said.get("kpt_shape"):
        case None:
            return 0
        case [int(count), int(numbers)] if count > 0 and numbers in (2, 3):
            return count * numbers
        case shape:
            text = f"{path.name}: kpt_shape is {shape!r:.80}, neither [key points, 2] nor [key points, 3]"
            raise BadDataset(path.parent, [text], advice="Correct the file")


def _images(entry: object, said: Json, path: Path, key: str) -> tuple[list[Path], list[Fault]]:
    """Return the images of a split: of folders, or in files that list them."""
    images: list[Path] = []
    faults: list[Fault] = []
    for name in entry if isinstance(entry, list) else [entry]:
        place = _found(str(name), said, path)
        if place is None:
            text = f"{path.name}: {key} is {name}, which is missing"
            raise BadDataset(path.parent, [text], advice="Correct the path: it counts from the folder of the YAML file")
        if place.is_dir():
            images += sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES)
            continue
        for line, image in _listed(place, said, path):
            if image.is_file():
                images.append(image)
            else:
                where = f"{shown(place, path.parent)}:{line}"
                faults.append(Fault(FaultKind.MISSING_IMAGE, f"{shown(image, path.parent)} is missing", where))
    if not images:
        raise BadDataset(path.parent, [f"{path.name}: {key} is {entry}, where no image is"], advice="Correct the path")
    return images, faults


def _found(name: str, said: Json, path: Path) -> Path | None:
    """Return the place that a YAML file means: from `path` in it, from its own folder, or without a leading `../`."""
    bases = [path.parent / str(said["path"])] if said.get("path") else []
    for base in (*bases, path.parent):
        for shape in (name, name.removeprefix("../")):
            place = Path(os.path.abspath(base / shape))  # noqa: PTH100 (resolve() would follow links)
            if place.exists():
                return place
    return None


def _listed(place: Path, said: Json, path: Path) -> Iterator[tuple[int, Path]]:
    """Yield the images of a list with their lines; `./` counts from the list, anything else from the data set."""
    for line, text in enumerate(place.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        name = text.strip()
        if not name:
            continue
        beside = Path(os.path.abspath(place.parent / name))  # noqa: PTH100
        yield line, beside if name.startswith("./") else _found(name, said, path) or beside


def _check_labels(splits: Mapping[str, list[Path]], path: Path) -> None:
    images = [image for paths in splits.values() for image in paths]
    if images and not any(label_path(image).is_file() for image in images):
        text = f"none of {len(images)} images has a label file, such as {label_path(images[0])}"
        raise BadDataset(path.parent, [text], advice="Put the labels beside the images, images/ and labels/")


def _backgrounds(splits: Mapping[str, list[Path]], folder: Path) -> Iterator[str]:
    """Say how many images have no label file: nobody may have meant to leave them out."""
    for split, images in splits.items():
        bare = [image for image in images if not label_path(image).is_file()]
        if bare:
            yield (
                f"{len(bare)} of {len(images)} image(s) of {split} have no label file and count as background, such as "
                f"{shown(bare[0], folder)}"
            )


def _read(folder: Path, form: _Form, path: Path) -> tuple[SourceImage | None, list[Fault]]:
    try:
        _, size, turn = read_sizes(path)
    except BadImage as fault:
        return None, [Fault(fault.kind, str(fault), shown(path, folder))]
    label = label_path(path)
    where = shown(label, folder)
    try:
        lines = label.read_text(encoding="utf-8-sig").splitlines() if label.is_file() else []
    except (OSError, UnicodeDecodeError) as fault:
        return None, [Fault(FaultKind.SOURCE_FILE, f"cannot be read ({fault})", where)]
    boxes: list[SourceBox] = []
    faults: list[Fault] = []
    seen: set[tuple[str, ...]] = set()
    for number, text in enumerate(lines, start=1):
        words = tuple(text.split())
        if not words:
            continue
        line = f"{where}:{number}"
        if words in seen:
            faults.append(Fault(FaultKind.REPEATED_ANNOTATION, f"{text.strip()} stands there twice", line))
            continue
        seen.add(words)
        box, wrong = _object(words, form, size, line)
        boxes += [box] if box is not None else []
        faults += wrong
    return SourceImage(path, size, turn != 1, tuple(boxes), label), faults


def _object(
    words: tuple[str, ...], form: _Form, size: tuple[int, int], line: str
) -> tuple[SourceBox | None, list[Fault]]:
    try:
        kind, *shares = map(float, words)
    except ValueError:
        kind, shares = math.nan, []
    sides = _sides(shares, form.key_points)
    if sides is None or not all(map(math.isfinite, (kind, *shares))):
        return None, [Fault(FaultKind.ANNOTATION, f"{' '.join(words)!r:.80} is {form.missed}", line)]
    classes = form.classes
    if not kind.is_integer() or not 0 <= kind < len(classes):
        text = f"has the class {words[0]}, names has 0 to {len(classes) - 1}"
        return None, [Fault(FaultKind.UNKNOWN_CATEGORY, text, line)]
    across, down, width, height = sides
    box = ((across - width / 2) * size[0], (down - height / 2) * size[1], width * size[0], height * size[1])
    place, faults = placed(box, size, "the object", line)
    return (None if place is None else SourceBox(classes[int(kind)], place)), faults


def _sides(shares: list[float], key_points: int) -> tuple[float, float, float, float] | None:
    """Return centre, width and height of a box, with key points or not, or around a polygon; None if it is neither."""
    if len(shares) == 4 + key_points:
        across, down, width, height = shares[:4]
        return across, down, width, height
    is_polygon = not key_points and len(shares) >= 6 and len(shares) % 2 == 0
    return _around(shares) if is_polygon else None


def _around(points: list[float]) -> tuple[float, float, float, float]:
    """Return centre, width and height of the box around a polygon x y x y ..."""
    across, down = points[::2], points[1::2]
    left, right, top, bottom = min(across), max(across), min(down), max(down)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
