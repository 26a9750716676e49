"""Train a supernet."""

from pathlib import Path
from typing import Any

import torch

from nas.space import SearchSpace
from server.children import Emit
from server.heavy.items import keep
from supernet.procedural import make_dataset
from supernet.training import Progress, TrainSettings, train_supernet

Json = dict[str, Any]

HELD_OUT_SHARE = 8
"""One held-out image for so many training images ..."""
HELD_OUT_LEAST = 16
"""... and never fewer than these: AP on a handful of objects is noise."""


def train(parameters: Json, emit: Emit) -> Json:
    """Draw the data set unless it is there, train with resume; return checkpoint, importance and metrics."""
    space = SearchSpace.model_validate(parameters["space"])
    data = Path(parameters["data"])
    images, seed = parameters["images"], parameters["seed"]
    held_out = max(HELD_OUT_LEAST, images // HELD_OUT_SHARE)
    make_dataset(data, images=images, size=space.images[-1][0], seed=seed, held_out=held_out)
    settings = TrainSettings(steps=parameters["steps"], seed=parameters["seed"], noise=parameters["noise"])

    def tell(progress: Progress) -> None:
        emit(
            "progress",
            {
                "step": progress.step,
                "total": progress.total,
                "loss": progress.loss,
                "seconds_left": progress.seconds_left,
            },
        )

    torch.set_num_threads(parameters["threads"])
    trained = train_supernet(space, data, Path(parameters["out"]), settings=settings, progress=tell)
    return {
        "checkpoint_sha256": keep(parameters, trained.checkpoint.read_bytes()),
        "importance": trained.importance.model_dump(mode="json"),
        "metrics": trained.metrics.model_dump(mode="json"),
    }
