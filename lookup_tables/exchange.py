"""Tables that travel: JSON without loss for machines, CSV for people.

A JSON export holds the edition with every measurement behind it, raw samples included. Importing publishes the table
anew from those measurements and compares: rows that do not follow from their samples are refused.
"""

import csv
import hashlib
import io
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from lookup_tables import models
from lookup_tables.calibration import Calibration
from lookup_tables.connection import reading, writing
from lookup_tables.devices import insert_device
from lookup_tables.editions import load, publish_records
from lookup_tables.errors import InvalidExport, TamperedExport
from lookup_tables.measurements import insert_measurement, result_of
from lookup_tables.revisions import insert_calibration, list_calibrations
from lookup_tables.table import LookupTable, TableContent
from nas.values import Value
from profiler.wire import DeviceDescription, Result, Text

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes text that starts so for a formula."""

CSV_COLUMNS = (
    "edition",
    "device",
    "block",
    "label",
    "kind",
    "channels_in",
    "channels_out",
    "height",
    "width",
    "latency_ms",
    "fps",
    "hot_ms",
    "cold_ms",
    "converged",
    "measurement",
)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("in UTC this is no time of the years 1 to 9999: export the table again") from error


Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with its zone, in UTC."""


LARGEST = 2**31 - 1
"""Whole number that every database holds."""


class ExportedMeasurement(Value):
    """One measurement behind a table, as the agent sent it."""

    measurement: Text
    item_key: Text
    result: Result
    late: bool
    received_at: Instant


class Export(Value):
    """Everything an edition rests on; in the file each row also says its FPS."""

    format: Literal["heatnas.table/1"] = "heatnas.table/1"
    edition: Text
    created_at: Instant
    description: DeviceDescription | None
    content: TableContent
    measurements: tuple[ExportedMeasurement, ...]
    calibrations: tuple[Calibration, ...]


def export_json(engine: Engine, edition: str) -> str:
    """Write an edition as JSON with the SHA-256 of its own content.

    Raises:
        UnknownEdition: there is none of that id.
    """
    with reading(engine) as session:
        table = load(session, edition)
        export = Export(
            edition=table.edition,
            created_at=table.created_at,
            description=_description(session, table),
            content=table.content,
            measurements=tuple(_measurement(session, row.measurement) for row in table.rows),
            calibrations=list_calibrations(session, edition),
        )
    body = export.model_dump(mode="json")
    for row, written in zip(table.rows, body["content"]["rows"], strict=True):
        written["fps"] = row.fps
    return json.dumps({"sha256": _sha256(body), "export": body}, indent=1, allow_nan=False)


def import_json(engine: Engine, text: str | bytes) -> str:
    """Store an exported edition with its measurements and calibrations, and return its id; again changes nothing.

    Raises:
        InvalidExport: the text is no export.
        TamperedExport: its content does not match its hash, or its rows do not follow from its measurements.
        DeviceConflict: the device name belongs to another machine here.
        MeasurementConflict: a measurement of the same id has other content here.
        NotPublishable: its measurements make no table.
    """
    export = _read(text)
    with writing(engine) as session:
        device = _device(session, export)
        blocks = {row.measurement: row.block for row in export.content.rows}
        for measurement in export.measurements:
            insert_measurement(
                session,
                measurement.result,
                result_id=measurement.measurement,
                device=device,
                item_key=measurement.item_key,
                block=blocks.get(measurement.measurement),
                runtime_version=export.content.runtime_version,
                received_at=measurement.received_at,
                late=measurement.late,
            )
        measured = [row.measurement for row in export.content.rows]
        edition = publish_records(session, device, export.content.execution, measured, now=export.created_at)
        for claimed in (export.edition, export.content.id):
            if edition != claimed:
                raise TamperedExport(
                    f"the file claims edition {claimed}, its measurements make edition {edition}: the rows do not "
                    "follow from the samples, export the table again"
                )
        for calibration in export.calibrations:
            insert_calibration(session, edition, calibration, now=export.created_at)
    return edition


def export_csv(table: LookupTable) -> str:
    """Write the rows of a table for people, by kind, size and width; cells never start a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in sorted(table.rows, key=lambda row: (row.block.kind, row.block.tokens, row.block.channels_in)):
        block = row.block
        cells = (
            *(table.edition, table.device, block.key, block.label, block.kind.value),
            *(block.channels_in, block.channels_out, block.height, block.width),
            *(row.latency_ms, row.fps, row.hot_ms, row.cold_ms, str(row.converged).lower(), row.measurement),
        )
        writer.writerow([guard_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def guard_cell(text: str) -> str:
    """Keep a spreadsheet from taking text for a formula: put an apostrophe before it."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _description(session: Session, table: LookupTable) -> DeviceDescription | None:
    return session.scalars(select(models.Device).where(models.Device.name == table.device)).one().described


def _measurement(session: Session, measurement: str) -> ExportedMeasurement:
    record = session.get_one(models.Measurement, measurement)
    return ExportedMeasurement(
        measurement=record.id,
        item_key=record.item_key,
        result=result_of(record),
        late=record.late,
        received_at=record.received_at,
    )


def _device(session: Session, export: Export) -> models.Device:
    """Find or make the device; what is known here about a device stays."""
    device = insert_device(session, export.content.device, now=export.created_at)
    here, there = device.described, export.description
    if there is None or (here is not None and here.machine_hash == there.machine_hash):
        return device
    return insert_device(session, device.name, now=export.created_at, description=there)


def _read(text: str | bytes) -> Export:
    try:
        document = json.loads(text)
        body, claimed = document["export"], document["sha256"]
        found = _sha256(body)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidExport(
            f"this is no table export ({type(error).__name__}: {error}): give a file written by `heatnas table export`"
        ) from error
    if found != claimed:
        raise TamperedExport(
            f"the file says SHA-256 {claimed}, its content has {found}: it was changed, export it again"
        )
    return _validate(body)


def _validate(body: Any) -> Export:  # noqa: ANN401 - anything a JSON file may hold
    try:
        for row in body["content"]["rows"]:
            row.pop("fps")
        export = Export.model_validate(body)
    except (ValidationError, TypeError, KeyError, AttributeError) as error:
        raise InvalidExport(f"this is no table export of this version: {error}") from error
    blocks = [row.block for row in export.content.rows]
    largest = max(max(block.channels_in, block.channels_out, block.height, block.width) for block in blocks)
    if largest > LARGEST:
        raise InvalidExport(f"a block of the file has a size of {largest}, the largest is {LARGEST}: export it again")
    return export


def _sha256(body: object) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
