import errno
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from fastapi import FastAPI

from server import serving
from server.errors import PortTaken
from server.serving import WorkerProcess, _listen
from server.settings import Settings


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with _listen(Settings(data=tmp_path, port=port)) as listening:
        assert listening.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = rf"cannot listen on 127.0.0.1:{port} \(Address already in use\): stop what runs there"
        with pytest.raises(PortTaken, match=message):
            _listen(Settings(data=tmp_path, port=port))


def test_a_host_that_nobody_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        PortTaken, match=r"cannot listen on nosuch.invalid:8000 \(.*or choose another --port \(or --host"
    ):
        _listen(Settings(data=tmp_path, host="nosuch.invalid"))


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
    return found


@pytest.fixture
def signals() -> Iterator[None]:
    """Whatever a test does to the handlers, they are as before afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Idle(WorkerProcess):
    """A worker that only waits for the end of its parent's pipe."""

    COMMAND: ClassVar = [sys.executable, "-c", "import sys; sys.stdin.read()"]

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._command = self.COMMAND


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_server_runs_is_obeyed(
    tmp_path: Path, port: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager may stop what it has just started; swallowed, the signal would leave the server running."""
    monkeypatch.setattr(serving, "WorkerProcess", Idle)
    told: list[int] = []
    before = children()

    def announce() -> None:
        told.append(number)
        signal.raise_signal(number)

    serving.serve(Settings(data=tmp_path, port=port), announce)
    assert told == [number]
    assert children() == before


@pytest.mark.usefixtures("signals")
def test_a_signal_while_the_folder_is_prepared_ends_the_command(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Settings) -> FastAPI:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(serving, "create_app", interrupted)
    with pytest.raises(KeyboardInterrupt):
        serving.serve(Settings(data=tmp_path, port=port), lambda: None)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.01)


def test_a_worker_that_dies_is_started_again_even_when_that_fails_at_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, worker = children(), Idle(Settings(data=tmp_path))
    spawn, tries = worker._spawn, []

    def sometimes() -> "subprocess.Popen[bytes]":
        tries.append(len(tries))
        if len(tries) == 2:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return spawn()

    worker._spawn = sometimes  # type: ignore[method-assign]
    worker.start()
    try:
        [first] = children() - before
        first.kill()
        until(lambda: len(tries) == 3 and worker._process is not None)
        assert worker._process is not None
        assert worker._process.poll() is None
    finally:
        worker.stop()
    assert children() == before
    said = capsys.readouterr().err
    assert "the worker ended with -9; started again in 0.5 s" in said
    assert "the worker cannot be started ([Errno 12] Cannot allocate memory); it is tried again" in said
