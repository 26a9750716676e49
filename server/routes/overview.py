"""Health and search spaces."""

from functools import lru_cache
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy import select

from lookup_tables.models import Device
from nas.named import SPACE_NAMES, named_space
from profiler.wire import Text
from server.database import reading
from server.parameters import SPACE_DESCRIPTION
from server.routes.examples import EDGE, example
from server.routes.paging import Classes
from server.routes.refusals import UNKNOWN_SPACE
from server.schemas import Health, Page, SpaceAnswer, page
from server.services import Injected

router = APIRouter(tags=["overview"])

DEFAULT_CLASSES = 3

SpaceName = Annotated[Text, Path(description=SPACE_DESCRIPTION)]


@router.get(
    "/health",
    summary="Tell whether the server is well",
    responses=example({"status": "ok", "version": "0.1.0", "database": "sqlite"}),
)
def health(services: Injected) -> Health:
    """Need no token; 503 when the database does not answer."""
    with reading(services.database) as session:
        session.execute(select(Device.id).limit(1))  # a table, not a constant: the file must be there
    return Health(status="ok", version=version("heatnas"), database=services.database.dialect.name)


@router.get("/spaces", summary="List the search spaces", responses=example({"items": [EDGE], "total": 1}))
def list_spaces(classes: Classes = DEFAULT_CLASSES) -> Page[SpaceAnswer]:
    """Show each space, bound to no runtime, with its span in MACs and the table rows it needs."""
    spaces = [_describe(name, classes) for name in SPACE_NAMES]
    return page(spaces, len(spaces))


@router.get("/spaces/{name}", summary="Describe one search space", responses={**example(EDGE), **UNKNOWN_SPACE})
def get_space(name: SpaceName, classes: Classes = DEFAULT_CLASSES) -> SpaceAnswer:
    """Return the space as JSON, for a number of object classes and, as `NAME@PROFILE`, for a runtime."""
    return _describe(name, classes)


@lru_cache(maxsize=32)  # enumerating the blocks of a large space takes a second
def _describe(name: str, classes: int) -> SpaceAnswer:
    return SpaceAnswer.of(named_space(name, classes=classes))
