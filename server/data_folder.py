"""The data folder: one worker works on it at a time."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import UnusableFolder, WorkerRunning

LOCK_FILE = "worker.lock"

PATIENCE_SECONDS = 15.0
"""How long a worker whose server was killed may take to leave the folder."""

_LOOK_SECONDS = 0.2


@contextmanager
def only_worker(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back from a process that dies.

    Raises:
        UnusableFolder: it cannot be written.
        WorkerRunning: another worker holds it.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise UnusableFolder(
            f"the data folder {folder} cannot be written ({error.strerror}): "
            "choose another with --data, or have it made yours to write"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkerRunning(
                f"another worker runs the jobs of {folder}: `heatnas serve` starts one by itself; "
                "stop it, or use another data folder"
            ) from None
        yield


def check_free(folder: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Return once no worker holds the folder: that of a server that was killed leaves it a moment later.

    Raises:
        UnusableFolder: it cannot be written.
        WorkerRunning: another worker holds it all the time.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            with only_worker(folder):
                return
        except WorkerRunning:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_LOOK_SECONDS)
