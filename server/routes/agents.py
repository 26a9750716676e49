"""The agent protocol (`profiler.wire`): enrol, lease, renew, fetch graphs, hand over results."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from lookup_tables.devices import find_device
from profiler.identity import result_id as identity_of
from profiler.wire import (
    Enrolled,
    Enrolment,
    Failure,
    Lease,
    LeaseRequest,
    Renewal,
    Renewed,
    Result,
    ResultReceipt,
    Sha256,
    Text,
)
from server import leases
from server.database import Task, TaskState, reading, writing
from server.errors import ResultMismatch
from server.routes.examples import DESCRIPTION, LEASE, RESULT, SHA, TASK, example
from server.routes.paging import Limit, Offset
from server.schemas import Page, TaskAnswer, page
from server.services import Injected, Services

router = APIRouter(tags=["agents"])

LOOK_SECONDS = 0.25
"""Between two looks for work while an agent waits."""

MAX_RESULT_BYTES = 16 * 2**20
"""Largest result, raw samples included."""

ENROLMENT = {"device": "workbench", "protocol": 1, "agent_version": "0.1.0", "description": DESCRIPTION}
ENROLLED = {
    "agent_id": "d2c1a7f0",
    "device": "workbench",
    "protocol": 1,
    "lease_seconds": 120,
    "renew_seconds": 40,
    "poll_seconds": 20,
    "max_graph_bytes": 536870912,
}


@router.post("/agents", summary="Enrol an agent", status_code=201, responses=example(ENROLLED, status=201))
def enrol(services: Injected, enrolment: Annotated[Enrolment, Body(examples=[ENROLMENT])]) -> Enrolled:
    """Introduce an agent and its device; the same machine under the same name is the same agent."""
    with writing(services.database) as session:
        return leases.enrol(session, enrolment, services.terms, now=services.clock())


@router.post("/agents/{agent_id}/leases", summary="Claim work", responses=example(LEASE))
async def lease(
    services: Injected,
    agent_id: Text,
    asked: Annotated[LeaseRequest, Body(examples=[{"max_tasks": 32, "wait_seconds": 20}])],
    request: Request,
) -> Lease:
    """Lease pending tasks of the agent's device, waiting up to `wait_seconds` for some; no thread is held meanwhile."""
    deadline = time.monotonic() + asked.wait_seconds
    found = await run_in_threadpool(_lease, services, agent_id, asked.max_tasks)
    while not found.tasks and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)
        if await request.is_disconnected():  # what nobody waits for any more would be lost until the lease expires
            break
        if await run_in_threadpool(_may_lease, services, agent_id):
            found = await run_in_threadpool(_lease, services, agent_id, asked.max_tasks)
    return found


def _lease(services: Services, agent_id: str, max_tasks: int) -> Lease:
    with writing(services.database) as session:
        return leases.lease(session, agent_id, max_tasks, services.terms, now=services.clock())


def _may_lease(services: Services, agent_id: str) -> bool:
    with reading(services.database) as session:
        return leases.may_lease(session, agent_id, now=services.clock())


@router.post(
    "/leases/{lease_id}/renew",
    summary="Keep a lease",
    responses=example({"lease_seconds": 120, "cancelled": []}),
)
def renew(
    services: Injected,
    lease_id: Text,
    renewal: Annotated[Renewal, Body(examples=[{"done": 12, "total": 60, "seconds_left": 8.5}])],
) -> Renewed:
    """Say that work goes on; learn which tasks are no longer wanted. 410 when the lease is lost."""
    with writing(services.database) as session:
        return leases.renew(session, lease_id, renewal, services.terms, now=services.clock())


@router.post(
    "/leases/{lease_id}/release", summary="Give a lease back", status_code=204, responses={204: {"description": "Done"}}
)
def release(services: Injected, lease_id: Text) -> Response:
    """Return unfinished tasks at once instead of letting the lease run out."""
    with writing(services.database) as session:
        leases.release(session, lease_id, now=services.clock())
    return Response(status_code=204)


@router.get(
    "/blobs/{sha256}",
    summary="Fetch a graph",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {"example": "(bytes)"}}}},
)
def get_blob(services: Injected, sha256: Sha256) -> FileResponse:
    """Return the file of that hash; the reader checks it."""
    return FileResponse(
        services.blobs.path(sha256),
        media_type="application/octet-stream",
        filename=f"{sha256}.onnx",
        headers={"X-Content-Type-Options": "nosniff"},
    )


@router.put(
    "/results/{result_id}",
    summary="Hand over a measurement",
    max_body_size=MAX_RESULT_BYTES,
    responses=example({"measurement_id": SHA, "late": False}),
)
def put_result(
    services: Injected, result_id: Sha256, result: Annotated[Result, Body(examples=[RESULT])]
) -> ResultReceipt:
    """Store a measurement under the hash of its content; the same one any number of times."""
    if identity_of(result) != result_id:
        raise ResultMismatch(
            f"result {result_id} has other content, its hash is {identity_of(result)}: send it under that"
        )
    with writing(services.database) as session:
        return leases.record_result(session, result_id, result, now=services.clock())


@router.post("/tasks/{task_id}/failures", summary="Report that a task failed", responses=example({"state": "pending"}))
def report_failure(
    services: Injected,
    task_id: Text,
    failure: Annotated[
        Failure,
        Body(examples=[{"agent_id": "d2c1a7f0", "attempt": 1, "failure": "unsupported", "message": "no kernel"}]),
    ],
) -> dict[str, str]:
    """Say why a graph could not be timed; the class decides whether it is tried again."""
    with writing(services.database) as session:
        state = leases.record_failure(session, task_id, failure, services.terms, now=services.clock())
    return {"state": state.value}


@router.get("/tasks", summary="List the tasks", responses=example({"items": [TASK], "total": 1}))
def list_tasks(
    services: Injected,
    device: Text | None = None,
    job: Text | None = None,
    state: TaskState | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Page[TaskAnswer]:
    """Show what devices have timed, are timing or are to time, newest first."""
    wanted = select(Task)
    with reading(services.database) as session:
        if device is not None:
            wanted = wanted.where(Task.device_id == find_device(session, device).id)
        if job is not None:
            wanted = wanted.where(Task.job_id == job)
        if state is not None:
            wanted = wanted.where(Task.state == state)
        total = session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
        ordered = wanted.order_by(Task.created_at.desc(), Task.job_id, Task.position)
        found = session.scalars(ordered.limit(limit).offset(offset)).all()
    return page([TaskAnswer.of(task) for task in found], total)
