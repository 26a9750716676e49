"""The heavy tasks of the handlers, each run in a child process (`server.children`): the only module that reaches torch.

Parameters and results are JSON; large things travel through the blob store by hash.
"""

from pathlib import Path
from typing import Any

import torch
from supernet.checkpoint import load_supernet
from supernet.training import Progress, TrainSettings, train_supernet

from nas.blocks import Block
from nas.config import Config
from nas.space import SearchSpace
from server.artifacts import BlobStore
from server.children import Emit
from server.tasks import network_key
from supernet.batch_norm import reestimate_batch_norm
from supernet.dataset import CocoDataset
from supernet.detector import HeatDETR
from supernet.evaluation import evaluate_onnx
from supernet.export import ExportedGraph, export_blocks, export_detector
from supernet.extraction import extract
from supernet.procedural import make_dataset

Json = dict[str, Any]

BLOCKS_AT_ONCE = 12
"""Blocks exported in one pass: the exporter has a fixed cost a pass, and a pass is what an interruption loses."""


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
        "checkpoint_sha256": _keep(parameters, trained.checkpoint.read_bytes()),
        "importance": trained.importance.model_dump(mode="json"),
        "metrics": trained.metrics.model_dump(mode="json"),
    }


def export_block_graphs(parameters: Json, emit: Emit) -> Json:
    """Export blocks and tell each as an item: key, sha256, bytes, label, parity."""
    blocks = [Block.model_validate(block) for block in parameters["blocks"]]
    for first in range(0, len(blocks), BLOCKS_AT_ONCE):
        some = blocks[first : first + BLOCKS_AT_ONCE]
        for block, graph in zip(some, export_blocks(some), strict=True):
            emit("item", _item(parameters, block.key, block.label, graph))
    return {}


def export_references(parameters: Json, emit: Emit) -> Json:
    """Export whole networks with seeded fresh weights and tell each as an item."""
    space = SearchSpace.model_validate(parameters["space"])
    for content in parameters["configs"]:
        config = Config.model_validate(content)
        torch.manual_seed(parameters["seed"])
        graph = export_detector(HeatDETR(space, config))
        emit("item", _item(parameters, network_key(config), f"network {config.id}", graph))
    return {}


def deploy(parameters: Json, emit: Emit) -> Json:
    """Cut the config out of its supernet, export it, and score the very file on the held-out images."""
    config = Config.model_validate(parameters["config"])
    data = Path(parameters["data"])
    detector = extract(load_supernet(Path(parameters["checkpoint"])), config)
    emit("progress", {"phase": "statistics"})
    reestimate_batch_norm(detector, CocoDataset(data, "train", image=config.image))
    emit("progress", {"phase": "export"})
    graph = export_detector(detector)
    emit("progress", {"phase": "evaluation"})
    evaluation = evaluate_onnx(graph.onnx, CocoDataset(data, "val", image=config.image))
    item = _item(parameters, network_key(config), f"network {config.id}", graph)
    return {**item, "evaluation": evaluation.model_dump(mode="json")}


def _item(parameters: Json, key: str, label: str, graph: ExportedGraph) -> Json:
    return {
        "key": key,
        "sha256": _keep(parameters, graph.onnx),
        "bytes": len(graph.onnx),
        "label": label,
        "parity": graph.parity.model_dump(mode="json"),
    }


def _keep(parameters: Json, content: bytes) -> str:
    return BlobStore(Path(parameters["blobs"])).put(content)
