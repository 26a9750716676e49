"""What makes a cold run cold: emptying the caches a core has to itself, so that weights have to be fetched again.

In a network, a block finds its weights evicted by the blocks before it. Interleaving many sessions does the same, but
only while many are left: the last items of a group would be measured warm. A read sweep over four times the private
cache before each cold run gives the same cold time for a group of one and a group of sixty. Measured on a server core
(1 MiB L2, 32 MiB L3) over 11 graphs of 30 us to 3 ms: within 2 % of what 8 to 44 other sessions in between give, at
0.1 ms a sweep instead of 10 ms. Sweeping the shared last level as well overstates the cost: sums of blocks then exceed
whole networks whose weights fit into it by up to 60 %.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

SWEEPS_PER_CACHE = 4
"""Size of the sweep in private caches; more changed the cold times by less than 2 %."""

UNKNOWN_CACHE_BYTES = 2 * 1024**2
"""Assumed private cache where the system does not tell; a sweep is then 8 MiB, more than any common core has."""

_CACHE_LINE_BYTES = 64
_UNITS = {"K": 1024, "M": 1024**2}


def make_eviction(root: Path = Path("/")) -> Callable[[], None]:
    """Return a function that empties the private caches of the core it runs on."""
    size = SWEEPS_PER_CACHE * (private_cache_bytes(root) or UNKNOWN_CACHE_BYTES)
    lines = np.ones(size // 8, dtype=np.int64)[:: _CACHE_LINE_BYTES // 8]

    def evict() -> None:
        lines.sum()  # reads leave clean lines behind: written ones would slow down the run that displaces them

    return evict


def private_cache_bytes(root: Path = Path("/")) -> int | None:
    """Return the size of the second-level cache of core 0, or None where the system does not tell."""
    for index in sorted(root.glob("sys/devices/system/cpu/cpu0/cache/index*")):
        try:
            if (index / "level").read_text().strip() == "2":
                return _bytes((index / "size").read_text().strip())
        except (OSError, ValueError):
            return None
    return None


def _bytes(text: str) -> int:
    """Read sysfs's "1024K"."""
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text)
