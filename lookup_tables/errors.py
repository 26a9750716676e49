"""What can go wrong with stored numbers, and what the caller may do about it.

TablesError
├── UnknownDevice          no device of that name: register it or start its agent
├── UnknownEdition         no table edition of that id: list the editions
├── UnknownMeasurement     no measurement of that id
├── DeviceConflict         the name belongs to another machine: choose another name
├── InvalidMeasurement     a result whose numbers contradict each other
├── MeasurementConflict    the id is taken by a measurement of other content
├── NotPublishable         these measurements make no table: simulated, of another device, mixed, or not of blocks
│   └── UnmeasuredBlocks   some blocks have no measurement: measure them
├── DamagedEdition         a table edition that is no longer what its id says: restore a backup
├── InvalidCalibration     points no calibration can be fitted to
├── UnknownCalibration     the edition has no calibration, or none of that revision
├── CalibrationConflict    the edition has other calibrations than this one builds on: correct its newest one
└── InvalidExport          a file that is no table export
    └── TamperedExport     a file whose content does not match its own hash
"""

from collections.abc import Sequence

from nas.blocks import Block

SHOWN = 5
"""Blocks named in a message before it says how many more there are."""


class TablesError(Exception):
    """Base of every error of the package."""


class UnknownDevice(TablesError):
    """No device has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"device {name!r} is unknown: register it (POST /v1/devices) or start its agent "
            f"(`heatnas-agent --device {name}`)"
        )


class UnknownEdition(TablesError):
    """No table edition has this id, or none was published yet."""


class UnknownMeasurement(TablesError):
    """No measurement has this id."""


class DeviceConflict(TablesError):
    """The name is taken by a device with another machine behind it."""


class InvalidMeasurement(TablesError):
    """A result contradicts itself; it is not stored."""


class MeasurementConflict(TablesError):
    """A measurement of this id exists with other content; measurements never change."""


class NotPublishable(TablesError):
    """These measurements cannot become a table edition."""


class UnmeasuredBlocks(NotPublishable):
    """Some blocks have no measurement on the device: missing is missing, never zero.

    Attributes:
        blocks: the blocks without a measurement, in the order asked for.
    """

    def __init__(self, blocks: Sequence[Block], *, device: str, command: str) -> None:
        self.blocks = tuple(blocks)
        super().__init__(
            f"{len(self.blocks)} block(s) have no measurement on {device}: {shown(self.blocks)}. "
            f"Measure them with `{command}`."
        )


class DamagedEdition(TablesError):
    """The stored rows of an edition do not have the hash that is its id."""


class InvalidCalibration(TablesError):
    """The points do not allow a calibration."""


class UnknownCalibration(TablesError):
    """The edition has no calibration, or none of this revision."""


class CalibrationConflict(TablesError):
    """The edition has this revision with other numbers, or lacks the one before it: correct its newest one."""


class InvalidExport(TablesError):
    """The text is not an export of a table edition."""


class TamperedExport(InvalidExport):
    """The content of an export does not match the hash it carries."""


def shown(blocks: Sequence[Block]) -> str:
    """List blocks by label, at most `SHOWN` of them, and say how many more there are."""
    named = ", ".join(block.label for block in blocks[:SHOWN])
    return named if len(blocks) <= SHOWN else f"{named} and {len(blocks) - SHOWN} more"
