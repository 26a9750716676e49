import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.children import run_child
from server.errors import ChildFailed, JobCancelled

TASKS = "tests.server.child_tasks"


def nothing(*_: object) -> None:
    """Let it go on."""


def until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_messages_come_in_order_and_the_result_last() -> None:
    told: list[dict[str, Any]] = []
    result = run_child(f"{TASKS}:echo", {"a": [1, None]}, on_message=told.append, check=nothing, threads=2)
    assert told == [{"type": "progress", "share": 0.5}, {"type": "progress", "share": 1.0}]
    assert result == {"given": {"a": [1, None]}, "threads": "2"}


def test_an_error_keeps_its_class_and_message() -> None:
    with pytest.raises(ChildFailed, match="nothing is called x") as caught:
        run_child(f"{TASKS}:refuse", {"name": "x"}, on_message=nothing, check=nothing)
    assert caught.value.kind == "LookupError"


def test_a_task_that_does_not_exist_is_told() -> None:
    with pytest.raises(ChildFailed, match="no_such_task") as caught:
        run_child(f"{TASKS}:no_such_task", {}, on_message=nothing, check=nothing)
    assert caught.value.kind == "AttributeError"


def test_a_crash_names_the_signal() -> None:
    with pytest.raises(ChildFailed, match=f"{TASKS}:crash died of SIGSEGV before it was done") as caught:
        run_child(f"{TASKS}:crash", {}, on_message=nothing, check=nothing)
    assert caught.value.kind == "ChildDied"


def test_cancelling_kills_the_child_and_what_it_started(tmp_path: Path) -> None:
    pids, started = tmp_path / "pids", []

    def check() -> None:
        if started:
            raise JobCancelled("job 1 was cancelled")

    with pytest.raises(JobCancelled, match="job 1 was cancelled"):
        run_child(f"{TASKS}:sleep_with_grandchild", {"pids": str(pids)}, on_message=started.append, check=check)
    child, grandchild = map(int, pids.read_text().split())
    assert is_gone(child)
    until(lambda: is_gone(grandchild))


def test_a_child_that_runs_too_long_is_stopped(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(ChildFailed, match="ran for more than 1 s and was stopped") as caught:
        run_child(
            f"{TASKS}:sleep_with_grandchild",
            {"pids": str(pids)},
            on_message=nothing,
            check=nothing,
            limit_seconds=1,
        )
    assert caught.value.kind == "ChildTimeout"


def test_an_error_of_the_listener_ends_the_child(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def fail(_: object) -> None:
        raise KeyError("the listener fails")

    with pytest.raises(KeyError, match="the listener fails"):
        run_child(f"{TASKS}:sleep_with_grandchild", {"pids": str(pids)}, on_message=fail, check=nothing)
    assert is_gone(int(pids.read_text().split()[0]))


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, "-m", "tests.server.child_parent", str(pids)])
    try:
        until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    finally:
        parent.kill()
        parent.wait()
    child, grandchild = map(int, pids.read_text().split())
    until(lambda: is_gone(child))
    psutil.Process(grandchild).kill()  # it would end with its own work; nobody waits for it here
