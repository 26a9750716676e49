"""Graph files on the device: what makes one safe to load, and a cache that finds it again by hash.

A graph comes from a server, and ONNX files may name other files to read. The check walks the protobuf itself (field
numbers of onnx.proto), so that the agent needs no `onnx` package and no parser that opens files on its own.
"""

import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from profiler.errors import HashMismatch, UnsafeGraph

CACHE_BYTES = 2 * 1024**3
"""Size the graph cache is trimmed to, in bytes."""

# Message type -> field number -> type of the sub-message: every path of onnx.proto that leads to a tensor or a node.
_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION, _NODE_OP_TYPE = 13, 14, 4
_MAX_DEPTH = 64


def check_hash(graph: bytes, sha256: str) -> None:
    """Raise HashMismatch unless `graph` has that SHA-256."""
    actual = hashlib.sha256(graph).hexdigest()
    if actual != sha256:
        raise HashMismatch(
            f"the graph hashes to {actual}, announced was {sha256}: it was damaged or replaced on its way. "
            "Export it again, or look at the proxies between this device and the server."
        )


def check_safe(graph: bytes) -> None:
    """Raise UnsafeGraph when a graph is no ONNX model or asks for anything outside its own bytes."""
    try:
        _check_message(memoryview(graph), "Model", 0)
    except (IndexError, ValueError) as error:
        raise UnsafeGraph(
            f"the graph of {len(graph)} bytes is not an ONNX model ({error}): export it again."
        ) from error


def _check_message(data: memoryview, kind: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UnsafeGraph(
            f"the graph nests deeper than {_MAX_DEPTH} messages: flatten its control flow and export again."
        )
    for number, value in _fields(data):
        if kind == "Tensor" and (number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value == 1)):
            raise UnsafeGraph("the graph keeps tensors in external files, which are never read: export it as one file.")
        if kind == "Node" and number == _NODE_OP_TYPE and value == memoryview(b"EPContext"):
            raise UnsafeGraph(
                "the graph holds an EPContext node, which loads a foreign binary: export the plain graph."
            )
        child = _PATHS.get(kind, {}).get(number)
        if child is not None:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {number} of {kind} is no message")
            _check_message(value, child, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one protobuf message; fixed-width values come as their bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if not 8 <= tag < 2**32:  # a reader that keeps 32 bits of it would see another field than we check
            raise ValueError(f"a field tag of {tag} before byte {at}")
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(data, at)
            case 5:
                length = 4
            case wire_type:
                raise ValueError(f"wire type {wire_type} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"a field of {length} bytes at byte {at} runs past the end")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError(f"a number longer than 10 bytes at byte {at}")


class GraphCache:
    """Graph files by SHA-256, trimmed to a size: the ones used longest ago go first."""

    def __init__(self, folder: Path, *, max_bytes: int = CACHE_BYTES) -> None:
        self._folder = folder.resolve()  # paths are handed to a process that works in another folder
        self._max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.partial"):
            partial.unlink()

    def find(self, sha256: str) -> Path | None:
        """Return the file of a graph and mark it as used, or None when it has to be fetched, again if it is damaged."""
        path = self._folder / sha256
        if not path.is_file():
            return None
        try:
            check_hash(path.read_bytes(), sha256)
        except HashMismatch:
            path.unlink()
            return None
        os.utime(path)
        return path

    def partial(self, sha256: str) -> Path:
        """Return where a download of that graph is written before `keep`."""
        return self._folder / f"{sha256}.partial"

    def keep(self, sha256: str) -> Path:
        """Take the finished download of a graph into the cache, checked against its hash.

        Raises:
            HashMismatch: the downloaded bytes are other ones; the download is deleted.
        """
        partial = self.partial(sha256)
        try:
            check_hash(partial.read_bytes(), sha256)
        except HashMismatch:
            partial.unlink()
            raise
        return partial.replace(self._folder / sha256)

    def trim(self, *, keep: Collection[str]) -> None:
        """Delete the graphs used longest ago until the cache fits, but none of `keep`."""
        files = sorted(self._folder.glob("[0-9a-f]" * 64), key=lambda path: path.stat().st_mtime_ns)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total <= self._max_bytes:
                return
            if path.name not in keep:
                total -= path.stat().st_size
                path.unlink()
