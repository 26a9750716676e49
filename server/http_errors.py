"""Where every error of the product becomes an HTTP status, in one JSON shape: {"error", "message", ...details}."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookup_tables import errors as tables
from nas import errors as nas
from profiler import errors as profiler
from server import errors as server

STATUS: dict[type[Exception], HTTPStatus] = {
    nas.UnknownSpace: HTTPStatus.NOT_FOUND,
    nas.InvalidConfig: HTTPStatus.UNPROCESSABLE_ENTITY,
    nas.InvalidBudget: HTTPStatus.UNPROCESSABLE_ENTITY,
    nas.MissingBlocks: HTTPStatus.CONFLICT,
    nas.BudgetUnmet: HTTPStatus.CONFLICT,
    tables.UnknownDevice: HTTPStatus.NOT_FOUND,
    tables.UnknownEdition: HTTPStatus.NOT_FOUND,
    tables.UnknownMeasurement: HTTPStatus.NOT_FOUND,
    tables.TablesError: HTTPStatus.CONFLICT,
    tables.InvalidMeasurement: HTTPStatus.UNPROCESSABLE_ENTITY,
    tables.InvalidExport: HTTPStatus.UNPROCESSABLE_ENTITY,
    server.NotAuthenticated: HTTPStatus.UNAUTHORIZED,
    server.UpgradeRequired: HTTPStatus.UPGRADE_REQUIRED,
    server.NewerDatabase: HTTPStatus.SERVICE_UNAVAILABLE,
    server.UnknownAgent: HTTPStatus.NOT_FOUND,
    server.UnknownTask: HTTPStatus.NOT_FOUND,
    server.UnknownJob: HTTPStatus.NOT_FOUND,
    server.UnknownSupernet: HTTPStatus.NOT_FOUND,
    server.UnknownArtifact: HTTPStatus.NOT_FOUND,
    server.UnknownBlob: HTTPStatus.NOT_FOUND,
    server.DamagedBlob: HTTPStatus.INTERNAL_SERVER_ERROR,
    server.DamagedToken: HTTPStatus.INTERNAL_SERVER_ERROR,
    server.ChildFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
    server.LeaseLost: HTTPStatus.GONE,
    server.ServerError: HTTPStatus.CONFLICT,
    profiler.ProfilerError: HTTPStatus.BAD_GATEWAY,
    SQLAlchemyError: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Status by class; an error without an entry of its own takes that of its nearest ancestor."""

CONTENT_TOO_LARGE = 413
TOO_LARGE = "the body is larger than this route takes: send less, a result with fewer samples or a table of fewer rows"


def status_of(error: Exception) -> HTTPStatus:
    """Return the status of an error: of its class, or of the nearest ancestor that has one."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def body_of(error: Exception) -> dict[str, Any]:
    """Write an error as the one JSON shape, with the numbers a program needs."""
    body: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
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
    for kind in STATUS:
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_fault)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, server.NotAuthenticated) else None
    if isinstance(error, SQLAlchemyError):
        text = "the database does not answer: is the disk full, or the data folder gone? Try again."
        return JSONResponse({"error": type(error).__name__, "message": text}, HTTPStatus.SERVICE_UNAVAILABLE)
    return JSONResponse(body_of(error), status_of(error), headers=headers)


async def _answer_validation(_: Request, error: Exception) -> JSONResponse:
    """Name each value, where it stands and the rule it breaks; the value itself may be hostile, so it is shortened."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    faults = [
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {_shown(fault.get('input'))})" for fault in found
    ]
    message = "; ".join(faults[:10]) or "the request is not valid"
    return JSONResponse({"error": "InvalidRequest", "message": message}, HTTPStatus.UNPROCESSABLE_ENTITY)


async def _answer_http(_: Request, error: Exception) -> JSONResponse:
    status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    detail = error.detail if isinstance(error, HTTPException) else ""
    return JSONResponse({"error": status.phrase.replace(" ", ""), "message": detail or status.phrase}, status)


async def _answer_fault(_: Request, error: Exception) -> JSONResponse:
    """Say that the fault is ours; what it was stands in the log, not in the answer."""
    text = f"the server hit a fault of its own ({type(error).__name__}): its log says where, please report it"
    return JSONResponse({"error": "InternalFault", "message": text}, HTTPStatus.INTERNAL_SERVER_ERROR)


class OneShape:
    """The outermost layer: where the framework refuses a large body in plain text, say it in the one shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, but for a 413, whose body is written anew."""
        is_replaced = False

        async def answer(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and message["status"] == CONTENT_TOO_LARGE:
                is_replaced = True
                body = {"error": "ContentTooLarge", "message": TOO_LARGE}
                await JSONResponse(body, CONTENT_TOO_LARGE)(scope, receive, send)
            elif not is_replaced:
                await send(message)

        await self._app(scope, receive, answer)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
