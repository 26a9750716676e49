"""A typed client of the REST interface, for the command line, the quickstart and scripts of users.

ClientError
├── ServerUnreachable   nobody answers at the address, even after retries
├── RequestRefused      the server refuses, in its own words: `status`, `error`, `details`
└── JobNotSucceeded     a job failed, was cancelled or has not ended, so that it has no result: `job`
"""

import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError

JobKind = Literal["train", "profile", "thin"]

_SUBMIT_PATHS: dict[JobKind, str] = {"train": "/v1/supernets", "profile": "/v1/profiles", "thin": "/v1/thinnings"}

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
POLL_SECONDS = 0.5
"""Between two looks at a job that is being followed."""

PATIENCE_SECONDS = 30.0
"""How long a server that does not answer is tried again: it may be restarting."""

_PASSING = frozenset({429, 502, 503, 504})
"""Refusals that may pass by themselves: of a busy database, or of a proxy before a server that restarts."""

_LONGEST_PAUSE_SECONDS = 4.0

_TIMEOUT = httpx2.Timeout(60, connect=5)
_PAGE = 500

Json = dict[str, Any]
T = TypeVar("T", bound=BaseModel)


class ClientError(Exception):
    """Base of every error of the client."""


class ServerUnreachable(ClientError):
    """The server gave no answer within the client's patience."""


class RequestRefused(ClientError):
    """The server refused a request.

    Attributes:
        status: the HTTP status.
        error: name of the error, such as `BudgetUnreachable`.
        details: the whole error body.
    """

    def __init__(self, message: str, *, status: int, error: str, details: Json) -> None:
        self.status, self.error, self.details = status, error, details
        super().__init__(message)


class JobNotSucceeded(ClientError):
    """A job has no result: it failed, was cancelled, or has not ended.

    Attributes:
        job: the job as it is.
    """

    def __init__(self, job: "Job") -> None:
        self.job = job
        match job.state:
            case "failed":
                text = f"failed: {job.failure}"
            case "cancelled":
                text = "was cancelled: submit it again to have its result"
            case _:
                text = f"is {job.state} and has no result yet: wait for it, `heatnas show {job.id} --follow`"
        super().__init__(f"{job.kind} job {job.id} {text}")


class Reply(BaseModel):
    """Base of what the server answers: a newer server may say more than this client knows."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Job(Reply):
    """Where a job stands; `progress` is the share of the work done, 0 to 1."""

    id: str
    kind: JobKind
    state: str
    progress: float
    error: Json | None = None

    @property
    def is_final(self) -> bool:
        """Nothing more will happen to the job."""
        return self.state in FINAL_STATES

    @property
    def failure(self) -> str:
        """What the server says about a failure, empty when there is none."""
        return str((self.error or {}).get("message", ""))


class Event(Reply):
    """One thing that happened to a job; `seq` counts from 1 without gaps."""

    seq: int
    kind: str
    message: str
    data: Json | None = None


class Artifact(Reply):
    """A file a job made."""

    name: str
    sha256: str
    bytes: int
    media_type: str


class Client:
    """A talk with one server."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        transport: httpx2.BaseTransport | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare to talk; nothing is sent yet.

        Args:
            base_url: address of the server, such as "http://localhost:8000".
            token: the server's bearer token.
            transport: how requests travel; the network by default.
            patience_seconds: how long a server that does not answer is tried again.
            sleep: waits that many seconds.

        Raises:
            ServerUnreachable: the address is none.
        """
        self._url, self._patience_seconds, self._sleep = base_url.rstrip("/"), patience_seconds, sleep
        headers = {"Authorization": f"Bearer {token}"}
        try:
            self._http = httpx2.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT, transport=transport)
        except httpx2.InvalidURL as error:
            raise ServerUnreachable(f"{base_url!r} is no address ({error}): write http://HOST:PORT") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> Json:
        """Ask whether the server is well, and which version it is."""
        return self._json("GET", "/v1/health")

    def devices(self) -> list[Json]:
        """List the registered devices."""
        return list(self._pages("/v1/devices", {}))

    def register_device(self, name: str) -> Json:
        """Make a device known before its agent comes."""
        return self._json("POST", "/v1/devices", body={"name": name})

    def editions(self, *, device: str) -> list[Json]:
        """List the table editions of a device."""
        return list(self._pages("/v1/tables", {"device": device}))

    def edition(self, edition: str) -> Json:
        """Describe one table edition, calibration included."""
        return self._json("GET", f"/v1/tables/{_part(edition)}")

    def rows(self, edition: str) -> list[Json]:
        """List all rows of a table edition."""
        return list(self._pages(f"/v1/tables/{_part(edition)}/rows", {}))

    def submit(self, kind: JobKind, parameters: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job; the same key again gives the same job."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return _read(Job, self._json("POST", _SUBMIT_PATHS[kind], body=dict(parameters), headers=headers))

    def job(self, job: str) -> Job:
        """Tell where a job stands."""
        return _read(Job, self._json("GET", f"/v1/jobs/{_part(job)}"))

    def jobs(self, *, state: str | None = None, limit: int = 20) -> list[Job]:
        """List the newest jobs, those in a state only where one is given."""
        query: dict[str, str | int] = {"limit": limit} | ({"state": state} if state else {})
        return _read(_Jobs, self._json("GET", "/v1/jobs", query=query)).items

    def events(self, job: str, *, after: int = 0) -> list[Event]:
        """List what happened to a job after the event numbered `after`."""
        listed = self._pages(f"/v1/jobs/{_part(job)}/events", {"after": after})
        return [_read(Event, event) for event in listed]

    def follow(
        self,
        job: str,
        *,
        on_event: Callable[[Event], None],
        on_progress: Callable[[Job], None] | None = None,
        after: int = 0,
    ) -> Job:
        """Wait until a job is final, telling each event once and in order; return the job as it ended."""
        # The address is right by now: a job of hours outlasts a server that restarts.
        self._patience_seconds = max(self._patience_seconds, PATIENCE_SECONDS)
        while True:
            seen = self.job(job)
            for event in self.events(job, after=after):
                on_event(event)
                after = event.seq
            if on_progress:
                on_progress(seen)
            if seen.is_final:
                return seen
            self._sleep(POLL_SECONDS)

    def outcome(self, job: Job) -> Json:
        """Return the result of a job that has ended.

        Raises:
            JobNotSucceeded: it failed or was cancelled.
        """
        if job.state != "succeeded":
            raise JobNotSucceeded(job)
        return self._json("GET", f"/v1/jobs/{_part(job.id)}/result")

    def cancel(self, job: str) -> Job:
        """Ask a job to stop."""
        return _read(Job, self._json("POST", f"/v1/jobs/{_part(job)}/cancel"))

    def artifacts(self, job: str) -> list[Artifact]:
        """List the files of a job."""
        return [_read(Artifact, item) for item in self._pages(f"/v1/jobs/{_part(job)}/artifacts", {})]

    def download(self, job: str, name: str) -> bytes:
        """Fetch one file of a job."""
        return self._send("GET", f"/v1/jobs/{_part(job)}/artifacts/{_part(name)}").content

    def export_table(self, edition: str, form: Literal["json", "csv"]) -> bytes:
        """Fetch a table edition as a file."""
        return self._send("GET", f"/v1/tables/{_part(edition)}/export", query={"format": form}).content

    def import_table(self, content: Json) -> Json:
        """Hand an export to the server; the same again changes nothing."""
        return self._json("POST", "/v1/tables/import", body=content)

    def importance(self, supernet: str) -> Json:
        """Return the importance of a supernet, and where it comes from."""
        return self._json("GET", f"/v1/supernets/{_part(supernet)}/importance")

    def _pages(self, path: str, query: Mapping[str, str | int]) -> Iterator[Json]:
        offset = 0
        while True:
            items = _read(_Page, self._json("GET", path, query={**query, "limit": _PAGE, "offset": offset})).items
            yield from items
            offset += len(items)
            if len(items) < _PAGE:
                return

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        reply = self._send(method, path, query=query, body=body, headers=headers)
        try:
            answer = reply.json()
        except ValueError as error:
            raise _foreign(reply) from error
        if not isinstance(answer, dict):
            raise _foreign(reply)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Send once, or again while the server cannot be reached or is busy and the request may be repeated."""
        waited, pause = 0.0, 0.25
        repeatable = method == "GET" or "Idempotency-Key" in (headers or {})
        while True:
            asked_pause = 0.0
            is_last = not repeatable or waited >= self._patience_seconds
            try:
                reply = self._http.request(method, path, params=query, json=body, headers=headers)
            except httpx2.RequestError as error:
                if is_last:
                    raise ServerUnreachable(
                        f"no answer from {self._url} ({error}): check the address and that `heatnas serve` runs there"
                    ) from error
            else:
                if reply.is_success:
                    return reply
                if is_last or reply.status_code not in _PASSING:
                    raise _refusal(reply)
                asked_pause = _retry_after(reply)
            self._sleep(max(pause, asked_pause))
            waited, pause = waited + max(pause, asked_pause), min(2 * pause, _LONGEST_PAUSE_SECONDS)


class _ErrorBody(BaseModel):
    model_config = ConfigDict(extra="allow")

    error: str
    message: str


class _Page(Reply):
    items: list[Json]


class _Jobs(Reply):
    items: list[Job]


def _read(model: type[T], answer: Json) -> T:
    """Read an answer; one of another shape comes from a server of another version."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        fault = error.errors()[0]
        raise RequestRefused(
            f"the server's answer is no {model.__name__.strip('_')} ({'.'.join(map(str, fault['loc']))}: "
            f"{fault['msg']}): install the same version of HeatNAS on both sides",
            status=HTTPStatus.OK,
            error="UnknownShape",
            details={},
        ) from error


def _refusal(reply: httpx2.Response) -> RequestRefused:
    """Say what the server says; an answer that is not in its one shape comes from something in between."""
    try:
        body = _ErrorBody.model_validate_json(reply.content)
    except ValidationError:
        return _foreign(reply)
    return RequestRefused(body.message, status=reply.status_code, error=body.error, details=body.model_dump())


def _foreign(reply: httpx2.Response) -> RequestRefused:
    phrase = reply.reason_phrase or "without a word"
    return RequestRefused(
        f"{reply.request.url} answered {reply.status_code} {phrase} in a way that HeatNAS does not: check the address",
        status=reply.status_code,
        error=phrase,
        details={},
    )


def _retry_after(reply: httpx2.Response) -> float:
    """Return the seconds that a server asks to wait, within reason; 0 where it asks for none, or names a date."""
    text = reply.headers.get("Retry-After", "").strip()
    return min(float(text), PATIENCE_SECONDS) if text.isascii() and text.isdecimal() else 0.0


def _part(text: str) -> str:
    """Make any text one part of a path."""
    return quote(text, safe="")
