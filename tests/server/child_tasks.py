"""Tasks that tests run in child processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from server.children import Emit

Json = dict[str, Any]


def echo(parameters: Json, emit: Emit) -> Json:
    sys.stdout.write("a library prints this, and it is no message\n")
    for share in (0.5, 1.0):
        emit("progress", {"share": share})
    return {"given": parameters, "threads": os.environ["OMP_NUM_THREADS"]}


def tell_pid(_: Json, __: Emit) -> Json:
    return {"pid": os.getpid()}


def refuse(parameters: Json, _: Emit) -> Json:
    raise LookupError(f"nothing is called {parameters['name']}")


def crash(_: Json, emit: Emit) -> Json:
    emit("progress", {"share": 0.1})
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def sleep_with_grandchild(parameters: Json, emit: Emit) -> Json:
    """Write the ids of this process and of one that it starts; then sleep for a minute."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(parameters["pids"]).write_text(f"{os.getpid()} {grandchild.pid}\n")
    emit("started", {})
    time.sleep(60)
    return {}
