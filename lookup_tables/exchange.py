"""Tables that travel: JSON without loss for machines, CSV for people.

A JSON export holds the edition with its calibrations and the measurements that both rest on, raw samples included.
Importing believes no number that is derived from others: each measurement must be the one its id names and be cited,
the table is published anew, each calibration fitted anew, and what comes out otherwise is refused. The hashes tell of
damage and of careless edits; they are no signature: import from people you trust. A calibration point that cites no
measurement, and the sum of rows of any point, stand as the file says.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from lookup_tables import models
from lookup_tables.calibration import Calibration, Point, fit
from lookup_tables.connection import reading, writing
from lookup_tables.devices import check_machine, insert_device
from lookup_tables.editions import load, publish_records
from lookup_tables.errors import DeviceConflict, InvalidExport, TamperedExport
from lookup_tables.measurements import insert_measurement, network_key, result_of
from lookup_tables.revisions import insert_calibration, list_calibrations
from lookup_tables.table import LookupTable, TableContent
from nas.blocks import Block
from nas.values import Value
from profiler.identity import result_id
from profiler.wire import DeviceClass, DeviceDescription, Result, Text

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

FIT_TOLERANCE = 1e-3
"""Share by which a calibration may differ from what its points give here: other machines round otherwise."""


class ExportedMeasurement(Value):
    """One measurement behind a table, as the agent sent it."""

    measurement: Text
    item_key: Text
    result: Result
    late: bool
    received_at: Instant


class Export(Value):
    """Everything an edition rests on; in the file each row also says its FPS.

    Attributes:
        edition: its id.
        created_at: when it was published.
        device_class: what sort of machine the device is, None when nobody said so.
        description: what the device's agent last said about it, None before any came.
        content: the rows.
        measurements: those that the rows cite, then those that the calibrations cite.
        calibrations: all revisions, oldest first.
    """

    format: Literal["heatnas.table/1"] = "heatnas.table/1"
    edition: Text
    created_at: Instant
    device_class: DeviceClass | None
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
        device = session.scalars(select(models.Device).where(models.Device.name == table.device)).one()
        calibrations = list_calibrations(session, edition)
        points = [measurement for measurement, _ in _cited_points(calibrations)]
        learned = _cited_revisions(calibrations)
        cited = dict.fromkeys([*(row.measurement for row in table.rows), *points, *learned])
        export = Export(
            edition=table.edition,
            created_at=table.created_at,
            device_class=device.device_class,
            description=device.described,
            content=table.content,
            measurements=tuple(_measurement(session, measurement) for measurement in cited),
            calibrations=calibrations,
        )
    body = export.model_dump(mode="json")
    for row, written in zip(table.rows, body["content"]["rows"], strict=True):
        written["fps"] = row.fps
    return json.dumps({"sha256": _sha256(body), "export": body}, indent=1, allow_nan=False)


def import_json(engine: Engine, text: str | bytes, *, now: datetime) -> str:
    """Store an exported edition with its measurements and calibrations, and return its id; again changes nothing.

    Times that lie ahead of our clock become `now`: what is measured here later must count as newer. An edition that is
    calibrated here keeps its own calibrations, so that two servers that both learned can exchange it.

    Args:
        engine: where to store it.
        text: what `export_json` wrote.
        now: our time.

    Raises:
        InvalidExport: the text is no export.
        TamperedExport: it does not match its hash, or its rows or calibrations do not follow from its measurements.
        DeviceConflict: the device name belongs to another machine here, or the file does not say to which.
        MeasurementConflict: a measurement of the same id has other content here.
        InvalidMeasurement: a result contradicts itself.
        InvalidCalibration: points that no calibration can be fitted to.
        NotPublishable: its measurements make no table.
    """
    export = _read(text)
    _check_evidence(export)
    with writing(engine) as session:
        device = _device(session, export, now)
        _insert_measurements(session, export, device, now)
        measured = [row.measurement for row in export.content.rows]
        published_at = min(export.created_at, now)
        edition = publish_records(session, device, export.content.execution, measured, now=published_at)
        for claimed in (export.edition, export.content.id):
            if edition != claimed:
                raise TamperedExport(
                    f"the file claims edition {claimed}, its measurements make edition {edition}: the rows do not "
                    "follow from the samples, export the table again"
                )
        if not list_calibrations(session, edition):
            for calibration in export.calibrations:
                insert_calibration(session, edition, calibration, now=published_at)
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


def _measurement(session: Session, measurement: str) -> ExportedMeasurement:
    record = session.get_one(models.Measurement, measurement)
    return ExportedMeasurement(
        measurement=record.id,
        item_key=record.item_key,
        result=result_of(record),
        late=record.late,
        received_at=record.received_at,
    )


def _cited_points(calibrations: Iterable[Calibration]) -> list[tuple[str, Point]]:
    """List the points that cite a measurement, after its id; later revisions repeat those of earlier ones."""
    points = (point for calibration in calibrations for point in calibration.points)
    return [(point.measurement, point) for point in points if point.measurement is not None]


def _cited_revisions(calibrations: Iterable[Calibration]) -> list[str]:
    """List the measurements that revisions learned from, also where they showed drift alone and became no point."""
    return [calibration.measurement for calibration in calibrations if calibration.measurement is not None]


def _check_evidence(export: Export) -> None:
    """Refuse what the file does not prove: its measurements are those cited, and each says what cites it."""
    cited = [(row.measurement, row.block.key) for row in export.content.rows]
    cited += [(measurement, network_key(point.label)) for measurement, point in _cited_points(export.calibrations)]
    held = {one.measurement: one for one in export.measurements}
    needed = {*(measurement for measurement, _ in cited), *_cited_revisions(export.calibrations)}
    if len(held) < len(export.measurements) or held.keys() != needed:
        raise TamperedExport(
            "the measurements of the file are not those that its rows and calibrations cite, each once: "
            "export the table again"
        )
    for measurement, item_key in cited:
        if held[measurement].item_key != item_key:
            raise TamperedExport(
                f"measurement {measurement} is of {held[measurement].item_key} but cited for {item_key}: "
                "export the table again"
            )
    for one in export.measurements:
        _check_identity(one)
    _check_calibrations(export)


def _check_identity(exported: ExportedMeasurement) -> None:
    found = result_id(exported.result)
    if exported.measurement != found:
        raise TamperedExport(
            f"measurement {exported.measurement} has content of the hash {found}: it was changed, "
            "export the table again"
        )


def _check_calibrations(export: Export) -> None:
    """Refuse revisions with gaps, points that differ from their measurements, and coefficients no fit would give."""
    measured = {one.measurement: one.result.timing.hot_ms for one in export.measurements}
    for measurement, point in _cited_points(export.calibrations):
        if point.measured_ms != measured[measurement]:
            raise TamperedExport(
                f"calibration point {point.label} says {point.measured_ms} ms, its measurement "
                f"{measured[measurement]} ms: export the table again"
            )
    for number, calibration in enumerate(export.calibrations, start=1):
        if calibration.revision != number:
            raise TamperedExport(
                f"calibration {number} of the file is revision {calibration.revision}: revisions run from 1 without "
                "a gap, export the table again"
            )
        _check_fit(calibration)


def _check_fit(calibration: Calibration) -> None:
    fitted = fit(calibration.points, confidence=calibration.confidence, drift=calibration.drift)
    for name in ("slope", "fetch_ms_per_mib", "margin"):
        claimed, found = getattr(calibration, name), getattr(fitted, name)
        if not math.isclose(claimed, found, rel_tol=FIT_TOLERANCE, abs_tol=FIT_TOLERANCE**2):
            raise TamperedExport(
                f"calibration revision {calibration.revision} says {name} {claimed:.6g}, its points give {found:.6g}: "
                "export the table again with this version"
            )


def _insert_measurements(session: Session, export: Export, device: models.Device, now: datetime) -> None:
    blocks: dict[str, Block] = {row.measurement: row.block for row in export.content.rows}
    for one in export.measurements:
        insert_measurement(
            session,
            one.result,
            result_id=one.measurement,
            device=device,
            item_key=one.item_key,
            block=blocks.get(one.measurement),
            runtime_version=export.content.runtime_version,
            received_at=min(one.received_at, now),
            late=one.late,
        )


def _device(session: Session, export: Export, now: datetime) -> models.Device:
    """Find or make the device; what is known here about a device stays, and a file adds nothing to it."""
    name, there = export.content.device, export.description
    known = session.scalar(select(models.Device).where(models.Device.name == name))
    if known is None:
        created_at = min(export.created_at, now)
        return insert_device(session, name, now=created_at, device_class=export.device_class, description=there)
    if known.described is not None and there is None:
        raise DeviceConflict(
            f"device {name!r} is a known machine here, and the file does not say which machine it was measured on: "
            "let the agent of the device enrol with the server that wrote the file, and export again"
        )
    check_machine(known, there)
    return known


def _read(text: str | bytes) -> Export:
    try:
        document = json.loads(text)
        body, claimed = document["export"], document["sha256"]
        found = _sha256(body)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidExport(
            "this is no table export, which holds `export` and its `sha256`: give a file that "
            "`heatnas table export` has written"
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
