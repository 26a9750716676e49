"""What must hold on the device."""

import math
from typing import Self

from pydantic import Field

from nas.errors import InvalidBudget
from nas.values import Value


class Budget(Value):
    """The latency a config may take, in milliseconds. Latency adds over blocks, frames per second do not."""

    latency_ms: float = Field(gt=0)

    @classmethod
    def from_fps(cls, fps: float) -> Self:
        """Convert a target in frames per second.

        Raises:
            InvalidBudget: the target, or the time that it leaves for a frame, is not a positive finite number.
        """
        if not (math.isfinite(fps) and fps > 0 and math.isfinite(1000 / fps)):
            raise InvalidBudget(
                f"target_fps {fps} is not a positive number of frames that each take a finite time: ask for frames per "
                "second, such as 25"
            )
        return cls(latency_ms=1000 / fps)

    @property
    def fps(self) -> float:
        """The budget as frames per second."""
        return 1000 / self.latency_ms
