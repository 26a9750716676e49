"""How the command line tells about a training in this process, and about the score and speed of a detector."""

import sys
import time
from typing import TYPE_CHECKING, TextIO

from server.console import LINE_SECONDS, duration, table

if TYPE_CHECKING:
    from nas.config import Config
    from nas.space import SearchSpace
    from supernet.curves import Row
    from supernet.detector_training import Progress, TrainedDetector
    from supernet.evaluation import Evaluation
    from supernet.speed import Speed, Spread


class TrainingTeller:
    """Tells how far a training is: a line that moves on a terminal, plain lines anywhere else; or nothing."""

    def __init__(self, out: TextIO | None = sys.stdout) -> None:
        self._out = out
        self._moves = out is not None and out.isatty()
        self._told = time.monotonic()

    def begin(self, space: "SearchSpace", config: "Config", images: int, held_out: int, epochs: int) -> None:
        """Say what is trained on what."""
        from nas.macs import gmacs  # noqa: PLC0415

        size = "x".join(map(str, config.image))
        self._say(
            f"training config {config.id} of {space.name}, {gmacs(space.blocks(config)):.2f} GMACs at {size}, "
            f"on {images} images, epochs: {epochs}; {held_out} held out"
        )

    def progress(self, progress: "Progress") -> None:
        """Say how far it is, not too often."""
        now = time.monotonic()
        if not self._moves and now - self._told < LINE_SECONDS:
            return
        self._told = now
        left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
        text = f"epoch {progress.epoch} of {progress.epochs}, step {progress.step} of {progress.total}, "
        self._move(f"{text}loss {progress.loss:.3f}{left}")

    def epoch(self, row: "Row", evaluation: "Evaluation | None") -> None:
        """Say what came of an epoch that was scored."""
        if evaluation is not None:
            self._say(f"epoch {row.epoch}: loss {row.loss:.3f}, {evaluation_text(evaluation)}")

    def end(self, trained: "TrainedDetector") -> None:
        """Say where everything is."""
        self._say(f"best weights: {trained.best}\ncurves: {trained.best.with_name('curve.png')}")

    def _move(self, text: str) -> None:
        if self._out is not None:
            self._out.write(f"\r\x1b[K{text}" if self._moves else f"{text}\n")
            self._out.flush()

    def _say(self, text: str) -> None:
        if self._out is not None:
            self._out.write(f"\r\x1b[K{text}\n" if self._moves else f"{text}\n")
            self._out.flush()


def evaluation_text(found: "Evaluation") -> str:
    """Write a score on one line; what COCO does not define is a dash."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    classes = ", ".join(f"{name} {shown(value)}" for name, value in found.class_ap50.items())
    return (
        f"AP {shown(found.ap)}, AP50 {shown(found.ap50)} ({classes}), AP75 {shown(found.ap75)}, "
        f"small {shown(found.ap_small)}, medium {shown(found.ap_medium)}, large {shown(found.ap_large)} "
        f"on {found.images} images"
    )


def speed_text(found: "Speed") -> str:
    """Write the times of the steps of detection in a table."""

    def row(name: str, step: "Spread", fps: str) -> tuple[str, ...]:
        return name, f"{step.median_ms:.2f}", f"{step.low_ms:.2f}", f"{step.high_ms:.2f}", fps

    batch = "" if found.batch == 1 else f" of {found.batch} images"
    rows = [
        row("preprocessing", found.preprocessing, "-"),
        row("network", found.graph, f"{found.graph_fps:.2f}"),
        row("network and post-processing", found.detection, f"{found.detection_fps:.2f}"),
    ]
    return (
        f"{table(('', 'median ms', 'quartile', 'quartile', 'FPS'), rows)}\n"
        f"over {found.runs} runs{batch}, threads: {found.threads}; reading and decoding files not counted"
    )
