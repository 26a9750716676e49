"""Start a detector from trained weights: what of a file fits is taken, and the rest is accounted for by name."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nas.blocks import Activation
from supernet.checkpoint import BACKBONE, DETECTOR, DetectorHeader, Origin, load_any_run, tensors_below
from supernet.detector import HeatDETR, module_key
from supernet.errors import NothingInCommon
from supernet.files import write_whole

REPORT_NAME = "init.json"
"""In the folder of a run: the names behind the numbers of its `Origin`."""

Names = Mapping[str, tuple[str, ...]]
"""Tensors by the site they stand at, such as `stage3.slot4`."""


class Transfer(NamedTuple):
    """What a detector took from a file, and what it did not.

    Attributes:
        origin: the file, and how many tensors there are of each.
        taken: equal in name and shape, and for the classifying convolution of a detector in classes.
        unfit: equal in name but not in these; each with what differs.
        missing: of the detector, not in the file.
        left_over: of the file, not in the detector.
        warning: why what was taken may help less than it seems; None where nothing speaks against it.
    """

    origin: Origin
    taken: Names
    unfit: Names
    missing: Names
    left_over: Names
    warning: str | None

    def save(self, folder: Path) -> None:
        """Write all names into the folder of a run."""
        document = {"origin": self.origin.model_dump(mode="json")} | {
            name: getattr(self, name) for name in ("warning", "taken", "unfit", "missing", "left_over")
        }
        write_whole(folder / REPORT_NAME, (json.dumps(document, indent=1) + "\n").encode())


def start_from(path: Path, detector: HeatDETR, *, classes: tuple[str, ...]) -> Transfer:
    """Copy what fits from a backbone of `heatnas pretrain` or a detector of `heatnas train` into a detector.

    Tensors are told apart by the place of their block (`stage3.slot4`), so that a detector that was thinned takes what
    it has kept. Shapes alone do not tell whether the classifying convolution fits: it is taken for equal classes only.
    Nor do they tell of another activation: such weights are taken, with a warning.

    Args:
        path: the file.
        detector: freshly initialised.
        classes: names of its classes, in the order of the scores.

    Raises:
        BadCheckpoint: the file holds neither a backbone nor a detector.
        NothingInCommon: no convolution, Linear or position table fits.
    """
    tensors, header, sha256 = load_any_run(path)
    is_detector = isinstance(header, DetectorHeader)
    found = _learned(tensors_below(DETECTOR if is_detector else BACKBONE, tensors))
    own = _learned(detector.state_dict())
    unfit = {
        name: f"{_shape(found[name])}, here {_shape(own[name])}"
        for name in own.keys() & found.keys()
        if own[name].shape != found[name].shape
    }
    if is_detector and header.classes != classes:
        names = f"classes {', '.join(header.classes)}, here {', '.join(classes)}"
        unfit |= {name: names for name in own.keys() & found.keys() if name.startswith(_classifying(detector))}
    taken = {name: found[name] for name in own.keys() & found.keys() - unfit.keys()}
    if not any(_is_weight(tensor) for tensor in taken.values()):
        raise NothingInCommon(path, space=header.space.name, config=header.config.id)
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    theirs, ours = header.space.structure.activation, detector.space.structure.activation
    missing, left_over = own.keys() - found.keys(), found.keys() - own.keys()
    origin = Origin(
        file=path.name,
        sha256=sha256,
        taken=len(taken),
        unfit=len(unfit),
        missing=len(missing),
        left_over=len(left_over),
        other_activation=None if theirs is ours else theirs,
    )
    order = [*own, *(name for name in found if name in left_over)]
    return Transfer(
        origin,
        _by_site(name for name in order if name in taken),
        _by_site((name for name in order if name in unfit), unfit),
        _by_site(name for name in order if name in missing),
        _by_site(name for name in order if name in left_over),
        None if theirs is ours else _other_activation(theirs, ours),
    )


def _learned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors but the counters of BatchNorm, which say nothing of a network and fit everywhere."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _other_activation(theirs: Activation, ours: Activation) -> str:
    return (
        f"these weights were trained with {theirs}, this detector computes with {ours}: they may help less, "
        "compare with a run without --init, or train both in a space of one activation"
    )


def _is_weight(tensor: Tensor) -> bool:
    """Tell a convolution, Linear or position table from what has one number a channel or head, and fits often."""
    return sum(side > 1 for side in tensor.shape) > 1


def _classifying(detector: HeatDETR) -> str:
    """Return how the names of the convolution onto classes begin."""
    return f"blocks.{module_key(detector.sites[-1].name)}.classify."


def _by_site(names: Iterable[str], notes: Mapping[str, str] | None = None) -> Names:
    sites: dict[str, tuple[str, ...]] = {}
    for name in names:
        key, _, tensor = name.removeprefix("blocks.").partition(".")
        site = key.replace("_", ".", 1)  # as in the walk: stage1_slot0 is stage1.slot0, tcm_task1_0 tcm.task1_0
        sites[site] = (*sites.get(site, ()), f"{tensor} ({notes[name]})" if notes else tensor)
    return sites


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
