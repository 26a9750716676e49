"""Files that are there whole, or as they were."""

import os
from pathlib import Path


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
