"""Web process and worker together: started, watched and stopped as one command.

The web process is this one; the worker is its child, started again when it dies, and gone when this process is.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from server.app import create_app
from server.data_folder import check_free
from server.errors import PortTaken
from server.settings import Settings

STOP_SECONDS = 15.0
"""How long a worker that was asked to stop may take."""

LONGEST_PAUSE_SECONDS = 30.0
"""Before a worker that keeps dying is started once more."""

HEALTHY_SECONDS = 60.0
"""A worker that lived so long died of something new: it is started again at once."""


def serve(settings: Settings, announce: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; `announce` is called once the address is taken.

    Raises:
        PortTaken: something else listens at the address.
        WorkerRunning: another server or worker works on the data folder.
        UnusableFolder: it cannot be written.
        NewerDatabase: the data folder was written by a newer version.
    """
    check_free(settings.data)
    with _listen(settings) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=5))
        _stop_on_signals(server)
        announce()
        worker = WorkerProcess(settings)
        worker.start()
        try:
            server.run(sockets=[listening])
        finally:
            worker.stop()


class WorkerProcess:
    """The worker as a child process that is kept alive."""

    def __init__(self, settings: Settings) -> None:
        # -P: a folder `server` where the user stands is not to be imported.
        command = [sys.executable, "-P", "-m", "server.cli", "worker", "--with-parent"]
        self._command = [*command, "--data", str(settings.data)]
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="worker-watcher", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the worker, and start it again whenever it dies."""
        self._process = self._spawn()
        self._watcher.start()

    def stop(self) -> None:
        """Ask the worker to stop; kill it when it does not."""
        self._stopping.set()
        self._watcher.join()
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close(process)

    def _watch(self) -> None:
        pause, started = 0.0, time.monotonic()
        while not self._stopping.wait(0.2):
            process = self._process
            if process is not None and process.poll() is None:
                continue
            pause = 0.5 if time.monotonic() - started > HEALTHY_SECONDS else min(2 * pause + 0.5, LONGEST_PAUSE_SECONDS)
            if process is not None:
                _close(process)
                _say(f"the worker ended with {process.returncode}; started again in {pause:.1f} s")
            if self._stopping.wait(pause):
                return
            self._process, started = self._try_again(), time.monotonic()

    def _try_again(self) -> subprocess.Popen[bytes] | None:
        """Start the worker once more; None where the machine cannot now, as when its memory is full."""
        try:
            return self._spawn()
        except OSError as error:
            _say(f"the worker cannot be started ({error}); it is tried again: jobs wait meanwhile")
            return None

    def _spawn(self) -> subprocess.Popen[bytes]:
        # The pipe to its standard input closes with this process, however it ends.
        return subprocess.Popen(self._command, stdin=subprocess.PIPE)


def _say(text: str) -> None:
    sys.stderr.write(f"heatnas: {text}\n")


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; it costs 40 ms an answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:  # taken, forbidden, of another machine, or a name that nobody knows
        listening.close()
        raise PortTaken(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): "
            "stop what runs there, or choose another --port (or --host)"
        ) from error
    return listening


def _stop_on_signals(server: uvicorn.Server) -> None:
    """Have signals stop the server: before it runs, and when it raises those anew that it has obeyed."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
