import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from server.local_stack import Child, ChildDied, LocalStack


def child(tmp_path: Path, code: str, **environment: str) -> Child:
    return Child("worker", [sys.executable, "-c", code], tmp_path / "logs" / "worker.log", environment=environment)


def test_a_process_that_ended_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    started = child(
        tmp_path, "import sys; print(*range(100), sep='\\n'); print('port in use', file=sys.stderr); sys.exit(3)"
    )
    started.process.wait(30)

    with pytest.raises(ChildDied, match=r"^worker ended with exit code 3\. The end of .*worker\.log:\n") as caught:
        started.check()
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 25
    assert lines[-1] == "    port in use"


def test_a_running_process_passes_the_check_and_stops_when_asked(tmp_path: Path) -> None:
    started = child(tmp_path, "import time; time.sleep(60)")

    started.check()
    started.stop()

    assert started.process.returncode == -15


def test_killing_takes_the_whole_group(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(inner.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    started = child(tmp_path, code)
    deadline = time.monotonic() + 30
    while not started.log.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    inner = psutil.Process(int(started.log.read_text()))

    started.kill()

    inner.wait(10)
    assert started.process.returncode == -9
    started.kill()  # a second time is no error


def test_the_environment_is_added_to_and_the_log_appended_to(tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        code = "import os; print(os.environ['COLOUR'], 'PATH' in os.environ)"
        child(tmp_path, code, COLOUR=colour).process.wait(30)

    assert (tmp_path / "logs" / "worker.log").read_text().split("\n") == ["red True", "blue True", ""]
    assert "COLOUR" not in os.environ


def test_two_stacks_do_not_share_a_port(tmp_path: Path) -> None:
    ports = {LocalStack(tmp_path / str(number)).port for number in range(3)}

    assert len(ports) == 3


def test_a_text_of_an_earlier_run_does_not_count_as_said(tmp_path: Path) -> None:
    child(tmp_path, "print('enrolled as 1')").process.wait(30)
    again = child(tmp_path, "print('refused')")
    again.process.wait(30)

    assert again.has_said("refused")
    assert not again.has_said("enrolled as")


PARENT = """
import signal, sys, time
from pathlib import Path
from server.local_stack import LocalStack
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background of a shell is born without
stack = LocalStack(Path(sys.argv[1]))
code = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit())); time.sleep(600)"
)
with stack:
    print(*(stack._start(name, [sys.executable, "-c", code], {}).process.pid for name in "ab"), flush=True)
    time.sleep(600)
"""


def run_parent(folder: Path) -> tuple["subprocess.Popen[str]", list[psutil.Process]]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    time.sleep(1)  # until they have set their handlers
    return parent, children


def end(parent: "subprocess.Popen[str]", children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=20)
    for process in alive:
        process.kill()
    parent.kill()
    parent.communicate()
    assert alive == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_children_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent, children = run_parent(tmp_path)
    parent.kill()
    end(parent, children)


def test_a_second_interrupt_leaves_no_child_behind(tmp_path: Path) -> None:
    parent, children = run_parent(tmp_path)
    parent.send_signal(signal.SIGINT)
    time.sleep(0.5)
    parent.send_signal(signal.SIGINT)
    end(parent, children)
