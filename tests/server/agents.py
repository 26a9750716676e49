"""Agents for tests that need one to be known."""

from datetime import UTC, datetime

from sqlalchemy import Engine

from profiler.wire import PROTOCOL, DeviceClass, DeviceDescription, Enrolment
from server import leases
from server.database import writing


def description(machine_hash: str = "0" * 64) -> DeviceDescription:
    return DeviceDescription(
        device_class=DeviceClass.SERVER_CPU,
        cpu_model="test",
        physical_cores=2,
        logical_cores=2,
        memory_mib=1024,
        architecture="x86_64",
        system="Linux",
        governor=None,
        runtimes={"onnxruntime": "1.31.1"},
        providers=("CPUExecutionProvider",),
        python="3.11",
        machine_hash=machine_hash,
    )


def enrol_agent(database: Engine, device: str, *, machine_hash: str = "0" * 64, now: datetime | None = None) -> str:
    """Enrol an agent and return its id."""
    enrolment = Enrolment(
        device=device, protocol=PROTOCOL, agent_version="0.1.0", description=description(machine_hash)
    )
    with writing(database) as session:
        return leases.enrol(session, enrolment, leases.LeaseTerms(), now=now or datetime.now(UTC)).agent_id
