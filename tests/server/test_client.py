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
        RequestRefused, match=r"http://server:1/v1/health answered 502 Bad Gateway in a way that HeatNAS does not"
    ):
        client(lambda _: httpx2.Response(502, text="<html>proxy</html>")).health()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx2.Response(520, text="<html>"), "answered 520 without a word in a way that HeatNAS does not"),
        (httpx2.Response(200, text="<html>"), "answered 200 OK in a way that HeatNAS does not: check the address"),
        (httpx2.Response(200, json=[]), "answered 200 OK in a way that HeatNAS does not: check the address"),
        (
            httpx2.Response(200, json={"ok": True}),
            r"no Job \(id: Field required\): install the same version of HeatNAS",
        ),
        (httpx2.Response(200, json=job(progress="half")), r"no Job \(progress: Input should be a valid number"),
    ],
)
def test_whatever_answers_instead_is_a_refusal(reply: httpx2.Response, message: str) -> None:
    with pytest.raises(RequestRefused, match=message):
        client(lambda _: reply).job("j1")


def test_a_page_of_another_shape_is_a_refusal() -> None:
    with pytest.raises(RequestRefused, match=r"no Page \(items: Field required\)"):
        client(lambda _: httpx2.Response(200, json={})).devices()


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(ServerUnreachable, match=r"'http://\[::' is no address .*: write http://HOST:PORT"):
        Client("http://[::", "secret")


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


def busy(times: int, status: int, **headers: str) -> tuple[Handler, list[str]]:
    tries: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        tries.append(request.method)
        body = {"error": "OperationalError", "message": "the database does not answer: try again"}
        ended = httpx2.Response(200, json=job("succeeded"))
        return httpx2.Response(status, json=body, headers=headers) if len(tries) <= times else ended

    return answer, tries


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_passes_by_itself_does_not_end_the_following_of_a_job(status: int) -> None:
    answer, tries = busy(3, status)
    assert client(answer).job("j1").state == "succeeded"
    assert len(tries) == 4


def test_a_refusal_that_does_not_pass_is_told_in_the_servers_words() -> None:
    answer, tries = busy(10**6, 503)
    with pytest.raises(RequestRefused, match="the database does not answer"):
        client(answer, patience_seconds=5).job("j1")
    assert 3 < len(tries) < 12
    answer, tries = busy(10**6, 500)
    with pytest.raises(RequestRefused):
        client(answer).job("j1")
    answer, tries = busy(10**6, 503)
    with pytest.raises(RequestRefused):
        client(answer).cancel("j1")
    assert tries == ["POST"]


def test_the_server_says_how_long_to_wait() -> None:
    waits: list[float] = []
    for asked in ("7", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 400):
        answer, _ = busy(1, 503, **{"Retry-After": asked})
        Client("http://s", "t", transport=httpx2.MockTransport(answer), sleep=waits.append).job("j1")
    assert waits == [7, 0.25, 30]


def test_a_job_is_followed_longer_than_a_wrong_address_is_tried() -> None:
    answer, tries = failing(8, Work(job("succeeded")))
    talk = client(answer, patience_seconds=1)
    assert talk.follow("j1", on_event=lambda _: None).state == "succeeded"
    assert len(tries) > 8


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


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("cancelled", "thin job j1 was cancelled: submit it again to have its result"),
        ("running", "thin job j1 is running and has no result yet: wait for it, `heatnas show j1 --follow`"),
    ],
)
def test_a_job_without_a_result_says_what_to_do(state: str, message: str) -> None:
    talk = client(lambda _: httpx2.Response(200, json=job(state)))
    with pytest.raises(JobNotSucceeded, match=f"^{message}$"):
        talk.outcome(talk.job("j1"))


def test_names_cannot_leave_their_place_in_the_path() -> None:
    paths: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.raw_path)
        return httpx2.Response(200, content=b"onnx")

    assert client(answer).download("j1", "../model.onnx") == b"onnx"
    assert paths == [b"/v1/jobs/j1/artifacts/..%2Fmodel.onnx"]
