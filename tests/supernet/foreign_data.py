"""Writes a COCO folder the way Pascal VOC and YOLO have it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Box = list[float]


def annotated(folder: Path, split: str) -> Iterator[tuple[dict[str, Any], list[tuple[str, Box]]]]:
    """Yield each image of a split with its (class, x y width height)."""
    found = json.loads((folder / "annotations" / f"{split}.json").read_text())
    names = {entry["id"]: entry["name"] for entry in found["categories"]}
    for image in found["images"]:
        notes = [note for note in found["annotations"] if note["image_id"] == image["id"]]
        yield image, [(names[note["category_id"]], note["bbox"]) for note in notes]


def boxes_of(folder: Path, split: str) -> dict[str, list[tuple[str, Box]]]:
    """Return the sorted boxes of each image, by the bare name of its file."""
    return {Path(image["file_name"]).stem: sorted(boxes) for image, boxes in annotated(folder, split)}


def voc_text(size: tuple[int, int], boxes: list[tuple[str, Box]], *, difficult: int = 0) -> str:
    """Write the annotation of one image; each object begins on a line of its own, the first on line 3."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>\n"
        for name, (x, y, width, height) in boxes
    )
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>\n{said}\n{objects}</annotation>\n"


def write_voc(data: Path, folder: Path) -> Path:
    """Write the splits train and val in the layout of Pascal VOC."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split in ("train", "val"):
        names = []
        for image, boxes in annotated(data, split):
            name = f"{split}_{Path(image['file_name']).stem}"
            names.append(name)
            shutil.copy(data / split / image["file_name"], folder / "JPEGImages" / f"{name}.png")
            text = voc_text((image["width"], image["height"]), boxes)
            (folder / "Annotations" / f"{name}.xml").write_text(text)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def write_yolo(data: Path, folder: Path, *, names: tuple[str, ...]) -> Path:
    """Write the splits train and val in the layout of YOLO."""
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for image, boxes in annotated(data, split):
            path = Path(shutil.copy(data / split / image["file_name"], folder / "images" / split))
            wide, high = image["width"], image["height"]
            lines = [
                f"{names.index(name)} {(x + width / 2) / wide:.6f} {(y + height / 2) / high:.6f} "
                f"{width / wide:.6f} {height / high:.6f}\n"
                for name, (x, y, width, height) in boxes
            ]
            (folder / "labels" / split / f"{path.stem}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnc: {len(names)}\nnames: {list(names)}\n")
    return folder
