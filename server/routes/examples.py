"""Examples for the OpenAPI document: what a request and its answer look like."""

from typing import Any

Json = dict[str, Any]

SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
WHEN = "2026-11-20T10:00:00Z"

DESCRIPTION: Json = {
    "device_class": "desktop_cpu",
    "cpu_model": "AMD Ryzen 7 5700G",
    "physical_cores": 8,
    "logical_cores": 16,
    "memory_mib": 32000,
    "architecture": "x86_64",
    "system": "Linux 6.1",
    "governor": "performance",
    "runtimes": {"onnxruntime": "1.31.1"},
    "providers": ["CPUExecutionProvider"],
    "python": "3.11.7",
    "machine_hash": SHA,
}
DEVICE: Json = {
    "name": "workbench",
    "device_class": "desktop_cpu",
    "description": DESCRIPTION,
    "created_at": WHEN,
}
EDGE: Json = {
    "name": "heatdetr-edge",
    "id": "4bc5dcd7cb6f2ded",
    "space": {"name": "heatdetr-edge"},
    "largest_gmacs": 13.98,
    "smallest_gmacs": 0.306,
    "rows": 1706,
}
CALIBRATION: Json = {
    "revision": 1,
    "fetch_ms_per_mib": 0.038,
    "slope": 1.06,
    "drift": 1.0,
    "margin": 0.034,
    "confidence": 0.9,
    "error_percent": 1.7,
    "points": [],
}
EDITION: Json = {
    "edition": "5d0f3f1f6a2b7c11",
    "device": "workbench",
    "runtime": "onnxruntime",
    "runtime_version": "1.31.1",
    "provider": "CPUExecutionProvider",
    "precision": "fp32",
    "threads": 1,
    "statistic": "hot",
    "rows": 120,
    "created_at": WHEN,
    "calibration": CALIBRATION,
}
ROW: Json = {
    "block_key": "wmsa-7f51dd5884c50f73",
    "kind": "wmsa",
    "channels_in": 64,
    "channels_out": 64,
    "height": 24,
    "width": 24,
    "latency_ms": 0.41,
    "fps": 2439.0,
    "hot_ms": 0.41,
    "cold_ms": 0.72,
    "converged": True,
    "measurement_id": SHA,
    "block": {"kind": "wmsa"},
}
SUPERNET: Json = {
    "id": "train-0a1b2c3d4e5f",
    "space": "heatdetr-nano",
    "space_id": "cc7d09c937d1e496",
    "checkpoint_sha256": SHA,
    "metrics": {"ap50": 0.61},
    "created_at": WHEN,
}
JOB: Json = {
    "id": "thin-0a1b2c3d4e5f",
    "kind": "thin",
    "state": "running",
    "progress": 0.4,
    "parameters": {"device": "workbench", "target_fps": 250.0},
    "error": None,
    "created_at": WHEN,
    "started_at": WHEN,
    "finished_at": None,
}
EVENT: Json = {
    "seq": 3,
    "at": WHEN,
    "kind": "verified",
    "message": "round 1: measured at 262.10 FPS, meets 250.00 FPS; AP50 0.540",
    "data": None,
}
ARTIFACT: Json = {"name": "model.onnx", "sha256": SHA, "bytes": 2400000, "media_type": "application/octet-stream"}
TASK: Json = {
    "id": "2c26b46b68ffc68ff99b453c1d304134",
    "job_id": "profile-0a1b2c3d4e5f",
    "item_key": "wmsa-7f51dd5884c50f73",
    "label": "wmsa 64 @24x24 tokens",
    "state": "done",
    "attempt": 1,
    "failures": 0,
    "failure": None,
    "graph_sha256": SHA,
    "measurement_id": SHA,
    "updated_at": WHEN,
}
EXECUTION: Json = {"runtime": "onnxruntime", "provider": "CPUExecutionProvider", "precision": "fp32", "threads": 1}
POLICY: Json = {
    "warmup_runs": 5,
    "hot_runs_per_visit": 4,
    "min_hot_runs": 12,
    "max_hot_runs": 120,
    "confidence": 0.95,
    "max_relative_width": 0.02,
    "min_seconds": 20.0,
}
LEASE: Json = {
    "lease_id": "b5bb9d8014a0f9b1d61e21e796d78dcc",
    "lease_seconds": 120.0,
    "tasks": [
        {
            "task_id": TASK["id"],
            "attempt": 1,
            "graph_sha256": SHA,
            "graph_bytes": 180000,
            "label": TASK["label"],
            "execution": EXECUTION,
            "policy": POLICY,
        }
    ],
}
RESULT: Json = {
    "schema_version": 1,
    "agent_id": "d2c1a7f0",
    "task_id": TASK["id"],
    "attempt": 1,
    "graph_sha256": SHA,
    "execution": EXECUTION,
    "timing": {
        "hot_ns": [410000, 409000, 411000],
        "cold_ns": [720000],
        "hot_ms": 0.41,
        "cold_ms": 0.72,
        "low_ms": 0.409,
        "high_ms": 0.411,
        "confidence": 0.95,
        "converged": True,
        "outliers": 0,
        "rounds": 1,
        "warmup_runs": 15,
    },
    "context": {"governor": "performance"},
    "measured_at": WHEN,
}


def example(value: object, *, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that answers JSON such as this."""
    return {status: {"content": {"application/json": {"example": value}}}}


def refusal(
    status: int, description: str, error: str, message: str, details: Json | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a refusal such as this, in the one shape."""
    content = {
        "schema": {"$ref": "#/components/schemas/ErrorAnswer"},
        "example": {"error": error, "message": message, **(details or {})},
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
}
"""What any route may answer."""
NO_DATABASE = refusal(
    503, "The database does not answer", "OperationalError", "the database does not answer: is the disk full, ..."
)
UNKNOWN = refusal(
    404,
    "Unknown device, edition, supernet or space",
    "UnknownDevice",
    "device 'workbenck' is unknown: register it (POST /v1/devices) or start its agent (`heatnas-agent ...`)",
)
NOT_AS_THINGS_ARE = refusal(
    409,
    "Unreachable target, blocks without a row, or an idempotency key used for something else",
    "BudgetUnreachable",
    "1000.00 FPS (1.000 ms) is out of reach: the fastest config of the space runs at 412.30 FPS (2.425 ms) and ...",
    {"target_fps": 1000.0, "fastest_fps": 412.3, "fastest_ms": 2.425, "binding": "head 96->3 @24x24"},
)
