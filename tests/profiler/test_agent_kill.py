"""kill -9 of a real agent process, in the middle of measuring and of uploading: nothing is lost, nothing doubled."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from profiler.wire import Policy

GraphOf = Callable[..., bytes]
LONG = Policy(warmup_runs=3, min_hot_runs=600, max_hot_runs=600)
"""About a second for six tiny graphs: time enough to be killed in."""


class AgentProcess:
    """The real command, started again and again on one state folder."""

    def __init__(self, state: Path, url: str, token: str) -> None:
        self.state = state
        self._arguments = [
            sys.executable,
            "-m",
            "profiler",
            "--server",
            url,
            "--state",
            str(state),
            "--device",
            "bench",
        ]
        self._environment = {**os.environ, "HEATNAS_TOKEN": token, "OMP_NUM_THREADS": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen([*self._arguments, *options], env=self._environment, stderr=subprocess.PIPE)
        return self._process

    def kill(self) -> list[psutil.Process]:
        """Kill the agent as a power failure would; return the children it had."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children()
        self._process.kill()
        self._end()
        return children

    def finish(self) -> str:
        """Run until nothing is left to do; return what it said."""
        process = self.start("--once")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
        return said.decode()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait(10)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def journalled(self) -> list[str]:
        """Ids of the results on the device's disk; read while no agent runs."""
        with sqlite3.connect(self.state / "journal.sqlite") as database:
            rows = database.execute("SELECT result_id FROM entries WHERE state = 'measured'").fetchall()
        database.close()
        return [result_id for (result_id,) in rows]

    def is_measuring(self) -> bool:
        """Whether rounds are under way: the marker moves on."""
        marker = self.state / "measuring" / "in-hand"
        return marker.exists() and int.from_bytes(marker.read_bytes()[:8], "little") > 30


@pytest.fixture
def agent(tmp_path: Path, server: Any, token: str) -> Iterator[AgentProcess]:
    agent = AgentProcess(tmp_path / "state", server.url, token)
    yield agent
    agent.end()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.005)


def test_no_kill_loses_or_doubles_a_result(agent: AgentProcess, server: Any, graph_of: GraphOf) -> None:
    names = [f"t{n}" for n in range(6)]
    for n, name in enumerate(names):
        server.add(name, graph_of(size=64, weight=n), policy=LONG)
    landed = Counter[str]()

    # Twice in the middle of measuring: the child dies too, and nothing was handed over yet.
    for _ in range(2):
        (agent.state / "measuring" / "in-hand").unlink(missing_ok=True)
        agent.start()
        until(agent.is_measuring)
        children = agent.kill()
        landed["measuring"] += len(children)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
        assert server.accepted == []

    # In an upload that never reaches the server's books: all results are on the disk of the device.
    stalled, go_on = threading.Event(), threading.Event()

    def lose_second_upload(kind: str) -> tuple[int, str] | None:
        if kind != "PUT results" or server.log.count(kind) != 1:
            return None
        stalled.set()
        go_on.wait(30)
        return 503, ""

    server.before = lose_second_upload
    agent.start()
    assert stalled.wait(30)
    agent.kill()
    landed["upload"] += 1
    go_on.set()
    waiting = agent.journalled()
    assert len(waiting) == 5
    assert len(server.accepted) == 1

    # In an upload the server has taken, whose acknowledgement never arrives: the result is in both places.
    server.before = lambda _: None
    stalled, go_on = threading.Event(), threading.Event()

    def lose_acknowledgement(kind: str) -> None:
        if kind == "PUT results" and not stalled.is_set():
            stalled.set()
            go_on.wait(30)

    server.after = lose_acknowledgement
    agent.start()
    assert stalled.wait(30)
    agent.kill()
    landed["acknowledgement"] += 1
    go_on.set()
    server.after = lambda _: None
    doubly_kept = set(agent.journalled()) & set(server.results)
    assert len(doubly_kept) == 1

    agent.finish()
    assert landed == {"measuring": 2, "upload": 1, "acknowledgement": 1}
    assert sorted(task for task, _ in server.accepted) == names
    assert set(waiting) <= set(server.results)
    assert len(server.results) == 6
    assert agent.journalled() == []


def test_terminated_agent_gives_its_lease_back_and_leaves_cleanly(
    agent: AgentProcess, server: Any, graph_of: GraphOf
) -> None:
    for n in range(3):
        server.add(f"t{n}", graph_of(size=64, weight=n), policy=LONG)
    process = agent.start()
    until(agent.is_measuring)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped; what was measured is kept and handed over at the next start" in said.decode()
    assert "Traceback" not in said.decode()
    assert len(server.released) == 1
    assert set(server.state.values()) == {"pending"}
