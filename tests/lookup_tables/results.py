"""Results an agent could have sent, and a device they were measured on."""

from datetime import UTC, datetime, timedelta
from statistics import median

from nas.blocks import Block, Kind, Layout
from profiler.identity import result_id
from profiler.wire import DeviceClass, DeviceDescription, Execution, Result, Timing

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE_THREAD = Execution(threads=1)
GRAPH = "ab" * 32

BLOCKS = (
    Block(kind=Kind.REP_CNN, channels_in=32, channels_out=32, height=8, width=16),
    Block(kind=Kind.WMSA, channels_in=32, channels_out=32, height=8, width=16),
    Block(kind=Kind.WMSA, channels_in=64, channels_out=64, height=8, width=16, layouts=(Layout.TOKENS,)),
)


def minutes(number: float) -> datetime:
    return NOON + timedelta(minutes=number)


def described(*, machine: str = "m" * 64, version: str = "1.31.1", cpu: str = "Example 9") -> DeviceDescription:
    return DeviceDescription(
        device_class=DeviceClass.LAPTOP_CPU,
        cpu_model=cpu,
        physical_cores=4,
        logical_cores=8,
        memory_mib=16000,
        architecture="x86_64",
        system="Linux",
        governor=None,
        runtimes={"onnxruntime": version},
        providers=("CPUExecutionProvider",),
        python="3.11.7",
        machine_hash=machine,
    )


def timed(
    hot_ns: tuple[int, ...] = (1_010_000, 1_000_000, 990_000), cold_ns: tuple[int, ...] = (1_400_000, 1_500_000)
) -> Timing:
    hot_ms = median(hot_ns) / 1e6
    return Timing(
        hot_ns=hot_ns,
        cold_ns=cold_ns,
        hot_ms=hot_ms,
        cold_ms=median(cold_ns) / 1e6,
        low_ms=min(hot_ns) / 1e6,
        high_ms=max(hot_ns) / 1e6,
        confidence=0.95,
        converged=True,
        outliers=0,
        rounds=2,
        warmup_runs=5,
    )


def a_result(
    *,
    task: str = "task",
    agent: str = "agent",
    attempt: int = 1,
    graph: str = GRAPH,
    execution: Execution = ONE_THREAD,
    timing: Timing | None = None,
    context: dict[str, str | float | None] | None = None,
    measured_at: str = "2026-03-01T12:00:00.123456+00:00",
) -> Result:
    return Result(
        agent_id=agent,
        task_id=task,
        attempt=attempt,
        graph_sha256=graph,
        execution=execution,
        timing=timing or timed(),
        context={"governor": "performance", "load": 0.1, "temperature_c": None} if context is None else context,
        measured_at=measured_at,
    )


def scaled(factor: float) -> Timing:
    """Time something `factor` times slower than the standard result: 1 ms hot, 1.45 ms cold."""
    return timed(
        tuple(round(factor * sample) for sample in (1_010_000, 1_000_000, 990_000)),
        tuple(round(factor * sample) for sample in (1_400_000, 1_500_000)),
    )


__all__ = ["BLOCKS", "GRAPH", "NOON", "ONE_THREAD", "a_result", "described", "minutes", "result_id", "scaled", "timed"]
