"""Calibrations of an edition as records: revisions are added, never changed."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lookup_tables import models
from lookup_tables.calibration import Calibration
from lookup_tables.errors import CalibrationConflict, UnknownCalibration


def insert_calibration(session: Session, edition: str, calibration: Calibration, *, now: datetime) -> None:
    """Store a revision; the same one again changes nothing.

    Raises:
        CalibrationConflict: the edition has this revision with other numbers, or lacks the one before it.
    """
    if _find(session, edition, calibration.revision) is None:
        _check_next(session, edition, calibration)
        record = models.Calibration(edition_id=edition, created_at=now, **calibration.model_dump(mode="json"))
        try:
            with session.begin_nested():
                session.add(record)
        except IntegrityError:
            # Another transaction stored this revision since we looked, unless the record itself is at fault.
            if _find(session, edition, calibration.revision) is None:
                raise
    if find_calibration(session, edition, calibration.revision) != calibration:
        raise CalibrationConflict(
            f"edition {edition} has a revision {calibration.revision} with other numbers: "
            "calibrations never change, correct the newest one instead"
        )


def _check_next(session: Session, edition: str, calibration: Calibration) -> None:
    newest = _find(session, edition, None)
    following = 1 if newest is None else newest.revision + 1
    if calibration.revision != following:
        raise CalibrationConflict(
            f"the next calibration of edition {edition} is revision {following}, this is {calibration.revision}: "
            "correct the newest one instead"
        )


def find_calibration(session: Session, edition: str, revision: int | None) -> Calibration:
    """Return one revision, the newest for None.

    Raises:
        UnknownCalibration: the edition has no such revision.
    """
    found = _find(session, edition, revision)
    if found is None:
        which = "calibration" if revision is None else f"calibration revision {revision}"
        raise UnknownCalibration(
            f"edition {edition} has no {which}: profile the device again, that measures references"
        )
    return found


def list_calibrations(session: Session, edition: str) -> tuple[Calibration, ...]:
    """List the revisions of an edition, oldest first."""
    query = select(models.Calibration).where(models.Calibration.edition_id == edition)
    return tuple(map(_value, session.scalars(query.order_by(models.Calibration.revision))))


def _find(session: Session, edition: str, revision: int | None) -> Calibration | None:
    query = select(models.Calibration).where(models.Calibration.edition_id == edition)
    if revision is not None:
        query = query.where(models.Calibration.revision == revision)
    record = session.scalar(query.order_by(models.Calibration.revision.desc()).limit(1))
    return None if record is None else _value(record)


def _value(record: models.Calibration) -> Calibration:
    return Calibration(
        revision=record.revision,
        fetch_ms_per_mib=record.fetch_ms_per_mib,
        slope=record.slope,
        drift=record.drift,
        margin=record.margin,
        confidence=record.confidence,
        points=tuple(record.points),
        measurement=record.measurement,
    )
