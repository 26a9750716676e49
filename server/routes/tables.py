"""Lookup tables: editions, rows, coverage, export and import."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from lookup_tables import models
from lookup_tables.coverage import coverage
from lookup_tables.errors import UnknownCalibration
from lookup_tables.exchange import export_csv, export_json, import_json
from nas.blocks import Kind
from nas.named import named_space
from nas.space import WIDTH_STEP
from profiler.wire import Text
from server.database import reading
from server.parameters import SPACE_DESCRIPTION
from server.routes.examples import EDITION, ROW, example
from server.routes.paging import Classes, Limit, Offset
from server.routes.refusals import NO_TABLE_HERE, TOO_LARGE, UNKNOWN_DEVICE, UNKNOWN_EDITION
from server.schemas import CoverageAnswer, EditionAnswer, ImportAnswer, Page, RowAnswer, page
from server.services import Injected, Services

router = APIRouter(prefix="/tables", tags=["tables"])

SpaceName = Annotated[Text, Query(description=SPACE_DESCRIPTION)]

MAX_IMPORT_BYTES = 64 * 2**20
"""Largest export that is taken: thousands of rows with their raw samples."""

Width = Annotated[
    int | None,
    Query(ge=WIDTH_STEP, le=2**16, multiple_of=WIDTH_STEP, description="Input or output channels of the block."),
]


@router.get(
    "", summary="List the table editions", responses={**example({"items": [EDITION], "total": 1}), **UNKNOWN_DEVICE}
)
def list_editions(
    services: Injected, device: Text | None = None, limit: Limit = 100, offset: Offset = 0
) -> Page[EditionAnswer]:
    """Show the editions of all devices or of one, newest first."""
    found = services.tables.editions(device=device, limit=limit, offset=offset)
    counted = select(func.count()).select_from(models.Edition)
    if device is not None:
        counted = counted.where(models.Edition.device_id == services.tables.device(device).id)
    with reading(services.database) as session:
        total = session.scalar(counted) or 0
    return page([_describe(services, edition) for edition in found], total)


@router.get("/{edition}", summary="Describe one edition", responses={**example(EDITION), **UNKNOWN_EDITION})
def get_edition(services: Injected, edition: Text) -> EditionAnswer:
    """Return how it was measured, and its newest calibration."""
    return _describe(services, services.tables.edition(edition))


@router.get(
    "/{edition}/rows",
    summary="Browse the rows",
    responses={**example({"items": [ROW], "total": 120}), **UNKNOWN_EDITION},
)
def list_rows(
    services: Injected,
    edition: Text,
    kind: Kind | None = None,
    channels: Width = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Page[RowAnswer]:
    """Show latency in milliseconds and as frames per second, block by block."""
    kind_value = None if kind is None else kind.value
    total, rows = services.tables.rows(edition, kind=kind_value, channels=channels, limit=limit, offset=offset)
    return page([RowAnswer.of(row) for row in rows], total)


@router.get(
    "/{edition}/coverage",
    summary="Tell which blocks of a space have no row",
    responses=UNKNOWN_EDITION
    | example(
        {
            "total": 120,
            "missing": 0,
            "missing_blocks": [],
            "message": "all 120 blocks of the space have a row",
            "command": "heatnas profile --device workbench --space heatdetr-nano --classes 3 --threads 1",
        }
    ),
)
def get_coverage(services: Injected, edition: Text, space: SpaceName, classes: Classes = 3) -> CoverageAnswer:
    """Compare the edition with a space, and name the command that measures what is missing."""
    table = services.tables.load(edition)
    found = coverage(table, named_space(space, classes=classes), device=table.device, threads=table.execution.threads)
    return CoverageAnswer(
        total=found.total,
        missing=len(found.missing),
        missing_blocks=[block.label for block in found.missing[:1000]],
        message=found.message,
        command=found.command,
    )


@router.get(
    "/{edition}/export",
    summary="Export an edition",
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"example": {"format": 1}}, "text/csv": {"example": "kind,..."}}},
        **UNKNOWN_EDITION,
    },
)
def export(services: Injected, edition: Text, format: Literal["json", "csv"] = "json") -> Response:  # noqa: A002
    """Return the edition as lossless JSON (which can be imported), or as CSV for people."""
    if format == "csv":
        text, media_type = export_csv(services.tables.load(edition)), "text/csv; charset=utf-8"
    else:
        text, media_type = export_json(services.database, edition), "application/json"
    headers = {
        "Content-Disposition": f'attachment; filename="table-{services.tables.edition(edition).id}.{format}"',
        "X-Content-Type-Options": "nosniff",
    }
    return Response(text, media_type=media_type, headers=headers)


@router.post(
    "/import",
    summary="Import an exported edition",
    status_code=201,
    max_body_size=MAX_IMPORT_BYTES,
    responses={**example({"edition": EDITION["edition"]}, status=201), **NO_TABLE_HERE, **TOO_LARGE},
    openapi_extra={"requestBody": {"content": {"application/json": {"example": {"format": 1}}}, "required": True}},
)
async def import_edition(services: Injected, request: Request) -> ImportAnswer:
    """Store an edition exported elsewhere; a file whose content does not match its hash is refused."""
    body = await request.body()
    return ImportAnswer(edition=await run_in_threadpool(import_json, services.database, body, now=services.clock()))


def _describe(services: Services, edition: models.Edition) -> EditionAnswer:
    try:
        calibration = services.tables.calibration(edition.id)
    except UnknownCalibration:
        calibration = None
    with reading(services.database) as session:
        device = session.get_one(models.Device, edition.device_id)
    return EditionAnswer.of(edition, device.name, calibration)
