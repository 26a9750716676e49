"""What was seen in the epochs of a training: as CSV, as a picture, and as TensorBoard events."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from nas.values import Value
from supernet.errors import BadCurve
from supernet.files import write_whole

CSV_NAME, PICTURE_NAME, EVENTS_NAME = "curve.csv", "curve.png", "events"


class Epoch(Value):
    """One epoch of a training; what was not looked at is None.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        learning_rate: of its last step.
        loss: mean over its steps: of a detector per positive anchor, of a backbone the cross entropy per image.
        seconds: it took, evaluation included, writing the files not.
        data_seconds: of these, waited for data.
        evaluation_seconds: of these, spent on evaluation.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    seconds: float
    data_seconds: float
    evaluation_seconds: float


class DetectorEpoch(Epoch):
    """One epoch of a detector.

    Attributes:
        focal: the part of classification in the loss.
        giou: the part of regression.
        ap: on the held-out split.
        ap50: the same at IoU 0.5.
        ap75: the same at IoU 0.75.
    """

    focal: float
    giou: float
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None


class BackboneEpoch(Epoch):
    """One epoch of a backbone.

    Attributes:
        top1: share of the held-out images whose class has the highest score.
        top5: share of those whose class is among the five highest.
    """

    top1: float | None = None
    top5: float | None = None


R = TypeVar("R", bound=Epoch)


class Panel(NamedTuple):
    """One of the two diagrams of the picture.

    Attributes:
        label: of its axis.
        lines: columns, with their names in the legend.
        top: upper end of the axis; None for what the data ask for.
    """

    label: str
    lines: tuple[tuple[str, str], ...]
    top: float | None = None


@dataclass(frozen=True)
class Chart(Generic[R]):
    """How the rows of one kind are read and drawn.

    Attributes:
        row: the kind.
        above: what goes down.
        below: what goes up.
    """

    row: type[R]
    above: Panel
    below: Panel


DETECTOR_CHART = Chart(
    DetectorEpoch,
    Panel("loss per positive anchor", (("loss", "loss"), ("focal", "focal"), ("giou", "giou"))),
    Panel("average precision, held-out images", (("ap50", "AP50"), ("ap", "AP"), ("ap75", "AP75")), top=1),
)
BACKBONE_CHART = Chart(
    BackboneEpoch,
    Panel("cross entropy per image", (("loss", "loss"),)),
    Panel("share of held-out images", (("top1", "top 1"), ("top5", "top 5")), top=1),
)


class Curves(Generic[R]):
    """The rows of one training, written anew after each epoch.

    Attributes:
        rows: one for each epoch so far.
    """

    def __init__(self, folder: Path, chart: Chart[R], *, epochs: int = 0) -> None:
        """Go on after so many epochs; rows of later ones, which a killed run left, are dropped.

        Raises:
            BadCurve: the rows so far cannot be read.
        """
        self._folder, self._chart = folder, chart
        path = folder / CSV_NAME
        read = _read(path, chart.row) if epochs and path.exists() else []
        self.rows = [row for row in read if row.epoch <= epochs]

    def add(self, row: R) -> None:
        """Note one epoch."""
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(row.model_dump())
        writer.writerows(["" if value is None else value for value in one.model_dump().values()] for one in self.rows)
        write_whole(self._folder / CSV_NAME, text.getvalue().encode())
        draw(self.rows, self._chart, self._folder / PICTURE_NAME)
        self._tell_tensorboard(row)

    def _tell_tensorboard(self, row: R) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes seconds to import

        # A writer for each epoch: an event file that a killed run left open is complete up to its last epoch.
        with SummaryWriter(str(self._folder / EVENTS_NAME), purge_step=row.epoch) as writer:
            for name, value in row.model_dump().items():
                if value is not None and name not in {"epoch", "step"}:
                    writer.add_scalar(name, value, row.epoch)


def draw(rows: Sequence[R], chart: Chart[R], path: Path) -> None:
    """Draw the rows over the epochs into a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second to import
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure = Figure(figsize=(8, 6), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 1, sharex=True), (chart.above, chart.below), strict=True):
        for name, legend in panel.lines:
            seen = [(row.epoch, getattr(row, name)) for row in rows if getattr(row, name) is not None]
            if seen:
                axes.plot(*zip(*seen, strict=True), label=legend, marker="." if len(seen) < 40 else None)
        axes.set_ylabel(panel.label)
        axes.set_ylim(bottom=0, top=panel.top)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_whole(path, picture.getvalue())


def _read(path: Path, kind: type[R]) -> list[R]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file, restkey="more columns")
        try:
            return [kind.model_validate({name: text or None for name, text in line.items()}) for line in lines]
        except ValidationError as fault:
            wrong = fault.errors()[0]
            reason = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
            raise BadCurve(path, line=lines.line_num, reason=reason) from fault
        except (csv.Error, UnicodeDecodeError) as fault:
            raise BadCurve(path, line=lines.line_num + 1, reason=str(fault)) from fault
