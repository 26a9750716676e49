"""Score a detector file, whichever form it has, on a split of a data set."""

from pathlib import Path

import onnxruntime

from supernet.checkpoint import load_detector
from supernet.dataset import CocoDataset
from supernet.errors import BadCheckpoint
from supernet.evaluation import Evaluation, evaluate_module, evaluate_onnx


def score_file(path: Path, data: Path, split: str, *, threads: int = 1, drop_bad: bool = False) -> Evaluation:
    """Score the detector in a `.safetensors` checkpoint, in PyTorch, or in an `.onnx` file, in ONNX Runtime.

    With `drop_bad`, the score is taken without the bad entries of the split.

    Raises:
        BadCheckpoint: the file is none of the two, or its classes are not those of the data.
        BadDataset: the split cannot be used.
    """
    match path.suffix:
        case ".safetensors":
            detector, header = load_detector(path)
            found = CocoDataset(data, split, image=header.config.image, drop_bad=drop_bad)
            if found.classes != header.classes:
                raise BadCheckpoint(
                    path, f"it tells {', '.join(header.classes)} apart, {data} has {', '.join(found.classes)}"
                )
            return evaluate_module(detector, detector.head.anchors, found)
        case ".onnx":
            found = CocoDataset(data, split, image=_input_size(path), drop_bad=drop_bad)
            return evaluate_onnx(path.read_bytes(), found, threads=threads)
        case _:
            raise BadCheckpoint(path, "its name ends neither in .safetensors nor in .onnx")


def _input_size(path: Path) -> tuple[int, int]:
    """Return the height and width that the file of a detector takes."""
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        inputs = {node.name: tuple(node.shape) for node in session.get_inputs()}
        outputs = {node.name for node in session.get_outputs()}
    except Exception as error:
        # The runtime has a dozen classes for a file that is none.
        raise BadCheckpoint(path, f"ONNX Runtime cannot load it ({' '.join(str(error).split())[:200]})") from error
    match inputs.get("images"):
        case (1, 3, int() as height, int() as width) if {"boxes", "scores"} <= outputs:
            return height, width
        case shape:
            raise BadCheckpoint(
                path, f"it takes images of {shape} and gives {sorted(outputs)}: not a detector of HeatNAS"
            )
