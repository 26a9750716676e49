"""Raw samples as bytes: int64 nanoseconds, compressed, exactly restored."""

import struct
import zlib

import numpy as np

_HEADER = struct.Struct("<BII")
_VERSION = 1


def pack(hot_ns: tuple[int, ...], cold_ns: tuple[int, ...]) -> bytes:
    """Compress both lists of runs, kept apart and in order."""
    values = np.array(hot_ns + cold_ns, dtype="<i8")
    return _HEADER.pack(_VERSION, len(hot_ns), len(cold_ns)) + zlib.compress(values.tobytes(), 9)


def unpack(packed: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the hot and the cold runs, as they were packed."""
    version, hot, cold = _HEADER.unpack_from(packed)
    values = np.frombuffer(zlib.decompress(packed[_HEADER.size :]), dtype="<i8").tolist()
    if version != _VERSION or len(values) != hot + cold:
        raise ValueError(f"samples of version {version} with {len(values)} runs for {hot} + {cold}: damaged, or newer")
    return tuple(values[:hot]), tuple(values[hot:])
