"""Jobs: submit training, profiling and thinning; follow them; fetch what they made."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import StringConstraints
from starlette.concurrency import run_in_threadpool

from nas.budgets import Budget
from nas.exact import fastest, unreachable
from nas.named import named_space
from nas.space import SearchSpace
from profiler.wire import CONTROLS, Text
from server.choosing import choose_table
from server.database import Job, JobEvent, JobState
from server.jobs import Jobs, is_final
from server.parameters import Parameters, ProfileParameters, ThinParameters, TrainParameters
from server.routes.examples import ARTIFACT, EVENT, JOB, SUPERNET, example
from server.routes.paging import After, Limit, Offset
from server.routes.refusals import (
    BAD_RANGE,
    KEY_TAKEN,
    NO_RESULT,
    NOT_AS_THINGS_ARE,
    TOO_LARGE,
    UNKNOWN_ASKED,
    UNKNOWN_DEVICE,
    UNKNOWN_JOB,
    UNKNOWN_SPACE,
    UNKNOWN_SUPERNET,
)
from server.schemas import ArtifactAnswer, EventAnswer, JobAnswer, Page, SupernetAnswer, page
from server.services import Injected, Services
from server.supernets import find_supernet, list_supernets

router = APIRouter()

LOOK_SECONDS = 0.5
Key = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=f"^[^{CONTROLS}]*$")] | None,
    Header(alias="Idempotency-Key", description="The same key again gives the same job."),
]
LastEvent = Annotated[
    int, Header(alias="Last-Event-ID", ge=0, le=2**31, description="Number of the last event already seen.")
]


def follow(services: Injected, job: Text) -> Job:
    """Find the job before anything is streamed: afterwards it is too late to say that there is none."""
    return services.jobs.get(job)


Followed = Annotated[Job, Depends(follow)]


@router.post(
    "/supernets",
    summary="Train a supernet",
    status_code=202,
    tags=["supernets"],
    responses={**example(JOB, status=202), **UNKNOWN_SPACE, **KEY_TAKEN, **TOO_LARGE},
)
def train(
    services: Injected,
    parameters: Annotated[TrainParameters, Body(examples=[{"space": "heatdetr-nano", "steps": 500, "seed": 0}])],
    key: Key = None,
) -> JobAnswer:
    """Submit a training; when it has succeeded, its job id is the id of the supernet."""
    named_space(parameters.space, classes=1)
    return _submit(services, "train", parameters, key)


@router.get(
    "/supernets", summary="List the supernets", tags=["supernets"], responses=example({"items": [SUPERNET], "total": 1})
)
def get_supernets(services: Injected, limit: Limit = 100, offset: Offset = 0) -> Page[SupernetAnswer]:
    """Show the trained supernets, newest first."""
    total, found = list_supernets(services.database, limit=limit, offset=offset)
    return page([SupernetAnswer.of(supernet) for supernet in found], total)


@router.get(
    "/supernets/{supernet}",
    summary="Describe one supernet",
    tags=["supernets"],
    responses={**example(SUPERNET), **UNKNOWN_SUPERNET},
)
def get_supernet(services: Injected, supernet: Text) -> SupernetAnswer:
    """Return a supernet by id, or the newest as `latest`."""
    return SupernetAnswer.of(find_supernet(services.database, supernet))


@router.get(
    "/supernets/{supernet}/importance",
    summary="Return the importance of a supernet",
    tags=["supernets"],
    responses={**example({"space": "cc7d09c937d1e496", "stages": [], "provenance": {}}), **UNKNOWN_SUPERNET},
)
def get_importance(services: Injected, supernet: Text) -> dict[str, Any]:
    """Return the trained logits, with where they come from."""
    return find_supernet(services.database, supernet).importance.model_dump(mode="json")


@router.post(
    "/profiles",
    summary="Measure a device",
    status_code=202,
    tags=["tables"],
    responses={**example(JOB, status=202), **UNKNOWN_DEVICE, **KEY_TAKEN, **TOO_LARGE},
)
def profile(
    services: Injected,
    parameters: Annotated[ProfileParameters, Body(examples=[{"device": "workbench", "space": "heatdetr-nano"}])],
    key: Key = None,
) -> JobAnswer:
    """Submit the measuring of every block of a space; it ends with a published, calibrated table edition."""
    services.tables.device(parameters.device)
    named_space(parameters.space, classes=parameters.classes)
    return _submit(services, "profile", parameters, key)


@router.post(
    "/thinnings",
    summary="Ask for a detector at a target FPS",
    status_code=202,
    tags=["jobs"],
    responses={**example(JOB, status=202), **UNKNOWN_ASKED, **NOT_AS_THINGS_ARE, **TOO_LARGE},
)
def thin(
    services: Injected,
    parameters: Annotated[
        ThinParameters,
        Body(examples=[{"device": "workbench", "supernet": "latest", "target_fps": 250, "verify": True}]),
    ],
    key: Key = None,
) -> JobAnswer:
    """Submit a thinning; refused at once when the table lacks rows or no config is fast enough."""
    known = None if key is None else services.jobs.made_by(key, "thin", parameters)
    if known is not None:
        return JobAnswer.of(known)
    supernet = find_supernet(services.database, parameters.supernet)
    check_reachable(services, parameters, supernet.space)
    asked = parameters.model_copy(update={"supernet": supernet.id})
    return JobAnswer.of(services.jobs.submit("thin", asked, key=key, now=services.clock(), sent=parameters))


def check_reachable(services: Services, parameters: ThinParameters, space: SearchSpace) -> None:
    """Refuse a target that the table cannot answer or no config of the space reaches.

    Raises:
        UnknownDevice, UnknownEdition: there is no such table.
        InvalidConfig: the space has no such input size.
        MissingBlocks: it does not cover the space.
        BudgetUnreachable: names the fastest FPS and the block that binds.
    """
    budget = Budget.from_fps(parameters.target_fps)
    services.tables.device(parameters.device)
    table = choose_table(services.tables, parameters, space)
    latency = services.tables.calibration(table.edition).latency_model(table)
    quickest = fastest(space, latency, image=parameters.image)
    if not latency.holds(quickest.latency_ms, budget.latency_ms):
        raise unreachable(space, latency, budget, quickest)


@router.get("/jobs", summary="List the jobs", tags=["jobs"], responses=example({"items": [JOB], "total": 1}))
def list_jobs(
    services: Injected,
    kind: Literal["train", "profile", "thin"] | None = None,
    state: JobState | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Page[JobAnswer]:
    """Show jobs, newest first."""
    total, found = services.jobs.list(kind=kind, state=state, limit=limit, offset=offset)
    return page([JobAnswer.of(job) for job in found], total)


@router.get("/jobs/{job}", summary="Tell where a job stands", tags=["jobs"], responses={**example(JOB), **UNKNOWN_JOB})
def get_job(services: Injected, job: Text) -> JobAnswer:
    """Return state, progress and, for a failed job, its error."""
    return JobAnswer.of(services.jobs.get(job))


@router.get(
    "/jobs/{job}/events",
    summary="List what happened",
    tags=["jobs"],
    responses={**example({"items": [EVENT], "total": 1}), **UNKNOWN_JOB},
)
def list_events(
    services: Injected,
    job: Text,
    after: After = 0,
    limit: Limit = 500,
    offset: Offset = 0,
) -> Page[EventAnswer]:
    """Return the events of a job after a number, in order."""
    found = services.jobs.events(job, after=after, limit=limit, offset=offset)
    return page([EventAnswer.of(event) for event in found], services.jobs.count_events(job, after=after))


@router.get(
    "/jobs/{job}/stream",
    summary="Follow a job",
    tags=["jobs"],
    response_class=EventSourceResponse,
    responses={
        200: {"content": {"text/event-stream": {"example": "id: 3\nevent: verified\ndata: {}\n\n"}}},
        **UNKNOWN_JOB,
    },
)
async def stream_events(services: Injected, found: Followed, last: LastEvent = 0) -> AsyncIterator[ServerSentEvent]:
    """Send each event as it happens (server-sent events); reconnecting with Last-Event-ID misses none."""
    while True:
        is_over, events = await run_in_threadpool(_look, services.jobs, found.id, last)
        for event in events:
            last = event.seq
            yield ServerSentEvent(data=EventAnswer.of(event), event=event.kind, id=str(event.seq))
        if not events:
            if is_over:
                return
            await asyncio.sleep(LOOK_SECONDS)


def _look(jobs: Jobs, job: Text, last: int) -> tuple[bool, Sequence[JobEvent]]:
    """Tell whether a job was over before we looked, and what came after an event."""
    is_over = is_final(jobs.get(job))
    return is_over, jobs.events(job, after=last)


@router.get(
    "/jobs/{job}/result",
    summary="Return the result of a job",
    tags=["jobs"],
    responses={**example({"status": "met", "config_id": "a4583796ebad21ce", "rounds": []}), **UNKNOWN_JOB, **NO_RESULT},
)
def get_result(services: Injected, job: Text) -> dict[str, Any]:
    """Return what the job found; 409 while it has no result."""
    return services.jobs.result(job)


@router.post(
    "/jobs/{job}/cancel",
    summary="Stop a job",
    tags=["jobs"],
    responses={**example({**JOB, "state": "cancelled"}), **UNKNOWN_JOB},
)
def cancel(services: Injected, job: Text) -> JobAnswer:
    """Cancel a job with its open tasks; one that has ended stays as it is."""
    return JobAnswer.of(services.jobs.cancel(job, now=services.clock()))


@router.get(
    "/jobs/{job}/artifacts",
    summary="List the files of a job",
    tags=["jobs"],
    responses={**example({"items": [ARTIFACT], "total": 1}), **UNKNOWN_JOB},
)
def list_artifacts(services: Injected, job: Text, limit: Limit = 100, offset: Offset = 0) -> Page[ArtifactAnswer]:
    """Show config, model and evidence with their hashes."""
    found = services.jobs.artifacts(job)
    return page([ArtifactAnswer.of(artifact) for artifact in found[offset : offset + limit]], len(found))


@router.get(
    "/jobs/{job}/artifacts/{name}",
    summary="Fetch a file of a job",
    tags=["jobs"],
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {"example": "(bytes)"}}}, **UNKNOWN_JOB, **BAD_RANGE},
)
def get_artifact(services: Injected, job: Text, name: Text) -> FileResponse:
    """Return config.json, model.onnx, evidence.json or what else the job made."""
    artifact = services.jobs.artifact(job, name)
    return FileResponse(
        services.blobs.path(artifact.sha256),
        media_type=artifact.media_type,
        filename=artifact.name,
        headers={"X-Content-Type-Options": "nosniff"},
    )


def _submit(services: Services, kind: str, parameters: Parameters, key: str | None) -> JobAnswer:
    return JobAnswer.of(services.jobs.submit(kind, parameters, key=key, now=services.clock()))
