from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from nas.macs import gmacs
from nas.named import named_space
from tests.server.webs import DEVICE, NANO, block_ns, open_web, plant_supernet, plant_table, services

UNKNOWN_SUPERNET = (
    "supernet 'latest' is unknown: list them with GET /v1/supernets, or train one with `heatnas supernet`"
)


@pytest.fixture
def web(tmp_path: Path, sqlite_template: Path) -> Iterator[TestClient]:
    yield from open_web(tmp_path / "data", sqlite_template)


def routes(client: TestClient) -> list[tuple[str, str, dict[str, object]]]:
    """List (method, path, operation) of the OpenAPI document."""
    document = client.get("/v1/openapi.json").json()
    return [(method, path, spec) for path, item in document["paths"].items() for method, spec in item.items()]


def refusal(response: object) -> tuple[int, str, str]:
    status: int = response.status_code  # type: ignore[attr-defined]
    body = response.json()  # type: ignore[attr-defined]
    return status, body["error"], body["message"]


@pytest.mark.parametrize("header", [None, "Bearer ", "Bearer wrong", "Basic abc"])
def test_every_route_but_health_is_refused_without_the_token(web: TestClient, header: str | None) -> None:
    web_routes = routes(web)
    assert len(web_routes) >= 30
    if header is None:
        del web.headers["Authorization"]
    else:
        web.headers["Authorization"] = header
    for method, path, _ in [*web_routes, ("get", "/v1/openapi.json", {})]:
        response = web.request(method, path.replace("{", "").replace("}", ""))
        if path == "/v1/health":
            assert response.json()["status"] == "ok"
            continue
        status, error, message = refusal(response)
        assert (status, error) == (401, "NotAuthenticated"), path
        assert "send `Authorization: Bearer TOKEN`" in message


def test_unknown_paths_and_methods_have_the_one_error_shape(web: TestClient) -> None:
    message = "there is no GET /v1/nothing: GET /v1/openapi.json lists every route"
    assert refusal(web.get("/v1/nothing")) == (404, "NotFound", message)
    response = web.delete("/v1/devices")
    message = "there is no DELETE /v1/devices: this path takes GET, POST"
    assert refusal(response) == (405, "MethodNotAllowed", message)
    assert response.headers["allow"] == "GET, POST"


def test_spaces_tell_their_span_and_rows(web: TestClient) -> None:
    listed = web.get("/v1/spaces").json()["items"]
    assert [space["name"] for space in listed] == ["heatdetr", "heatdetr-xca", "heatdetr-edge", "heatdetr-nano"]
    nano = web.get("/v1/spaces/heatdetr-nano").json()
    assert nano["rows"] == len(NANO.all_blocks())
    assert nano["id"] == NANO.id
    assert nano["largest_gmacs"] == pytest.approx(gmacs(NANO.blocks(NANO.largest())))
    for path in ("/v1/spaces", "/v1/spaces/heatdetr-nano", "/v1/tables/any/coverage"):
        status, error, message = refusal(web.get(path, params={"classes": 0, "space": "heatdetr-nano"}))
        assert (status, error) == (422, "InvalidRequest")
        assert message == "query.classes: Input should be greater than or equal to 1 (got '0')"
    fitted = web.get("/v1/spaces/heatdetr-nano@cuda").json()
    assert (fitted["name"], fitted["id"]) == ("heatdetr-nano@cuda", named_space("heatdetr-nano@cuda", classes=3).id)
    assert fitted["rows"] < nano["rows"]
    for ask in (
        web.get("/v1/spaces/heatdetr-nano@gpu"),
        web.post("/v1/supernets", json={"space": "heatdetr-nano@gpu"}),
    ):
        status, error, message = refusal(ask)
        assert (status, error) == (404, "UnknownSpace")
        assert "unknown runtime profile 'gpu': choose one of heatdetr-nano@cpu, heatdetr-nano@cuda, or" in message
    status, error, message = refusal(web.get("/v1/spaces/resnet"))
    assert (status, error) == (404, "UnknownSpace")
    assert "choose one of heatdetr, heatdetr-xca, heatdetr-edge, heatdetr-nano" in message


def test_devices_are_registered_listed_and_found(web: TestClient) -> None:
    assert web.post("/v1/devices", json={"name": "jetson", "device_class": "jetson"}).status_code == 201
    assert web.post("/v1/devices", json={"name": "jetson"}).json()["device_class"] == "jetson"
    assert [device["name"] for device in web.get("/v1/devices").json()["items"]] == ["jetson"]
    assert web.get("/v1/devices/jetson").json()["description"] is None
    status, error, message = refusal(web.get("/v1/devices/pi"))
    assert (status, error) == (404, "UnknownDevice")
    assert "`heatnas-agent --device pi`" in message


@pytest.mark.parametrize("name", ["../etc", "a b", "<script>", "", "x" * 64, "\u202eabc"])
def test_hostile_device_names_are_refused(web: TestClient, name: str) -> None:
    status, error, message = refusal(web.post("/v1/devices", json={"name": name}))
    assert (status, error) == (422, "InvalidRequest")
    assert message.startswith("body.name: String should match pattern")


def test_rows_are_shown_as_milliseconds_and_frames_per_second(web: TestClient) -> None:
    edition = plant_table(web, NANO.all_blocks())
    page = web.get(f"/v1/tables/{edition}/rows", params={"kind": "wmsa", "channels": 64, "limit": 3}).json()
    wanted = [block for block in NANO.all_blocks() if block.kind == "wmsa" and block.channels_in == 64]
    assert page["total"] == len(wanted)
    assert len(page["items"]) == 3
    for row in page["items"]:
        assert row["fps"] == pytest.approx(1000 / row["latency_ms"])
    by_key = {block.key: block for block in wanted}
    row = page["items"][0]
    assert row["hot_ms"] == pytest.approx(block_ns(by_key[row["block_key"]]) / 1e6)
    assert row["cold_ms"] == pytest.approx(2 * row["hot_ms"])
    described = web.get(f"/v1/tables/{edition}").json()
    assert described["device"] == DEVICE
    assert described["rows"] == len(NANO.all_blocks())
    assert described["calibration"]["slope"] == pytest.approx(1)
    assert web.get("/v1/tables", params={"device": DEVICE}).json()["total"] == 1


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ({"kind": "conv"}, "query.kind: Input should be 'stem'"),
        ({"limit": 1001}, "query.limit: Input should be less than or equal to 1000 (got '1001')"),
        ({"offset": -1}, "query.offset: Input should be greater than or equal to 0 (got '-1')"),
        ({"channels": "wide"}, "query.channels: Input should be a valid integer"),
        ({"channels": 33}, "query.channels: Input should be a multiple of 32 (got '33')"),
        ({"channels": 10**30}, "query.channels: Input should be less than or equal to 65536"),
    ],
)
def test_bad_filters_name_value_and_rule(web: TestClient, query: dict[str, object], fault: str) -> None:
    status, error, message = refusal(web.get("/v1/tables/any/rows", params=query))
    assert (status, error) == (422, "InvalidRequest")
    assert fault in message


def test_coverage_names_missing_blocks_and_the_command(web: TestClient) -> None:
    blocks = NANO.all_blocks()
    edition = plant_table(web, blocks[:-2])
    found = web.get(f"/v1/tables/{edition}/coverage", params={"space": "heatdetr-nano"}).json()
    assert (found["total"], found["missing"]) == (len(blocks), 2)
    assert found["missing_blocks"] == [block.label for block in blocks[-2:]]
    assert found["command"] == f"heatnas profile --device {DEVICE} --space heatdetr-nano --classes 3 --threads 1"


def test_tables_travel_as_json_and_csv(web: TestClient, tmp_path: Path) -> None:
    edition = plant_table(web, NANO.all_blocks())
    exported = web.get(f"/v1/tables/{edition}/export")
    assert exported.headers["content-disposition"] == f'attachment; filename="table-{edition}.json"'
    csv = web.get(f"/v1/tables/{edition}/export", params={"format": "csv"}).text
    assert csv.splitlines()[0].startswith("edition,")
    assert len(csv.splitlines()) == 1 + len(NANO.all_blocks())
    for other in open_web(tmp_path / "other"):
        assert other.post("/v1/tables/import", content=exported.content).json() == {"edition": edition}
        assert other.get(f"/v1/tables/{edition}").json()["rows"] == len(NANO.all_blocks())
        tampered = exported.text.replace("workbench", "workbenck")
        status, error, _ = refusal(other.post("/v1/tables/import", content=tampered))
        assert (status, error) == (422, "TamperedExport")


def test_jobs_are_submitted_once_per_idempotency_key(web: TestClient) -> None:
    headers = {"Idempotency-Key": "night-run"}
    first = web.post("/v1/supernets", json={"steps": 5}, headers=headers)
    assert (first.status_code, first.json()["state"]) == (202, "submitted")
    again = web.post("/v1/supernets", json={"steps": 5}, headers=headers)
    assert again.json()["id"] == first.json()["id"]
    status, error, message = refusal(web.post("/v1/supernets", json={"steps": 6}, headers=headers))
    assert (status, error) == (409, "IdempotencyConflict")
    assert "'night-run' belongs to train job" in message
    assert web.get("/v1/jobs", params={"kind": "train"}).json()["total"] == 1


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"target_fps": -3}, "body.target_fps: Input should be greater than or equal to 0.001 (got -3)"),
        ({"target_fps": 5e-324}, "body.target_fps: Input should be greater than or equal to 0.001 (got 5e-324)"),
        ({"target_fps": 1.79e308}, "body.target_fps: Input should be less than or equal to 1000000 (got 1.79e+308)"),
        ({"target_fps": 20, "edition": ""}, "body.edition: String should have at least 1 character (got '')"),
        ({"target_fps": "fast"}, 'body.target_fps: Value error, "fast" is not a number: write it without quotes'),
        ({"target_fps": 20, "colour": "red"}, "body.colour: Extra inputs are not permitted (got 'red')"),
        ({"target_fps": 20, "solver": "magic"}, "body.solver: Input should be 'thin_all_stages'"),
        ({"target_fps": 20, "threads": 0}, "body.threads: Input should be greater than or equal to 1 (got 0)"),
    ],
)
def test_bad_thinning_requests_name_value_and_rule(web: TestClient, body: dict[str, object], fault: str) -> None:
    response = web.post("/v1/thinnings", json={"device": DEVICE, "supernet": "latest", **body})
    status, error, message = refusal(response)
    assert (status, error) == (422, "InvalidRequest")
    assert fault in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(web: TestClient, number: str) -> None:
    body = f'{{"device": "{DEVICE}", "supernet": "latest", "target_fps": {number}}}'
    response = web.post("/v1/thinnings", content=body, headers={"Content-Type": "application/json"})
    status, error, message = refusal(response)
    assert (status, error) == (422, "InvalidRequest")
    assert "target_fps" in message


def test_thinning_needs_a_supernet_a_device_and_a_covering_table(web: TestClient) -> None:
    body = {"device": DEVICE, "supernet": "latest", "target_fps": 1.0}
    assert refusal(web.post("/v1/thinnings", json=body)) == (404, "UnknownSupernet", UNKNOWN_SUPERNET)
    plant_supernet(web)
    assert refusal(web.post("/v1/thinnings", json=body))[:2] == (404, "UnknownDevice")
    partial = plant_table(web, NANO.all_blocks()[:-1])
    label = NANO.all_blocks()[-1].label
    command = f"heatnas profile --device {DEVICE} --space heatdetr-nano --classes 3 --threads 1"
    for asked in (body, {**body, "edition": partial}):
        refused = web.post("/v1/thinnings", json=asked)
        assert refused.status_code == 409
        assert refused.json() == {
            "error": "MissingBlocks",
            "message": f"the table has no row for 1 block(s): {label}. Measure them with `{command}`.",
            "missing": 1,
            "blocks": [label],
            "command": command,
        }
    assert refusal(web.post("/v1/thinnings", json={**body, "edition": "beef"}))[:2] == (404, "UnknownEdition")
    plant_table(web, NANO.all_blocks())
    assert web.post("/v1/thinnings", json=body).json()["parameters"]["supernet"] == "train-1"


@pytest.mark.parametrize(("device", "threads"), [("laptop", 1), (DEVICE, 4)])
def test_a_table_of_another_device_or_thread_count_answers_nothing(web: TestClient, device: str, threads: int) -> None:
    plant_supernet(web)
    edition = plant_table(web, NANO.all_blocks())
    web.post("/v1/devices", json={"name": "laptop"})
    body = {"device": device, "threads": threads, "supernet": "latest", "target_fps": 1.0}
    message = (
        f"edition {edition} is the table of {DEVICE} with 1 thread(s), not of {device} with {threads}: "
        f"choose one of GET /v1/tables?device={device}"
    )
    assert refusal(web.post("/v1/thinnings", json={**body, "edition": edition})) == (404, "UnknownEdition", message)
    command = f"heatnas profile --device {device} --space heatdetr-nano --classes 3 --threads {threads}"
    message = f"device {device!r} has no table with {threads} thread(s): measure one with `{command}`"
    assert refusal(web.post("/v1/thinnings", json=body)) == (404, "UnknownEdition", message)


def test_an_unreachable_target_is_refused_with_the_fastest_and_what_binds(web: TestClient) -> None:
    plant_supernet(web)
    plant_table(web, NANO.all_blocks())
    response = web.post("/v1/thinnings", json={"device": DEVICE, "supernet": "latest", "target_fps": 1e6})
    status, error, message = refusal(response)
    assert (status, error) == (409, "BudgetUnreachable")
    fastest_fps = response.json()["fastest_fps"]
    assert f"runs at {fastest_fps:.2f} FPS" in message
    assert f"{response.json()['binding']} binds" in message
    asked = {"device": DEVICE, "supernet": "latest", "target_fps": 0.999 * fastest_fps}
    assert web.post("/v1/thinnings", json=asked).status_code == 202


def test_a_job_can_be_followed_cancelled_and_has_no_result_then(web: TestClient) -> None:
    job = web.post("/v1/supernets", json={"steps": 5}).json()["id"]
    assert refusal(web.get(f"/v1/jobs/{job}/result"))[:2] == (409, "JobNotFinished")
    assert web.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    events = web.get(f"/v1/jobs/{job}/events").json()["items"]
    assert [(event["seq"], event["kind"]) for event in events] == [(1, "submitted"), (2, "cancelled")]
    assert [e["seq"] for e in web.get(f"/v1/jobs/{job}/events", params={"after": 1}).json()["items"]] == [2]
    with web.stream("GET", f"/v1/jobs/{job}/stream", headers={"Last-Event-ID": "1"}) as stream:
        text = stream.read().decode()
    assert "id: 2" in text
    assert "event: cancelled" in text
    assert "id: 1" not in text
    status, error, message = refusal(web.get("/v1/jobs/nope"))
    assert (status, error) == (404, "UnknownJob")
    assert message == "job 'nope' is unknown: list the jobs with GET /v1/jobs"


def test_files_of_a_job_are_listed_and_served_by_name(web: TestClient) -> None:
    job = web.post("/v1/supernets", json={"steps": 5}).json()["id"]
    given = services(web)
    sha256 = given.blobs.put(b"onnx")
    given.jobs.add_artifact(job, "model.onnx", sha256, 4, "application/octet-stream", now=given.clock())
    assert web.get(f"/v1/jobs/{job}/artifacts").json()["items"][0]["sha256"] == sha256
    fetched = web.get(f"/v1/jobs/{job}/artifacts/model.onnx")
    assert fetched.content == b"onnx"
    assert fetched.headers["x-content-type-options"] == "nosniff"
    status, error, message = refusal(web.get(f"/v1/jobs/{job}/artifacts/secrets"))
    assert (status, error) == (404, "UnknownArtifact")
    assert message == f"job {job} has no file 'secrets': it has model.onnx"


def test_blobs_are_named_by_hash_alone(web: TestClient) -> None:
    sha256 = services(web).blobs.put(b"graph")
    assert web.get(f"/v1/blobs/{sha256}").content == b"graph"
    assert refusal(web.get(f"/v1/blobs/{'0' * 64}"))[:2] == (404, "UnknownBlob")
    assert refusal(web.get("/v1/blobs/..%2F..%2Ftoken"))[0] in {404, 422}


def test_too_large_bodies_are_refused_before_they_are_read(web: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        yield from [b" " * 2**20] * 2

    for content, size in ((b" " * 2**21, "2097152 bytes"), (pieces(), "more")):  # its length announced, or not
        response = web.post("/v1/devices", content=content, headers={"Content-Type": "application/json"})
        status, error, message = refusal(response)
        assert (status, error) == (413, "ContentTooLarge")
        assert message.startswith(f"the body has {size}, this route takes 1048576 bytes: send less")


def test_tables_and_results_may_be_larger_than_other_bodies(web: TestClient) -> None:
    big = b" " * 2**21 + b"{}"
    assert refusal(web.post("/v1/tables/import", content=big))[:2] == (422, "InvalidExport")
    headers = {"Content-Type": "application/json"}
    assert refusal(web.put(f"/v1/results/{'0' * 64}", content=big, headers=headers))[:2] == (422, "InvalidRequest")


def test_a_pathologically_nested_body_is_refused(web: TestClient) -> None:
    nested = b"[" * 500_000
    headers = {"Content-Type": "application/json"}
    assert refusal(web.post("/v1/devices", content=nested, headers=headers))[:2] == (422, "InvalidRequest")
    assert refusal(web.post("/v1/tables/import", content=nested))[:2] == (422, "InvalidExport")
