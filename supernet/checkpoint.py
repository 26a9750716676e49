"""Supernets and detectors on disk: safetensors with a JSON header, written at once or not at all."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import torch
from pydantic import Discriminator, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.blocks import Activation
from nas.config import Config
from nas.space import SearchSpace
from nas.values import Value
from supernet.detector import HeatDETR
from supernet.errors import BadCheckpoint
from supernet.files import write_whole
from supernet.supernet import Supernet

FORMAT = 1
"""Version of the layout below; other versions are refused."""

WEIGHTS = "supernet."
"""Prefix of the supernet's own tensors; those of the optimisers stand beside them while training goes on."""

DETECTOR = "detector."
"""The same of a detector."""

BACKBONE = "backbone."
"""The same of a backbone with its classifier."""

_HEADER = "heatnas"


class Header(Value):
    """What the checkpoint of a supernet says about itself.

    Attributes:
        format: version of the file layout.
        space: the search space the supernet spans.
        settings: how it is trained.
        data: name of the data set.
        data_sha256: content hash of the training split.
        step: optimiser steps taken.
        metrics: what was measured after the last step; None while training goes on.
    """

    format: int = FORMAT
    space: SearchSpace
    settings: dict[str, Any]
    data: str
    data_sha256: str
    step: int
    metrics: dict[str, Any] | None = None


class Origin(Value):
    """Which file a training took its first weights from, and how many tensors of them.

    Attributes:
        file: its name.
        sha256: of its content.
        taken: tensors that were taken.
        unfit: tensors whose shape or classes are others.
        missing: tensors of the network that the file lacks.
        left_over: tensors of the file that the network lacks.
        other_activation: what the weights were trained with, where that is not the activation of the network.
    """

    file: str
    sha256: str
    taken: int
    unfit: int
    missing: int
    left_over: int
    other_activation: Activation | None = None


class RunHeader(Value):
    """What the checkpoint of a training says about itself: all that it takes to build, feed and judge the network.

    Attributes:
        format: version of the file layout.
        space: the search space of the config.
        config: the architecture.
        classes: names of the classes, in the order of the scores.
        recipe: how it is trained.
        data: name of the data set.
        data_sha256: content hash of the training split.
        held_out_sha256: content hash of the split that says which weights are best; older files lack it.
        version: of the product that trained it.
        epoch: epochs done.
        step: optimiser steps done.
        metrics: on the held-out split after these epochs; None where they were not looked at.
        origin: where the first weights came from; None where they were drawn.
    """

    format: int = FORMAT
    space: SearchSpace
    config: Config
    classes: tuple[str, ...]
    recipe: dict[str, Any]
    data: str
    data_sha256: str
    held_out_sha256: str | None = None
    version: str
    epoch: int = 0
    step: int = 0
    metrics: dict[str, Any] | None = None
    origin: Origin | None = None


class DetectorHeader(RunHeader):
    """What the checkpoint of a detector says about itself.

    Attributes:
        kind: tells it from other checkpoints.
        category_ids: the id of each class in the data set.
        left_out: bad entries of the training split that were left out or clipped, counted by kind.
    """

    kind: Literal["detector"] = "detector"
    category_ids: tuple[int, ...]
    left_out: dict[str, int] = Field(default_factory=dict)


class BackboneHeader(RunHeader):
    """What the checkpoint of a backbone with its classifier says about itself.

    Attributes:
        kind: tells it from other checkpoints.
    """

    kind: Literal["backbone"] = "backbone"


H = TypeVar("H", Header, DetectorHeader, BackboneHeader)

_ANY_RUN: TypeAdapter[DetectorHeader | BackboneHeader] = TypeAdapter(
    Annotated[DetectorHeader | BackboneHeader, Discriminator("kind")]
)


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Header | RunHeader) -> str:
    """Write a checkpoint through a temporary file, fsync and rename; return its SHA-256."""
    content = save(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, {_HEADER: header.canonical_json()}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def load_checkpoint(path: Path, kind: type[H]) -> tuple[dict[str, Tensor], H]:
    """Read a checkpoint's tensors and its header, which must be of the given kind.

    Raises:
        BadCheckpoint: the file is missing, damaged, or of another version of the product.
    """
    found = _load(path, kind.model_validate_json)
    return found.tensors, found.header


R = TypeVar("R", bound=Header | RunHeader)


class Content(NamedTuple, Generic[R]):
    """What a checkpoint holds.

    Attributes:
        tensors: by name.
        header: what the file says about itself.
        sha256: of the bytes that both were read from; the file may have been replaced since.
    """

    tensors: dict[str, Tensor]
    header: R
    sha256: str


def load_any_run(path: Path) -> Content[DetectorHeader | BackboneHeader]:
    """Read the checkpoint of a detector or of a backbone.

    Raises:
        BadCheckpoint: the file is missing, damaged, neither of the two, what a run goes on from, or of another version
            of the product.
    """
    found = _load(path, _ANY_RUN.validate_json)
    prefix = DETECTOR if isinstance(found.header, DetectorHeader) else BACKBONE
    if not all(name.startswith(prefix) for name in found.tensors):  # moments and averages stand beside the weights
        raise BadCheckpoint(
            path,
            "it is what a run goes on from, not the weights that it keeps",
            advice="Name best.safetensors or last.safetensors beside it",
        )
    return found


def _load(path: Path, parse: Callable[[str], R]) -> Content[R]:
    try:
        content = path.read_bytes()
        tensors = dict(sorted(load(content).items()))  # else in another order each time
    except (OSError, SafetensorError) as fault:
        raise BadCheckpoint(path, f"it cannot be read ({fault})") from fault
    text = _metadata(content).get(_HEADER)
    if text is None:
        raise BadCheckpoint(path, "it has no header of this product")
    try:
        header = parse(text)
    except ValidationError as fault:
        raise BadCheckpoint(
            path, f"its header is of another kind or version ({fault.error_count()} fields differ)"
        ) from fault
    if header.format != FORMAT:
        raise BadCheckpoint(path, f"its format is {header.format}, this version reads {FORMAT}")
    return Content(tensors, header, hashlib.sha256(content).hexdigest())


def _metadata(content: bytes) -> dict[str, str]:
    """Return the texts at the head of a safetensors file: eight bytes say how long its JSON is."""
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    texts: dict[str, str] = head.get("__metadata__", {})
    return texts


def named_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and statistics under their names behind a prefix."""
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def tensors_below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimiser_tensors(prefix: str, optimiser: Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's moments as `<prefix><number of the parameter>.<name>`; rates are not among them."""
    return {
        f"{prefix}{number}.{name}": tensor
        for number, moments in optimiser.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def restore_optimiser(prefix: str, optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments that `optimiser_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors_below(prefix, tensors).items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def supernet_tensors(supernet: Supernet) -> dict[str, Tensor]:
    """Return the supernet's parameters and statistics under the names they have in a checkpoint."""
    return named_tensors(WEIGHTS, supernet)


def restore_supernet(supernet: Supernet, tensors: dict[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into a supernet of the same space."""
    supernet.load_state_dict(tensors_below(WEIGHTS, tensors))


def load_supernet(path: Path) -> Supernet:
    """Return the supernet of a checkpoint, in evaluation mode.

    Raises:
        BadCheckpoint: the file is missing, damaged, or of another version of the product.
    """
    tensors, header = load_checkpoint(path, Header)
    with torch.random.fork_rng(devices=[]):
        supernet = Supernet(header.space)
    try:
        restore_supernet(supernet, tensors)
    except RuntimeError as fault:
        raise BadCheckpoint(path, "its tensors do not fit its search space") from fault
    return supernet.eval()


class TrainedWeights(NamedTuple):
    """The detector of a checkpoint.

    Attributes:
        detector: in evaluation mode.
        header: what the file says about it.
        sha256: of the bytes that it was read from.
    """

    detector: HeatDETR
    header: DetectorHeader
    sha256: str


def load_detector(path: Path) -> TrainedWeights:
    """Return the detector of a checkpoint.

    Raises:
        BadCheckpoint: the file is missing, damaged, or not the checkpoint of a detector that this version can read.
    """
    tensors, header, sha256 = load_any_run(path)
    if isinstance(header, BackboneHeader):
        raise BadCheckpoint(
            path,
            "it holds a backbone of `heatnas pretrain`, and a detector is wanted",
            advice="Start one from it with `heatnas train --init`, or name another file",
        )
    with torch.random.fork_rng(devices=[]):
        detector = HeatDETR(header.space, header.config)
    try:
        detector.load_state_dict(tensors_below(DETECTOR, tensors))
    except RuntimeError as fault:
        raise BadCheckpoint(path, "its tensors do not fit its config") from fault
    return TrainedWeights(detector.eval(), header, sha256)
