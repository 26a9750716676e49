import threading

import pytest

from server.machine import Machine


def nothing() -> None:
    """Let it wait on."""


def test_works_share_the_machine_and_so_do_measurements() -> None:
    machine = Machine("this")
    with machine.working(nothing), machine.working(nothing):
        pass
    with machine.measuring(nothing), machine.measuring(nothing):
        pass


@pytest.mark.parametrize(("first", "second"), [("working", "measuring"), ("measuring", "working")])
def test_neither_begins_before_the_other_ends(first: str, second: str) -> None:
    machine, begun = Machine("this"), threading.Event()

    def wait() -> None:
        with getattr(machine, second)(nothing):
            begun.set()

    thread = threading.Thread(target=wait)
    with getattr(machine, first)(nothing):
        thread.start()
        assert not begun.wait(0.2)
    assert begun.wait(5)
    thread.join()


def test_a_wait_ends_when_the_job_may_not_go_on() -> None:
    machine = Machine("this")

    def check() -> None:
        raise LookupError("cancelled")

    with machine.working(nothing), pytest.raises(LookupError, match="cancelled"), machine.measuring(check):
        pass
    with machine.working(nothing):
        pass
