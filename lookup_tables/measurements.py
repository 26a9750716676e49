"""Results of agents as append-only records: checked, stored once, restored exactly."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import median

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from lookup_tables import models
from lookup_tables.errors import InvalidMeasurement, MeasurementConflict
from lookup_tables.samples import pack, unpack
from nas.blocks import Block
from profiler.identity import result_id as digest_of
from profiler.wire import Execution, Result, ResultReceipt, Timing

MEDIAN_TOLERANCE = 1e-6
"""Share by which a reported time may differ from what its samples say: arithmetic rounds far less."""

KEYS_PER_QUERY = 500
"""Items asked for at once: databases limit the parameters of a statement."""

_FALSE = frozenset({"", "0", "false", "no"})


def network_key(label: str) -> str:
    """Return the item key of a network measured whole, from its config id."""
    return f"network:{label}"


def insert_measurement(
    session: Session,
    result: Result,
    *,
    result_id: str,
    device: models.Device,
    item_key: str,
    block: Block | None,
    runtime_version: str | None,
    received_at: datetime,
    late: bool = False,
) -> ResultReceipt:
    """Store a result, or find it stored already.

    Args:
        session: an open writing session; the caller commits.
        result: what the agent reports.
        result_id: the agent's id of it.
        device: where it was measured.
        item_key: `Block.key`, or `network:<config id>`.
        block: the block, None for a whole network.
        runtime_version: of the runtime it was measured with, where known.
        received_at: the server's time.
        late: whether it comes from an older attempt; ignored when the result is stored already.

    Raises:
        InvalidMeasurement: the result contradicts itself.
        MeasurementConflict: the id is taken by other content, or by a measurement of another device or item.
    """
    check_result(result)
    result = _in_utc(result)
    stored = find_receipt(session, result, result_id=result_id)
    if stored is not None:
        _check_item(session, result_id, device, item_key)
        return stored
    record = _record(result)
    record.id, record.device_id, record.item_key = result_id, device.id, item_key
    record.block = None if block is None else block.model_dump(mode="json", exclude_none=True)
    record.runtime_version, record.received_at, record.late = runtime_version, received_at, late
    try:
        with session.begin_nested():
            session.add(record)
    except IntegrityError:
        # Another transaction stored the same id since we looked.
        stored = find_receipt(session, result, result_id=result_id)
        if stored is None:
            raise
        _check_item(session, result_id, device, item_key)
        return stored
    return ResultReceipt(measurement_id=result_id, late=late)


def find_receipt(session: Session, result: Result, *, result_id: str) -> ResultReceipt | None:
    """Return the receipt of a result that is stored already, None when it is new.

    Raises:
        MeasurementConflict: the id is taken by other content.
    """
    stored = session.get(models.Measurement, result_id)
    if stored is None:
        return None
    if stored.digest != digest_of(_in_utc(result)):
        raise MeasurementConflict(
            f"measurement {result_id} exists with other content: a measurement never changes, "
            "send this one under the hash of its own content"
        )
    return ResultReceipt(measurement_id=stored.id, late=stored.late)


def _check_item(session: Session, result_id: str, device: models.Device, item_key: str) -> None:
    """Refuse to take the stored measurement for one of another device or item."""
    stored = session.get_one(models.Measurement, result_id)
    if (stored.device_id, stored.item_key) != (device.id, item_key):
        where = session.get_one(models.Device, stored.device_id).name
        raise MeasurementConflict(
            f"measurement {result_id} is of {stored.item_key} on {where}, not of {item_key} on {device.name}: "
            "a measurement never changes, measure this one too"
        )


def check_result(result: Result) -> None:
    """Refuse a result whose numbers contradict each other.

    Raises:
        InvalidMeasurement: names the value, the rule and what to do.
    """
    timing = result.timing
    for name, samples, reported in (
        ("hot", timing.hot_ns, timing.hot_ms),
        ("cold", timing.cold_ns, timing.cold_ms),
    ):
        if not samples or min(samples) <= 0:
            raise InvalidMeasurement(f"{name}_ns holds no runs, or one of no duration: send every timed run")
        found = median(samples) / 1e6
        if abs(found - reported) > MEDIAN_TOLERANCE * found:
            raise InvalidMeasurement(
                f"{name}_ms says {reported:.6f} but the median of the {len(samples)} samples in {name}_ns is "
                f"{found:.6f}: send the samples the median was taken of"
            )
    if not timing.low_ms <= timing.hot_ms <= timing.high_ms:
        raise InvalidMeasurement(
            f"hot_ms {timing.hot_ms:.6f} lies outside its own interval {timing.low_ms:.6f} to {timing.high_ms:.6f}: "
            "send the interval of that median"
        )
    shortest, longest = min(timing.hot_ns) / 1e6, max(timing.hot_ns) / 1e6
    if timing.low_ms < shortest * (1 - MEDIAN_TOLERANCE) or timing.high_ms > longest * (1 + MEDIAN_TOLERANCE):
        raise InvalidMeasurement(
            f"the interval {timing.low_ms:.6g} to {timing.high_ms:.6g} ms leaves the samples in hot_ns, which go from "
            f"{shortest:.6f} to {longest:.6f} ms: send the order statistics around the median"
        )
    if timing.outliers > len(timing.hot_ns):
        raise InvalidMeasurement(
            f"outliers says {timing.outliers} of {len(timing.hot_ns)} samples in hot_ns: count each run at most once"
        )


def result_of(record: models.Measurement) -> Result:
    """Restore the result exactly as it was received, `measured_at` in UTC."""
    hot_ns, cold_ns = unpack(record.samples)
    timing = Timing(
        hot_ns=hot_ns,
        cold_ns=cold_ns,
        hot_ms=record.hot_ms,
        cold_ms=record.cold_ms,
        low_ms=record.low_ms,
        high_ms=record.high_ms,
        confidence=record.confidence,
        converged=record.converged,
        outliers=record.outliers,
        rounds=record.rounds,
        warmup_runs=record.warmup_runs,
    )
    return Result(
        agent_id=record.agent_id,
        task_id=record.task_id,
        attempt=record.attempt,
        graph_sha256=record.graph_sha256,
        execution=record.execution,
        timing=timing,
        context=record.context,
        measured_at=record.measured_at.isoformat(),
    )


def is_simulated(result: Result) -> bool:
    """Tell whether the agent says that nothing was really timed."""
    flag = result.context.get("simulated")
    return str(flag).lower() not in _FALSE if isinstance(flag, str) else bool(flag)


def present_version(device: models.Device, execution: Execution) -> str | None:
    """Return the version of the runtime the device last described; None when it described none."""
    described = device.described
    return None if described is None else described.runtimes.get(execution.runtime)


def newest_by_key(
    session: Session, device: models.Device, execution: Execution, keys: Iterable[str]
) -> dict[str, models.Measurement]:
    """Find the newest real measurement of each item with the device's present runtime version; others are absent.

    Late replicates do not count: an attempt is voided also because something else loaded the machine meanwhile.
    """
    wanted = tuple(dict.fromkeys(keys))
    found: dict[str, models.Measurement] = {}
    for start in range(0, len(wanted), KEYS_PER_QUERY):
        ranked = _ranked(device, execution, wanted[start : start + KEYS_PER_QUERY]).subquery()
        query = (
            select(models.Measurement)
            .join(ranked, (ranked.c.id == models.Measurement.id) & (ranked.c.place == 1))
            .options(defer(models.Measurement.samples))
        )
        found |= {record.item_key: record for record in session.scalars(query)}
    return {key: found[key] for key in wanted if key in found}


def _ranked(device: models.Device, execution: Execution, keys: Sequence[str]) -> Select[str, int]:
    """Select the usable measurements of these items with their place among those of the same item, newest first."""
    newest_first = (models.Measurement.received_at.desc(), models.Measurement.id.desc())
    place = func.row_number().over(partition_by=models.Measurement.item_key, order_by=newest_first)
    return select(models.Measurement.id, place.label("place")).where(
        models.Measurement.device_id == device.id,
        models.Measurement.item_key.in_(keys),
        *same_execution(models.Measurement, execution),
        models.Measurement.simulated.is_(False),
        models.Measurement.late.is_(False),
        models.Measurement.runtime_version.is_not_distinct_from(present_version(device, execution)),
    )


def same_execution(
    model: type[models.Measurement] | type[models.Edition], execution: Execution
) -> tuple[ColumnElement[bool], ...]:
    """Write the conditions that a record was run in this way."""
    return (
        model.runtime == execution.runtime,
        model.provider == execution.provider,
        model.precision == execution.precision,
        model.threads == execution.threads,
    )


def _in_utc(result: Result) -> Result:
    return result.model_copy(update={"measured_at": _moment(result.measured_at).isoformat()})


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        in_utc = moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # the latter for the first or last day of all, in another zone
        raise InvalidMeasurement(
            f"measured_at {text!r} is no ISO 8601 time of the years 1 to 9999: send 2026-01-31T12:00:00+00:00"
        ) from error
    if moment.tzinfo is None:
        raise InvalidMeasurement(f"measured_at {text!r} has no time zone: send UTC, such as {text}+00:00")
    return in_utc


def _record(result: Result) -> models.Measurement:
    timing = result.timing
    return models.Measurement(
        digest=digest_of(result),
        agent_id=result.agent_id,
        task_id=result.task_id,
        attempt=result.attempt,
        schema_version=result.schema_version,
        graph_sha256=result.graph_sha256,
        **result.execution.model_dump(),
        **timing.model_dump(exclude={"hot_ns", "cold_ns"}),
        runs=len(timing.hot_ns) + len(timing.cold_ns),
        samples=pack(timing.hot_ns, timing.cold_ns),
        context=result.context,
        simulated=is_simulated(result),
        measured_at=_moment(result.measured_at),
    )
