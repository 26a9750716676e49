"""Refusals for the OpenAPI document: what each route may answer beside its result, in the one shape."""

from typing import Any

Json = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]


def refusal(status: int, description: str, error: str, message: str, **details: object) -> Responses:
    """Return the `responses` of a refusal such as this, in the one shape."""
    content = {
        "schema": {"$ref": "#/components/schemas/ErrorAnswer"},
        "example": {"error": error, "message": message, **details},
    }
    return {status: {"description": description, "content": {"application/json": content}}}


ANYWHERE = {
    **refusal(401, "No token, or another one", "NotAuthenticated", "this route needs the server's token: send ..."),
    **refusal(
        422,
        "A value breaks a rule",
        "InvalidRequest",
        "body.target_fps: Input should be greater than or equal to 0.001 (got -3)",
    ),
    **refusal(
        503,
        "The database does not answer; Retry-After says when to ask again",
        "OperationalError",
        "the database does not answer: is the disk full, or the data folder gone? Try again.",
    ),
}
"""What any route may answer."""

TOO_LARGE = refusal(
    413, "The body is too large", "ContentTooLarge", "the body has 2097152 bytes, this route takes 1048576 bytes: ..."
)
BAD_RANGE = refusal(
    416,
    "The file ends before the range begins",
    "RangeNotSatisfiable",
    "header.Range: 'bytes=500-' begins after the end: ask within bytes */180",
)

UNKNOWN_SPACE = refusal(
    404, "Unknown space", "UnknownSpace", "space 'resnet' is unknown: choose one of heatdetr, heatdetr-xca, ..."
)
UNKNOWN_DEVICE = refusal(
    404,
    "Unknown device",
    "UnknownDevice",
    "device 'workbenck' is unknown: register it (POST /v1/devices) or start its agent (`heatnas-agent ...`)",
)
UNKNOWN_ASKED = refusal(
    404,
    "Unknown device, edition, supernet or space",
    "UnknownSupernet",
    "supernet 'latest' is unknown: list them with GET /v1/supernets, or train one with `heatnas supernet`",
)
UNKNOWN_EDITION = refusal(
    404, "Unknown edition (or space)", "UnknownEdition", "edition 'e1' is unknown: list them with GET /v1/tables"
)
UNKNOWN_SUPERNET = refusal(
    404, "Unknown supernet", "UnknownSupernet", "supernet 's1' is unknown: list them with GET /v1/supernets, or ..."
)
UNKNOWN_JOB = refusal(
    404, "Unknown job (or file of it)", "UnknownJob", "job 'nope' is unknown: list the jobs with GET /v1/jobs"
)
UNKNOWN_AGENT = refusal(
    404, "Unknown agent", "UnknownAgent", "agent d2c1a7f0 is unknown here: enrol with POST /v1/agents"
)
UNKNOWN_TASK = refusal(
    404, "Unknown task or agent", "UnknownTask", "task t1 is unknown here: it may belong to another server, drop it"
)
UNKNOWN_LEASE = refusal(404, "Unknown lease", "UnknownLease", "lease l1 is unknown: ask for a new lease")
UNKNOWN_BLOB = refusal(
    404, "Nothing of that hash", "UnknownBlob", "nothing is stored under 9f86...: it was never uploaded here, or ..."
)

OTHER_MACHINE = refusal(
    409,
    "The device name belongs to another machine",
    "DeviceConflict",
    "device 'workbench' is another machine (Ryzen 7, hash 0a1b2c3d4e5f), this one is ...: start the agent with ...",
)
TWIN_AT_WORK = refusal(
    409,
    "An agent of this identity is at work",
    "DuplicateIdentity",
    "agent d2c1a7f0 is at work on lease b5bb9d80 until 2026-11-20T10:02:00+00:00: if another agent runs on this ...",
)
NOT_LEASED_THERE = refusal(
    409,
    "Another device or attempt than was leased, or an id taken by other content",
    "ResultRefused",
    "attempt 7 of task t1 was never handed out, the newest is 1: lease the task first",
)
NO_TABLE_HERE = refusal(
    409,
    "The device name belongs to another machine here, or the measurements make no table",
    "DeviceConflict",
    "device 'workbench' is another machine (Ryzen 7, hash 0a1b2c3d4e5f), this one is ...",
)
KEY_TAKEN = refusal(
    409,
    "The idempotency key was used for another request",
    "IdempotencyConflict",
    "idempotency key 'night-run' belongs to train job train-0a1b2c3d4e5f with other parameters: use a new key",
)
NOT_AS_THINGS_ARE = refusal(
    409,
    "Unreachable target, blocks without a row, or an idempotency key used for something else",
    "BudgetUnreachable",
    "1000.00 FPS (1.000 ms) is out of reach: the fastest config of the space at 192x192 runs at 412.30 FPS (2.425 ms, "
    "margin included) and ...",
    target_fps=1000.0,
    fastest_fps=412.3,
    fastest_ms=2.425,
    binding="head 96->3 @24x24",
)
NO_RESULT = refusal(
    409,
    "The job has no result, or none yet",
    "JobNotFinished",
    "job thin-0a1b2c3d4e5f is running and has no result: wait for it (GET /v1/jobs/thin-0a1b2c3d4e5f)",
)

LEASE_LOST = refusal(
    410, "The lease is over", "LeaseLost", "lease l1 does not hold (any more): drop its tasks and ask for a new lease"
)
OTHER_PROTOCOL = refusal(
    426,
    "The agent speaks a protocol that this server does not",
    "UpgradeRequired",
    "agent 9.0 speaks protocol 99, this server 1: install the same version on both sides, `pip install -U heatnas`",
)
