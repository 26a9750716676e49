import io
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from server.client import Client, Job, RequestRefused
from server.local_stack import LocalStack
from server.quickstart import SHARES, Quickstart, new_folder, submit
from server.run_report import Reach


class Refusing:
    """A client whose server refuses every job, for one reason."""

    def __init__(self, error: str, message: str) -> None:
        self.error, self.message, self.asked = error, message, list[float]()

    def submit(self, kind: str, parameters: dict[str, float], **_: str) -> Job:
        assert kind == "thin"
        self.asked.append(parameters["target_fps"])
        raise RequestRefused(self.message, status=409, error=self.error, details={})


@pytest.fixture
def quickstart(tmp_path: Path) -> Quickstart:
    return Quickstart(LocalStack(tmp_path), io.StringIO(), seed=0)


def test_a_new_run_never_takes_the_folder_of_an_old_one(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        folder = new_folder(tmp_path)
        folder.mkdir()
        names.append(folder.name)

    assert names == ["quickstart-run", "quickstart-run-2", "quickstart-run-3"]


def test_targets_leave_room_at_both_ends() -> None:
    assert 0 < SHARES[0] < SHARES[1] < SHARES[2] < 1


def test_targets_are_chosen_once_in_a_folder(quickstart: Quickstart) -> None:
    chosen = quickstart.targets("train-1", Reach(slowest_fps=100, fastest_fps=200))

    assert chosen == [115.0, 145.0, 175.0]
    assert quickstart.targets("train-1", Reach(slowest_fps=10, fastest_fps=20)) == chosen
    assert quickstart.targets("train-2", Reach(slowest_fps=10, fastest_fps=20)) == [11.5, 14.5, 17.5]


def test_a_target_that_a_correction_put_out_of_reach_ends_nothing(quickstart: Quickstart) -> None:
    server = Refusing("BudgetUnreachable", "115.0 FPS is out of reach")

    assert quickstart.thin_all(cast("Client", server), "train-1", "edition", [115.0, 145.0]) == ([], 2)
    assert server.asked == [115.0, 145.0]
    assert cast("io.StringIO", quickstart.out).getvalue().count("115.0 FPS is out of reach") == 2


def test_any_other_refusal_ends_the_run(quickstart: Quickstart) -> None:
    server = Refusing("UnknownDevice", "device 'this-machine' is unknown")

    with pytest.raises(RequestRefused, match="is unknown"):
        quickstart.thin_all(cast("Client", server), "train-1", "edition", [115.0, 145.0])
    assert server.asked == [115.0]


class Remembering:
    """A client whose server knows the jobs of idempotency keys; `fails` are the keys whose jobs fail at once."""

    def __init__(self) -> None:
        self.jobs, self.conflicts = dict[str, Job](), set[str]()

    def submit(self, kind: str, parameters: dict[str, int], *, idempotency_key: str) -> Job:
        if idempotency_key in self.conflicts:
            raise RequestRefused("use a new key", status=409, error="IdempotencyConflict", details={})
        if idempotency_key not in self.jobs:
            identity = f"{kind}-{parameters['seed']}-{len(self.jobs) + 1}"
            self.jobs[idempotency_key] = a_job(identity, "submitted")
        return self.jobs[idempotency_key]

    def ends(self, identity: str, state: str) -> None:
        for key, job in self.jobs.items():
            if job.id == identity:
                self.jobs[key] = a_job(identity, state)


def a_job(identity: str, state: str) -> Job:
    return Job(id=identity, kind="train", state=state, progress=0)


def test_what_has_failed_is_tried_anew_and_all_else_is_taken_up() -> None:
    server = Remembering()
    client = cast("Client", server)
    first = submit(client, "train", {"seed": 0})
    for state in ("running", "succeeded"):
        server.ends(first.id, state)
        assert submit(client, "train", {"seed": 0}).id == first.id
    for state in ("failed", "cancelled"):
        last = submit(client, "train", {"seed": 0})
        server.ends(last.id, state)
        assert submit(client, "train", {"seed": 0}).id not in {first.id, last.id}


def test_other_parameters_are_another_job() -> None:
    server = Remembering()
    client = cast("Client", server)
    plain = submit(client, "train", {"seed": 0})
    assert (
        len({plain.id, submit(client, "train", {"seed": 0, "steps": 50}).id, submit(client, "train", {"seed": 1}).id})
        == 3
    )
    server.conflicts = set(server.jobs)
    assert submit(client, "train", {"seed": 0}).id != plain.id


def test_help_names_every_option() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "server.quickstart", "--help"], capture_output=True, text=True, check=True, timeout=60
    )

    assert all(option in result.stdout for option in ("--data", "--seed", "--steps", "--keep-serving"))


def test_a_wrong_option_is_a_wrong_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.quickstart", "--seed", "-1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)

    assert result.returncode == 2
    assert "--seed" in result.stderr
    assert list(tmp_path.iterdir()) == []
