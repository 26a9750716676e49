"""A detector file, whichever form it has, ready to look at images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch

from supernet.checkpoint import load_detector
from supernet.errors import BadCheckpoint
from supernet.fusing import fuse
from supernet.manifest import NAME, Precision, manifest_of, read_manifest
from supernet.onnx_session import open_session, predictor
from supernet.postprocess import Floats, Predictor


@dataclass(frozen=True)
class LoadedDetector:
    """What a file says about itself, and the function it computes.

    Attributes:
        path: the file.
        image: input height and width in pixels.
        batch: images that one run takes.
        classes: how many scores a box has.
        names: of the classes; None for an ONNX file without a manifest beside it.
        category_ids: the id of each class in its data set, or None likewise.
        predict: takes up to `batch` images.
    """

    path: Path
    image: tuple[int, int]
    batch: int
    classes: int
    names: tuple[str, ...] | None
    category_ids: tuple[int, ...] | None
    predict: Predictor


def load(path: Path, *, threads: int = 1) -> LoadedDetector:
    """Open a `.safetensors` checkpoint, in PyTorch, or an `.onnx` file or the folder of an export, in ONNX Runtime.

    Of a folder it is the fp32 file. `threads` are those of ONNX Runtime; PyTorch has them for the whole process, see
    `torch_threads`.

    Raises:
        BadCheckpoint: the file is none of these.
        BadManifest: the manifest beside an ONNX file speaks of another one.
    """
    if path.is_dir():
        read_manifest(path / NAME)
        return load(path / Precision.FP32.file_name, threads=threads)
    match path.suffix:
        case ".safetensors":
            return _load_checkpoint(path)
        case ".onnx":
            return _load_onnx(path, threads)
        case _:
            raise BadCheckpoint(path, "its name ends neither in .safetensors nor in .onnx, and it is no folder")


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load_checkpoint(path: Path) -> LoadedDetector:
    detector, header, _ = load_detector(path)
    deployed = fuse(detector)

    @torch.no_grad()
    def predict(images: Floats) -> tuple[Floats, Floats]:
        boxes, scores = deployed(torch.from_numpy(images))
        return boxes.numpy(), scores.numpy()

    return LoadedDetector(
        path, header.config.image, 1, len(header.classes), header.classes, header.category_ids, predict
    )


def _load_onnx(path: Path, threads: int) -> LoadedDetector:
    try:
        session = open_session(path.read_bytes(), threads=threads)
    except Exception as error:
        # The runtime has a dozen classes for a file that is none.
        raise BadCheckpoint(path, f"ONNX Runtime cannot load it ({' '.join(str(error).split())[:200]})") from error
    (batch, image), classes = _signature(path, session)
    manifest = manifest_of(path)
    names, ids = (None, None) if manifest is None else (manifest.classes, manifest.category_ids)
    return LoadedDetector(path, image, batch, classes, names, ids, predictor(session))


def _signature(path: Path, session: onnxruntime.InferenceSession) -> tuple[tuple[int, tuple[int, int]], int]:
    """Return what a detector's graph takes, (batch, (height, width)), and its number of classes."""
    inputs = {node.name: tuple(node.shape) for node in session.get_inputs()}
    outputs = {node.name: tuple(node.shape) for node in session.get_outputs()}
    match inputs.get("images"), outputs.get("boxes"), outputs.get("scores"):
        case (int() as batch, 3, int() as height, int() as width), (_, _, 4), (_, _, int() as classes):
            return (batch, (height, width)), classes
        case shape, _, _:
            raise BadCheckpoint(
                path, f"it takes images of {shape} and gives {sorted(outputs)}: not a detector of HeatNAS"
            )
