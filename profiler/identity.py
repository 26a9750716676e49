"""What makes two results the same result."""

import hashlib
import json
from datetime import UTC, datetime

from profiler.wire import Result


def result_id(result: Result) -> str:
    """Return the SHA-256 of the canonical JSON of a result: equal content has one identity on both sides.

    The time is hashed in UTC, as a server keeps it: a result that comes back from there has still its own identity.
    """
    content = {**result.model_dump(mode="json"), "measured_at": _in_utc(result.measured_at)}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _in_utc(text: str) -> str:
    """Write a time in UTC; what is no time with a zone stays as it is, and the server refuses it."""
    try:
        moment = datetime.fromisoformat(text)
        return text if moment.tzinfo is None else moment.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return text
