"""The web application: routes, token, errors and limits put together. Torch is never imported here."""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

from server import http_errors
from server.auth import StrangersUnread, TokenGuard, ensure_token
from server.database import make_engine
from server.migrations import upgrade
from server.routes import agents, devices, jobs, overview, refusals, tables
from server.schemas import ErrorAnswer
from server.services import Services
from server.settings import Settings

DESCRIPTION = """
Say a target FPS for one of your devices; get a HeatDETR detector that was measured at it.

Every route but `/v1/health` needs `Authorization: Bearer TOKEN`.
"""

OPEN_PATH = "/v1/health"

MAX_BODY_BYTES = 2**20
"""Largest request body, but for the routes that take measurements or tables: they state their own."""


class Application(FastAPI):
    """The application, whose refusals have one shape even where the framework answers by itself."""

    def build_middleware_stack(self) -> ASGIApp:
        """Put the one shape around everything else."""
        return http_errors.OneShape(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """Describe the interface, with what the framework cannot know: one route is open, and how refusals look."""
        document = super().openapi()
        document["paths"][OPEN_PATH]["get"]["security"] = []
        document["components"]["schemas"]["ErrorAnswer"] = ErrorAnswer.model_json_schema()
        return document


def _now() -> datetime:
    return datetime.now(UTC)


def create_app(settings: Settings, *, clock: Callable[[], datetime] = _now) -> FastAPI:
    """Make the application on a data folder, which is made or brought up to date first.

    Raises:
        NewerDatabase: the folder belongs to a newer version.
        DamagedToken: its token file holds no token.
    """
    settings.data.mkdir(parents=True, exist_ok=True)
    token, _ = ensure_token(settings.data)
    database = make_engine(settings.database_url)
    try:
        upgrade(database)
    except BaseException:
        database.dispose()
        raise
    guard = TokenGuard(token, public=[overview.health])
    app = Application(
        title="HeatNAS",
        version=version("heatnas"),
        description=DESCRIPTION,
        dependencies=[Depends(guard)],
        responses=refusals.ANYWHERE,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        max_body_size=MAX_BODY_BYTES,
    )
    app.state.services = Services(settings, database, clock)
    for module in (overview, devices, agents, tables, jobs):
        app.include_router(module.router, prefix="/v1")
    app.add_api_route(
        "/v1/openapi.json", app.openapi, methods=["GET"], summary="Return this document", include_in_schema=False
    )
    app.add_middleware(StrangersUnread, guard=guard)
    http_errors.install(app)
    return app
