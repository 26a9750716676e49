"""The command that shows what a detector sees in single images."""

import glob
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_options import fail, finite

if TYPE_CHECKING:
    from PIL import Image

    from supernet.detection import Detected
    from supernet.loaded import LoadedDetector

JSON_NAME = "detections.json"
DRAWN_AS_THEY_ARE = frozenset({".jpg", ".jpeg", ".png"})
"""Forms that a picture keeps; all others become PNG."""


def detect(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders of them, or quoted globs such as 'in/*.png'.")
    ],
    *,
    detector: Annotated[
        Path,
        typer.Option(
            "--detector", help="A .safetensors of `heatnas train`, or the .onnx file or folder of `heatnas export`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the drawn images and detections.json.")],
    score: Annotated[float, typer.Option(min=0.05, max=1, callback=finite, help="Lowest score that is shown.")] = 0.3,
    threads: Annotated[int, typer.Option(min=1, help="Threads that the detector runs with.")] = 1,
) -> None:
    """Draw what a detector sees, and write its boxes in pixels of the original images (upright, as EXIF says).

    What cannot be read is named and left out; the exit status is then 1.

    Example: `heatnas detect photos --detector run/best.safetensors --out drawn`
    """
    from server.progress import Steps  # noqa: PLC0415
    from supernet.detection import class_names  # noqa: PLC0415
    from supernet.files import write_whole  # noqa: PLC0415
    from supernet.loaded import load, torch_threads  # noqa: PLC0415

    files = _expanded(images)
    targets = _targets(files, out)
    _keep_inputs(files, targets, out)
    loaded = load(detector, threads=threads)
    out.mkdir(parents=True, exist_ok=True)
    steps = Steps(sys.stderr)
    seen, unreadable = _Seen(loaded, out, score), []
    try:
        tell = steps.begin(f"looking at {len(files)} images, classes {', '.join(class_names(loaded))}")
        with torch_threads(threads):
            for start in range(0, len(files), loaded.batch):
                group = files[start : start + loaded.batch]
                unreadable += seen.look(group, targets)
                tell(start + len(group), len(files))
    finally:
        steps.close()
    document = {"detector": str(detector), "score": score, "images": seen.entries, "unreadable": unreadable}
    write_whole(out / JSON_NAME, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    count = sum(len(entry["detections"]) for entry in seen.entries)
    typer.echo(f"{count} detections in {len(seen.entries)} images: {out / JSON_NAME}")
    for fault in unreadable:
        sys.stderr.write(f"heatnas: {fault['reason']}\n")
    if unreadable:
        raise SystemExit(1)


class _Seen:
    """What was seen so far; each image is drawn as soon as it was looked at."""

    def __init__(self, detector: "LoadedDetector", out: Path, score: float) -> None:
        self._detector, self._out, self._score = detector, out, score
        self.entries: list[dict[str, Any]] = []

    def look(self, group: Sequence[Path], targets: dict[Path, Path]) -> list[dict[str, str]]:
        """Look at up to a batch of files; return those that cannot be read."""
        from supernet.detection import class_names, detect_objects  # noqa: PLC0415
        from supernet.drawing import draw  # noqa: PLC0415
        from supernet.errors import UnreadableImage  # noqa: PLC0415
        from supernet.image_files import read_picture  # noqa: PLC0415

        pictures, unreadable = {}, []
        for file in group:
            try:
                pictures[file] = read_picture(file)
            except UnreadableImage as fault:
                unreadable.append({"file": str(file), "reason": str(fault)})
        if not pictures:
            return unreadable
        found = detect_objects(self._detector, list(pictures.values()), min_score=self._score)
        for (file, pixels), objects in zip(pictures.items(), found, strict=True):
            _save(draw(pixels, objects, class_names(self._detector)), targets[file])
            height, width = pixels.shape[:2]
            self.entries.append(
                {
                    "file": str(file),
                    "drawn": targets[file].name,
                    "width": width,
                    "height": height,
                    "detections": list(self._described(objects)),
                }
            )
        return unreadable

    def _described(self, objects: "Sequence[Detected]") -> Iterator[dict[str, Any]]:
        ids = dict(zip(self._detector.names or (), self._detector.category_ids or (), strict=True))
        for one in objects:
            yield {
                "box": [round(side, 2) for side in one.box],
                "class": one.label,
                "category_id": ids.get(one.label),
                "score": round(one.score, 4),
            }


def _expanded(arguments: Sequence[str]) -> list[Path]:
    """Return the files that are meant, each once; one that does not exist is named when it is read."""
    from supernet.pictures import SUFFIXES  # noqa: PLC0415

    found: dict[Path, Path] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        elif not path.exists() and glob.has_magic(argument):
            files = [Path(name) for name in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207 (no one folder)
        else:
            files = [path]
        if not files:
            fail(f"{argument} holds no image: name files, a folder with {', '.join(sorted(SUFFIXES))}, or a glob")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _targets(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Return where the drawing of each file goes; equal names from several folders are numbered."""
    targets: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in files:
        name = Path(file.name if file.suffix.lower() in DRAWN_AS_THEY_ARE else f"{file.name}.png")
        wanted, number = name.name, 1
        while wanted.lower() in taken:
            number += 1
            wanted = f"{name.stem}-{number}{name.suffix}"
        taken.add(wanted.lower())
        targets[file] = out / wanted
    return targets


def _keep_inputs(files: Sequence[Path], targets: dict[Path, Path], out: Path) -> None:
    """Refuse a folder in which a drawing would replace an image that is to be looked at."""
    inputs = {file.resolve() for file in files}
    for target in targets.values():
        if target.resolve() in inputs:
            fail(f"--out {out}: the drawing would overwrite {target}, an image to look at. Name another folder")


def _save(picture: "Image.Image", path: Path) -> None:
    from supernet.files import write_whole  # noqa: PLC0415

    content = io.BytesIO()
    if path.suffix.lower() == ".png":
        picture.save(content, "PNG")
    else:
        picture.save(content, "JPEG", quality=92)
    write_whole(path, content.getvalue())
