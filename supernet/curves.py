"""What was seen in the epochs of a training: as CSV, as a picture, and as TensorBoard events."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pydantic import TypeAdapter

from supernet.files import write_whole

CSV_NAME, PICTURE_NAME, EVENTS_NAME = "curve.csv", "curve.png", "events"


class Row(NamedTuple):
    """One epoch of a detector; what was not looked at is None.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        learning_rate: of its last step.
        loss: mean over its steps, per positive anchor.
        focal: the part of classification.
        giou: the part of regression.
        seconds: it took, evaluation included, writing the files not.
        data_seconds: of these, waited for data.
        evaluation_seconds: of these, spent on evaluation.
        ap: on the held-out split.
        ap50: the same at IoU 0.5.
        ap75: the same at IoU 0.75.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    focal: float
    giou: float
    seconds: float
    data_seconds: float
    evaluation_seconds: float
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None


class PretrainRow(NamedTuple):
    """One epoch of a backbone; what was not looked at is None.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        learning_rate: of its last step.
        loss: mean cross entropy over its images.
        seconds: it took, evaluation included, writing the files not.
        data_seconds: of these, waited for data.
        evaluation_seconds: of these, spent on evaluation.
        top1: share of the held-out images whose class has the highest score.
        top5: share of those whose class is among the five highest.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    seconds: float
    data_seconds: float
    evaluation_seconds: float
    top1: float | None = None
    top5: float | None = None


class Epoch(Protocol):
    """A row of any kind: a named tuple with at least an epoch."""

    @property
    def epoch(self) -> int:
        """Epochs done."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


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
    Row,
    Panel("loss per positive anchor", (("loss", "loss"), ("focal", "focal"), ("giou", "giou"))),
    Panel("average precision, held-out images", (("ap50", "AP50"), ("ap", "AP"), ("ap75", "AP75")), top=1),
)
PRETRAIN_CHART = Chart(
    PretrainRow,
    Panel("cross entropy per image", (("loss", "loss"),)),
    Panel("share of held-out images", (("top1", "top 1"), ("top5", "top 5")), top=1),
)


class Curves(Generic[R]):
    """The rows of one training, written anew after each epoch.

    Attributes:
        rows: one for each epoch so far.
    """

    def __init__(self, folder: Path, chart: Chart[R], *, epochs: int = 0) -> None:
        """Go on after so many epochs; rows of later ones, which a killed run left, are dropped."""
        self._folder, self._chart = folder, chart
        path = folder / CSV_NAME
        read = _read(path, chart.row) if epochs and path.exists() else []
        self.rows = [row for row in read if row.epoch <= epochs]

    def add(self, row: R) -> None:
        """Note one epoch."""
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(row._asdict())
        writer.writerows(["" if value is None else value for value in one._asdict().values()] for one in self.rows)
        write_whole(self._folder / CSV_NAME, text.getvalue().encode())
        draw(self.rows, self._chart, self._folder / PICTURE_NAME)
        self._tell_tensorboard(row)

    def _tell_tensorboard(self, row: R) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes seconds to import

        # A writer for each epoch: an event file that a killed run left open is complete up to its last epoch.
        with SummaryWriter(str(self._folder / EVENTS_NAME), purge_step=row.epoch) as writer:
            for name, value in row._asdict().items():
                if value is not None and name not in {"epoch", "step"}:
                    writer.add_scalar(name, value, row.epoch)


def draw(rows: Sequence[R], chart: Chart[R], path: Path) -> None:
    """Draw the rows over the epochs into a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second to import
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure = Figure(figsize=(8, 6), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 1, sharex=True), (chart.above, chart.below), strict=True):
        for name, legend in panel.lines:
            seen = [(row.epoch, row._asdict()[name]) for row in rows if row._asdict()[name] is not None]
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
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    reader = TypeAdapter(kind)
    return [reader.validate_python({name: text or None for name, text in line.items()}) for line in lines]
