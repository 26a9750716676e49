"""Frozen values whose identity is the hash of their canonical JSON."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """An immutable value: equal content, equal `id`, on every machine and in every process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def canonical_json(self) -> str:
        """Serialise with sorted keys, without spaces and without fields that are None: the text that `id` hashes."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Build a changed copy through validation.

        Pydantic's own copies `__dict__`, and with it the cached identity of the original.
        """
        original = super().model_copy(deep=deep)
        fields = {name: getattr(original, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **(update or {})})
