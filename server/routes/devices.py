"""Devices: the machines that networks run on."""

from typing import Annotated

from fastapi import APIRouter, Body
from sqlalchemy import func, select

from profiler.wire import Text
from server.database import Device, reading
from server.routes.examples import DEVICE, example
from server.routes.paging import Limit, Offset
from server.schemas import DeviceAnswer, DeviceRequest, Page, page
from server.services import Injected

router = APIRouter(prefix="/devices", tags=["devices"])


@router.get("", summary="List the devices", responses=example({"items": [DEVICE], "total": 1}))
def list_devices(services: Injected, limit: Limit = 100, offset: Offset = 0) -> Page[DeviceAnswer]:
    """Show every device by name, with what its agent said about it."""
    devices = services.tables.devices(limit=limit, offset=offset)
    with reading(services.database) as session:
        total = session.scalar(select(func.count()).select_from(Device)) or 0
    return page([DeviceAnswer.model_validate(device) for device in devices], total)


@router.post("", summary="Make a device known", status_code=201, responses=example(DEVICE, status=201))
def register_device(
    services: Injected,
    request: Annotated[DeviceRequest, Body(examples=[{"name": "workbench", "device_class": "desktop_cpu"}])],
) -> DeviceAnswer:
    """Register a name before its agent comes; an agent that enrols under it fills in the rest."""
    device = services.tables.register_device(request.name, now=services.clock(), device_class=request.device_class)
    return DeviceAnswer.model_validate(device)


@router.get("/{name}", summary="Describe one device", responses=example(DEVICE))
def get_device(services: Injected, name: Text) -> DeviceAnswer:
    """Return what is known about a device."""
    return DeviceAnswer.model_validate(services.tables.device(name))
