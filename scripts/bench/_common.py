"""What every benchmark shares: its options, the circumstances it reports, and how it reports them."""

import argparse
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

REPORTED_VERSIONS = ("heatnas", "numpy", "onnxruntime", "onnx", "torch", "transformers", "scipy", "sqlalchemy")


@dataclass(frozen=True)
class Options:
    """The options every benchmark takes.

    Attributes:
        json: print one JSON object instead of a table.
        quick: a smoke run of a minute; its numbers say that the script works, no more.
        seed: seed of everything random.
        out: folder for raw data, or None to keep none.
    """

    json: bool
    quick: bool
    seed: int
    out: Path | None


def command_line(purpose: str) -> argparse.ArgumentParser:
    """Return the parser of the options every benchmark takes; `purpose` is the docstring of the script."""
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="smoke run of a minute, marked as such")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for raw data")
    return parser


def options(chosen: argparse.Namespace) -> Options:
    """Read the shared options."""
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
    return Options(json=chosen.json, quick=chosen.quick, seed=chosen.seed, out=chosen.out)


def note(text: str) -> None:
    """Tell how far the benchmark is, on standard error."""
    print(text, file=sys.stderr, flush=True)


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the relative interquartile range in percent."""
    middle = statistics.median(values)
    if len(values) < 4:
        return middle, 100 * (max(values) - min(values)) / middle
    low, _, high = statistics.quantiles(values, n=4)
    return middle, 100 * (high - low) / middle


def report(chosen: Options, results: Mapping[str, object], table: Sequence[Sequence[object]]) -> None:
    """Print the table for people, or the JSON object with the circumstances; keep the object under `--out`."""
    whole = {"quick": chosen.quick, **results, **_circumstances()}
    text = json.dumps(whole, indent=None if chosen.json else 2, allow_nan=False)
    if chosen.out:
        (chosen.out / f"{Path(sys.argv[0]).stem}.json").write_text(text + "\n")
    if chosen.json:
        print(text)
        return
    if chosen.quick:
        print("QUICK RUN: it shows that the script works; do not quote its numbers.")
    _print_table(table)


def _circumstances() -> dict[str, object]:
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": psutil.cpu_count(logical=False),
            "threads": psutil.cpu_count(),
            "memory_mib": psutil.virtual_memory().total // 2**20,
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in REPORTED_VERSIONS},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _print_table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows, the first of which is the header; numbers to the right, two decimals, missing ones as a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
