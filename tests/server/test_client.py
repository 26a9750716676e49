import json
from collections.abc import Callable

import httpx2
import pytest

from server.client import Client, Event, JobNotSucceeded, RequestRefused, ServerUnreachable

Handler = Callable[[httpx2.Request], httpx2.Response]


def client(handler: Handler, **options: float) -> Client:
    return Client(
        "http://server:1/", "secret", transport=httpx2.MockTransport(handler), sleep=lambda _: None, **options
    )


def job(state: str = "running", **more: object) -> dict[str, object]:
    return {"id": "j1", "kind": "thin", "state": state, "progress": 0.5, "unknown_to_this_client": 1, **more}


def test_submit_sends_token_body_and_idempotency_key() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(202, json=job("queued"))

    submitted = client(answer).submit("thin", {"target_fps": 30.0}, idempotency_key="k1")

    assert (submitted.id, submitted.state, submitted.is_final) == ("j1", "queued", False)
    assert str(seen[0].url) == "http://server:1/v1/thinnings"
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert seen[0].headers["idempotency-key"] == "k1"
    assert json.loads(seen[0].content) == {"target_fps": 30.0}


@pytest.mark.parametrize(
    ("kind", "path"), [("train", "/v1/supernets"), ("profile", "/v1/profiles"), ("thin", "/v1/thinnings")]
)
def test_each_kind_of_job_has_its_address(kind: str, path: str) -> None:
    paths: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.path)
        return httpx2.Response(202, json=job())

    client(answer).submit(kind, {})  # type: ignore[arg-type]

    assert paths == [path]


def test_a_refusal_speaks_the_servers_words() -> None:
    body = {"error": "BudgetUnreachable", "message": "900 FPS is out of reach: ask for less", "fastest_fps": 120.5}

    with pytest.raises(RequestRefused, match=r"^900 FPS is out of reach: ask for less$") as caught:
        client(lambda _: httpx2.Response(409, json=body)).submit("thin", {})

    assert (caught.value.status, caught.value.error) == (409, "BudgetUnreachable")
    assert caught.value.details["fastest_fps"] == 120.5


def test_an_answer_of_something_in_between_is_named_as_such() -> None:
    with pytest.raises(
        RequestRefused, match=r"http://server:1/v1/health answered 502 Bad Gateway, which HeatNAS does not"
    ):
        client(lambda _: httpx2.Response(502, text="<html>proxy</html>")).health()


def failing(times: int, then: Handler) -> tuple[Handler, list[str]]:
    tries: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        tries.append(request.method)
        if len(tries) <= times:
            raise httpx2.ConnectError("connection refused", request=request)
        return then(request)

    return answer, tries


def test_a_server_that_restarts_is_waited_for() -> None:
    answer, tries = failing(3, lambda _: httpx2.Response(200, json={"status": "ok"}))

    assert client(answer).health() == {"status": "ok"}
    assert len(tries) == 4


def test_a_submission_without_key_is_never_sent_twice() -> None:
    answer, tries = failing(1, lambda _: httpx2.Response(202, json=job()))

    with pytest.raises(ServerUnreachable, match=r"no answer from http://server:1 .*heatnas serve"):
        client(answer).submit("thin", {})
    assert tries == ["POST"]


def test_a_submission_with_key_is_repeated() -> None:
    answer, tries = failing(1, lambda _: httpx2.Response(202, json=job()))

    assert client(answer).submit("thin", {}, idempotency_key="k").id == "j1"
    assert tries == ["POST", "POST"]


def test_patience_ends() -> None:
    answer, tries = failing(10**6, lambda _: httpx2.Response(200, json={}))

    with pytest.raises(ServerUnreachable):
        client(answer, patience_seconds=5).health()
    assert 3 < len(tries) < 12


def test_all_pages_of_a_list_are_read() -> None:
    rows = [{"number": number} for number in range(1203)]

    def answer(request: httpx2.Request) -> httpx2.Response:
        offset, limit = int(request.url.params["offset"]), int(request.url.params["limit"])
        return httpx2.Response(200, json={"items": rows[offset : offset + limit], "total": len(rows)})

    assert client(answer).rows("e1") == rows


class Work:
    """A server whose job takes three looks to finish."""

    def __init__(self, last: dict[str, object]) -> None:
        self.looks = 0
        self.last = last

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/events"):
            after = int(request.url.params["after"])
            events = [{"seq": seq, "kind": "note", "message": f"step {seq}"} for seq in range(1, self.looks + 1)]
            return httpx2.Response(200, json={"items": events[after:]})
        self.looks += 1
        return httpx2.Response(200, json=self.last if self.looks == 3 else job())


def test_following_a_job_tells_each_event_once_up_to_the_last() -> None:
    told: list[Event] = []
    progress: list[float] = []

    ended = client(Work(job("succeeded", progress=1.0))).follow(
        "j1", on_event=told.append, on_progress=lambda seen: progress.append(seen.progress)
    )

    assert ended.state == "succeeded"
    assert [event.seq for event in told] == [1, 2, 3]
    assert progress == [0.5, 0.5, 1.0]


def test_a_failed_job_has_no_outcome_but_a_cause() -> None:
    failed = job("failed", error={"error": "MissingBlocks", "message": "the table has no row for 3 block(s)"})
    talk = client(Work(failed))

    with pytest.raises(JobNotSucceeded, match=r"^thin job j1 failed: the table has no row for 3 block\(s\)$"):
        talk.outcome(talk.follow("j1", on_event=lambda _: None))


def test_names_cannot_leave_their_place_in_the_path() -> None:
    paths: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.raw_path)
        return httpx2.Response(200, content=b"onnx")

    assert client(answer).download("j1", "../model.onnx") == b"onnx"
    assert paths == [b"/v1/jobs/j1/artifacts/..%2Fmodel.onnx"]
