import json
import re
import threading
from collections.abc import Iterator

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from lookup_tables.calibration import Point, fit
from server.database import JobState
from tests.server.webs import DEVICE, NANO, NOW, calibration, open_web, plant_supernet, plant_table, services


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    yield from open_web(tmp_path_factory.mktemp("web") / "data")


def submit(web: TestClient) -> str:
    job: str = web.post("/v1/supernets", json={"steps": 5}).json()["id"]
    return job


def stream(web: TestClient, job: str, **headers: str) -> list[tuple[int, str, str]]:
    """Follow a job to its end; return number, kind and message of each event."""
    text = web.get(f"/v1/jobs/{job}/stream", headers=headers).text
    found = re.findall(r"event: (\w+)\ndata: (.+)\nid: (\d+)\n", text)
    return [(int(number), kind, json.loads(data)["message"]) for kind, data, number in found]


def test_a_stream_ends_with_the_job_and_skips_nothing_of_a_long_one(web: TestClient) -> None:
    job = submit(web)
    for number in range(2, 521):
        services(web).jobs.event(job, "step", f"step {number}\nof many", now=NOW)
    services(web).jobs.fail(job, kind="E", message="broken", now=NOW)
    followed = stream(web, job)
    assert [number for number, _, _ in followed] == list(range(1, 522))
    assert followed[1] == (2, "step", "step 2\nof many")
    assert followed[-1] == (521, "failed", "broken")


def test_a_stream_taken_up_anywhere_has_no_gap_and_no_double(web: TestClient) -> None:
    job = submit(web)
    for number in range(2, 10):
        services(web).jobs.event(job, "step", str(number), now=NOW)
    web.post(f"/v1/jobs/{job}/cancel")
    for last in range(11):
        followed = stream(web, job, **{"Last-Event-ID": str(last)})
        assert [number for number, _, _ in followed] == list(range(last + 1, 11))


def test_a_stream_tells_what_happens_while_it_is_read(web: TestClient) -> None:
    job = submit(web)
    jobs = services(web).jobs

    def work() -> None:
        jobs.mark(job, JobState.RUNNING, now=NOW)
        jobs.event(job, "step", "half", now=NOW)
        jobs.succeed(job, {}, now=NOW)

    timer = threading.Timer(0.2, work)
    timer.start()
    followed = stream(web, job)
    timer.join()
    assert [kind for _, kind, _ in followed] == ["submitted", "running", "step", "succeeded"]


@pytest.mark.parametrize("last", ["-1", "x", str(10**30)])
def test_a_stream_refuses_a_number_that_is_none(web: TestClient, last: str) -> None:
    response = web.get(f"/v1/jobs/{submit(web)}/stream", headers={"Last-Event-ID": last})
    assert response.status_code == 422
    assert response.json()["message"].startswith("header.Last-Event-ID: Input should be")


def test_a_stream_of_an_unknown_job_is_404(web: TestClient) -> None:
    response = web.get("/v1/jobs/nope/stream")
    assert response.status_code == 404
    assert response.json()["error"] == "UnknownJob"


def test_events_come_in_pages_that_know_their_total(web: TestClient) -> None:
    job = submit(web)
    for number in range(2, 8):
        services(web).jobs.event(job, "step", str(number), now=NOW)
    body = web.get(f"/v1/jobs/{job}/events", params={"after": 2, "limit": 2, "offset": 1}).json()
    assert (body["total"], [event["seq"] for event in body["items"]]) == (5, [4, 5])
    too_far = web.get(f"/v1/jobs/{job}/events", params={"after": 2**40})
    assert too_far.json()["message"].startswith("query.after: Input should be less than or equal to 2147483648")
    assert web.get("/v1/jobs/nope/events").status_code == 404


def thin(web: TestClient, key: str, **changes: object) -> Response:
    body = {"device": DEVICE, "supernet": "latest", "target_fps": 1.0, **changes}
    return web.post("/v1/thinnings", json=body, headers={"Idempotency-Key": key})  # type: ignore[return-value]


def test_a_thinning_sent_again_is_not_judged_anew(web: TestClient) -> None:
    plant_supernet(web)
    edition = plant_table(web, NANO.all_blocks())
    first = thin(web, "once")
    assert first.status_code == 202
    # Meanwhile the calibration learns that everything takes a million times as long.
    slow = [point.model_copy(update={"measured_ms": 1e6 * point.measured_ms}) for point in calibration(NANO).points]
    corrected = fit([Point.model_validate(point) for point in slow]).model_copy(update={"revision": 2})
    services(web).tables.add_calibration(edition, corrected, now=NOW)
    assert thin(web, "twice").json()["error"] == "BudgetUnreachable"
    again = thin(web, "once")
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    conflict = thin(web, "once", target_fps=2.0)
    assert (conflict.status_code, conflict.json()["error"]) == (409, "IdempotencyConflict")
    assert web.get("/v1/jobs", params={"kind": "thin"}).json()["total"] == 1


def test_a_key_is_short_and_not_empty(web: TestClient) -> None:
    for key, rule in (("", "at least 1 character"), ("k" * 129, "at most 128 characters")):
        response = thin(web, key)
        assert response.status_code == 422
        assert f"header.Idempotency-Key: String should have {rule}" in response.json()["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/supernets", {"space": "resnet"}, 404, "space 'resnet' is unknown: choose one of heatdetr, "),
        ("/v1/supernets", {"steps": 0}, 422, "body.steps: Input should be greater than or equal to 1 (got 0)"),
        ("/v1/supernets", {"lr": 1}, 422, "body.lr: Extra inputs are not permitted (got 1)"),
        ("/v1/profiles", {"device": "nope"}, 404, "device 'nope' is unknown: register it (POST /v1/devices)"),
        ("/v1/profiles", {"device": "../x"}, 422, "body.device: String should match pattern"),
        ("/v1/profiles", {}, 422, "body.device: Field required"),
        ("/v1/profiles", [], 422, "body: Input should be a valid dictionary"),
    ],
)
def test_what_cannot_be_asked_is_named(web: TestClient, path: str, body: object, status: int, message: str) -> None:
    response = web.post(path, json=body)
    assert response.status_code == status
    assert response.json()["message"].startswith(message)


def test_files_are_served_as_files_and_only_by_name(web: TestClient) -> None:
    job = submit(web)
    given = services(web)
    for name, content in (("config.json", b"{}"), ("model.onnx", b"onnx")):
        given.jobs.add_artifact(job, name, given.blobs.put(content), len(content), "application/json", now=NOW)
    listed = web.get(f"/v1/jobs/{job}/artifacts", params={"limit": 1, "offset": 1}).json()
    assert (listed["total"], [item["name"] for item in listed["items"]]) == (2, ["model.onnx"])
    fetched = web.get(f"/v1/jobs/{job}/artifacts/config.json")
    assert fetched.content == b"{}"
    assert fetched.headers["content-type"] == "application/json"
    assert fetched.headers["content-disposition"] == 'attachment; filename="config.json"'
    assert fetched.headers["x-content-type-options"] == "nosniff"
    for path in ("%2e%2e%2f%2e%2e%2ftoken", "%2e%2e", "config.json%00"):
        assert web.get(f"/v1/jobs/{job}/artifacts/{path}").status_code in {404, 405, 422}, path


def test_jobs_are_filtered_by_what_exists(web: TestClient) -> None:
    wrong = web.get("/v1/jobs", params={"kind": "rm"})
    assert wrong.json()["message"].startswith("query.kind: Input should be 'train', 'profile' or 'thin'")
    wrong = web.get("/v1/jobs", params={"state": "asleep"})
    assert wrong.json()["message"].startswith("query.state: Input should be 'submitted', 'queued'")
