"""Check (g): the exported file gives what PyTorch gives, to 1e-4 of the largest output, with every token kept.

At 448x448, where stride 64 leaves one window and no attention needs padding, and at 320x512, to which images of
320x480 are padded: sides of a space are multiples of 64.
"""

import numpy as np
import onnxruntime
import pytest
import torch

from nas.blocks import Activation, Kind
from nas.config import Config, Stage
from nas.network import Structure
from nas.space import SearchSpace, StageChoices
from supernet.detector import HeatDETR
from supernet.export import export_detector, randomise_detector
from supernet.fusing import fuse

IMAGES = ((320, 512), (448, 448))

SPACE = SearchSpace(
    name="parity",
    structure=Structure(
        classes=3, activation=Activation.GELU, context_kind=Kind.ATTENTION, keep=1.0, tcm_depths=(1, 0),
        anchor_px=(32, 64),
    ),
    stages=(
        StageChoices(slots=1, widths=(32,)),
        StageChoices(slots=1, widths=(32,)),
        StageChoices(slots=1, widths=(64,)),
        StageChoices(slots=1, widths=(64,), global_kinds=(Kind.ATTENTION,)),
    ),
    images=IMAGES,
)  # fmt: skip


def every_kind(image: tuple[int, int]) -> Config:
    """Return a config with each kind of local block, and token attention wherever the space has it."""
    return Config(
        space=SPACE.id,
        image=image,
        stages=(
            Stage(width=32, slots=(Kind.REP_CNN,), global_kind=Kind.XCA),
            Stage(width=32, slots=(Kind.WMSA,), global_kind=Kind.XCA),
            Stage(width=64, slots=(Kind.SWMSA,), global_kind=Kind.XCA),
            Stage(width=64, slots=(Kind.SWMSA,), global_kind=Kind.ATTENTION),
        ),
    )


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_exported_detector_gives_what_pytorch_gives(image: tuple[int, int]) -> None:
    torch.manual_seed(0)
    detector = HeatDETR(SPACE, every_kind(image))
    randomise_detector(detector)
    images = torch.rand(1, 3, *image, generator=torch.Generator().manual_seed(5))
    session = onnxruntime.InferenceSession(export_detector(detector).onnx, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = [output.numpy() for output in fuse(detector)(images)]
    anchors = image[0] * image[1] // 32**2 * 2
    assert [output.shape for output in wanted] == [(1, anchors, 4), (1, anchors, 3)]
    for got, want in zip(session.run(["boxes", "scores"], {"images": images.numpy()}), wanted, strict=True):
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
