"""A COCO folder of four small images, to be spoiled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

Coco = dict[str, Any]


def coco() -> Coco:
    images = [{"id": number, "file_name": f"{number}.png", "width": 40, "height": 20} for number in (1, 2, 3, 4)]
    notes = [
        {"id": 10 * image + place, "image_id": image, "category_id": place, "bbox": [4, 5, 10, 8 + place], "area": 50}
        for image in (1, 2, 3, 4)
        for place in (1, 2)
    ]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "jar"}]
    return {"images": images, "annotations": notes, "categories": categories}


def write_split(folder: Path, split: str, change: Callable[[Coco], None] = lambda _: None, *, shade: int = 0) -> Path:
    """Write one split, its annotations changed; `shade` keeps the images of splits apart."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    for number in (1, 2, 3, 4):
        Image.new("RGB", (40, 20), (number, shade, 9)).save(folder / split / f"{number}.png")
    found = coco()
    change(found)
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(found))
    return folder


def turned(path: Path, size: tuple[int, int], orientation: int = 6) -> None:
    """Write a black image of (width, height) whose EXIF data turn it; its first pixel is white."""
    picture = Image.new("RGB", size)
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(path, exif=exif)
