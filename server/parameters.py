"""What a job is asked to do: one frozen model per job kind, validated once, at submission."""

import json
import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from nas.named import SPACE_HELP
from profiler.wire import Execution, Name, Text

Solver = Literal["thin_all_stages", "thin_paper", "exact"]
Threads = Annotated[
    int, Field(ge=1, le=256, description="Intra-op threads of the runtime; part of a table's identity.")
]
Id = Annotated[Text, Field(min_length=1, max_length=64)]
MIN_FPS, MAX_FPS = 1e-3, 1e6
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[
    float,
    Field(
        ge=0,
        le=3600,
        description="Shortest time that graphs measured together are measured for. A shared or warm machine drifts by "
        "several percent for seconds at a time; 20 s average most of it out, a quiet device needs less.",
    ),
]
MEASURE_SECONDS = 20.0
SPACE_DESCRIPTION = f"Search space: {SPACE_HELP}."


class Parameters(BaseModel):
    """Base of all job parameters: unknown fields are refused, a typing mistake is never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_types(cls, value: object, field: ValidationInfo) -> object:
        """Take a number for a number alone: `true` is no 1, and "60" no 60."""
        wanted = cls.model_fields[field.field_name or ""].annotation
        if wanted in {int, float} and isinstance(value, bool | str):
            raise ValueError(f"{json.dumps(value)} is not a number: write it without quotes")
        return value


class TrainParameters(Parameters):
    """Train a supernet on the procedural data set and read its importance."""

    space: Id = Field("heatdetr-nano", description=SPACE_DESCRIPTION)
    images: int = Field(1200, ge=8, le=100_000, description="Training images that are drawn.")
    steps: int = Field(
        320, ge=1, le=1_000_000, description="Optimiser steps of the weights; half as many follow for r."
    )
    seed: Seed = 0
    noise: Literal["gumbel", "uniform"] = Field(
        "gumbel", description="Noise on the logits; the paper prints U(0, 1) and calls it Gumbel (eq. 8)."
    )


class ProfileParameters(Parameters):
    """Measure every block of a space on a device and publish the lookup table."""

    device: Name
    space: Id = Field("heatdetr-nano", description=SPACE_DESCRIPTION)
    classes: int = Field(3, ge=1, le=10_000)
    threads: Threads = 1
    references: int = Field(6, ge=1, le=200, description="Whole networks measured to calibrate sums of blocks.")
    measure_seconds: Seconds = MEASURE_SECONDS
    seed: Seed = 0

    @property
    def execution(self) -> Execution:
        """How the graphs are run."""
        return Execution(threads=self.threads)


class ThinParameters(Parameters):
    """Thin a supernet against one device's table until the target FPS holds; measure the answer there."""

    device: Name
    supernet: Id
    target_fps: float = Field(
        ge=MIN_FPS, le=MAX_FPS, description="Frames per second that must be measured on the device."
    )
    verify: bool = Field(True, description="Export the answer, measure it whole on the device, correct and repeat.")
    solver: Solver = "thin_all_stages"
    threads: Threads = 1
    image: tuple[int, int] | None = Field(
        None, description="Input height and width in pixels, a size of the space; its largest by default."
    )
    edition: Id | None = Field(None, description="Table edition to answer from; the newest by default.")
    max_rounds: int = Field(3, ge=1, le=10, description="Verified rounds before a miss is reported as a miss.")
    measure_seconds: Seconds = MEASURE_SECONDS

    @field_validator("target_fps", mode="before")
    @classmethod
    def _check(cls, value: object) -> object:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"target_fps {value} is not a finite number: ask for frames per second, such as 25")
        return value

    @property
    def execution(self) -> Execution:
        """How the graphs are run."""
        return Execution(threads=self.threads)


PARAMETERS: dict[str, type[Parameters]] = {
    "train": TrainParameters,
    "profile": ProfileParameters,
    "thin": ThinParameters,
}
"""Job kinds and what they take."""
