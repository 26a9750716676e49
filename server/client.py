"""A typed client of the REST interface, for the command line, the quickstart and scripts of users.

ClientError
├── ServerUnreachable   nobody answers at the address, even after retries
├── RequestRefused      the server refuses, in its own words: `status`, `error`, `details`
└── JobNotSucceeded     a job that was waited for failed or was cancelled: `job`
"""

import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Literal, Self
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

_TIMEOUT = httpx2.Timeout(60, connect=5)
_PAGE = 500

Json = dict[str, Any]


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
    """A job ended without a result.

    Attributes:
        job: the job as it ended.
    """

    def __init__(self, job: "Job") -> None:
        self.job = job
        super().__init__(f"{job.kind} job {job.id} {job.state}{': ' + job.failure if job.failure else ''}")


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
        """
        self._url, self._patience_seconds, self._sleep = base_url.rstrip("/"), patience_seconds, sleep
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx2.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT, transport=transport)

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
        return Job.model_validate(self._json("POST", _SUBMIT_PATHS[kind], body=dict(parameters), headers=headers))

    def job(self, job: str) -> Job:
        """Tell where a job stands."""
        return Job.model_validate(self._json("GET", f"/v1/jobs/{_part(job)}"))

    def jobs(self, *, state: str | None = None, limit: int = 20) -> list[Job]:
        """List the newest jobs, those in a state only where one is given."""
        query: dict[str, str | int] = {"limit": limit} | ({"state": state} if state else {})
        return [Job.model_validate(item) for item in self._json("GET", "/v1/jobs", query=query)["items"]]

    def events(self, job: str, *, after: int = 0) -> list[Event]:
        """List what happened to a job after the event numbered `after`."""
        listed = self._pages(f"/v1/jobs/{_part(job)}/events", {"after": after})
        return [Event.model_validate(event) for event in listed]

    def follow(
        self,
        job: str,
        *,
        on_event: Callable[[Event], None],
        on_progress: Callable[[Job], None] | None = None,
        after: int = 0,
    ) -> Job:
        """Wait until a job is final, telling each event once and in order; return the job as it ended."""
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
        return Job.model_validate(self._json("POST", f"/v1/jobs/{_part(job)}/cancel"))

    def artifacts(self, job: str) -> list[Artifact]:
        """List the files of a job."""
        return [Artifact.model_validate(item) for item in self._pages(f"/v1/jobs/{_part(job)}/artifacts", {})]

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
            page = self._json("GET", path, query={**query, "limit": _PAGE, "offset": offset})
            yield from page["items"]
            offset += len(page["items"])
            if len(page["items"]) < _PAGE:
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
        answer: Json = self._send(method, path, query=query, body=body, headers=headers).json()
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
        """Send once, or again while the server cannot be reached and the request may be repeated."""
        waited, pause = 0.0, 0.25
        repeatable = method == "GET" or "Idempotency-Key" in (headers or {})
        while True:
            try:
                reply = self._http.request(method, path, params=query, json=body, headers=headers)
            except httpx2.TransportError as error:
                if not repeatable or waited >= self._patience_seconds:
                    raise ServerUnreachable(
                        f"no answer from {self._url} ({error}): check the address and that `heatnas serve` runs there"
                    ) from error
                self._sleep(pause)
                waited, pause = waited + pause, min(2 * pause, 4.0)
            else:
                return reply if reply.is_success else _refuse(reply)


class _ErrorBody(BaseModel):
    model_config = ConfigDict(extra="allow")

    error: str
    message: str


def _refuse(reply: httpx2.Response) -> httpx2.Response:
    """Raise what the server says; an answer that is not in its one shape comes from something in between."""
    try:
        body = _ErrorBody.model_validate_json(reply.content)
    except ValidationError as error:
        phrase = HTTPStatus(reply.status_code).phrase
        raise RequestRefused(
            f"{reply.request.url} answered {reply.status_code} {phrase}, which HeatNAS does not: check the address",
            status=reply.status_code,
            error=phrase,
            details={},
        ) from error
    raise RequestRefused(body.message, status=reply.status_code, error=body.error, details=body.model_dump())


def _part(text: str) -> str:
    """Make any text one part of a path."""
    return quote(text, safe="")
