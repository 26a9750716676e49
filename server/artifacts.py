"""Content-addressed files: a name is the SHA-256 of what it holds, so that equal content is stored once.

A file becomes visible under its name only when it is complete and on disk: it is written beside its place, flushed,
and renamed. A crash leaves at most a part behind that no name leads to.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from server.errors import DamagedBlob, UnknownBlob

PART = ".part"

_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Files by hash in one folder; safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, data: bytes | Iterable[bytes]) -> str:
        """Store bytes, or a stream of them, and return their SHA-256."""
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(suffix=PART, dir=self._root)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                sha256 = _write(file, [data] if isinstance(data, bytes) else data)
            self._settle(part, self._path(sha256))
        finally:
            part.unlink(missing_ok=True)
        return sha256

    def has(self, sha256: str) -> bool:
        """Tell whether something is stored under a hash."""
        return self._path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        """Return where a blob lies, for readers that check the hash themselves.

        Raises:
            UnknownBlob: the hash is malformed, or nothing is stored under it.
        """
        path = self._path(sha256)
        if not path.is_file():
            raise UnknownBlob(f"nothing is stored under {sha256}: it was never uploaded here, or was removed")
        return path

    def size(self, sha256: str) -> int:
        """Return the bytes of a blob.

        Raises:
            UnknownBlob: nothing is stored under the hash.
        """
        return self.path(sha256).stat().st_size

    def get(self, sha256: str) -> bytes:
        """Read a blob whole, and check that it is what its name says.

        Raises:
            UnknownBlob: nothing is stored under the hash.
            DamagedBlob: something else is.
        """
        data = self.path(sha256).read_bytes()
        _check(hashlib.sha256(data).hexdigest(), sha256)
        return data

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise UnknownBlob(f"{sha256!r} is no SHA-256: write 64 lower-case hexadecimal digits")
        return self._root / sha256[:2] / sha256[2:4] / sha256

    def _settle(self, part: Path, target: Path) -> None:
        """Give a complete part its name. Renaming over an equal file is harmless, and heals a damaged one."""
        for folder in (target.parent.parent, target.parent):
            folder.mkdir(exist_ok=True)
        part.replace(target)
        for folder in (target.parent, target.parent.parent, self._root):
            _sync(folder)


def _write(file: BinaryIO, pieces: Iterable[bytes]) -> str:
    """Write all pieces through to the disk and return their hash."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system allows to open one."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(found: str, sha256: str) -> None:
    if found != sha256:
        raise DamagedBlob(
            f"the blob {sha256} has the hash {found} on disk: it was damaged or replaced, "
            "restore it from a backup or run the job that made it again"
        )
