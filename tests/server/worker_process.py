"""A worker that tests start, kill and start again: `python -m tests.server.worker_process DATA`."""

import sys
import time
from pathlib import Path
from typing import Any

from server.context import Context
from server.parameters import Parameters
from server.settings import Settings
from server.worker import run_worker

Json = dict[str, Any]


def handler(context: Context, _: Parameters) -> Json:
    """Count, in three steps; the second waits until a file says that it may end."""
    folder = context.settings.data
    first = context.step("first", lambda: note(folder, "first"))
    second = context.step("second", lambda: wait(context, folder))
    third = context.step("third", lambda: note(folder, "third"))
    return {"lines": [first, second, third]}


def note(folder: Path, line: str) -> str:
    with (folder / "notes").open("a") as notes:
        notes.write(line + "\n")
    return line


def wait(context: Context, folder: Path) -> str:
    note(folder, "second begins")
    while not (folder / "go").exists():
        context.check()
        time.sleep(0.02)
    return note(folder, "second ends")


if __name__ == "__main__":
    run_worker(Settings(data=Path(sys.argv[1])), handlers={"train": handler})
