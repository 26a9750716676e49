"""Heavy work in a supervised child process, so that it can be cancelled, limited and lost without losing the worker.

The parent writes one JSON line (the task and its parameters) and keeps the pipe open; the child answers with JSON
lines: progress, items, at last a result or an error. When the pipe closes the parent is gone, and the child ends itself.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from server.errors import ChildFailed, JobCancelled

Json = dict[str, Any]
Emit = Callable[[str, Json], None]
Task = Callable[[Json, Emit], Json]

POLL_SECONDS = 0.25
ENTRY = "server.children"


class _Child:
    """One running child, and a thread that turns its output into messages."""

    def __init__(self, task: str, parameters: Mapping[str, Any], *, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", ENTRY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # cancelling kills the whole group
            text=True,
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise ChildFailed("the child process has no pipes", kind="OSError")
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.stdin.write(json.dumps({"task": task, "parameters": dict(parameters)}) + "\n")
        self.stdin.flush()

    def messages(self) -> Iterator[Json]:
        """Yield what the child says until it closes its output."""
        for line in self.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # a library may print; only whole messages count
                message = json.loads(line)
                if isinstance(message, dict) and "type" in message:
                    yield message

    def kill(self) -> None:
        """End the child and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


def run_child(
    task: str,
    parameters: Mapping[str, Any],
    *,
    on_message: Callable[[Json], None],
    is_cancelled: Callable[[], bool],
    threads: int = 1,
) -> Json:
    """Run `module:function` in a child process and return its result.

    Args:
        task: the function to call there, as `module:function`; it takes the parameters and an `emit`.
        parameters: what it gets; JSON.
        on_message: told every progress and item message, in order.
        is_cancelled: asked a few times a second; when true the child's process group is killed.
        threads: compute threads the child may use.

    Raises:
        JobCancelled: it was cancelled.
        ChildFailed: it raised (its class and message are kept) or died.
    """
    child = _Child(task, parameters, threads=threads)
    cancelled, stopped = threading.Event(), threading.Event()

    def watch() -> None:
        while not stopped.wait(POLL_SECONDS):
            if is_cancelled():
                cancelled.set()
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.process.pid, signal.SIGKILL)
                return

    watcher = threading.Thread(target=watch, name="child-watch", daemon=True)
    watcher.start()
    last: Json = {}
    try:
        for message in child.messages():
            if message["type"] in {"result", "error"}:
                last = message
            else:
                on_message(message)
        code = child.process.wait()
    finally:
        stopped.set()
        child.kill()
        watcher.join()
    if cancelled.is_set():
        raise JobCancelled("cancelled while its child process was running")
    if last.get("type") == "result":
        value: Json = last["value"]
        return value
    if last.get("type") == "error":
        raise ChildFailed(last["message"], kind=last["kind"])
    raise ChildFailed(f"the child process ended with exit code {code} before it was done", kind="ChildDied")


def main() -> None:
    """Run the one task that standard input names."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with messages

    def emit(kind: str, content: Json) -> None:
        with lock:
            output.write(json.dumps({"type": kind, **content}) + "\n")
            output.flush()

    module, _, function = request["task"].partition(":")
    task: Task = getattr(import_module(module), function)
    try:
        value = task(request["parameters"], emit)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to hear of it
        emit("error", {"kind": type(error).__name__, "message": str(error)})
        raise SystemExit(1) from error
    emit("result", {"value": value})


def _end_with_parent() -> None:
    sys.stdin.read()  # returns when the parent closes the pipe, or is no more
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
