"""Where every error of the product becomes an HTTP status, in one JSON shape: {"error", "message", ...details}."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookup_tables import errors as tables
from nas import errors as nas
from profiler.wire import plain_text
from server import errors as server

log = logging.getLogger(__name__)

STATUS: dict[type[Exception], HTTPStatus] = {
    nas.UnknownSpace: HTTPStatus.NOT_FOUND,
    nas.InvalidConfig: HTTPStatus.UNPROCESSABLE_ENTITY,
    nas.InvalidBudget: HTTPStatus.UNPROCESSABLE_ENTITY,
    nas.MissingBlocks: HTTPStatus.CONFLICT,
    nas.BudgetUnmet: HTTPStatus.CONFLICT,
    tables.UnknownDevice: HTTPStatus.NOT_FOUND,
    tables.UnknownEdition: HTTPStatus.NOT_FOUND,
    tables.UnknownMeasurement: HTTPStatus.NOT_FOUND,
    tables.UnknownCalibration: HTTPStatus.NOT_FOUND,
    tables.DamagedEdition: HTTPStatus.INTERNAL_SERVER_ERROR,
    tables.TablesError: HTTPStatus.CONFLICT,
    tables.InvalidMeasurement: HTTPStatus.UNPROCESSABLE_ENTITY,
    tables.InvalidExport: HTTPStatus.UNPROCESSABLE_ENTITY,
    server.NotAuthenticated: HTTPStatus.UNAUTHORIZED,
    server.UpgradeRequired: HTTPStatus.UPGRADE_REQUIRED,
    server.UnknownAgent: HTTPStatus.NOT_FOUND,
    server.UnknownTask: HTTPStatus.NOT_FOUND,
    server.UnknownLease: HTTPStatus.NOT_FOUND,
    server.UnknownJob: HTTPStatus.NOT_FOUND,
    server.UnknownSupernet: HTTPStatus.NOT_FOUND,
    server.UnknownArtifact: HTTPStatus.NOT_FOUND,
    server.UnknownBlob: HTTPStatus.NOT_FOUND,
    server.LeaseLost: HTTPStatus.GONE,
    server.DuplicateIdentity: HTTPStatus.CONFLICT,
    server.ResultRefused: HTTPStatus.CONFLICT,
    server.ResultMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    server.JobNotFinished: HTTPStatus.CONFLICT,
    server.IdempotencyConflict: HTTPStatus.CONFLICT,
    OperationalError: HTTPStatus.SERVICE_UNAVAILABLE,
    InterfaceError: HTTPStatus.SERVICE_UNAVAILABLE,
    PoolTimeout: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Status by class; an error without an entry of its own takes that of its nearest ancestor, and else it is our fault.

Of the database's errors only those are here that may pass by themselves."""

MAX_MESSAGE = 4000
"""Characters of a message: what it quotes may be longer."""

MAX_QUOTE = 80
"""Characters of a value or a name that a message quotes."""

RETRY_SECONDS = 2
"""When to ask again a server whose database does not answer."""


def status_of(error: Exception) -> HTTPStatus:
    """Return the status of an error: of its class, or of the nearest ancestor that has one."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def body_of(error: Exception) -> dict[str, Any]:
    """Write an error as the one JSON shape, with the numbers a program needs."""
    body = _shape(type(error).__name__, str(error))
    if isinstance(error, nas.BudgetUnmet):
        body |= {
            "target_fps": 1000 / error.target_ms,
            "fastest_fps": 1000 / error.fastest_ms,
            "fastest_ms": error.fastest_ms,
            "binding": error.binding,
        }
    if isinstance(error, nas.MissingBlocks | tables.UnmeasuredBlocks):
        body |= {"missing": len(error.blocks), "blocks": [block.label for block in error.blocks[:100]]}
    if isinstance(error, nas.MissingBlocks) and error.command:
        body["command"] = error.command
    return body


def install(app: FastAPI) -> None:
    """Answer every error of the product, of validation and of routing in the one shape."""
    for kind, status in STATUS.items():
        unavailable = status is HTTPStatus.SERVICE_UNAVAILABLE
        app.add_exception_handler(kind, _answer_unavailable if unavailable else _answer)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_fault)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, server.NotAuthenticated) else None
    return JSONResponse(body_of(error), status_of(error), headers=headers)


async def _answer_unavailable(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s: the database does not answer: %s", request.method, request.url.path, error)
    text = "the database does not answer: is the disk full, or the data folder gone? Try again."
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return JSONResponse(_shape(type(error).__name__, text), HTTPStatus.SERVICE_UNAVAILABLE, headers=headers)


async def _answer_validation(_: Request, error: Exception) -> JSONResponse:
    """Name each value, where it stands and the rule it breaks; both may be hostile, so they are shortened."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    faults = [_fault(fault) for fault in found[:10]]
    return _invalid("; ".join(faults) or "the request is not valid")


def _fault(fault: Any) -> str:  # noqa: ANN401 - as pydantic writes it
    if fault["type"] == "json_invalid":
        cause = fault.get("ctx", {}).get("error", "broken off")
        where = f"character {fault['loc'][-1]}"
        return f"body: no JSON from {where} on ({_shown(cause, quoted=False)}): send a whole document"
    text = f"{_place(fault['loc'])}: {fault['msg']} (got {_shown(fault.get('input'))})"
    if isinstance(fault.get("input"), bytes):
        text += ": send it with Content-Type: application/json"
    return text


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    """Say in our words what the framework refuses by itself."""
    status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    asked = f"{_shown(request.method, quoted=False)} {_shown(request.scope['path'], quoted=False)}"
    match status:
        case HTTPStatus.BAD_REQUEST:
            return _invalid(
                "body: it is no JSON that can be read: send UTF-8, and neither deep nesting nor endless digits"
            )
        case HTTPStatus.NOT_FOUND:
            return _refusal(status, "NotFound", f"there is no {asked}: GET /v1/openapi.json lists every route")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(_methods(request))
            return _refusal(
                status, "MethodNotAllowed", f"there is no {asked}: this path takes {allowed}", {"Allow": allowed}
            )
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return _too_large(request.scope)
    detail = error.detail if isinstance(error, HTTPException) else ""
    return _refusal(status, status.phrase.replace(" ", ""), detail or status.phrase)


async def _answer_fault(_: Request, error: Exception) -> JSONResponse:
    """Say that the fault is ours; what it was stands in the log, not in the answer."""
    text = f"the server hit a fault of its own ({type(error).__name__}): its log says where, please report it"
    return JSONResponse(_shape("InternalFault", text), HTTPStatus.INTERNAL_SERVER_ERROR)


class OneShape:
    """The outermost layer: where the framework refuses in plain text, say it in the one shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, but for refusals in plain text, which are written anew."""
        is_replaced = False

        async def answer(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and _is_plain_refusal(message):
                is_replaced = True
                await _rewritten(scope, message)(scope, receive, send)
            elif not is_replaced:
                await send(message)

        await self._app(scope, receive, answer)


def _is_plain_refusal(message: Message) -> bool:
    is_json = Headers(raw=message["headers"]).get("content-type") == JSONResponse.media_type
    return message["status"] >= HTTPStatus.BAD_REQUEST and not is_json


def _rewritten(scope: Scope, message: Message) -> JSONResponse:
    """Write a refusal of the framework anew; the only ones in plain text are of bodies and byte ranges."""
    asked = Headers(scope=scope)
    match message["status"]:
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return _too_large(scope)
        case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE as status:
            held = Headers(raw=message["headers"]).get("content-range", "")
            text = f"header.Range: {_shown(asked.get('range'))} begins after the end: ask within {held or 'the file'}"
            return _refusal(status, "RangeNotSatisfiable", text, {"Content-Range": held})
        case HTTPStatus.BAD_REQUEST:
            return _invalid(f"header.Range: {_shown(asked.get('range'))} is no range: ask for bytes=FIRST-LAST")
    status = HTTPStatus(message["status"])
    return _refusal(status, status.phrase.replace(" ", ""), status.phrase)


def _too_large(scope: Scope) -> JSONResponse:
    length = Headers(scope=scope).get("content-length")
    size = f"{_shown(length, quoted=False)} bytes" if length else "more"
    text = f"the body has {size}, this route takes {scope.get(MAX_BODY_SIZE_SCOPE_KEY)} bytes: send less, "
    text += "a result with fewer samples or a table of fewer rows"
    return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "ContentTooLarge", text)


def _shape(error: str, message: str) -> dict[str, Any]:
    return {"error": error, "message": plain_text(message, max_length=MAX_MESSAGE)}


def _refusal(status: HTTPStatus, error: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(_shape(error, message), status, headers=headers)


def _invalid(message: str) -> JSONResponse:
    return JSONResponse(_shape("InvalidRequest", message), HTTPStatus.UNPROCESSABLE_ENTITY)


def _methods(request: Request) -> list[str]:
    """List the methods that a path takes."""
    paths = request.app.openapi()["paths"]
    found = [item for path, item in paths.items() if compile_path(path)[0].match(request.scope["path"])]
    return sorted({method.upper() for item in found for method in item}) or ["GET"]


def _place(location: Sequence[int | str]) -> str:
    """Say where a value stands; the names in a body are the caller's."""
    return ".".join(_shown(part, quoted=not str(part).isprintable()) for part in location)


def _shown(value: object, *, quoted: bool = True) -> str:
    text = repr(value) if quoted else str(value)
    return text if len(text) <= MAX_QUOTE else text[: MAX_QUOTE - 3] + "..."
