import threading

import pytest

from server.machine import Machine


def nothing() -> None:
    """Let it wait on."""


class Gate:
    """A gate that notes what it is told; `is_measuring` while an agent holds a lease."""

    def __init__(self) -> None:
        self.told, self.is_measuring, self.is_away = list[str](), False, False

    def close(self) -> bool:
        if self.is_measuring:
            return False
        self.told.append("close")
        return True

    def open(self) -> bool:
        if not self.is_away:
            self.told.append("open")
        return not self.is_away


def test_works_share_the_machine_and_so_do_measurements() -> None:
    gate = Gate()
    machine = Machine("this", gate)
    with machine.working(nothing), machine.working(nothing):
        assert gate.told == ["close"]
    with machine.measuring(nothing), machine.measuring(nothing):
        assert gate.told == ["close", "open"]


@pytest.mark.parametrize(("first", "second"), [("working", "measuring"), ("measuring", "working")])
def test_neither_begins_before_the_other_ends(first: str, second: str) -> None:
    machine, begun = Machine("this", Gate()), threading.Event()

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
    machine = Machine("this", Gate())

    def check() -> None:
        raise LookupError("cancelled")

    with machine.working(nothing), pytest.raises(LookupError, match="cancelled"), machine.measuring(check):
        pass
    with machine.working(nothing):
        pass


def test_the_gate_is_closed_while_anything_works_and_opened_after_the_last() -> None:
    gate = Gate()
    machine = Machine("this", gate)
    with machine.working(nothing), machine.working(nothing):
        machine.settle()
        assert gate.told == ["close"]
    machine.settle()
    assert gate.told == ["close", "open"]


def test_work_waits_while_an_agent_measures_that_no_campaign_watches() -> None:
    gate, begun = Gate(), threading.Event()
    machine = Machine("this", gate)
    gate.is_measuring = True

    def wait() -> None:
        with machine.working(nothing):
            begun.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not begun.wait(0.2)
    gate.is_measuring = False
    assert begun.wait(5)
    thread.join()


def test_a_gate_that_could_not_be_opened_is_opened_later() -> None:
    gate = Gate()
    machine = Machine("this", gate)
    gate.is_away = True
    with machine.working(nothing):
        pass
    assert gate.told == ["close"]
    gate.is_away = False
    machine.settle()
    assert gate.told == ["close", "open"]
