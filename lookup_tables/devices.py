"""Devices by name: one name, one machine."""

import hashlib
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lookup_tables import models
from lookup_tables.errors import DeviceConflict, UnknownDevice
from profiler.wire import DeviceClass, DeviceDescription


def find_device(session: Session, name: str) -> models.Device:
    """Find a device by name.

    Raises:
        UnknownDevice: there is none of that name.
    """
    device = session.scalar(select(models.Device).where(models.Device.name == name))
    if device is None:
        raise UnknownDevice(name)
    return device


def insert_device(
    session: Session,
    name: str,
    *,
    now: datetime,
    device_class: DeviceClass | None = None,
    description: DeviceDescription | None = None,
) -> models.Device:
    """Make a device known, or renew what is known about it; what an agent says about its class wins.

    Raises:
        DeviceConflict: the name belongs to another machine.
    """
    device = _find_or_add(session, name, now)
    check_machine(device, description)
    if description is not None:
        device.description = description.model_dump(mode="json")
        device.device_class = description.device_class.value
    elif device_class is not None and device.description is None:
        device.device_class = device_class.value
    session.flush()
    return device


def check_machine(device: models.Device, description: DeviceDescription | None) -> None:
    """Refuse a description of another machine than the one the device is known as; one that is unknown may be any.

    Raises:
        DeviceConflict: the name belongs to another machine.
    """
    known = device.described
    if known is not None and description is not None and known.machine_hash != description.machine_hash:
        raise DeviceConflict(
            f"device {device.name!r} is another machine ({known.cpu_model}, hash {known.machine_hash[:12]}), this one "
            f"is {description.cpu_model}, hash {description.machine_hash[:12]}: start the agent with another --device "
            "name"
        )


def _find_or_add(session: Session, name: str, now: datetime) -> models.Device:
    # The key stays as it is: whoever refers to the device meanwhile, such as a result, need not wait.
    query = select(models.Device).where(models.Device.name == name).with_for_update(key_share=True)
    device = session.scalar(query)
    if device is not None:
        return device
    device = models.Device(id=hashlib.sha256(name.encode()).hexdigest()[:16], name=name, created_at=now)
    try:
        with session.begin_nested():
            session.add(device)
    except IntegrityError:
        # Another transaction registered the name since we looked.
        return session.scalars(query).one()
    return device
