"""Runtime profiles: the layout and the activation that suit a runtime, chosen before a supernet is trained.

The activation is part of the weights and cannot be changed afterwards. The layout is not: equal weights compute the
same in either.
"""

from enum import StrEnum
from typing import assert_never

from nas.blocks import Activation, Layout
from nas.network import Structure


class RuntimeProfile(StrEnum):
    """What a space is built for; its value is the part of a space's name behind the @."""

    CPU = "cpu"
    """Linears on tokens (one Gemm each, no transposes between token blocks), Hardswish"""
    CUDA = "cuda"
    """every map stays (batch, channels, height, width), Linears are 1x1 convolutions, GELU"""

    @property
    def runtime(self) -> str:
        """The runtime, in words."""
        match self:
            case RuntimeProfile.CPU:
                return "ONNX Runtime on CPUs"
            case RuntimeProfile.CUDA:
                return "CUDA and TensorRT"
        assert_never(self)


def fitted(structure: Structure, profile: RuntimeProfile) -> Structure:
    """Return the structure with the layout and the activation of a profile; nothing else of it changes."""
    match profile:
        case RuntimeProfile.CPU:
            return structure.model_copy(update={"activation": Activation.HARDSWISH, "linear_layout": None})
        case RuntimeProfile.CUDA:
            return structure.model_copy(update={"activation": Activation.GELU, "linear_layout": Layout.SPATIAL})
    assert_never(profile)
