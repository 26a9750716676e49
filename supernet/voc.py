"""Data sets in the layout of Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/*.txt.

Boxes are 1-based and inclusive: xmin 1, xmax 1 is the first column of pixels.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.parsers import expat

from supernet.errors import BadDataset, BadImage
from supernet.faults import Fault, FaultKind
from supernet.pictures import SUFFIXES
from supernet.source_data import (
    Progress,
    Source,
    SourceBox,
    SourceImage,
    apart,
    each_once,
    placed,
    read_images,
    read_sizes,
    shown,
    turned,
)

SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class Node:
    """An XML element with the line it begins on."""

    name: str
    line: int
    text: str = ""
    children: list["Node"] = field(default_factory=list)

    def all(self, name: str) -> Iterator["Node"]:
        """Yield the children of a name."""
        return (child for child in self.children if child.name == name)

    def value(self, name: str) -> str:
        """Return the text of the first child of a name, empty if there is none."""
        return next((child.text.strip() for child in self.all(name)), "")


def is_voc(folder: Path) -> bool:
    """Tell whether a folder, or the one folder in it that may, holds annotations as VOC writes them."""
    return voc_root(folder) is not None


def voc_root(folder: Path) -> Path | None:
    """Return the folder of Annotations: the given one, or the only one in it, such as VOC2012 in VOCdevkit."""
    if not folder.is_dir():
        return None
    if _has_xml(folder):
        return folder
    roots = [child for child in folder.iterdir() if child.is_dir() and _has_xml(child)]
    return roots[0] if len(roots) == 1 else None


def read_voc(folder: Path, progress: Progress = lambda *_: None) -> Source:
    """Read a data set; objects marked `difficult` become crowds.

    Raises:
        BadDataset: there are no annotations, or a list names nothing.
    """
    root = voc_root(folder)
    if root is None:
        raise BadDataset(folder, ["no Annotations/*.xml here, nor in one folder of it"], advice="Name a VOC folder")
    lists, faults, remarks = _lists(root)
    splits, shared = apart(lists, root)
    read, wrong = read_images(splits, partial(_read, root), progress)
    found, again = each_once(read, root)
    named = {path for paths in lists.values() for path in paths}
    unused = sum(path not in named for path in (root / "Annotations").glob("*.xml"))
    if unused:
        remarks.append(f"{unused} file(s) in Annotations are in no list and are not used")
    return Source(folder, "voc", None, found, (*faults, *shared, *wrong, *again), tuple(remarks))


def _has_xml(folder: Path) -> bool:
    return any((folder / "Annotations").glob("*.xml"))


def _lists(root: Path) -> tuple[dict[str, list[Path]], list[Fault], list[str]]:
    """Return the annotation files of each split, what is wrong, and what is worth knowing."""
    found: dict[str, list[Path]] = {}
    faults: list[Fault] = []
    remarks: list[str] = []
    for name in ("train", "trainval", "val", "test"):
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        if not path.is_file():
            continue
        files, wrong = _listed(path, root)
        if name == "test" and not files:  # VOC keeps the annotations of its tests to itself
            remarks.append(f"there is no test split: none of {len(wrong)} image(s) in {shown(path, root)} is annotated")
            continue
        found[name] = files
        faults += wrong
    whole = found.pop("trainval", [])
    if "train" not in found and whole:
        found = {"train": [path for path in whole if path not in found.get("val", [])]} | found
    if not found:
        found = {"train": sorted((root / "Annotations").glob("*.xml"))}
    if not found.get("train"):
        raise BadDataset(
            root,
            ["ImageSets/Main has lists, but none of training images"],
            advice="Add train.txt or trainval.txt, or remove the lists to use all annotations",
        )
    return found, faults, remarks


def _listed(path: Path, root: Path) -> tuple[list[Path], list[Fault]]:
    """Return the annotation files that a list names: one on a line, in class lists with 1, 0 or -1 behind."""
    found, faults = [], []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        name = text.strip()
        if not name:
            continue
        candidates = (name, re.sub(r"\s+-?[01]$", "", name))
        files = [root / "Annotations" / f"{candidate}.xml" for candidate in candidates]
        existing = [file for file in files if file.is_file()]
        if existing:
            found.append(existing[0])
        else:
            fault = f"{name}: there is no {shown(files[-1], root)}"
            faults.append(Fault(FaultKind.SOURCE_FILE, fault, f"{shown(path, root)}:{line}"))
    return found, faults


def _read(root: Path, path: Path) -> tuple[SourceImage | None, list[Fault]]:
    where = shown(path, root)
    try:
        annotation = _parsed(path)
    except expat.ExpatError as fault:
        text = f"is not XML ({expat.ErrorString(fault.code)})"
        return None, [Fault(FaultKind.SOURCE_FILE, text, f"{where}:{fault.lineno}")]
    except (OSError, ValueError) as fault:  # expat's word for an encoding that it does not know
        return None, [Fault(FaultKind.SOURCE_FILE, f"cannot be read ({fault})", where)]
    image = _image_path(root, path, annotation.value("filename"))
    try:
        stored, upright, turn = read_sizes(image)
    except BadImage as fault:
        return None, [Fault(fault.kind, f"image {image.name}: {fault}", where)]
    size, wrong = _size(annotation, stored, upright)
    if wrong:
        return None, [Fault(FaultKind.IMAGE_SIZE, f"image {image.name} {wrong}", where)]
    boxes, faults = [], []
    for place, item in enumerate(annotation.all("object"), start=1):
        box, found = _object(item, size, place, where)
        boxes += [box] if box is not None else []
        faults += found
    if size != upright:
        boxes = [box._replace(box=turned(box.box, stored, turn)) for box in boxes]
    return SourceImage(image, upright, turn != 1, tuple(boxes), path), faults


def _parsed(path: Path) -> Node:
    """Return the outermost element; expat, unlike ElementTree, says on which line each one begins."""
    parser = expat.ParserCreate()
    top = Node("", 0)
    open_nodes = [top]

    def start(name: str, _: dict[str, str]) -> None:
        node = Node(name, parser.CurrentLineNumber)
        open_nodes[-1].children.append(node)
        open_nodes.append(node)

    def end(_: str) -> None:
        open_nodes.pop()

    def text(part: str) -> None:
        open_nodes[-1].text += part

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.Parse(path.read_bytes(), True)
    return top.children[0]


def _image_path(root: Path, path: Path, named: str) -> Path:
    """Return the image of an annotation: of the same name, or else the one that it names itself."""
    folder = root / "JPEGImages"
    candidates = [folder / (path.stem + suffix) for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES))]
    candidates += [folder / Path(named.replace("\\", "/")).name] if named else []
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[-1 if named else 0])


def _size(annotation: Node, stored: tuple[int, int], upright: tuple[int, int]) -> tuple[tuple[int, int], str]:
    """Return the size that the boxes are meant in, and what is wrong with it; no size, or 0x0, says nothing."""
    said = next(annotation.all("size"), None)
    width, height = (_number(said.value(side)) if said else math.nan for side in ("width", "height"))
    if not (width > 0 and height > 0) or (width, height) == upright:
        return upright, ""
    if (width, height) == stored:
        return stored, ""
    return upright, f"is {upright[0]}x{upright[1]}, its annotation says {width:g}x{height:g}"


def _object(item: Node, size: tuple[int, int], place: int, where: str) -> tuple[SourceBox | None, list[Fault]]:
    line = f"{where}:{item.line}"
    name = item.value("name")
    frame = next(item.all("bndbox"), None)
    if not name or frame is None:
        text = f"object {place} lacks {'bndbox' if name else 'name'}"
        return None, [Fault(FaultKind.ANNOTATION, text, line)]
    left, top, right, bottom = (_number(frame.value(side)) for side in SIDES)
    if not all(map(math.isfinite, (left, top, right, bottom))):
        text = f"object {place} has the box {[frame.value(side) for side in SIDES]}, not four finite numbers"
        return None, [Fault(FaultKind.BOX, text, line)]
    box, faults = placed((left - 1, top - 1, right - left + 1, bottom - top + 1), size, f"object {place}", line)
    return (None if box is None else SourceBox(name, box, item.value("difficult") == "1")), faults


def _number(text: str) -> float:
    """Read a number; what is none is NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
