import random
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from profiler.client import AgentClient
from profiler.errors import (
    DuplicateIdentity,
    HashMismatch,
    LeaseLost,
    NotAuthorised,
    RequestRefused,
    ServerUnreachable,
    UpgradeRequired,
)
from profiler.wire import Failure, FailureClass, LeaseRequest, Renewal

EMPTY = '{"lease_id": null, "lease_seconds": 60, "tasks": []}'
SHA = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of b"foo"
Answer = httpx2.Response | Exception


class Talk:
    """A client whose server gives scripted answers, the last one for ever; waits are recorded, not waited."""

    def __init__(self, *answers: Answer, patience_seconds: float = 600) -> None:
        self.requests: list[httpx2.Request] = []
        self.waits: list[float] = []
        self._answers: Iterator[Answer] = iter(answers)
        self._last: Answer = answers[-1]
        self.client = AgentClient(
            "http://server:8000/",
            "secret",
            patience_seconds=patience_seconds,
            transport=httpx2.MockTransport(self._answer),
            sleep=self.waits.append,
            rng=random.Random(1),
        )

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = next(self._answers, self._last)
        if isinstance(answer, Exception):
            raise answer
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def lease(self) -> None:
        assert self.client.lease("agent-1", LeaseRequest()).tasks == ()


def status(code: int, body: str = "", **headers: str) -> httpx2.Response:
    return httpx2.Response(code, text=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


OK = status(200, EMPTY)


def test_requests_carry_token_and_json() -> None:
    talk = Talk(OK)
    talk.lease()
    (request,) = talk.requests
    assert str(request.url) == "http://server:8000/v1/agents/agent-1/leases"
    assert request.headers["Authorization"] == "Bearer secret"
    assert LeaseRequest.model_validate_json(request.content) == LeaseRequest()


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("cut off"),
        status(408),
        status(429),
        status(500),
        status(502, "<html>Bad Gateway</html>"),
        status(503),
        status(200, "<html>Please log in to the hotel network</html>"),
        status(200, '{"lease_id": 3}'),
    ],
)
def test_passing_trouble_is_tried_again(trouble: Answer) -> None:
    talk = Talk(trouble, trouble, OK)
    talk.lease()
    assert len(talk.requests) == 3
    assert len(talk.waits) == 2


def test_waits_grow_from_one_second_to_a_minute_with_full_jitter() -> None:
    talk = Talk(*[status(503)] * 200, OK, patience_seconds=1e9)
    talk.lease()
    bounds = [1, 2, 4, 8, 16, 32, *[60] * 194]
    assert all(0 <= wait <= bound for wait, bound in zip(talk.waits, bounds, strict=True))
    late = talk.waits[6:]
    assert min(late) < 6  # full jitter reaches down to zero,
    assert max(late) > 54  # and up to the bound


def test_server_says_how_long_to_wait() -> None:
    talk = Talk(status(503, retry_after="7"), status(429, retry_after="600"), OK)
    talk.lease()
    assert talk.waits == [7.0, 60.0]


def test_server_that_asks_for_no_wait_at_all_is_not_asked_in_a_circle() -> None:
    talk = Talk(*[status(503, retry_after="0")] * 30, patience_seconds=10)
    with pytest.raises(ServerUnreachable):
        talk.lease()
    assert talk.waits == [1.0] * 10


def test_date_in_retry_after_is_ignored_since_clocks_may_disagree() -> None:
    talk = Talk(status(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), OK)
    talk.lease()
    assert 0 <= talk.waits[0] <= 1


def test_patience_ends_with_address_and_next_action() -> None:
    talk = Talk(httpx2.ConnectError("connection refused"), patience_seconds=10)
    with pytest.raises(
        ServerUnreachable,
        match=r"http://server:8000 \(ConnectError: connection refused\): check that `heatnas serve` runs.*--server",
    ):
        talk.lease()
    assert sum(talk.waits) <= 10


def test_refusal_is_final_and_quotes_the_server() -> None:
    talk = Talk(status(422, '{"error": "BadRequest", "message": "max_tasks is too large"}'))
    with pytest.raises(RequestRefused, match=r"refused \(422\): max_tasks is too large") as caught:
        talk.lease()
    assert caught.value.status == 422
    assert talk.waits == []


def test_refusal_without_json_shows_the_start_of_the_body() -> None:
    with pytest.raises(RequestRefused, match=r"refused \(404\): <h1>nothing here</h1>"):
        Talk(status(404, "<h1>nothing\n here</h1>")).lease()


def test_redirect_is_not_followed_with_the_token() -> None:
    with pytest.raises(RequestRefused, match=r"refused \(307\)"):
        Talk(status(307, location="http://elsewhere/")).lease()


@pytest.mark.parametrize("code", [401, 403])
def test_wrong_token_says_where_the_right_one_is(code: int) -> None:
    with pytest.raises(NotAuthorised, match=r"refuses the token.*`heatnas serve` printed.*HEATNAS_TOKEN"):
        Talk(status(code)).lease()


def test_old_agent_is_told_to_upgrade() -> None:
    body = '{"message": "this server speaks protocols 2 to 3"}'
    with pytest.raises(UpgradeRequired, match=r"speaks protocols 2 to 3.*pip install -U heatnas"):
        Talk(status(426, body)).lease()


def test_a_twin_at_work_is_told_apart_from_other_refusals() -> None:
    body = '{"error": "DuplicateIdentity", "message": "agent-1 is at work on lease l until 12:02"}'
    with pytest.raises(DuplicateIdentity, match="is at work on lease l until 12:02"):
        Talk(status(409, body)).lease()
    with pytest.raises(RequestRefused):
        Talk(status(409, "")).lease()


@pytest.mark.parametrize("code", [404, 409, 410])
def test_lease_that_is_gone_is_lost(code: int) -> None:
    with pytest.raises(LeaseLost, match="lease lease-1 is no longer ours"):
        Talk(status(code)).client.renew("lease-1", Renewal(done=0, total=1))


def test_renewal_is_tried_once() -> None:
    talk = Talk(status(503), OK)
    with pytest.raises(ServerUnreachable):
        talk.client.renew("lease-1", Renewal(done=0, total=1))
    assert talk.waits == []


def test_renewal_reads_the_cancelled_tasks() -> None:
    talk = Talk(status(200, '{"lease_seconds": 60, "cancelled": ["t1"], "news": "ignored"}'))
    renewed = talk.client.renew("lease-1", Renewal(done=1, total=2, seconds_left=3))
    assert renewed.cancelled == ("t1",)


@pytest.mark.parametrize("code", [204, 404, 410])
def test_release_of_a_lease_already_gone_is_fine(code: int) -> None:
    talk = Talk(status(code))
    talk.client.release("lease-1")
    talk.client.release("lease-2", crashed=True)
    assert [request.content for request in talk.requests] == [b'{"crashed":false}', b'{"crashed":true}']


def test_failure_is_reported_for_its_task() -> None:
    talk = Talk(status(204))
    talk.client.report_failure(
        "task-1", Failure(agent_id="a", attempt=2, failure=FailureClass.CRASH, message="signal SIGSEGV")
    )
    assert talk.requests[0].url.path == "/v1/tasks/task-1/failures"


def test_graph_is_streamed_into_its_file(tmp_path: Path) -> None:
    talk = Talk(httpx2.ReadError("reset"), status(500), status(200, "foo"))
    talk.client.download(SHA, tmp_path / "graph", max_bytes=3)
    assert (tmp_path / "graph").read_bytes() == b"foo"
    assert len(talk.waits) == 2


def test_graph_longer_than_announced_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(HashMismatch, match="longer than the 2 bytes announced"):
        Talk(status(200, "foo")).client.download(SHA, tmp_path / "graph", max_bytes=2)


def test_other_graph_than_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HashMismatch, match=f"graph {SHA} arrived as 3 bytes with the hash fcde2b2e"):
        Talk(status(200, "bar")).client.download(SHA, tmp_path / "graph", max_bytes=9)


def test_graph_the_server_has_not_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(RequestRefused, match="no such blob"):
        Talk(status(404, '{"message": "no such blob"}')).client.download(SHA, tmp_path / "graph", max_bytes=9)


def test_closed_client_sends_nothing() -> None:
    talk = Talk(OK)
    with talk.client:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        talk.lease()
