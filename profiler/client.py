"""The agent's side of the protocol: one typed method per message, and one policy for everything that may go wrong.

Network errors, 408, 429, 5xx and bodies that cannot be decoded (the error pages of proxies) are tried again, after 1 s
to 60 s with full jitter or what Retry-After asks for; any other 4xx is final, since sending it again changes nothing.
"""

import hashlib
import random
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Self, TypeVar

import httpx2
from pydantic import ValidationError

from profiler.errors import (
    DuplicateIdentity,
    HashMismatch,
    LeaseLost,
    NotAuthorised,
    RequestRefused,
    ServerUnreachable,
    UpgradeRequired,
)
from profiler.wire import (
    Enrolled,
    Enrolment,
    Failure,
    Lease,
    LeaseRequest,
    Message,
    Release,
    Renewal,
    Renewed,
    Result,
    ResultReceipt,
)

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0
DUPLICATE_IDENTITY = "DuplicateIdentity"
"""A server's name for an agent of the same identity being at work."""

PATIENCE_SECONDS = 60.0
"""How long one call may spend waiting between its tries."""

_TIMEOUT = httpx2.Timeout(30, connect=10)
_RETRIED = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_LOST = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE})

Reply = TypeVar("Reply", bound=Message)
Answer = TypeVar("Answer")


class AgentClient:
    """A talk with one server; safe to use from several threads."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """Prepare to talk; nothing is sent yet.

        Args:
            base_url: address of the server, such as "http://localhost:8000".
            token: the server's bearer token.
            patience_seconds: longest total wait between the tries of one call.
            transport: how requests travel; the network by default.
            sleep: waits that many seconds.
            rng: the jitter of the waits.
        """
        self._url = base_url.rstrip("/")
        self._patience_seconds = patience_seconds
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  jitter, no secret
        self._http = httpx2.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def enrol(self, enrolment: Enrolment) -> Enrolled:
        """Introduce this agent and its device."""
        return self._ask(Enrolled, "POST", "/v1/agents", enrolment)

    def lease(self, agent_id: str, request: LeaseRequest) -> Lease:
        """Ask for work; the server may take `wait_seconds` to answer.

        Raises:
            DuplicateIdentity: an agent of this identity is at work already.
        """
        path = f"/v1/agents/{agent_id}/leases"
        try:
            return self._ask(Lease, "POST", path, request, wait_seconds=request.wait_seconds)
        except RequestRefused as error:
            if error.error == DUPLICATE_IDENTITY:
                raise DuplicateIdentity(str(error)) from error
            raise

    def renew(self, lease_id: str, renewal: Renewal) -> Renewed:
        """Say that work goes on; tried once, since the next renewal is never far.

        Raises:
            LeaseLost: the lease is no longer ours.
        """
        try:
            return self._ask(Renewed, "POST", f"/v1/leases/{lease_id}/renew", renewal, patience_seconds=0)
        except RequestRefused as error:
            if error.status in _LOST:
                raise LeaseLost(f"lease {lease_id} is no longer ours: {error}") from error
            raise

    def release(self, lease_id: str, *, crashed: bool = False) -> None:
        """Give the unfinished tasks of a lease back at once, and say whether the agent that held it died.

        A lease already gone is fine, and it is tried once.
        """
        try:
            self._send("POST", f"/v1/leases/{lease_id}/release", Release(crashed=crashed), patience_seconds=0)
        except RequestRefused as error:
            if error.status not in _LOST:
                raise

    def put_result(self, result_id: str, result: Result, *, patience_seconds: float | None = None) -> ResultReceipt:
        """Hand over a measurement; the same one any number of times."""
        path = f"/v1/results/{result_id}"
        return self._ask(ResultReceipt, "PUT", path, result, patience_seconds=patience_seconds)

    def report_failure(self, task_id: str, failure: Failure, *, patience_seconds: float | None = None) -> None:
        """Say that a task cannot be measured here, and why."""
        self._send("POST", f"/v1/tasks/{task_id}/failures", failure, patience_seconds=patience_seconds)

    def download(self, sha256: str, target: Path, *, max_bytes: int) -> None:
        """Stream a graph into `target`, whose hash is checked on the way.

        Raises:
            HashMismatch: the bytes are other ones, or more than `max_bytes`.
        """
        self._retry(lambda: self._stream(sha256, target, max_bytes), self._patience_seconds)

    def _ask(
        self,
        reply: type[Reply],
        method: str,
        path: str,
        message: Message,
        *,
        wait_seconds: float = 0,
        patience_seconds: float | None = None,
    ) -> Reply:
        def once() -> Reply:
            response = self._request(method, path, message, wait_seconds)
            try:
                return reply.model_validate_json(response.content)
            except ValidationError as error:
                detail = f"status {response.status_code} with a body that is no {reply.__name__}"
                raise _TryAgain(detail, None) from error

        return self._retry(once, self._patience_seconds if patience_seconds is None else patience_seconds)

    def _send(self, method: str, path: str, message: Message, *, patience_seconds: float | None = None) -> None:
        patience = self._patience_seconds if patience_seconds is None else patience_seconds
        self._retry(lambda: self._request(method, path, message, 0), patience)

    def _retry(self, once: Callable[[], Answer], patience_seconds: float) -> Answer:
        """Call until it succeeds or the total wait would exceed the patience."""
        waited, longest = 0.0, FIRST_BACKOFF_SECONDS
        while True:
            try:
                return once()
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                failed = _TryAgain(f"{type(error).__name__}: {error}", None)
            except _TryAgain as error:
                failed = error
            wait = self._rng.uniform(0, longest) if failed.after_seconds is None else failed.after_seconds
            if waited + wait > patience_seconds or patience_seconds == 0:
                raise ServerUnreachable(
                    f"no sensible answer from {self._url} ({failed}): check that `heatnas serve` runs there, that this "
                    "device can reach it, and that --server names it."
                ) from failed
            self._sleep(wait)
            waited, longest = waited + wait, min(2 * longest, LONGEST_BACKOFF_SECONDS)

    def _request(self, method: str, path: str, message: Message, wait_seconds: float) -> httpx2.Response:
        timeout = httpx2.Timeout(30 + wait_seconds, connect=10)
        headers = {"Content-Type": "application/json"}
        content = message.model_dump_json()
        response = self._http.request(method, path, content=content, headers=headers, timeout=timeout)
        self._check(response)
        return response

    def _stream(self, sha256: str, target: Path, max_bytes: int) -> None:
        digest, size = hashlib.sha256(), 0
        with self._http.stream("GET", f"/v1/blobs/{sha256}") as response, target.open("wb") as file:
            if response.status_code != HTTPStatus.OK:
                response.read()
                self._check(response)
            for chunk in response.iter_bytes(2**16):
                digest.update(chunk)
                size += len(chunk)
                if size > max_bytes:
                    raise HashMismatch(
                        f"graph {sha256} is longer than the {max_bytes} bytes announced: the server or a proxy sends "
                        "something else under this name."
                    )
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise HashMismatch(
                f"graph {sha256} arrived as {size} bytes with the hash {digest.hexdigest()}: it was damaged or "
                "replaced on its way. Look at the proxies between this device and the server."
            )

    def _check(self, response: httpx2.Response) -> None:
        """Raise what the status means; success passes."""
        status = response.status_code
        if response.is_success:
            return
        if status in _RETRIED or response.is_server_error:
            raise _TryAgain(f"status {status}", _retry_after(response))
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise NotAuthorised(
                f"{self._url} refuses the token ({status}): give the one `heatnas serve` printed at its first start, "
                "also kept in the file `token` of its data folder, by --token or HEATNAS_TOKEN."
            )
        if status == HTTPStatus.UPGRADE_REQUIRED:
            raise UpgradeRequired(
                f"{self._url} does not speak this agent's protocol ({_message(response)}): install the same version "
                "on both sides, `pip install -U heatnas`."
            )
        error = _field(response, "error")
        raise RequestRefused(f"{self._url} refused ({status}): {_message(response)}", status=status, error=error)


class _TryAgain(Exception):
    """A try that failed in a way the next one may not."""

    def __init__(self, detail: str, after_seconds: float | None) -> None:
        self.after_seconds = after_seconds
        super().__init__(detail)


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds a server asks to wait; the date form is ignored, since clocks may disagree.

    Never less than the first back-off: a proxy that says 0 would be asked in a circle.
    """
    text = response.headers.get("Retry-After", "").strip()
    if not text.isdecimal():
        return None
    return min(max(float(text), FIRST_BACKOFF_SECONDS), LONGEST_BACKOFF_SECONDS)


def _message(response: httpx2.Response) -> str:
    """Return the server's own words, or the start of whatever came instead."""
    return _field(response, "message") or " ".join(response.text.split())[:200] or "no explanation"


def _field(response: httpx2.Response, name: str) -> str | None:
    """Return a text of the server's error body, None where there is none."""
    try:
        body = response.json()
    except ValueError:
        return None
    value = body.get(name) if isinstance(body, dict) else None
    return value if isinstance(value, str) else None
