"""Frozen values whose identity is the hash of their canonical JSON."""

import hashlib
import json
from functools import cached_property

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """An immutable value: equal content, equal `id`, on every machine and in every process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def canonical_json(self) -> str:
        """Serialise with sorted keys, no spaces and no default-less `None`s: the text that `id` hashes."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]
