"""A detector of the smallest space that sees something, without a training: random weights, bold scores."""

from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from supernet.checkpoint import DETECTOR, DetectorHeader, named_tensors, save_checkpoint
from supernet.detector import HeatDETR
from supernet.export import ExportedGraph, export_detector, randomise_detector
from tests.supernet.tiny_space import TINY

CLASSES = ("disc", "ring", "cross")


def bold_detector(*, seed: int = 0) -> HeatDETR:
    """Return a detector with the statistics that varied images leave: on 64x64 the coarsest map is one cell."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        detector = HeatDETR(TINY, TINY.largest())
        randomise_detector(detector)
        with torch.no_grad():
            coarse = functional.interpolate(torch.rand(24, 3, 4, 4), size=(64, 64), mode="bilinear")
            _settle(detector, torch.cat((coarse, torch.rand(8, 3, 64, 64))))
            detector.head.classify.bias.fill_(0.0)  # else all scores are below the threshold
            detector.head.classify.weight.mul_(10)
    return detector.eval()


def _settle(detector: HeatDETR, images: torch.Tensor) -> None:
    norms = [layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    detector.train()(images)


@cache
def bold_graph() -> ExportedGraph:
    return export_detector(bold_detector())


def bold_checkpoint(path: Path, *, bias: float = 0.0) -> Path:
    detector = bold_detector()
    torch.nn.init.constant_(detector.head.classify.bias, bias)
    header = DetectorHeader(
        space=TINY,
        config=TINY.largest(),
        classes=CLASSES,
        category_ids=(1, 2, 3),
        recipe={},
        data="shapes",
        data_sha256="0" * 64,
        version="0.0.0",
        epoch=1,
        step=1,
    )
    save_checkpoint(path, named_tensors(DETECTOR, detector), header)
    return path
