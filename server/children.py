"""Heavy work in a supervised child process, so that it can be cancelled, limited and lost without losing the worker.

The parent writes one JSON line (the task and its parameters) and keeps the pipe open; the child answers with JSON
lines: progress, items, at last a result or an error. When the parent dies, however it dies, the child dies at once: the
kernel sees to it on Linux, the end of the pipe everywhere else.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from server.errors import ChildFailed

Json = dict[str, Any]
Emit = Callable[[str, Json], None]
Task = Callable[[Json, Emit], Json]

POLL_SECONDS = 0.25
ENTRY = "server.children"

_PR_SET_PDEATHSIG = 1


def run_child(
    task: str,
    parameters: Mapping[str, Any],
    *,
    on_message: Callable[[Json], None],
    check: Callable[[], None],
    threads: int = 1,
    limit_seconds: float | None = None,
) -> Json:
    """Run `module:function` in a child process and return its result.

    Args:
        task: the function to call there, as `module:function`; it takes the parameters and an `emit`.
        parameters: what it gets; JSON.
        on_message: told every progress and item message, in order.
        check: called a few times a second; when it raises, the child's process group is killed and the error goes on.
        threads: compute threads the child may use.
        limit_seconds: how long it may run.

    Raises:
        ChildFailed: it raised (its class and message are kept), ran too long, or died.
    """
    child = _Child(task, parameters, threads=threads)
    watch = _Watch(child, check, limit_seconds)
    last: Json = {}
    try:
        with watch:
            for message in child.messages():
                if message["type"] in {"result", "error"}:
                    last = message
                else:
                    on_message(message)
    finally:
        code = child.end()
    if watch.reason is not None:
        raise watch.reason
    if last.get("type") == "error":
        raise ChildFailed(last["message"], kind=last["kind"])
    if last.get("type") != "result":
        raise ChildFailed(f"{task} {_ending(code)} before it was done", kind="ChildDied")
    value: Json = last["value"]
    return value


class _Child:
    """One running child."""

    def __init__(self, task: str, parameters: Mapping[str, Any], *, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", ENTRY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # killing takes the whole group, and Ctrl-C reaches the worker alone
            text=True,
        )
        order = {"task": task, "parameters": dict(parameters), "parent": os.getpid()}
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code says more
                self.process.stdin.write(json.dumps(order) + "\n")
                self.process.stdin.flush()

    def messages(self) -> Iterator[Json]:
        """Yield what the child says until it closes its output; a line cut off by a crash is no message."""
        if self.process.stdout is None:
            return
        for line in self.process.stdout:
            if line.endswith("\n"):
                yield json.loads(line)

    def kill(self) -> None:
        """Kill the child and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> int:
        """Return the exit code of a child that has closed its output; whatever is left of its group is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.kill()
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return code


class _Watch:
    """Looks a few times a second whether the child may go on, and kills it when not.

    Attributes:
        reason: why it was killed, None when it was not.
    """

    def __init__(self, child: _Child, check: Callable[[], None], limit_seconds: float | None) -> None:
        self.reason: BaseException | None = None
        self._child, self._check, self._limit_seconds = child, check, limit_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="child-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if kind is not None:
            self._child.kill()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._over.wait(POLL_SECONDS):
            try:
                self._check()
                if self._limit_seconds is not None and time.monotonic() - started > self._limit_seconds:
                    raise ChildFailed(  # noqa: TRY301 - a limit is one more reason to end it
                        f"heavy work ran for more than {self._limit_seconds:.0f} s and was stopped: ask for less of it",
                        kind="ChildTimeout",
                    )
            except BaseException as reason:  # noqa: BLE001 - it is raised again where the child was started
                self.reason = reason
                self._child.kill()
                return


def _ending(code: int) -> str:
    """Say how a process ended."""
    if code == -signal.SIGKILL:
        return "was killed, as the system does when memory runs out,"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main() -> None:
    """Run the one task that standard input names."""
    order = json.loads(sys.stdin.readline())
    _die_with_parent(order["parent"])
    lock = threading.Lock()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with messages

    def emit(kind: str, content: Json) -> None:
        with lock:
            output.write(json.dumps({"type": kind, **content}) + "\n")
            output.flush()

    module, _, function = order["task"].partition(":")
    try:
        task: Task = getattr(import_module(module), function)
        value = task(order["parameters"], emit)
    except Exception as error:  # whatever it is, the parent has to hear of it
        emit("error", {"kind": type(error).__name__, "message": str(error)})
        raise
    emit("result", {"value": value})


def _die_with_parent(parent: int) -> None:
    """Have this process group killed as soon as the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        _kill_group()
    threading.Thread(target=_wait_for_end_of_pipe, daemon=True).start()


def _wait_for_end_of_pipe() -> None:
    sys.stdin.read()  # returns when the parent closes the pipe, or is no more
    _kill_group()


def _kill_group() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
