"""Where every error of the product becomes an HTTP status, in one JSON shape: {"error", "message", ...details}."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from lookup_tables import errors as tables
from nas import errors as nas
from profiler import errors as profiler
from server import errors as server

STATUS: dict[type[Exception], HTTPStatus] = {
    nas.UnknownSpace: HTTPStatus.NOT_FOUND,
    nas.InvalidConfig: HTTPStatus.UNPROCESSABLE_ENTITY,
    nas.InvalidBudget: HTTPStatus.UNPROCESSABLE_ENTITY,
    nas.MissingBlocks: HTTPStatus.CONFLICT,
    nas.BudgetUnreachable: HTTPStatus.CONFLICT,
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
    server.LeaseLost: HTTPStatus.GONE,
    server.ServerError: HTTPStatus.CONFLICT,
    profiler.ProfilerError: HTTPStatus.BAD_GATEWAY,
    SQLAlchemyError: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Status by class; an error without an entry of its own takes that of its nearest ancestor."""


def status_of(error: Exception) -> HTTPStatus:
    """Return the status of an error: of its class, or of the nearest ancestor that has one."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def body_of(error: Exception) -> dict[str, Any]:
    """Write an error as the one JSON shape, with the numbers a program needs."""
    body: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, nas.BudgetUnreachable):
        body |= {
            "target_fps": 1000 / error.target_ms,
            "fastest_fps": 1000 / error.fastest_ms,
            "fastest_ms": error.fastest_ms,
            "binding": error.binding,
        }
    if isinstance(error, nas.MissingBlocks | tables.UnmeasuredBlocks):
        body |= {"missing": len(error.blocks), "blocks": [block.label for block in error.blocks[:100]]}
    return body


def install(app: FastAPI) -> None:
    """Answer every error of the product, of validation and of routing in the one shape."""
    for kind in STATUS:
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)


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


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
