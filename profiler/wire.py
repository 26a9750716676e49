"""The agent protocol: every message between an agent and the server, version 1.

The agent never learns what a block means: it is handed a graph by hash, an opaque key, and how to run it.
Durations travel as seconds, never as clock times, so that the clocks of the two sides need not agree.
"""

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

PROTOCOL = 1
"""Protocol spoken by this version; a server accepts this one and the one before."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
CONTROLS = r"\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that steer a terminal or turn the direction of writing."""
_PLAIN = StringConstraints(pattern=f"^[^{CONTROLS}]*$")
Text = Annotated[str, StringConstraints(max_length=512), _PLAIN]
"""Any text from outside: valid Unicode on one line, without control characters. It is stored, and shown to people."""
LongText = Annotated[str, StringConstraints(max_length=16_000), _PLAIN]
"""The same, for messages and series of numbers."""
Count = Annotated[int, Field(ge=0, lt=2**31)]
Nanoseconds = Annotated[int, Field(lt=2**63)]


def plain_text(text: str, *, max_length: int = 512) -> str:
    """Make any text a `Text`: what may not stand in it becomes a space or, where it is no Unicode, a question mark."""
    spaced = re.sub(f"[{CONTROLS}]", " ", text.encode(errors="replace").decode())
    return " ".join(spaced.split())[:max_length]


class Message(BaseModel):
    """Base of the protocol's messages: unknown fields are ignored, so that N and N-1 can talk."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class DeviceClass(StrEnum):
    """What sort of machine the agent runs on."""

    GPU = "gpu"
    DESKTOP_CPU = "desktop_cpu"
    LAPTOP_CPU = "laptop_cpu"
    JETSON = "jetson"
    SERVER_CPU = "server_cpu"


class DeviceDescription(Message):
    """What the agent can say about its machine. Unknown is None, never zero."""

    device_class: DeviceClass
    cpu_model: Text
    physical_cores: Count | None
    logical_cores: Count
    memory_mib: Count
    architecture: Text
    system: Text
    governor: Text | None
    runtimes: Annotated[dict[Text, Text], Field(max_length=64)]
    """Runtime name to version, such as {"onnxruntime": "1.31.1"}; `providers` lists what onnxruntime offers."""
    providers: Annotated[tuple[Text, ...], Field(max_length=64)]
    python: Text
    machine_hash: Text
    """Hash of the machine's identity; the identity itself never leaves the device."""


class Enrolment(Message):
    """POST /v1/agents: an agent introduces itself and its device."""

    device: Name
    protocol: int
    agent_version: Text
    description: DeviceDescription


class Enrolled(Message):
    """Reply to an enrolment: who the agent is, and the intervals the server wants."""

    agent_id: Text
    device: Name
    protocol: int
    lease_seconds: float
    renew_seconds: float
    poll_seconds: float
    max_graph_bytes: int


class Execution(Message):
    """How a graph is run; part of the identity of a table."""

    runtime: Literal["onnxruntime"] = "onnxruntime"
    provider: Text = "CPUExecutionProvider"
    precision: Literal["fp32"] = "fp32"
    threads: int = Field(default=1, ge=1, le=256)


class Policy(Message):
    """When a measurement is good enough: it sets effort, not identity.

    A confidence interval knows nothing of a machine that is 5 % slower for the next ten seconds: only samples spread
    over a longer time do. `min_seconds` is that time; the hot runs that are kept are spread evenly over it.
    """

    warmup_runs: int = Field(default=5, ge=3)
    hot_runs_per_visit: int = Field(default=4, ge=1)
    min_hot_runs: int = Field(default=12, ge=5)
    max_hot_runs: int = Field(default=40, ge=5)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    max_relative_width: float = Field(default=0.02, gt=0)
    min_seconds: float = Field(default=0.0, ge=0, le=3600)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_hot_runs < self.min_hot_runs:
            raise ValueError(f"max_hot_runs {self.max_hot_runs} is below min_hot_runs {self.min_hot_runs}: raise it")
        return self


class Task(Message):
    """One graph to time."""

    task_id: Text
    attempt: int = Field(ge=1)
    """Fencing token: a result completes the task only with the current attempt."""
    graph_sha256: Sha256
    graph_bytes: int = Field(gt=0)
    label: Text
    execution: Execution
    policy: Policy


class LeaseRequest(Message):
    """POST /v1/agents/{agent_id}/leases: ask for work, waiting up to `wait_seconds` for some."""

    max_tasks: int = Field(default=32, ge=1, le=1024)
    wait_seconds: float = Field(default=20, ge=0, le=50)


class Lease(Message):
    """Tasks claimed for `lease_seconds` from the moment the request was sent; empty `tasks` means nothing to do."""

    lease_id: Text | None
    lease_seconds: float
    tasks: tuple[Task, ...]


class Renewal(Message):
    """POST /v1/leases/{lease_id}/renew: still working; what is done so far."""

    done: Count
    total: Count
    seconds_left: float | None = None


class Renewed(Message):
    """Reply to a renewal: the lease runs `lease_seconds` more; `cancelled` tasks are to be dropped at once."""

    lease_seconds: float
    cancelled: tuple[Text, ...] = ()


class Timing(Message):
    """What was measured, raw samples included. Times in nanoseconds unless the name says milliseconds."""

    hot_ns: tuple[Nanoseconds, ...]
    """The runs but the first of each visit that was kept, in order of time; outliers are counted, never dropped.

    Visits in a disturbed round, or ahead of what `Policy.min_seconds` spreads, are not kept; the context counts all."""
    cold_ns: tuple[Nanoseconds, ...]
    """The first run of each visit that was kept, after other sessions have used the caches."""
    hot_ms: float = Field(gt=0)
    """Median of the hot runs."""
    cold_ms: float = Field(gt=0)
    """Median of the cold runs."""
    low_ms: float = Field(gt=0)
    """Lower end of the order-statistic confidence interval of the hot median."""
    high_ms: float = Field(gt=0)
    """Upper end of it."""
    confidence: float = Field(gt=0.5, lt=1)
    converged: bool
    """The interval is as narrow as the policy asks."""
    outliers: Count
    """Hot runs with a modified z-score above 3.5."""
    rounds: int = Field(ge=1, lt=2**31)
    warmup_runs: Count


class Result(Message):
    """PUT /v1/results/{result_id}: one measurement; `result_id` is a hash of its content."""

    schema_version: Literal[1] = 1
    agent_id: Text
    task_id: Text
    attempt: Count
    graph_sha256: Sha256
    execution: Execution
    timing: Timing
    context: Annotated[dict[Text, LongText | float | None], Field(max_length=64)]
    """Circumstances: governor, frequency_mhz, load, seed, simulated, ...; recorded, not part of the identity."""
    measured_at: Text
    """Wall-clock label, ISO 8601 with zone; no duration is ever derived from it."""


class ResultReceipt(Message):
    """Reply to a result: `late` means an older attempt, kept as a replicate that completes nothing."""

    measurement_id: Text
    late: bool


class FailureClass(StrEnum):
    """Why a task could not be measured; the class decides what happens next."""

    HASH_MISMATCH = "hash_mismatch"
    UNSUPPORTED = "unsupported"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"
    TIMEOUT = "timeout"


class Failure(Message):
    """POST /v1/tasks/{task_id}/failures."""

    agent_id: Text
    attempt: Count
    failure: FailureClass
    message: LongText
