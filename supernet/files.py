"""Files by their content; files and folders that are there whole, or as they were."""

import errno
import glob
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is not read into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary one, fsync and rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill, which then takes its name; it is removed if filling it fails.

    Where the process was killed for good, the next that fills a folder of this name on this machine removes it.

    Raises:
        OSError: a folder that is not empty, or a file, has the name by then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.partial-{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        owner = left.name.removeprefix(prefix).partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=path.parent))
    try:
        yield partial
        os.sync()
        partial.chmod(0o755)  # mkdtemp lets nobody else in
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def only_holder(path: Path) -> Iterator[None]:
    """Hold a lock file, which the system takes back from a process that dies; where it has no locks, hold nothing.

    Raises:
        BlockingIOError: another process holds it.
    """
    with path.open("a") as file:
        _lock(file)
        yield


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415 - not on every platform

    try:
        # Not flock, which child processes inherit: loaders would hold it for seconds after this process was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            raise BlockingIOError(error.errno, f"{file.name} is held by another process") from error
        # Some file systems of clusters know no locks: the run is then as unguarded as on a platform without them.


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
