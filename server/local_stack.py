"""Server, worker and agent as child processes of one command: for the quickstart, benchmarks and end-to-end tests.

LocalStackError
├── NotReady    a process did not come up in time
└── ChildDied   a process ended that should have stayed: the message holds the end of its log
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from server.client import Client, ServerUnreachable

START_SECONDS = 90.0
STOP_SECONDS = 20.0
LOG_LINES = 25

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks to stop: Ctrl-C, the system, a terminal that is gone."""

_PR_SET_PDEATHSIG = 1


class LocalStackError(Exception):
    """Base of the errors of the local processes."""


class NotReady(LocalStackError):
    """A process did not come up in time."""


class ChildDied(LocalStackError):
    """A process ended although nobody stopped it."""


class Child:
    """A command that runs in the background, in a process group of its own, with a log file.

    It is asked to end when its parent has died without doing so, where the system can (Linux).
    """

    def __init__(self, name: str, command: Sequence[str | Path], log: Path, *, environment: Mapping[str, str]) -> None:
        """Start the command; its log is appended to."""
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._begin = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which stops its children in order
                preexec_fn=_end_with_parent(),  # noqa: PLW1509 - it does nothing but call the system
            )

    def check(self) -> None:
        """Raise when the process has ended.

        Raises:
            ChildDied: with the last lines of its log.
        """
        code = self.process.poll()
        if code is not None:
            raise ChildDied(f"{self.name} ended with exit code {code}. The end of {self.log}:\n{self.last_lines()}")

    def has_said(self, text: str) -> bool:
        """Tell whether a text stands in the log since the process was started."""
        with self.log.open("rb") as log:
            log.seek(self._begin)
            return text.encode() in log.read()

    def last_lines(self) -> str:
        """Return the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join("    " + line for line in lines[-LOG_LINES:]) or "    (empty)"

    def stop(self) -> None:
        """Ask the process to end, and kill its whole group when it does not."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the process and all of its group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class LocalStack:
    """A server with its worker, and agents, on one folder.

    The folder holds `data/` (the server's), `agent/<device>/` (each agent's state) and `logs/`.

    Attributes:
        url: address of the server.
    """

    def __init__(self, folder: Path) -> None:
        """Choose a free port; nothing is started yet."""
        self.folder = folder
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def data(self) -> Path:
        """The server's data folder."""
        return self.folder / "data"

    @property
    def logs(self) -> Path:
        """Where every process writes its log."""
        return self.folder / "logs"

    @property
    def token(self) -> str:
        """The server's bearer token; there once the server has started."""
        return (self.data / "token").read_text().strip()

    def client(self) -> Client:
        """Return a client of the server."""
        return Client(self.url, self.token)

    def serve(self) -> None:
        """Start the server with its worker and wait until it answers.

        Raises:
            ChildDied: it ended instead.
            NotReady: it did not answer in time.
        """
        command: list[str | Path] = [
            _command("heatnas"),
            "serve",
            "--data",
            self.data,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        server = self._start("server", command, {})
        self._wait(server, self._answers)

    def run_agent(self, device: str, *, through: str | None = None) -> None:
        """Start an agent that measures for the server under this device name.

        Args:
            device: name of the device.
            through: address by which the agent reaches the server, when that is not `url`.

        Raises:
            ChildDied: it ended instead of enrolling.
            NotReady: it did not enrol in time.
        """
        state = self.folder / "agent" / device
        command: list[str | Path] = [_command("heatnas-agent"), "run", "--device", device, "--state", state]
        agent = self._start(
            f"agent-{device}", command, {"HEATNAS_SERVER": through or self.url, "HEATNAS_TOKEN": self.token}
        )
        self._wait(agent, lambda: agent.has_said("enrolled as"))  # the device may be known from an earlier run

    def child(self, name: str) -> Child:
        """Return a started process: `server` or `agent-<device>`."""
        return self._children[name]

    def check(self) -> None:
        """Raise `ChildDied` when any process has ended."""
        for child in self._children.values():
            child.check()

    def stop(self) -> None:
        """Stop everything, agents first; a second Ctrl-C does not keep it from stopping the rest."""
        with _undisturbed():
            for child in reversed(self._children.values()):
                child.stop()
            self._children.clear()

    def _start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> Child:
        child = Child(name, command, self.logs / f"{name}.log", environment=environment)
        self._children[name] = child
        return child

    def _wait(self, child: Child, is_up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_up():
            child.check()
            if time.monotonic() > deadline:
                raise NotReady(
                    f"{child.name} is not up after {START_SECONDS:.0f} s. The end of {child.log}:\n{child.last_lines()}"
                )
            time.sleep(0.1)

    def _answers(self) -> bool:
        if not (self.data / "token").exists():
            return False
        try:
            with Client(self.url, self.token, patience_seconds=0) as client:
                client.health()
        except ServerUnreachable:
            return False
        return True


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore the signals that ask to stop, in the main thread, which alone gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> Callable[[], None] | None:
    """Return what a child does before its command starts: ask for SIGTERM at our end. None where it cannot."""
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl  # looked up here: a forked child should do no more than call

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _command(name: str) -> Path:
    """Return an installed command of the environment that runs this process."""
    return Path(sys.executable).with_name(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
