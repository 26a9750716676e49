"""What makes two results the same result."""

import hashlib
import json

from profiler.wire import Result


def result_id(result: Result) -> str:
    """Return the SHA-256 of the canonical JSON of a result: equal content has one identity on both sides."""
    canonical = json.dumps(result.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
