"""Checkpoints: tensors in safetensors, everything else as JSON beside them in the same file; never a pickle.

A file appears whole or not at all: it is written beside its place, flushed and renamed.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nas.space import SearchSpace
from supernet.errors import BadCheckpoint
from supernet.supernet import Supernet

FORMAT = "heatnas.supernet/1"
WEIGHTS = "supernet."
"""Prefix of the supernet's own tensors; a checkpoint of an unfinished training holds others beside them."""


class Checkpoint(NamedTuple):
    """What a file holds: tensors by name, and notes that are JSON."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any]


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Replace the file at `path` by these tensors and notes, atomically and on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "notes": json.dumps(dict(notes), sort_keys=True, allow_nan=False)}
    content = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file whole.

    Raises:
        BadCheckpoint: it is no checkpoint, or of another version.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise BadCheckpoint(path, str(error)) from error
    if metadata.get("format") != FORMAT:
        raise BadCheckpoint(path, f"its format is {metadata.get('format')!r}, this version reads {FORMAT!r}")
    return Checkpoint(tensors, json.loads(metadata["notes"]))


def load_supernet(path: Path) -> Supernet:
    """Build the supernet of a checkpoint, in evaluation mode.

    Raises:
        BadCheckpoint: it is no checkpoint, or its tensors do not fit its space.
    """
    checkpoint = read_checkpoint(path)
    space = SearchSpace.model_validate(checkpoint.notes["space"])
    height, width = checkpoint.notes["image"]
    supernet = Supernet(space, (height, width))
    weights = {name.removeprefix(WEIGHTS): t for name, t in checkpoint.tensors.items() if name.startswith(WEIGHTS)}
    try:
        supernet.load_state_dict(weights)
    except RuntimeError as error:
        raise BadCheckpoint(path, f"its tensors do not fit the space {space.name}: {error}") from error
    return supernet.eval()


def weight_tensors(supernet: Supernet) -> dict[str, Tensor]:
    """Return the supernet's tensors under the names they have in a checkpoint."""
    return {WEIGHTS + name: tensor for name, tensor in supernet.state_dict().items()}
