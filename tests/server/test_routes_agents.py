"""The agent protocol as an agent sees it: over HTTP, on a real database, with the server's clock in the test's hand."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import Response
from starlette.testclient import TestClient

from profiler.identity import result_id
from profiler.wire import Execution, Policy, Result
from server.app import create_app
from server.database import writing
from server.parameters import ProfileParameters
from server.services import Services
from server.settings import Settings
from server.tasks import Item, add_tasks
from tests.lookup_tables.results import a_result, described, timed
from tests.server.webs import NOW

Json = dict[str, Any]
GRAPHS = (b"first graph", b"second graph")
SHAS = [hashlib.sha256(graph).hexdigest() for graph in GRAPHS]


@dataclass
class Clock:
    """The server's time, moved by hand."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Bench:
    client: TestClient
    services: Services
    clock: Clock

    def post(self, path: str, body: Json | None = None) -> Response:
        return self.client.post(path, json={} if body is None else body)  # type: ignore[return-value]

    def enrol(self, device: str = "pi", machine: str = "m" * 64) -> str:
        body = {"device": device, "protocol": 1, "agent_version": "0.1.0"}
        answer = self.post("/v1/agents", {**body, "description": described(machine=machine).model_dump(mode="json")})
        assert answer.status_code == 201
        assert answer.json()["lease_seconds"] == 120
        assert answer.json()["renew_seconds"] == 40
        found: str = answer.json()["agent_id"]
        return found

    def lease(self, agent: str, max_tasks: int = 32, wait_seconds: float = 0) -> Json:
        asked = {"max_tasks": max_tasks, "wait_seconds": wait_seconds}
        answer = self.post(f"/v1/agents/{agent}/leases", asked)
        assert answer.status_code == 200
        found: Json = answer.json()
        return found

    def plan(self, device: str = "pi") -> str:
        """Submit a job with one task per graph."""
        jobs = self.services.jobs
        job = jobs.submit("profile", ProfileParameters(device=device), key=None, now=self.clock()).id
        items = [
            Item(
                key=f"network:{number}",
                label=f"network {number}",
                graph_sha256=self.services.blobs.put(graph),
                graph_bytes=len(graph),
                execution=Execution(),
                policy=Policy(),
            )
            for number, graph in enumerate(GRAPHS)
        ]
        with writing(self.services.database) as session:
            add_tasks(session, job, device, items, now=self.clock())
        return job

    def states(self, job: str) -> list[str]:
        items = self.client.get("/v1/tasks", params={"job": job}).json()["items"]
        return [item["state"] for item in items]


@pytest.fixture
def bench(tmp_path: Path, sqlite_template: Path) -> Iterator[Bench]:
    clock = Clock()
    copyfile(sqlite_template, tmp_path / "heatnas.sqlite")
    app: FastAPI = create_app(Settings(data=tmp_path), clock=clock)
    with TestClient(app) as client:
        client.headers["Authorization"] = f"Bearer {(tmp_path / 'token').read_text().strip()}"
        yield Bench(client, app.state.services, clock)
    app.state.services.database.dispose()


def measured(agent: str, task: Json, *, hot_ns: tuple[int, ...] = (400, 410, 420)) -> Result:
    return a_result(task=task["task_id"], timing=timed(hot_ns=hot_ns, cold_ns=(900,))).model_copy(
        update={"agent_id": agent, "attempt": task["attempt"], "graph_sha256": task["graph_sha256"]}
    )


def put(bench: Bench, result: Result, identity: str | None = None) -> Response:
    content = result.model_dump_json()
    headers = {"Content-Type": "application/json"}
    path = f"/v1/results/{identity or result_id(result)}"
    return bench.client.put(path, content=content, headers=headers)  # type: ignore[return-value]


def refusal(response: Response) -> tuple[int, str, str]:
    body = response.json()
    return response.status_code, body["error"], body["message"]


def test_an_agent_measures_all_there_is(bench: Bench) -> None:
    agent = bench.enrol()
    assert bench.enrol() == agent
    assert bench.client.get("/v1/devices/pi").json()["description"]["machine_hash"] == "m" * 64
    assert bench.lease(agent) == {"lease_id": None, "lease_seconds": 120, "tasks": []}
    job = bench.plan()
    lease = bench.lease(agent)
    assert [task["graph_sha256"] for task in lease["tasks"]] == SHAS
    assert bench.states(job) == ["leased", "leased"]
    renewed = bench.post(f"/v1/leases/{lease['lease_id']}/renew", {"done": 0, "total": 2})
    assert renewed.json() == {"lease_seconds": 120, "cancelled": []}
    for task, graph in zip(lease["tasks"], GRAPHS, strict=True):
        fetched = bench.client.get(f"/v1/blobs/{task['graph_sha256']}")
        assert fetched.content == graph
        assert fetched.headers["content-type"] == "application/octet-stream"
        assert fetched.headers["content-disposition"].startswith("attachment")
        result = measured(agent, task)
        for _ in range(3):  # the same any number of times
            receipt = put(bench, result)
            assert (receipt.status_code, receipt.json()) == (
                200, {"measurement_id": result_id(result), "late": False},
            )  # fmt: skip
    assert bench.states(job) == ["done", "done"]
    assert bench.post(f"/v1/leases/{lease['lease_id']}/release").status_code == 204
    assert bench.lease(agent)["tasks"] == []


def test_a_result_that_is_not_what_its_id_says_is_refused(bench: Bench) -> None:
    agent = bench.enrol()
    job = bench.plan()
    (first, second) = bench.lease(agent)["tasks"]
    result, other = measured(agent, first), measured(agent, first, hot_ns=(500, 510, 520))
    status, error, message = refusal(put(bench, other, identity=result_id(result)))
    assert (status, error) == (422, "ResultMismatch")
    assert message.endswith(f"its hash is {result_id(other)}: send it under that")
    wrong_graph = measured(agent, {**first, "graph_sha256": SHAS[1]})
    status, error, message = refusal(put(bench, wrong_graph))
    assert (status, error) == (422, "ResultMismatch")
    assert f"the result is of graph {SHAS[1]}, task {first['task_id']} is of {SHAS[0]}" in message
    ahead = measured(agent, {**second, "attempt": 7})
    assert "attempt 7 of task" in refusal(put(bench, ahead))[2]
    assert bench.states(job) == ["leased", "leased"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hot_ms", "NaN", "body.timing.hot_ms: Input should be a finite number (got nan)"),
        ("hot_ms", "-1", "body.timing.hot_ms: Input should be greater than 0 (got -1)"),
        ("hot_ms", "0", "body.timing.hot_ms: Input should be greater than 0 (got 0)"),
        ("cold_ms", "Infinity", "body.timing.cold_ms: Input should be a finite number (got inf)"),
        ("rounds", "0", "body.timing.rounds: Input should be greater than or equal to 1 (got 0)"),
        ("rounds", str(2**31), "body.timing.rounds: Input should be less than 2147483648"),
        ("low_ms", "-5", "body.timing.low_ms: Input should be greater than 0 (got -5)"),
        ("high_ms", "0", "body.timing.high_ms: Input should be greater than 0 (got 0)"),
        ("confidence", "-7", "body.timing.confidence: Input should be greater than 0.5 (got -7)"),
        ("confidence", "7", "body.timing.confidence: Input should be less than 1 (got 7)"),
        ("outliers", str(10**30), "body.timing.outliers: Input should be less than 2147483648"),
        ("hot_ns", f"[{2**63}]", "body.timing.hot_ns.0: Input should be less than 9223372036854775808"),
    ],
)
def test_impossible_numbers_are_refused_by_name(bench: Bench, field: str, value: str, message: str) -> None:
    agent = bench.enrol()
    job = bench.plan()
    result = measured(agent, bench.lease(agent)["tasks"][0])
    body = result.model_dump(mode="json")
    body["timing"][field] = "HERE"
    text = json.dumps(body).replace('"HERE"', value)
    headers = {"Content-Type": "application/json"}
    answer = bench.client.put(f"/v1/results/{result_id(result)}", content=text, headers=headers)
    assert refusal(answer)[:2] == (422, "InvalidRequest")  # type: ignore[arg-type]
    assert answer.json()["message"].startswith(message)
    assert "done" not in bench.states(job)


def test_numbers_that_contradict_each_other_are_refused(bench: Bench) -> None:
    agent = bench.enrol()
    bench.plan()
    task = bench.lease(agent)["tasks"][0]
    honest = measured(agent, task)
    boast = honest.model_copy(update={"timing": honest.timing.model_copy(update={"hot_ms": honest.timing.hot_ms / 2})})
    status, error, message = refusal(put(bench, boast))
    assert (status, error) == (422, "InvalidMeasurement")
    assert "send the samples the median was taken of" in message


@pytest.mark.parametrize("change", [{"high_ms": 1e300}, {"outliers": 4}, {"low_ms": 1e-9}], ids=min)
def test_an_interval_or_count_the_samples_cannot_have_is_refused(bench: Bench, change: Json) -> None:
    agent = bench.enrol()
    job = bench.plan()
    honest = measured(agent, bench.lease(agent)["tasks"][0])
    boast = honest.model_copy(update={"timing": honest.timing.model_copy(update=change)})
    assert refusal(put(bench, boast))[:2] == (422, "InvalidMeasurement")
    assert "done" not in bench.states(job)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_that_no_calendar_has_in_utc_is_refused(bench: Bench, moment: str) -> None:
    agent = bench.enrol()
    bench.plan()
    result = measured(agent, bench.lease(agent)["tasks"][0]).model_copy(update={"measured_at": moment})
    status, error, message = refusal(put(bench, result))
    assert (status, error) == (422, "InvalidMeasurement")
    assert f"measured_at '{moment}' is no ISO 8601 time of the years 1 to 9999" in message


HOSTILE = ["\ud800", "a\x00b", "\x1b[2J", "\u202eabc", "x" * 20_000]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:8]))
def test_no_hostile_text_comes_in(bench: Bench, text: str) -> None:
    agent = bench.enrol()
    bench.plan()
    task = bench.lease(agent)["tasks"][0]
    described_as = described().model_dump(mode="json")
    enrolment = {"device": "pi", "protocol": 1, "agent_version": "1", "description": described_as}
    failure = {"agent_id": agent, "attempt": 1, "failure": "crash", "message": "m"}
    result = measured(agent, task).model_dump(mode="json")
    attempts: list[tuple[str, str, Json]] = [
        ("POST", "/v1/agents", {**enrolment, "agent_version": text}),
        ("POST", "/v1/agents", {**enrolment, "description": {**described_as, "cpu_model": text}}),
        ("POST", "/v1/agents", {**enrolment, "description": {**described_as, "runtimes": {text: "1"}}}),
        ("POST", f"/v1/tasks/{task['task_id']}/failures", {**failure, "agent_id": text}),
        ("POST", f"/v1/tasks/{task['task_id']}/failures", {**failure, "message": text}),
        ("PUT", f"/v1/results/{SHAS[0]}", {**result, "context": {"a": text}}),
        ("PUT", f"/v1/results/{SHAS[0]}", {**result, "context": {text: "a"}}),
        ("POST", "/v1/thinnings", {"device": "pi", "supernet": "latest", "target_fps": 1, "edition": text}),
    ]
    for method, path, body in attempts:
        answer = bench.client.request(
            method, path, content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        assert refusal(answer)[:2] == (422, "InvalidRequest"), (path, body)  # type: ignore[arg-type]
        assert len(answer.json()["message"]) < 1000
    assert bench.client.get("/v1/devices").json()["items"][0]["description"] == described_as


def test_a_lease_that_ran_out_is_given_to_the_next(bench: Bench) -> None:
    agent = bench.enrol()
    job = bench.plan()
    first = bench.lease(agent)
    bench.clock.pass_seconds(119)
    assert bench.lease(agent)["tasks"] == []
    assert bench.post(f"/v1/leases/{first['lease_id']}/renew", {"done": 0, "total": 2}).status_code == 200
    bench.clock.pass_seconds(119)
    assert bench.lease(agent)["tasks"] == []
    bench.clock.pass_seconds(1)
    second = bench.lease(agent)
    assert [task["attempt"] for task in second["tasks"]] == [2, 2]
    lost = bench.post(f"/v1/leases/{first['lease_id']}/renew", {"done": 1, "total": 2})
    assert refusal(lost)[:2] == (410, "LeaseLost")
    late = put(bench, measured(agent, first["tasks"][0]))
    assert late.json()["late"] is True
    assert bench.states(job) == ["leased", "leased"]
    assert put(bench, measured(agent, second["tasks"][0])).json()["late"] is False
    assert sorted(bench.states(job)) == ["done", "leased"]


def test_what_is_given_back_can_be_leased_at_once(bench: Bench) -> None:
    agent = bench.enrol()
    bench.plan()
    lease = bench.lease(agent, max_tasks=1)
    assert len(lease["tasks"]) == 1
    for _ in range(2):
        assert bench.post(f"/v1/leases/{lease['lease_id']}/release").status_code == 204
    assert len(bench.lease(agent)["tasks"]) == 2
    assert refusal(bench.post("/v1/leases/none/release")) == (
        404, "UnknownLease", "lease none is unknown: ask for a new lease",
    )  # fmt: skip


def test_an_agent_is_told_what_was_cancelled(bench: Bench) -> None:
    agent = bench.enrol()
    job = bench.plan()
    lease = bench.lease(agent)
    assert put(bench, measured(agent, lease["tasks"][0])).status_code == 200
    assert bench.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    renewed = bench.post(f"/v1/leases/{lease['lease_id']}/renew", {"done": 1, "total": 2})
    assert renewed.json()["cancelled"] == [lease["tasks"][1]["task_id"]]
    late = put(bench, measured(agent, lease["tasks"][1]))
    assert late.json()["late"] is True  # kept, since it was measured, but nobody waits for it
    assert sorted(bench.states(job)) == ["cancelled", "done"]


def test_failures_are_tried_again_unless_they_are_final(bench: Bench) -> None:
    agent = bench.enrol()
    bench.plan()
    tasks = bench.lease(agent)["tasks"]
    body = {"agent_id": agent, "attempt": 1, "message": "killed"}
    crashed = bench.post(f"/v1/tasks/{tasks[0]['task_id']}/failures", {**body, "failure": "crash"})
    assert crashed.json() == {"state": "pending"}
    final = bench.post(f"/v1/tasks/{tasks[1]['task_id']}/failures", {**body, "failure": "unsupported"})
    assert final.json() == {"state": "failed"}
    (failed,) = bench.client.get("/v1/tasks", params={"state": "failed"}).json()["items"]
    assert failed["failure"]["message"] == "killed"
    assert [task["attempt"] for task in bench.lease(agent)["tasks"]] == [2]
    odd = bench.post(f"/v1/tasks/{tasks[0]['task_id']}/failures", {**body, "failure": "bored"})
    assert refusal(odd)[:2] == (422, "InvalidRequest")
    assert "body.failure: Input should be 'hash_mismatch', 'unsupported'" in odd.json()["message"]


def test_strangers_to_the_protocol_are_told_what_to_do(bench: Bench) -> None:
    agent = bench.enrol()
    other = bench.enrol("laptop", machine="n" * 64)
    bench.plan()
    task = bench.lease(agent)["tasks"][0]
    assert refusal(bench.post("/v1/agents/nobody/leases", {})) == (
        404, "UnknownAgent", "agent nobody is unknown here: enrol with POST /v1/agents",
    )  # fmt: skip
    assert refusal(put(bench, measured(other, task)))[:2] == (409, "ResultRefused")
    unknown = measured(agent, {**task, "task_id": "t"})
    assert refusal(put(bench, unknown))[:2] == (404, "UnknownTask")
    body = {"device": "pi", "protocol": 99, "agent_version": "9.0", "description": described().model_dump(mode="json")}
    status, error, message = refusal(bench.post("/v1/agents", body))
    assert (status, error) == (426, "UpgradeRequired")
    assert "speaks protocol 99, this server 1: install the same version" in message
    clone = {**body, "protocol": 1, "description": described(machine="x" * 64).model_dump(mode="json")}
    status, error, message = refusal(bench.post("/v1/agents", clone))
    assert (status, error) == (409, "DeviceConflict")
    assert "start the agent with another --device name" in message
    assert refusal(bench.client.get(f"/v1/blobs/{'A' * 64}"))[:2] == (422, "InvalidRequest")  # type: ignore[arg-type]


def test_an_agent_that_waits_is_given_work_as_it_comes(bench: Bench) -> None:
    agent = bench.enrol()
    timer = threading.Timer(0.3, bench.plan)
    timer.start()
    lease = bench.lease(agent, wait_seconds=20)
    timer.join()
    assert [task["graph_sha256"] for task in lease["tasks"]] == SHAS


def test_an_agent_that_waits_gets_what_another_lost(bench: Bench) -> None:
    agent = bench.enrol()
    bench.plan()
    assert len(bench.lease(agent)["tasks"]) == 2
    timer = threading.Timer(0.3, bench.clock.pass_seconds, [120])
    timer.start()
    lease = bench.lease(agent, wait_seconds=20)
    timer.join()
    assert [task["attempt"] for task in lease["tasks"]] == [2, 2]


def test_tasks_are_listed_by_device_and_state_page_by_page(bench: Bench) -> None:
    bench.enrol()
    bench.enrol("laptop", machine="n" * 64)
    job = bench.plan()
    bench.plan("laptop")

    def listed(**query: str | int) -> tuple[int, list[str]]:
        body = bench.client.get("/v1/tasks", params=query).json()
        return body["total"], [item["job_id"] for item in body["items"]]

    assert listed(device="pi") == (2, [job, job])
    assert listed(device="pi", limit=1, offset=1) == (2, [job])
    assert listed(state="done") == (0, [])
    assert refusal(bench.client.get("/v1/tasks", params={"device": "none"}))[:2] == (404, "UnknownDevice")  # type: ignore[arg-type]
    wrong = bench.client.get("/v1/tasks", params={"state": "idle"})
    assert "query.state: Input should be 'pending', 'leased'" in wrong.json()["message"]
