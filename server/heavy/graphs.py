"""Export blocks and reference networks."""

from typing import Any

import torch

from nas.blocks import Block
from nas.config import Config
from nas.space import SearchSpace
from server.children import Emit
from server.heavy.items import item
from server.tasks import network_key
from supernet.detector import HeatDETR
from supernet.export import export_blocks, export_detector, randomise_detector

Json = dict[str, Any]

BLOCKS_AT_ONCE = 12
"""Blocks exported in one pass: the exporter has a fixed cost a pass, and a pass is what an interruption loses."""


def export_block_graphs(parameters: Json, emit: Emit) -> Json:
    """Export blocks and tell each as an item: key, sha256, bytes, label, parity."""
    torch.set_num_threads(parameters["threads"])
    blocks = [Block.model_validate(block) for block in parameters["blocks"]]
    for first in range(0, len(blocks), BLOCKS_AT_ONCE):
        some = blocks[first : first + BLOCKS_AT_ONCE]
        for block, graph in zip(some, export_blocks(some), strict=True):
            emit("item", item(parameters, block.key, block.label, graph))
    return {}


def export_references(parameters: Json, emit: Emit) -> Json:
    """Export whole networks with seeded random weights, as if trained, and tell each as an item."""
    torch.set_num_threads(parameters["threads"])
    space = SearchSpace.model_validate(parameters["space"])
    for content in parameters["configs"]:
        config = Config.model_validate(content)
        torch.manual_seed(parameters["seed"])
        detector = HeatDETR(space, config)
        randomise_detector(detector)
        graph = export_detector(detector)
        emit("item", item(parameters, network_key(config), f"network {config.id}", graph))
    return {}
