"""Score and time a detector file, whichever form it has, on a split of a data set."""

from pathlib import Path

from supernet.checkpoint import load_detector
from supernet.dataset import CocoDataset
from supernet.errors import OtherClasses
from supernet.evaluation import Evaluation, Progress, evaluate, evaluate_module
from supernet.loaded import LoadedDetector, load, torch_threads
from supernet.speed import Clock, Speed, measure_speed


def score_and_time(
    path: Path,
    folder: Path,
    split: str,
    *,
    clock: Clock,
    threads: int = 1,
    drop_bad: bool = False,
    progress: Progress = lambda *_: None,
) -> tuple[Evaluation, Speed]:
    """Score the detector in a `.safetensors` checkpoint, in PyTorch, or in an `.onnx` file, in ONNX Runtime; time it.

    It is timed on the images just scored; `clock` counts nanoseconds. With `drop_bad`, both are without the bad entries
    of the split.

    Raises:
        BadCheckpoint: the file is none of the two.
        OtherClasses: its classes are not those of the data.
        BadManifest: the manifest beside an ONNX file speaks of another one.
        BadDataset: the split cannot be used.
    """
    detector = load(path, threads=threads)
    data = _split_for(detector, folder, split, drop_bad=drop_bad)
    evaluation = _score(detector, data, threads, progress)
    with torch_threads(threads):
        return evaluation, measure_speed(detector, data, threads=threads, clock=clock)


def check_classes(path: Path, names: tuple[str, ...], data: CocoDataset) -> None:
    """Refuse data with other classes than the detector's, or in another order.

    Raises:
        OtherClasses: they differ.
    """
    if data.classes != names:
        raise OtherClasses(path, ", ".join(names), folder=data.folder, found=", ".join(data.classes))


def _split_for(detector: LoadedDetector, folder: Path, split: str, *, drop_bad: bool) -> CocoDataset:
    data = CocoDataset(folder, split, image=detector.image, drop_bad=drop_bad)
    if detector.names is not None:
        check_classes(detector.path, detector.names, data)
    elif detector.classes != len(data.classes):
        raise OtherClasses(
            detector.path, f"{detector.classes} classes", folder=folder, found=f"{len(data.classes)} classes"
        )
    return data


def _score(detector: LoadedDetector, data: CocoDataset, threads: int, progress: Progress) -> Evaluation:
    """Score a checkpoint in its training form, as training does; a file that is deployed as it is."""
    if detector.path.suffix == ".onnx":
        return evaluate(detector.predict, data, batch=detector.batch, progress=progress)
    trained = load_detector(detector.path).detector
    with torch_threads(threads):
        return evaluate_module(trained, trained.head.anchors, data, progress=progress)
