"""Foreign data sets in COCO format: read, split where they have no validation images, written at once or not at all."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from PIL import ImageOps

from supernet.annotations import refuse
from supernet.errors import BadDataset, FolderTaken
from supernet.faults import Fault, FaultKind, counted
from supernet.files import whole_folder
from supernet.image_files import opened
from supernet.source_data import Progress, Source, SourceFormat, SourceImage
from supernet.voc import is_voc, read_voc
from supernet.yolo import is_yolo, read_yolo

JPEG_QUALITY = 95
"""Of images that are turned upright."""

SHOWN_BY = "`heatnas data convert` without --drop-bad"
"""What shows the faults of a source; `heatnas data check` reads COCO alone."""


def recognise(source: Path) -> SourceFormat:
    """Tell how a data set is written.

    Raises:
        BadDataset: it is none that can be converted, or could be both.
    """
    found: list[SourceFormat] = []
    if is_voc(source):
        found.append("voc")
    if is_yolo(source):
        found.append("yolo")
    if len(found) == 1:
        return found[0]
    if found:
        raise BadDataset(source, ["it could be VOC and YOLO"], advice="Say which with --format voc or --format yolo")
    if (source / "annotations" / "train.json").is_file():
        raise BadDataset(
            source, ["it is in COCO format already"], advice=f"Use it as it is: heatnas data check {source}"
        )
    raise BadDataset(
        source,
        ["it has neither Annotations/*.xml (VOC) nor a YAML file with names and train (YOLO)"],
        advice="Name the folder that has one",
    )


def read_source(source: Path, form: SourceFormat, progress: Progress = lambda *_: None) -> Source:
    """Read a foreign data set with all its faults.

    Raises:
        BadDataset: it lacks what it takes to be of this format.
    """
    folder = Path(os.path.abspath(source))  # noqa: PTH100 (resolve() would follow links)
    match form:
        case "voc":
            return read_voc(folder, progress)
        case "yolo":
            return read_yolo(folder, progress)
        case _:
            assert_never(form)


def with_val(source: Source, *, share: float, seed: int) -> Source:
    """Split validation images off the training images, at least one, where there are none.

    Args:
        source: the data set.
        share: of the training images that become validation images, between 0 and 1.
        seed: decides which.
    """
    if "val" in source.splits:
        return source
    images = source.splits["train"]
    if len(images) < 2:
        nothing = Fault(FaultKind.NOTHING_LISTED, f"{len(images)} usable images cannot be split in two", "train")
        raise refuse(source.folder, (nothing, *source.faults), shown_by=SHOWN_BY)
    count = min(max(1, round(share * len(images))), len(images) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(images))[:count].tolist())
    parts = {
        "train": tuple(image for place, image in enumerate(images) if place not in chosen),
        "val": tuple(image for place, image in enumerate(images) if place in chosen),
    }
    return source._replace(splits=parts | {name: part for name, part in source.splits.items() if name != "train"})


def check_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        FolderTaken: it does, or it is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FolderTaken(out)


def write_dataset(source: Source, out: Path, *, copy: bool = False, progress: Progress = lambda *_: None) -> None:
    """Write a data set in COCO format; the folder appears at once, complete.

    Images are hard links to those of the source where the file system has them, else copies. Those that EXIF says are
    turned are written anew, upright.

    Args:
        source: with a split `val`; its bad entries are not written, but counted in `info` of each annotation file.
        out: folder to make; may exist if it is empty.
        copy: never link.
        progress: told how far it is.

    Raises:
        BadDataset: a split has no image that can be used, or there is no class.
        FolderTaken: the folder holds something.
    """
    check_free(out)
    for split, images in source.splits.items():
        if not images:
            nothing = Fault(FaultKind.NOTHING_LISTED, f"no image of {split} can be used", split)
            raise refuse(source.folder, (nothing, *source.faults), shown_by=SHOWN_BY)
    if not _classes(source):
        nothing = Fault(FaultKind.NOTHING_LISTED, "no image shows any object, so there is no class", "annotations")
        raise refuse(source.folder, (nothing, *source.faults), shown_by=SHOWN_BY)
    with whole_folder(out) as partial:
        _write(source, partial, copy=copy, progress=progress)


def _write(source: Source, folder: Path, *, copy: bool, progress: Progress) -> None:
    (folder / "annotations").mkdir()
    classes = _classes(source)
    info = {"description": f"{source.folder.name}, converted from {source.format}", "left_out": counted(source.faults)}
    for split, images in source.splits.items():
        names = _file_names(images)
        for done, (image, name) in enumerate(zip(images, names, strict=True), start=1):
            target = folder / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(image, target, copy=copy)
            progress(f"writing {split}", done, len(images))
        text = json.dumps({"info": info, **_coco(images, names, classes)}, ensure_ascii=False)
        (folder / "annotations" / f"{split}.json").write_text(text, encoding="utf-8")


def _classes(source: Source) -> tuple[str, ...]:
    """Return the names: those the source lists, or those on its images in the order of the alphabet."""
    if source.classes is not None:
        return source.classes
    return tuple(sorted({box.name for images in source.splits.values() for image in images for box in image.boxes}))


def _file_names(images: Sequence[SourceImage]) -> list[str]:
    """Return the path of each image from the folder that all have in common."""
    common = Path(os.path.commonpath([image.path.parent for image in images]))
    return [image.path.relative_to(common).as_posix() for image in images]


def _place(image: SourceImage, target: Path, *, copy: bool) -> None:
    if image.is_turned:
        with opened(image.path) as picture:
            form = "JPEG" if picture.format == "MPO" else picture.format  # a JPEG with more behind it
            upright = ImageOps.exif_transpose(picture)
        upright.save(target, format=form, quality=JPEG_QUALITY)
        return
    if not copy:
        try:
            os.link(image.path.resolve(), target)
        except OSError:  # another file system, or one without links
            pass
        else:
            return
    shutil.copyfile(image.path, target)


def _coco(images: Sequence[SourceImage], names: Sequence[str], classes: Sequence[str]) -> Mapping[str, Any]:
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    entries = [
        {"id": number, "file_name": name, "width": image.size[0], "height": image.size[1]}
        for number, (image, name) in enumerate(zip(images, names, strict=True), start=1)
    ]
    boxes = [(number, box) for number, image in enumerate(images, start=1) for box in image.boxes]
    notes = [
        {
            "id": number,
            "image_id": image,
            "category_id": numbers[box.name],
            "bbox": box.box,
            "area": box.box[2] * box.box[3],
            "iscrowd": int(box.is_crowd),
        }
        for number, (image, box) in enumerate(boxes, start=1)
    ]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": entries, "annotations": notes, "categories": categories}
