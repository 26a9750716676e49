import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.children import Children
from server.errors import ChildFailed, JobCancelled

TASKS = "tests.server.child_tasks"


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


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


def test_messages_come_in_order_and_the_result_last(children: Children) -> None:
    told: list[dict[str, Any]] = []
    result = children.run(f"{TASKS}:echo", {"a": [1, None]}, on_message=told.append, check=nothing)
    assert told == [{"type": "progress", "share": 0.5}, {"type": "progress", "share": 1.0}]
    assert result == {"given": {"a": [1, None]}, "threads": "1"}


def test_an_error_keeps_its_class_and_message(children: Children) -> None:
    with pytest.raises(ChildFailed, match="nothing is called x") as caught:
        children.run(f"{TASKS}:refuse", {"name": "x"}, on_message=nothing, check=nothing)
    assert caught.value.kind == "LookupError"


def test_a_task_that_does_not_exist_is_told(children: Children) -> None:
    with pytest.raises(ChildFailed, match="no_such_task") as caught:
        children.run(f"{TASKS}:no_such_task", {}, on_message=nothing, check=nothing)
    assert caught.value.kind == "AttributeError"


def test_a_crash_names_the_signal(children: Children) -> None:
    with pytest.raises(ChildFailed, match=f"{TASKS}:crash died of SIGSEGV before it was done") as caught:
        children.run(f"{TASKS}:crash", {}, on_message=nothing, check=nothing)
    assert caught.value.kind == "ChildDied"


def test_cancelling_kills_the_child_and_what_it_started(children: Children, tmp_path: Path) -> None:
    pids, started = tmp_path / "pids", []

    def check() -> None:
        if started:
            raise JobCancelled("job 1 was cancelled")

    with pytest.raises(JobCancelled, match="job 1 was cancelled"):
        children.run(f"{TASKS}:sleep_with_grandchild", {"pids": str(pids)}, on_message=started.append, check=check)
    child, grandchild = map(int, pids.read_text().split())
    assert is_gone(child)
    until(lambda: is_gone(grandchild))


def test_a_child_that_runs_too_long_is_stopped(children: Children, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(ChildFailed, match="ran for more than 1 s and was stopped") as caught:
        children.run(
            f"{TASKS}:sleep_with_grandchild",
            {"pids": str(pids)},
            on_message=nothing,
            check=nothing,
            limit_seconds=1,
        )
    assert caught.value.kind == "ChildTimeout"


def test_an_error_of_the_listener_ends_the_child(children: Children, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def fail(_: object) -> None:
        raise KeyError("the listener fails")

    with pytest.raises(KeyError, match="the listener fails"):
        children.run(f"{TASKS}:sleep_with_grandchild", {"pids": str(pids)}, on_message=fail, check=nothing)
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


def pid_of_child(children: Children) -> int:
    pid: int = children.run(f"{TASKS}:tell_pid", {}, on_message=nothing, check=nothing)["pid"]
    return pid


def test_a_child_that_is_done_takes_the_next_task(children: Children) -> None:
    told: list[dict[str, Any]] = []
    first = pid_of_child(children)
    result = children.run(f"{TASKS}:echo", {"a": 1}, on_message=told.append, check=nothing)
    assert (result["given"], told[-1]) == ({"a": 1}, {"type": "progress", "share": 1.0})
    assert pid_of_child(children) == first


def test_a_child_started_by_a_thread_outlives_it(children: Children) -> None:
    first: list[int] = []
    thread = threading.Thread(target=lambda: first.append(pid_of_child(children)))
    thread.start()
    thread.join()
    time.sleep(0.2)  # the kernel would have ended it by now
    assert [pid_of_child(children)] == first


def test_after_a_failure_another_child_takes_over(children: Children) -> None:
    first = pid_of_child(children)
    with pytest.raises(ChildFailed):
        children.run(f"{TASKS}:refuse", {"name": "x"}, on_message=nothing, check=nothing)
    assert is_gone(first)
    assert pid_of_child(children) != first


def test_a_child_that_died_while_it_waited_is_replaced(children: Children) -> None:
    first = pid_of_child(children)
    psutil.Process(first).kill()
    until(lambda: is_gone(first))
    assert pid_of_child(children) != first


def test_tasks_at_the_same_time_have_children_of_their_own(children: Children) -> None:
    pids: list[int] = []
    inner = pid_of_child(children)
    children.run(
        f"{TASKS}:echo", {}, on_message=lambda _: pids.append(pid_of_child(children)), check=nothing
    )  # its own child is at work meanwhile
    assert len(set(pids)) == 1
    assert inner not in pids


def test_children_that_have_waited_for_long_are_ended() -> None:
    patient, hasty = Children(idle_seconds=60), Children(idle_seconds=0)
    kept, ended = pid_of_child(patient), pid_of_child(hasty)
    patient.settle()
    hasty.settle()
    assert (is_gone(kept), is_gone(ended)) == (False, True)
    patient.close()
    hasty.close()
    assert is_gone(kept)


def test_a_child_that_waits_dies_with_its_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.server.child_parent"], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not is_gone(child)
    finally:
        parent.kill()
        parent.communicate()
    until(lambda: is_gone(child))
