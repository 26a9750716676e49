from pathlib import Path

import pytest

from profiler.device import circumstances, classify, describe_device, governor, machine_hash
from profiler.wire import DeviceClass

CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")


def write(root: Path, path: str, content: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def sort_of(
    root: Path, *, cpu: str = "AMD Ryzen 7 7700", providers: tuple[str, ...] = CPU, battery: bool = False
) -> DeviceClass:
    return classify(root, cpu_model=cpu, providers=providers, has_battery=battery)


def test_jetson_is_known_by_its_board_even_with_cuda(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    assert sort_of(tmp_path, providers=CUDA) is DeviceClass.JETSON


def test_runtime_with_cuda_makes_a_gpu(tmp_path: Path) -> None:
    assert sort_of(tmp_path, cpu="Intel Xeon Gold", providers=CUDA) is DeviceClass.GPU


def test_battery_makes_a_laptop(tmp_path: Path) -> None:
    assert sort_of(tmp_path, battery=True) is DeviceClass.LAPTOP_CPU


@pytest.mark.parametrize(
    ("chassis", "expected"),
    [
        ("10", DeviceClass.LAPTOP_CPU),
        ("31", DeviceClass.LAPTOP_CPU),
        ("23", DeviceClass.SERVER_CPU),
        ("3", DeviceClass.DESKTOP_CPU),
        ("?", DeviceClass.DESKTOP_CPU),
    ],
)
def test_chassis_type_decides(tmp_path: Path, chassis: str, expected: DeviceClass) -> None:
    write(tmp_path, "sys/class/dmi/id/chassis_type", f"{chassis}\n")
    assert sort_of(tmp_path) is expected


@pytest.mark.parametrize("cpu", ["AMD EPYC 9654", "Intel(R) Xeon(R) CPU @ 2.20GHz", "Neoverse-N1"])
def test_server_processor_makes_a_server(tmp_path: Path, cpu: str) -> None:
    assert sort_of(tmp_path, cpu=cpu) is DeviceClass.SERVER_CPU


def test_plain_machine_is_a_desktop(tmp_path: Path) -> None:
    assert sort_of(tmp_path) is DeviceClass.DESKTOP_CPU


def test_description_reads_the_processor_below_the_root(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name\t: Fast  Chip 9000\nprocessor : 1\nmodel name : Other\n")
    description = describe_device(tmp_path)
    assert description.cpu_model == "Fast Chip 9000"
    assert description.governor is None
    assert description.memory_mib > 0


def test_arm_board_stands_for_a_processor_without_a_name(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor : 0\nBogoMIPS : 108.00\n")
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    assert describe_device(tmp_path).cpu_model == "Raspberry Pi 5 Model B Rev 1.0"


def test_without_proc_the_platform_names_the_processor(tmp_path: Path) -> None:
    assert describe_device(tmp_path).cpu_model != ""


def test_governor_and_frequency_are_read_or_unknown(tmp_path: Path) -> None:
    assert governor(tmp_path) is None
    assert circumstances(tmp_path)["frequency_mhz"] is None
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "3400000\n")
    assert governor(tmp_path) == "performance"
    assert circumstances(tmp_path)["frequency_mhz"] == 3400.0


def test_machine_hash_is_stable_and_hides_the_identity(tmp_path: Path) -> None:
    write(tmp_path, "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    assert machine_hash(tmp_path) == "93056facde1afe0f817bb3dd06a7dd06"  # never to change: devices are known by it
    first = machine_hash(tmp_path)
    write(tmp_path, "etc/machine-id", "1123456789abcdef0123456789abcdef\n")
    assert machine_hash(tmp_path) != first
    assert "0123456789" not in first


def test_machine_without_an_id_still_has_one_hash(tmp_path: Path) -> None:
    assert machine_hash(tmp_path) == machine_hash(tmp_path)
    assert len(machine_hash(tmp_path)) == 32
