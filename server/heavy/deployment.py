"""Turn a config into the file that is shipped, and score that file."""

from pathlib import Path
from typing import Any

import torch

from nas.config import Config
from server.children import Emit
from server.heavy.items import item
from server.tasks import network_key
from supernet.batch_norm import IMAGES, reestimate_batch_norm
from supernet.checkpoint import load_supernet
from supernet.dataset import CocoDataset
from supernet.evaluation import evaluate_onnx
from supernet.export import export_detector
from supernet.extraction import extract

Json = dict[str, Any]


def deploy(parameters: Json, emit: Emit) -> Json:
    """Cut the config out of its supernet, export it, and score the very file on the held-out images."""
    torch.set_num_threads(parameters["threads"])
    config = Config.model_validate(parameters["config"])
    data = Path(parameters["data"])
    detector = extract(load_supernet(Path(parameters["checkpoint"])), config)
    emit("progress", {"phase": "statistics"})
    reestimate_batch_norm(detector, CocoDataset(data, "train", image=config.image, most=IMAGES))
    emit("progress", {"phase": "export"})
    graph = export_detector(detector)
    emit("progress", {"phase": "evaluation"})
    evaluation = evaluate_onnx(graph.onnx, CocoDataset(data, "val", image=config.image))
    described = item(parameters, network_key(config), f"network {config.id}", graph)
    return {**described, "evaluation": evaluation.model_dump(mode="json")}
