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


def train(parameters: Json, emit: Emit) -> Json:
    """Draw the data set unless it is there, train with resume; return checkpoint, importance and metrics."""
    space = SearchSpace.model_validate(parameters["space"])
    data = Path(parameters["data"])
    make_dataset(data, images=parameters["images"], size=space.images[-1][0], seed=parameters["seed"])
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
