"""The store of everything measured: devices, measurements, table editions and their calibrations."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Engine, func, select
from sqlalchemy.orm import defer

from lookup_tables import editions, models
from lookup_tables.calibration import Calibration
from lookup_tables.connection import reading, writing
from lookup_tables.coverage import missing_blocks
from lookup_tables.devices import find_device, insert_device
from lookup_tables.errors import CalibrationConflict, UnknownMeasurement
from lookup_tables.measurements import insert_measurement, newest_by_key, present_version, result_of
from lookup_tables.revisions import find_calibration, insert_calibration, list_calibrations
from lookup_tables.table import LookupTable
from nas.blocks import Block
from profiler.wire import DeviceClass, DeviceDescription, Execution, Result, ResultReceipt

PAGE = 100
"""Records a listing returns unless it is asked for more or fewer."""

ATTEMPTS = 100
"""Times that a calibration is chosen anew because another was stored meanwhile."""


class Revised(NamedTuple):
    """The calibration that a table was to have, and whether that had to be added."""

    calibration: Calibration
    is_new: bool


class TableStore:
    """Devices, measurements and tables in one database; each method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register_device(
        self,
        name: str,
        *,
        now: datetime,
        device_class: DeviceClass | None = None,
        description: DeviceDescription | None = None,
    ) -> models.Device:
        """Make a device known, or renew what is known about it.

        Raises:
            DeviceConflict: the name belongs to another machine.
        """
        with writing(self._engine) as session:
            return insert_device(session, name, now=now, device_class=device_class, description=description)

    def devices(self, *, limit: int = PAGE, offset: int = 0) -> Sequence[models.Device]:
        """List the devices by name."""
        with reading(self._engine) as session:
            return session.scalars(select(models.Device).order_by(models.Device.name).limit(limit).offset(offset)).all()

    def device(self, name: str) -> models.Device:
        """Find a device.

        Raises:
            UnknownDevice: there is none of that name.
        """
        with reading(self._engine) as session:
            return find_device(session, name)

    def record_measurement(
        self,
        result: Result,
        *,
        result_id: str,
        device: str,
        item_key: str,
        block: Block | None,
        received_at: datetime,
        late: bool = False,
    ) -> ResultReceipt:
        """Store a result once: the same again gives the same receipt.

        Raises:
            UnknownDevice, InvalidMeasurement: it cannot be stored.
            MeasurementConflict: the id is taken by other content.
        """
        with writing(self._engine) as session:
            found = find_device(session, device)
            return insert_measurement(
                session,
                result,
                result_id=result_id,
                device=found,
                item_key=item_key,
                block=block,
                runtime_version=present_version(found, result.execution),
                received_at=received_at,
                late=late,
            )

    def result(self, measurement: str) -> Result:
        """Restore a measurement as the agent sent it, raw samples included.

        Raises:
            UnknownMeasurement: there is none of that id.
        """
        with reading(self._engine) as session:
            record = session.get(models.Measurement, measurement)
            if record is None:
                raise UnknownMeasurement(f"no measurement has the id {measurement}: copy one from a table row")
            return result_of(record)

    def measurements(
        self, device: str, *, item_key: str | None = None, limit: int = PAGE, offset: int = 0
    ) -> Sequence[models.Measurement]:
        """List the measurements of a device, newest first, without their samples."""
        with reading(self._engine) as session:
            conditions = [models.Measurement.device_id == find_device(session, device).id]
            if item_key is not None:
                conditions.append(models.Measurement.item_key == item_key)
            return session.scalars(
                select(models.Measurement)
                .where(*conditions)
                .order_by(models.Measurement.received_at.desc(), models.Measurement.id)
                .options(defer(models.Measurement.samples, raiseload=True))
                .limit(limit)
                .offset(offset)
            ).all()

    def unmeasured(self, device: str, execution: Execution, blocks: Iterable[Block]) -> tuple[Block, ...]:
        """List the blocks without a real measurement by the device's present runtime: what a profile job must time."""
        wanted = {block.key: block for block in blocks}
        with reading(self._engine) as session:
            found = newest_by_key(session, find_device(session, device), execution, wanted)
        return missing_blocks({wanted[key] for key in found}, wanted.values())

    def publish(self, device: str, execution: Execution, blocks: Iterable[Block], *, now: datetime) -> str:
        """Publish an edition of the newest measurement of each block, and return its id; equal content, one edition.

        Raises:
            UnmeasuredBlocks: some block has no real measurement.
        """
        with writing(self._engine) as session:
            return editions.publish_blocks(session, find_device(session, device), execution, blocks, now=now)

    def publish_measurements(
        self, device: str, execution: Execution, measurements: Iterable[str], *, now: datetime
    ) -> str:
        """Publish an edition of exactly these measurements, and return its id; equal content, one edition.

        Raises:
            NotPublishable: one is simulated, of another device or execution, of no block, or two are of one block.
            UnknownMeasurement: one does not exist.
        """
        with writing(self._engine) as session:
            return editions.publish_records(session, find_device(session, device), execution, measurements, now=now)

    def load(self, edition: str) -> LookupTable:
        """Load an edition, and make sure that it is what its id says.

        Raises:
            UnknownEdition: there is none of that id.
            DamagedEdition: its rows were changed in the database.
        """
        with reading(self._engine) as session:
            return editions.load(session, edition)

    def edition(self, edition: str) -> models.Edition:
        """Describe an edition without its rows.

        Raises:
            UnknownEdition: there is none of that id.
        """
        with reading(self._engine) as session:
            return editions.find_edition(session, edition)

    def editions(
        self, *, device: str | None = None, execution: Execution | None = None, limit: int = PAGE, offset: int = 0
    ) -> Sequence[models.Edition]:
        """List editions, newest first."""
        with reading(self._engine) as session:
            query = editions.newest_first(session, device, execution)
            return session.scalars(query.limit(limit).offset(offset)).all()

    def latest(self, device: str, execution: Execution, blocks: Iterable[Block] = ()) -> str:
        """Find the newest edition with a row for each of these blocks.

        Raises:
            UnknownEdition: there is none; the message says what the newest one lacks.
        """
        with reading(self._engine) as session:
            return editions.latest(session, device, execution, tuple(blocks))

    def rows(
        self, edition: str, *, kind: str | None = None, channels: int | None = None, limit: int = PAGE, offset: int = 0
    ) -> tuple[int, Sequence[models.Row]]:
        """Count the rows of an edition that match, and return one page of them.

        Args:
            edition: the edition.
            kind: a `Kind` value; all kinds by default.
            channels: input or output channels; all by default.
            limit: rows on the page.
            offset: rows before the page.
        """
        conditions: list[ColumnElement[bool]] = [models.Row.edition_id == edition]
        if kind is not None:
            conditions.append(models.Row.kind == kind)
        if channels is not None:
            conditions.append((models.Row.channels_in == channels) | (models.Row.channels_out == channels))
        with reading(self._engine) as session:
            editions.find_edition(session, edition)
            total = session.scalar(select(func.count()).select_from(models.Row).where(*conditions)) or 0
            page = select(models.Row).where(*conditions).order_by(*editions.ROW_ORDER).limit(limit).offset(offset)
            return total, session.scalars(page).all()

    def add_calibration(self, edition: str, calibration: Calibration, *, now: datetime) -> None:
        """Store a revision; the same one again changes nothing.

        Raises:
            CalibrationConflict: the edition has this revision with other numbers, or lacks the one before it.
            UnknownEdition: there is no such edition.
        """
        with writing(self._engine) as session:
            editions.find_edition(session, edition)
            insert_calibration(session, edition, calibration, now=now)

    def revise(
        self, edition: str, choose: Callable[[tuple[Calibration, ...]], Calibration], *, now: datetime
    ) -> Revised:
        """Store the revision that is chosen knowing all before it; chosen anew when another is added meanwhile.

        Args:
            edition: whose calibration.
            choose: gets the revisions so far, oldest first; returns the next one, or one of these to add none.
            now: when.

        Raises:
            CalibrationConflict: others were faster again and again.
            UnknownEdition: there is no such edition.
        """
        for attempt in range(ATTEMPTS):
            known = self.calibrations(edition)
            chosen = choose(known)
            if chosen in known:
                return Revised(chosen, is_new=False)
            try:
                self.add_calibration(edition, chosen, now=now)
            except CalibrationConflict:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                break
        return Revised(chosen, is_new=True)

    def calibrations(self, edition: str) -> tuple[Calibration, ...]:
        """List the revisions of an edition, oldest first."""
        with reading(self._engine) as session:
            editions.find_edition(session, edition)
            return list_calibrations(session, edition)

    def calibration(self, edition: str, revision: int | None = None) -> Calibration:
        """Return one revision, the newest by default.

        Raises:
            UnknownCalibration: the edition has no such revision.
            UnknownEdition: there is no such edition.
        """
        with reading(self._engine) as session:
            editions.find_edition(session, edition)
            return find_calibration(session, edition, revision)
