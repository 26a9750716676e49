"""Table editions as records: published from measurements, found, loaded; never changed."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lookup_tables import models
from lookup_tables.devices import find_device
from lookup_tables.errors import (
    DamagedEdition,
    NotPublishable,
    UnknownEdition,
    UnknownMeasurement,
    UnmeasuredBlocks,
    shown,
)
from lookup_tables.measurements import newest_by_key, present_version, same_execution
from lookup_tables.table import LookupTable, Statistic, TableContent, TableRow
from nas.blocks import Block
from profiler.wire import Execution

ROW_ORDER = (
    models.Row.kind,
    models.Row.height,
    models.Row.width,
    models.Row.channels_in,
    models.Row.channels_out,
    models.Row.block_key,
)
"""The order in which rows are shown; kinds by the collation of the database."""


def publish_blocks(
    session: Session, device: models.Device, execution: Execution, blocks: Iterable[Block], *, now: datetime
) -> str:
    """Publish the newest real measurement of each block, by the device's present runtime version.

    Raises:
        UnmeasuredBlocks: some block has none.
    """
    wanted = {block.key: block for block in blocks}
    found = newest_by_key(session, device, execution, wanted)
    missing = [block for key, block in wanted.items() if key not in found]
    if missing:
        raise UnmeasuredBlocks(missing, device=device.name, command=_command(device.name, execution))
    rows = [_row(wanted[key], record) for key, record in found.items()]
    return _publish(session, device, execution, present_version(device, execution), rows, now)


def publish_records(
    session: Session, device: models.Device, execution: Execution, measurements: Iterable[str], *, now: datetime
) -> str:
    """Publish exactly these measurements.

    Raises:
        NotPublishable: they make no table.
        UnknownMeasurement: one does not exist.
    """
    records = [_find_measurement(session, measurement) for measurement in dict.fromkeys(measurements)]
    for record in records:
        _check_publishable(record, device, execution)
    blocks = [Block.model_validate(record.block) for record in records]
    if len(set(blocks)) < len(blocks):
        raise NotPublishable("two of the measurements are of the same block: choose one of them")
    versions = sorted({str(record.runtime_version) for record in records})
    if len(versions) > 1:
        raise NotPublishable(
            f"the measurements come from different {execution.runtime} versions ({', '.join(versions)}): "
            "measure all blocks with one"
        )
    rows = [_row(block, record) for block, record in zip(blocks, records, strict=True)]
    return _publish(session, device, execution, records[0].runtime_version if records else None, rows, now)


def _insert_content(session: Session, content: TableContent, device: models.Device, *, now: datetime) -> str:
    """Store an edition unless it is there already; return its id."""
    if session.get(models.Edition, content.id) is not None:
        return content.id
    edition = models.Edition(
        id=content.id,
        device_id=device.id,
        **content.execution.model_dump(),
        runtime_version=content.runtime_version,
        statistic=content.statistic.value,
        row_count=len(content.rows),
        created_at=now,
    )
    try:
        with session.begin_nested():
            session.add(edition)
            session.flush()
            session.add_all(_record(content.id, row) for row in content.rows)
    except IntegrityError:
        # Another transaction published the same content since we looked.
        if session.get(models.Edition, content.id) is None:
            raise
    return content.id


def find_edition(session: Session, edition: str) -> models.Edition:
    """Find an edition.

    Raises:
        UnknownEdition: there is none of that id.
    """
    record = session.get(models.Edition, edition)
    if record is None:
        raise UnknownEdition(f"table edition {edition!r} is unknown: list the editions with GET /v1/tables")
    return record


def load(session: Session, edition: str) -> LookupTable:
    """Load an edition with all its rows.

    Raises:
        UnknownEdition: there is none of that id.
        DamagedEdition: what is stored is not what the id is the hash of.
    """
    record = find_edition(session, edition)
    device = session.get_one(models.Device, record.device_id)
    rows = map(_value, session.scalars(select(models.Row).where(models.Row.edition_id == edition)))
    content = TableContent(
        device=device.name,
        execution=record.execution,
        runtime_version=record.runtime_version,
        statistic=Statistic(record.statistic),
        # Sorted here: the collation of a database may order keys in another way than the id of the content expects.
        rows=tuple(sorted(rows, key=lambda row: row.block.key)),
    )
    if content.id != record.id:
        raise DamagedEdition(
            f"table edition {record.id} holds content of the hash {content.id} in {len(content.rows)} rows, it was "
            f"published with {record.row_count}: somebody changed the database, restore a backup or profile the device "
            "again"
        )
    return LookupTable(edition=record.id, content=content, created_at=record.created_at)


def newest_first(session: Session, device: str | None, execution: Execution | None) -> Select[models.Edition]:
    """Select editions, newest first.

    Raises:
        UnknownDevice: there is no device of that name.
    """
    query = select(models.Edition).order_by(models.Edition.created_at.desc(), models.Edition.id)
    if device is not None:
        query = query.where(models.Edition.device_id == find_device(session, device).id)
    if execution is not None:
        query = query.where(*same_execution(models.Edition, execution))
    return query


def latest(session: Session, device: str, execution: Execution, blocks: Sequence[Block]) -> str:
    """Find the newest edition that has a row for each of the blocks.

    Raises:
        UnknownEdition: there is none.
        UnknownDevice: there is no device of that name.
    """
    wanted = {block.key: block for block in blocks}
    lacking: list[Block] = []
    for edition in session.scalars(newest_first(session, device, execution)):
        keys = set(session.scalars(select(models.Row.block_key).where(models.Row.edition_id == edition.id)))
        missing = [block for key, block in wanted.items() if key not in keys]
        if not missing:
            return edition.id
        lacking = lacking or missing
    command = _command(device, execution)
    if not lacking:
        raise UnknownEdition(f"device {device!r} has no table for {_how(execution)}: measure one with `{command}`")
    raise UnknownEdition(
        f"no table of {device!r} for {_how(execution)} covers the space: the newest lacks {len(lacking)} block(s), "
        f"{shown(lacking)}. Measure them with `{command}`."
    )


def _command(device: str, execution: Execution) -> str:
    """Write the command that measures a space: blocks do not tell which, so that it stays to be filled in."""
    return f"heatnas profile --device {device} --space SPACE --classes CLASSES --threads {execution.threads}"


def _how(execution: Execution) -> str:
    return f"{execution.runtime} {execution.provider} {execution.precision} with {execution.threads} thread(s)"


def _find_measurement(session: Session, measurement: str) -> models.Measurement:
    record = session.get(models.Measurement, measurement)
    if record is None:
        raise UnknownMeasurement(f"no measurement has the id {measurement}: it cannot be published")
    return record


def _check_publishable(record: models.Measurement, device: models.Device, execution: Execution) -> None:
    if record.simulated:
        raise NotPublishable(
            f"measurement {record.id} is simulated: no table is published from it, measure on the device"
        )
    if record.device_id != device.id:
        raise NotPublishable(f"measurement {record.id} is not of {device.name}: a table describes one device")
    if record.execution != execution:
        raise NotPublishable(
            f"measurement {record.id} ran as {_how(record.execution)}, the table is for {_how(execution)}: choose one"
        )
    if record.block is None:
        raise NotPublishable(f"measurement {record.id} is of {record.item_key}, no block: leave it out")


def _publish(
    session: Session,
    device: models.Device,
    execution: Execution,
    version: str | None,
    rows: Sequence[TableRow],
    now: datetime,
) -> str:
    if not rows:
        raise NotPublishable("a table needs at least one row: name the blocks it is to hold")
    return _insert_content(session, TableContent.of(device.name, execution, version, rows), device, now=now)


def _row(block: Block, record: models.Measurement) -> TableRow:
    return TableRow(
        block=block,
        latency_ms=record.hot_ms,
        hot_ms=record.hot_ms,
        cold_ms=record.cold_ms,
        converged=record.converged,
        measurement=record.id,
    )


def _record(edition: str, row: TableRow) -> models.Row:
    block = row.block
    return models.Row(
        edition_id=edition,
        block_key=block.key,
        block=block.model_dump(mode="json", exclude_none=True),
        kind=block.kind.value,
        channels_in=block.channels_in,
        channels_out=block.channels_out,
        height=block.height,
        width=block.width,
        latency_ms=row.latency_ms,
        hot_ms=row.hot_ms,
        cold_ms=row.cold_ms,
        converged=row.converged,
        measurement_id=row.measurement,
    )


def _value(row: models.Row) -> TableRow:
    return TableRow(
        block=Block.model_validate(row.block),
        latency_ms=row.latency_ms,
        hot_ms=row.hot_ms,
        cold_ms=row.cold_ms,
        converged=row.converged,
        measurement=row.measurement_id,
    )
