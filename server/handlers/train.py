"""Job kind `train`: a supernet, its checkpoint and its importance."""

import json
from typing import Any

from nas.named import named_space
from server.context import Context
from server.database import Supernet, writing
from server.parameters import TrainParameters

Json = dict[str, Any]

CLASSES = 3
"""Object classes of the procedural data set."""

TELL_EVERY = 0.05
"""Share of the training between two events."""

TRAINED = 0.9
"""Share of the job that the steps make up; the rest is scoring."""


def train(context: Context, parameters: TrainParameters) -> Json:
    """Train and store; return the supernet's id, metrics and where its data lie."""
    space = named_space(parameters.space, classes=CLASSES)
    data = f"shapes-{space.images[-1][0]}-{parameters.images}-seed{parameters.seed}"
    trained = context.step("train", lambda: _train(context, parameters, space.model_dump(mode="json"), data))
    return context.step("store", lambda: _store(context, space.model_dump(mode="json"), data, trained))


def _train(context: Context, parameters: TrainParameters, space: Json, data: str) -> Json:
    told = -1.0

    def follow(message: Json) -> None:
        nonlocal told
        share = message["step"] / message["total"]
        context.progress(TRAINED * share)
        if share - told >= TELL_EVERY or message["step"] == message["total"]:
            told = share
            left = message["seconds_left"]
            rest = "" if left is None else f", {left:.0f} s left"
            context.tell(
                "training", f"step {message['step']} of {message['total']}, loss {message['loss']:.3f}{rest}", message
            )
        if message["step"] == message["total"]:
            context.tell("scoring", "scoring the supernet on held-out images")

    context.tell("training", f"training the {space['name']} supernet on {data}")
    order = {
        "space": space,
        "data": str(context.settings.datasets / data),
        "out": str(context.settings.scratch(context.job)),
        "blobs": str(context.settings.blobs),
        "images": parameters.images,
        "steps": parameters.steps,
        "seed": parameters.seed,
        "noise": parameters.noise,
        "threads": context.settings.train_threads,
    }
    return context.child("server.heavy.training:train", order, follow)


def _store(context: Context, space: Json, data: str, trained: Json) -> Json:
    sha256 = trained["checkpoint_sha256"]
    metrics = {**trained["metrics"], "data": data}
    with writing(context.database) as session:
        session.merge(
            Supernet(
                id=context.job,
                job_id=context.job,
                space=space,
                checkpoint_sha256=sha256,
                importance=trained["importance"],
                metrics=metrics,
                created_at=context.now(),
            )
        )
    size = context.blobs.size(sha256)
    context.jobs.add_artifact(
        context.job, "supernet.safetensors", sha256, size, "application/octet-stream", now=context.now()
    )
    context.save("importance.json", json.dumps(trained["importance"], indent=1).encode(), "application/json")
    return {"supernet": context.job, "space": space["name"], "checkpoint_sha256": sha256, "metrics": metrics}
