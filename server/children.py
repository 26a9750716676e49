"""Heavy work in supervised child processes, so that it can be cancelled, limited and lost without losing the worker.

The parent writes one JSON line (the task and its parameters) and keeps the pipe open; the child answers with JSON
lines: progress, items, at last a result or an error. After a result it waits for the next order. When the parent dies,
however it dies, the child dies at once: the kernel sees to it on Linux, the end of the pipe everywhere else.
"""

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from server.errors import ChildFailed

Json = dict[str, Any]
Emit = Callable[[str, Json], None]
Task = Callable[[Json, Emit], Json]

POLL_SECONDS = 0.25
IDLE_SECONDS = 60.0
"""How long a child waits for its next task: longer than an answer of a small space is timed."""

ENTRY = "server.children"

_PR_SET_PDEATHSIG = 1


class Children:
    """Runs tasks in child processes.

    A child that has done its task waits for another: to import PyTorch and to start its exporter takes seconds, as long
    as exporting a detector does. One that failed, was stopped, or has waited for long is ended.
    """

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        # The kernel ends a child with the *thread* that started it: this one lives as long as the process.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="child-starter")

    def run(
        self,
        task: str,
        parameters: Mapping[str, Any],
        *,
        on_message: Callable[[Json], None],
        check: Callable[[], None],
        limit_seconds: float | None = None,
    ) -> Json:
        """Run `module:function` in a child process and return its result.

        Args:
            task: the function to call there, as `module:function`; it takes the parameters and an `emit`.
            parameters: what it gets; JSON.
            on_message: told every progress and item message, in order.
            check: called a few times a second; when it raises, the child's process group is killed and the error goes
                on.
            limit_seconds: how long it may run.

        Raises:
            ChildFailed: it raised (its class and message are kept), ran too long, or died.
        """
        child = self._take()
        last = _follow(child, task, parameters, on_message, check, limit_seconds)
        if child.died_waiting:
            child.end()
            child = self._start()
            last = _follow(child, task, parameters, on_message, check, limit_seconds)
        if last.get("type") == "result":
            self._keep(child)
            value: Json = last["value"]
            return value
        code = child.end()
        if last.get("type") == "error":
            raise ChildFailed(last["message"], kind=last["kind"])
        raise ChildFailed(f"{task} {_ending(code)} before it was done", kind="ChildDied")

    def settle(self) -> None:
        """End the children that have waited for long; called again and again."""
        oldest = time.monotonic() - self._idle_seconds
        self._end(lambda child: child.idle_since <= oldest)

    def close(self) -> None:
        """End the children that wait; those at work end as well, since they end with the thread that started them."""
        self._end(lambda _: True)
        self._starter.shutdown()

    def _take(self) -> "_Child":
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.is_alive:
                    return child
                child.end()
        return self._start()

    def _start(self) -> "_Child":
        return self._starter.submit(_Child).result()

    def _keep(self, child: "_Child") -> None:
        child.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(child)

    def _end(self, is_over: Callable[["_Child"], bool]) -> None:
        with self._lock:
            over = [child for child in self._idle if is_over(child)]
            self._idle = [child for child in self._idle if child not in over]
        for child in over:
            child.kill()
            child.end()


def _follow(
    child: "_Child",
    task: str,
    parameters: Mapping[str, Any],
    on_message: Callable[[Json], None],
    check: Callable[[], None],
    limit_seconds: float | None,
) -> Json:
    """Give a child its order and pass on what it says; return the result or the error, nothing if it died.

    Whatever is raised here ends the child.
    """
    last: Json = {}
    try:
        with _Watch(child, check, limit_seconds):
            for message in child.answers(task, parameters):
                if message["type"] in {"result", "error"}:
                    last = message
                    break
                on_message(message)
        if not last:
            check()  # whoever stops the worker may have ended its children first
    except BaseException:
        child.kill()
        child.end()
        raise
    return last


class _Child:
    """One child process.

    Attributes:
        process: the process.
        idle_since: when it began to wait for another order, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._ordered = self._begun = 0
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", ENTRY, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},  # tasks that may use more say so
            start_new_session=True,  # killing takes the whole group, and Ctrl-C reaches the worker alone
            text=True,
        )

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    @property
    def died_waiting(self) -> bool:
        """Whether it has not begun with its latest order, which was not its first."""
        return 1 < self._ordered != self._begun

    def answers(self, task: str, parameters: Mapping[str, Any]) -> Iterator[Json]:
        """Give it an order and yield what it says until it closes its output; a line cut off by a crash is none."""
        if self.process.stdin is None or self.process.stdout is None:
            return
        self._ordered += 1
        with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code says more
            self.process.stdin.write(json.dumps({"task": task, "parameters": dict(parameters)}) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.endswith("\n"):
                message = json.loads(line)
                if message["type"] == "begun":
                    self._begun += 1
                else:
                    yield message

    def kill(self) -> None:
        """Kill the child and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> int:
        """Return the exit code of a child that was killed or has failed; whatever is left of its group is killed."""
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
    """Looks a few times a second whether the child may go on; kills it when not, and at the end raises why."""

    def __init__(self, child: _Child, check: Callable[[], None], limit_seconds: float | None) -> None:
        self._reason: BaseException | None = None
        self._child, self._check, self._limit_seconds = child, check, limit_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="child-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if kind is None and self._reason is not None:
            raise self._reason

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
                self._reason = reason
                self._child.kill()
                return


def _ending(code: int) -> str:
    """Say how a process ended."""
    if code == -signal.SIGKILL:
        return "was killed, as the system does when memory runs out,"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main() -> None:
    """Run the tasks that standard input names, one after another, until one fails."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with messages
    lock = threading.Lock()

    def emit(kind: str, content: Json) -> None:
        with lock:
            output.write(json.dumps({"type": kind, **content}) + "\n")
            output.flush()

    orders = _orders(parent=int(sys.argv[1]))
    while True:
        order = orders.get()
        emit("begun", {})
        module, _, function = order["task"].partition(":")
        try:
            task: Task = getattr(import_module(module), function)
            value = task(order["parameters"], emit)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to hear of it
            emit("error", {"kind": type(error).__name__, "message": str(error)})
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # an orderly end would trip over the thread that reads orders
        emit("result", {"value": value})


def _orders(*, parent: int) -> "queue.SimpleQueue[Json]":
    """Return the orders as they come in; this process group is killed as soon as the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        _kill_group()
    orders = queue.SimpleQueue[Json]()

    def read() -> None:
        try:
            for line in sys.stdin:  # ends when the parent closes the pipe, or is no more
                orders.put(json.loads(line))
        finally:
            _kill_group()

    threading.Thread(target=read, daemon=True).start()
    return orders


def _kill_group() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
