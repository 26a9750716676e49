"""Runtime profiles: the layout and the activation that suit a runtime.

The activation is part of the weights: it is chosen before a supernet is trained and cannot be changed afterwards. The
layout is not: equal weights compute the same in either, so that a detector can be exported in the other.
"""

from enum import StrEnum
from typing import Literal, assert_never

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

    @property
    def activation(self) -> Activation:
        """The activation of a space that is trained for it."""
        match self:
            case RuntimeProfile.CPU:
                return Activation.HARDSWISH
            case RuntimeProfile.CUDA:
                return Activation.GELU
        assert_never(self)

    @property
    def linear_layout(self) -> Literal[Layout.SPATIAL] | None:
        """The layout that Linears work in, as a structure names it."""
        match self:
            case RuntimeProfile.CPU:
                return None
            case RuntimeProfile.CUDA:
                return Layout.SPATIAL
        assert_never(self)


def fitted(structure: Structure, profile: RuntimeProfile) -> Structure:
    """Return the structure with the layout and the activation of a profile; nothing else of it changes."""
    return laid_out(structure, profile).model_copy(update={"activation": profile.activation})


def laid_out(structure: Structure, profile: RuntimeProfile) -> Structure:
    """Return the structure with the layout of a profile alone: the weights of the one are those of the other."""
    return structure.model_copy(update={"linear_layout": profile.linear_layout})
