"""Loss and AP over the epochs of a training: as CSV, as a picture, and as TensorBoard events."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

CSV_NAME, PICTURE_NAME, EVENTS_NAME = "curve.csv", "curve.png", "events"


class Row(NamedTuple):
    """One epoch; what was not looked at is None.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        learning_rate: of its last step.
        loss: mean over its steps, per positive anchor.
        focal: the part of classification.
        giou: the part of regression.
        seconds: it took, evaluation included.
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


_ROW = TypeAdapter(Row)


class Curves:
    """The rows of one training, written anew after each epoch.

    Attributes:
        rows: one for each epoch so far.
    """

    def __init__(self, folder: Path, *, epochs: int = 0) -> None:
        """Go on after so many epochs; rows of later ones, which a killed run left, are dropped."""
        self._folder = folder
        path = folder / CSV_NAME
        self.rows = [row for row in _read(path) if row.epoch <= epochs] if epochs and path.exists() else []
        self._epochs = epochs

    def add(self, row: Row) -> None:
        """Note one epoch."""
        self.rows.append(row)
        partial = self._folder / f".{CSV_NAME}.{os.getpid()}.partial"
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Row._fields)
            writer.writerows(["" if value is None else value for value in one] for one in self.rows)
        partial.replace(self._folder / CSV_NAME)
        draw(self.rows, self._folder / PICTURE_NAME)
        self._tell_tensorboard(row)

    def _tell_tensorboard(self, row: Row) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes seconds to import

        # A writer for each epoch: an event file that a killed run left open is complete up to its last epoch.
        with SummaryWriter(str(self._folder / EVENTS_NAME), purge_step=row.epoch) as writer:
            for name, value in row._asdict().items():
                if value is not None and name not in {"epoch", "step"}:
                    writer.add_scalar(name, value, row.epoch)


def draw(rows: Iterable[Row], path: Path) -> None:
    """Draw loss and AP over the epochs into a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second to import

    rows = list(rows)
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = [row.epoch for row in rows]
    for name in ("loss", "focal", "giou"):
        above.plot(epochs, [getattr(row, name) for row in rows], label=name, marker="." if len(rows) < 40 else None)
    above.set_ylabel("loss per positive anchor")
    above.set_ylim(bottom=0)
    above.legend()
    scored = [row for row in rows if row.ap is not None]
    for name, label in (("ap50", "AP50"), ("ap", "AP"), ("ap75", "AP75")):
        below.plot([row.epoch for row in scored], [getattr(row, name) for row in scored], label=label, marker=".")
    below.set_ylabel("average precision, held-out images")
    below.set_ylim(0, 1)
    below.set_xlabel("epoch")
    if scored:
        below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(path)


def _read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    return [_ROW.validate_python({name: text or None for name, text in line.items()}) for line in lines]
