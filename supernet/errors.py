"""What can go wrong between a search space and a detector file, and what the caller may do about it.

SupernetError
├── ParityError         an exported file computes something else than what it was made from
├── NotFinite           an int8 file gives what is no number
├── BadDataset          annotations or images that cannot be trained on: names each fault
├── BadImage            an image file that is missing, damaged, not upright or of another size than annotated
├── DatasetExists       the folder holds something other than the data set asked for
├── FolderTaken         the folder of a converted data set holds something already
├── BadCheckpoint       a file that is no checkpoint of this version
├── OtherClasses        data whose classes are not those that a detector tells apart
├── BadManifest         a manifest that does not describe the file beside it
├── UnreadableImage     a file that cannot be looked at
├── FolderInUse         another process trains in the folder
├── CheckpointMismatch  a checkpoint of another run stands where this run wants to go on
├── BadCurve            the curve of a run, rewritten by another program
├── NothingInCommon     weights to start from, of which none fits
├── BatchTooSmall       more processes share a step than it has images
├── UnevenShares        a process has fewer images in a step than micro-batches
└── TrainingDiverged    the loss is no longer a number
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supernet.faults import FaultKind


class SupernetError(Exception):
    """Base of every error of the package."""


class ParityError(SupernetError):
    """An exported file computes something else than what it was made from.

    Attributes:
        label: what was exported.
        quantity: what differs, in which unit, and from what reference.
        found: how much of it was found; NaN where something is no number.
        tolerance: the most that is allowed.
    """

    def __init__(self, *, label: str, quantity: str, found: float, tolerance: float, advice: str) -> None:
        """Report `found`; `advice` says what to do, without a full stop."""
        self.label, self.quantity, self.found, self.tolerance = label, quantity, found, tolerance
        shown = "not a number" if math.isnan(found) else f"{found:.3g}"
        super().__init__(
            f"the exported graph of {label} is not kept: {quantity} is {shown}, allowed is {tolerance:g}. {advice}."
        )


class NotFinite(SupernetError):
    """An int8 file gives boxes or scores that are no finite numbers."""

    def __init__(self, *, ranges: str, images: str) -> None:
        """Report how its ranges were chosen, and on which images it was run."""
        super().__init__(
            f"the int8 file (ranges: {ranges}) is not kept: on {images} it gives boxes or scores that are no finite "
            "numbers. Calibrate on other images, or export without int8."
        )


class BadDataset(SupernetError):
    """Some annotations or images of a data set cannot be used.

    Attributes:
        folder: where the data set lies.
        faults: one sentence for each fault, in the order found.
    """

    def __init__(
        self, folder: Path, faults: Sequence[str], *, summary: str = "", advice: str = "Correct or remove these entries"
    ) -> None:
        """Report `faults`; `summary` stands behind their number, `advice` says what to do, without a full stop."""
        self.folder = folder
        self.faults = tuple(faults)
        shown = "; ".join(self.faults[:8])
        more = f"; and {len(self.faults) - 8} more" if len(self.faults) > 8 else ""
        super().__init__(f"{folder}: {len(self.faults)} fault(s){summary}: {shown}{more}. {advice}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Come from a child process as it is: an exception would be made anew of its message alone."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class BadImage(SupernetError):
    """An image file cannot be used.

    Attributes:
        kind: what is wrong with it.
    """

    def __init__(self, kind: FaultKind, text: str) -> None:
        self.kind = kind
        super().__init__(text)


class DatasetExists(SupernetError):
    """A folder is in the way of a data set that is to be made.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Path, *, wanted: Mapping[str, object], found: Mapping[str, object] | None) -> None:
        self.folder = folder
        holds = f"the data set {dict(found)}" if found else "no finished data set"
        super().__init__(f"{folder} exists and holds {holds}, not {dict(wanted)}: remove it or choose another folder.")


class FolderTaken(SupernetError):
    """A folder is to be made that holds something already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} exists and is not an empty folder: remove it or choose another one.")


class BadCheckpoint(SupernetError):
    """A file is not a checkpoint that this version can read."""

    def __init__(self, path: Path, reason: str, *, advice: str = "Train again, or name another file") -> None:
        """Report the reason; `advice` says what to do, without a full stop."""
        super().__init__(f"{path} is no usable checkpoint: {reason}. {advice}.")


class OtherClasses(SupernetError):
    """A detector and a data set are both sound, but do not go together."""

    def __init__(self, path: Path, told_apart: str, *, folder: Path, found: str) -> None:
        """Report the classes of the detector at `path`, and what stands in the data in `folder` instead."""
        super().__init__(
            f"{path} tells {told_apart} apart, {folder} has {found}: name data with the detector's classes in their "
            f"order, or train a detector on {folder}."
        )


class BadManifest(SupernetError):
    """A manifest cannot be read, or speaks of other files than those beside it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} does not describe this detector: {reason}. Run `heatnas export` again.")


class UnreadableImage(SupernetError):
    """A file cannot be read as an image.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} is no image that can be read: {reason}. Replace it, or leave it out.")


class FolderInUse(SupernetError):
    """Another process trains in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"another process trains in {folder}: wait for it or stop it, or give this run a folder of its own."
        )


class CheckpointMismatch(SupernetError):
    """A run was to go on from a checkpoint of a different run."""

    def __init__(self, path: Path, differences: Sequence[str], *, otherwise: str) -> None:
        """Report `differences`; `otherwise` says what to do if the folder is to stay, without a full stop."""
        super().__init__(
            f"{path} belongs to a run that differs in {'; '.join(differences)}: "
            f"give this run another folder, or {otherwise}."
        )


class BadCurve(SupernetError):
    """The rows of a training cannot be read; another program has written them."""

    def __init__(self, path: Path, *, line: int, reason: str) -> None:
        super().__init__(
            f"line {line} of {path} is no epoch of this training ({reason}): remove the file, the weights are not "
            "affected."
        )


class NothingInCommon(SupernetError):
    """Weights that a detector was to start from fit it nowhere."""

    def __init__(self, path: Path, *, space: str, config: str) -> None:
        super().__init__(
            f"{path} has no weights in common with this detector (it is of config {config} of {space}): "
            "train a config of the same space with the same widths, or start without it."
        )


class BatchTooSmall(SupernetError):
    """A step has fewer images than there are processes."""

    def __init__(self, batch: int, processes: int) -> None:
        super().__init__(
            f"a batch of {batch} cannot be shared by {processes} processes: each needs at least one image, "
            f"so make the batch {processes} or larger, or start fewer processes."
        )


class UnevenShares(SupernetError):
    """A process has fewer images in a step than the others run micro-batches."""

    def __init__(self, batch: int, processes: int, *, parts: int) -> None:
        super().__init__(
            f"a batch of {batch} leaves a process of {processes} only {batch // processes} image(s) for {parts} "
            f"micro-batches: make it a multiple of {processes}, or the micro-batch larger."
        )


class TrainingDiverged(SupernetError):
    """The training loss is not finite."""

    def __init__(self, *, step: int, loss: float) -> None:
        super().__init__(
            f"the loss is {loss} at step {step}: lower the learning rate, lengthen the warm-up, or look at the data."
        )
