"""What machine this is: the description an agent enrols with. Unknown is None, never zero.

Files are read below a root folder that is passed in, so that every kind of machine can be described from a fixture.
"""

import hashlib
import os
import platform
import re
import socket
import uuid
from pathlib import Path

import psutil

from profiler.session import available_providers, runtime_versions
from profiler.wire import DeviceClass, DeviceDescription, plain_text

_SALT = b"heatnas device 1:"
"""Keeps the hash useless for looking the machine up in any other system; never change it, or devices get new hashes."""

_GPU_PROVIDERS = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider"})
_SERVER_CPU = re.compile(r"\bEPYC\b|\bXeon\b|\bAmpere\b|\bNeoverse\b|\bGraviton", re.IGNORECASE)
_LAPTOP_CHASSIS = frozenset({8, 9, 10, 14, 30, 31, 32})
"""SMBIOS chassis types: portable, laptop, notebook, sub-notebook, tablet, convertible, detachable."""
_SERVER_CHASSIS = frozenset({17, 23, 25, 28, 29})
"""Main server, rack mount, multi-system, blade, blade enclosure."""


def describe_device(root: Path = Path("/")) -> DeviceDescription:
    """Describe the machine whose file system starts at `root`."""
    cpu_model = _cpu_model(root)
    providers = available_providers()
    return DeviceDescription(
        device_class=classify(root, cpu_model=cpu_model, providers=providers, has_battery=_has_battery()),
        cpu_model=plain_text(cpu_model),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total // 2**20,
        architecture=plain_text(platform.machine()),
        system=plain_text(f"{platform.system()} {platform.release()}"),
        governor=governor(root),
        runtimes=runtime_versions(),
        providers=providers,
        python=platform.python_version(),
        machine_hash=machine_hash(root),
    )


def classify(root: Path, *, cpu_model: str, providers: tuple[str, ...], has_battery: bool) -> DeviceClass:
    """Tell the sort of machine; the first sign that speaks decides, and a plain machine is a desktop."""
    chassis = _chassis_type(root)
    if "jetson" in (_read(root / "proc/device-tree/model") or "").lower():
        return DeviceClass.JETSON
    if _GPU_PROVIDERS.intersection(providers):
        return DeviceClass.GPU
    if has_battery or chassis in _LAPTOP_CHASSIS:
        return DeviceClass.LAPTOP_CPU
    if chassis in _SERVER_CHASSIS or _SERVER_CPU.search(cpu_model):
        return DeviceClass.SERVER_CPU
    return DeviceClass.DESKTOP_CPU


def governor(root: Path = Path("/")) -> str | None:
    """Return how the clock of core 0 is governed, such as "performance", or None where that is not told."""
    text = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return None if text is None else plain_text(text)


def circumstances(root: Path = Path("/")) -> dict[str, str | float | None]:
    """Return what may change between measurements: governor, frequency in MHz, one-minute load."""
    frequency = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    return {
        "governor": governor(root),
        "frequency_mhz": float(frequency) / 1000 if frequency and frequency.isdecimal() else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def machine_hash(root: Path = Path("/")) -> str:
    """Return 32 hex digits that are the same on every start of this machine; the identity itself stays here."""
    identity = _read(root / "etc/machine-id") or f"{uuid.getnode():012x} {socket.gethostname()}"
    return hashlib.sha256(_SALT + identity.encode()).hexdigest()[:32]


def _cpu_model(root: Path) -> str:
    """Return the name of the processor; ARM kernels tell none, there the board's name stands for it."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo") or "", re.MULTILINE)
    if match:
        return " ".join(match[1].split())
    return _read(root / "proc/device-tree/model") or platform.processor() or platform.machine()


def _has_battery() -> bool:
    sensor = getattr(psutil, "sensors_battery", None)
    return sensor is not None and sensor() is not None


def _chassis_type(root: Path) -> int | None:
    text = _read(root / "sys/class/dmi/id/chassis_type")
    return int(text) if text and text.isdecimal() else None


def _read(path: Path) -> str | None:
    """Return the stripped text of a system file, or None where it is absent, forbidden or empty."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ") or None
    except OSError:
        return None
