"""Train, profile and thin with real processes, killed where it hurts: nothing measured is lost or doubled."""

import hashlib
import json
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from nas.config import Config
from nas.importance import Importance
from nas.named import named_space
from server.client import Client, Job, RequestRefused
from server.local_stack import LocalStack
from server.run_report import feasible_range, latency_model
from tests.end_to_end.gate import Gate

DEVICE = "bench"
SPACE = named_space("heatdetr-nano", classes=3)
TRAINING = {"space": SPACE.name, "steps": 1, "images": 8}
"""The path is tested here, not the accuracy of the supernet."""

Json = dict[str, Any]


def until(what: str, condition: Callable[[], bool], *, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.01)


def outcome(client: Client, job: Job) -> Json:
    told: list[str] = []
    ended = client.follow(job.id, on_event=lambda event: told.append(event.message))
    assert ended.state == "succeeded", f"{ended.failure}\n" + "\n".join(told)
    return client.outcome(ended)


@dataclass(frozen=True)
class Killed:
    """A profile job through which agent, server and worker were killed."""

    job: str
    result: Json
    landed: Counter[str]
    answered: Counter[str]
    """Results that an agent was told are stored, by path."""


class Killer:
    """Kills processes of a stack at moments that it can prove."""

    def __init__(self, stack: LocalStack, gate: Gate, profile: str) -> None:
        self.stack, self.gate, self.profile = stack, gate, profile
        self.landed = Counter[str]()

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.stack.data / 'heatnas.sqlite'}?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()

    def journalled(self) -> set[str]:
        """Ids of results on the device's disk; asked while no agent runs."""
        path = self.stack.folder / "agent" / DEVICE / "journal.sqlite"
        with closing(sqlite3.connect(path)) as database:
            return {row for (row,) in database.execute("SELECT result_id FROM entries WHERE state = 'measured'")}

    def stored(self) -> set[str]:
        return {row for (row,) in self.sql("SELECT id FROM measurements")}

    def start_agent(self) -> None:
        self.stack.run_agent(DEVICE, through=self.gate.url)

    def kill_agent(self) -> None:
        self.stack.child(f"agent-{DEVICE}").kill()

    def inside_export(self) -> None:
        """Kill web and worker while blocks are being exported."""
        until("graphs are exported", lambda: self.sql("SELECT count(*) FROM graphs")[0][0] >= 8)
        self.stack.child("server").kill()
        if 8 <= self.sql("SELECT count(*) FROM graphs")[0][0] < len(SPACE.all_blocks()):
            self.landed["export"] += 1
        self.stack.serve()

    def inside_measuring(self) -> None:
        """Kill the agent between two runs of a graph."""
        marker = self.stack.folder / "agent" / DEVICE / "measuring" / "in-hand"
        marker.unlink(missing_ok=True)
        self.start_agent()
        until(
            "graphs are measured",
            lambda: marker.exists() and int.from_bytes(marker.read_bytes()[:8], "little") > 30,
        )
        self.kill_agent()
        if self.sql("SELECT count(*) FROM tasks WHERE state = 'leased'")[0][0]:
            self.landed["measure"] += 1

    def inside_upload(self) -> None:
        """Kill the agent when its result is on the way and has not arrived."""
        held, go_on = self._hold_next_result()
        self.start_agent()
        until("a result is uploaded", held.is_set)
        self.kill_agent()
        if self.journalled() and not self.journalled() & self.stored():
            self.landed["upload"] += 1
        go_on.set()

    def inside_commit(self) -> None:
        """Kill web and worker while a result waits for the lock under which it would be committed."""
        held, go_on = self._hold_next_result()
        self.start_agent()
        until("a result is uploaded", held.is_set)
        before = self.stored()
        with closing(sqlite3.connect(self.stack.data / "heatnas.sqlite", isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            sent = sum(self.gate.forwarded.values())
            go_on.set()
            until("the result is forwarded", lambda: sum(self.gate.forwarded.values()) > sent)
            time.sleep(0.3)
            answered = sum(self.gate.answered.values())
            self.stack.child("server").kill()
            lock.execute("ROLLBACK")
        if self.stored() == before and sum(self.gate.answered.values()) == answered:
            self.landed["commit"] += 1
        self.stack.serve()

    def the_worker_alone(self) -> None:
        """Kill the worker, and nothing else, while its job waits for measurements."""
        server = psutil.Process(self.stack.child("server").process.pid)
        workers = [child for child in server.children() if "worker" in " ".join(child.cmdline())]
        assert len(workers) == 1, [child.cmdline() for child in server.children()]
        workers[0].send_signal(signal.SIGKILL)
        self.landed["worker"] += 1

    def _hold_next_result(self) -> tuple[threading.Event, threading.Event]:
        held, go_on = threading.Event(), threading.Event()

        def hold(method: str, _: str) -> None:
            if method == "PUT" and not held.is_set():
                held.set()
                go_on.wait(120)

        self.gate.before = hold
        return held, go_on


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with LocalStack(tmp_path_factory.mktemp("stack")) as stack:
        stack.serve()
        yield stack


@pytest.fixture(scope="module")
def killed(stack: LocalStack) -> Iterator[Killed]:
    with Gate(stack.port).open() as gate, stack.client() as client:
        client.register_device(DEVICE)
        profile = client.submit(
            "profile",
            {"device": DEVICE, "space": SPACE.name, "references": 3, "measure_seconds": 1},
            idempotency_key="profile",
        )
        killer = Killer(stack, gate, profile.id)
        killer.inside_export()
        killer.inside_measuring()
        killer.inside_upload()
        killer.inside_commit()
        killer.the_worker_alone()
        result = outcome(client, profile)
        yield Killed(profile.id, result, killer.landed, gate.answered)


@pytest.fixture(scope="module")
def supernet(stack: LocalStack) -> str:
    with stack.client() as client:
        return str(outcome(client, client.submit("train", TRAINING, idempotency_key="train"))["supernet"])


def test_every_kill_landed_where_it_should(killed: Killed) -> None:
    assert killed.landed == {"export": 1, "measure": 1, "upload": 1, "commit": 1, "worker": 1}


def test_no_measurement_is_lost_or_doubled(stack: LocalStack, killed: Killed) -> None:
    with closing(sqlite3.connect(stack.data / "heatnas.sqlite")) as database:
        stored = {row for (row,) in database.execute("SELECT id FROM measurements")}
        tasks = database.execute(
            "SELECT item_key, state, measurement_id FROM tasks WHERE job_id = ?", [killed.job]
        ).fetchall()
        late = database.execute("SELECT count(*) FROM measurements WHERE late").fetchone()[0]
    told = {path.rpartition("/")[2] for path in killed.answered}
    keys = [block.key for block in SPACE.all_blocks()]

    assert told == stored
    assert {state for _, state, _ in tasks} == {"done"}
    assert len({measurement for *_, measurement in tasks}) == len(tasks)
    assert sorted(key for key, *_ in tasks if not key.startswith("network:")) == sorted(keys)
    assert len(stored) - late == len(tasks)


def test_the_table_covers_the_space(stack: LocalStack, killed: Killed) -> None:
    with stack.client() as client:
        rows = client.rows(killed.result["edition"])

    assert {row["block_key"] for row in rows} == {block.key for block in SPACE.all_blocks()}
    assert all(row["fps"] == pytest.approx(1000 / row["latency_ms"]) for row in rows)


def test_a_thinning_ends_in_a_file_measured_on_the_device(stack: LocalStack, killed: Killed, supernet: str) -> None:
    edition = killed.result["edition"]
    with stack.client() as client:
        importance = Importance.model_validate(client.importance(supernet))
        latency = latency_model(client.rows(edition), client.edition(edition))
        target_fps = feasible_range(SPACE, importance, latency).at(0.5)
        order = {
            "device": DEVICE,
            "supernet": supernet,
            "target_fps": target_fps,
            "max_rounds": 1,
            "measure_seconds": 1,
        }
        job = client.submit("thin", order)
        result = outcome(client, job)
        files = {artifact.name: artifact for artifact in client.artifacts(job.id)}
        contents = {name: client.download(job.id, name) for name in files}

    config = SPACE.check(Config.model_validate(json.loads(contents["config.json"])["config"]))
    last = result["rounds"][-1]
    assert set(files) == {"config.json", "model.onnx", "evidence.json"}
    assert all(hashlib.sha256(contents[name]).hexdigest() == file.sha256 for name, file in files.items())
    assert (config.id, result["edition"], result["supernet"]) == (result["config_id"], edition, supernet)
    assert latency.predict_ms(SPACE.blocks(config)) == pytest.approx(last["predicted_ms"])
    assert last["onnx_sha256"] == files["model.onnx"].sha256
    assert last["measured_fps"] == pytest.approx(1000 / last["measured_ms"])
    assert result["status"] == ("met" if last["measured_fps"] >= target_fps else "missed")
    assert json.loads(contents["evidence.json"]) == result


def test_a_target_out_of_reach_is_refused_with_what_is_possible(
    stack: LocalStack, killed: Killed, supernet: str
) -> None:
    with stack.client() as client, pytest.raises(RequestRefused, match="is out of reach") as caught:
        client.submit("thin", {"device": DEVICE, "supernet": supernet, "target_fps": 1e6})

    assert (caught.value.status, caught.value.error) == (409, "BudgetUnreachable")
    assert 0 < caught.value.details["fastest_fps"] < 1e6
    assert caught.value.details["binding"]
    assert killed.result["edition"]
