"""What the protocol's texts may hold, whoever sends them."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from lookup_tables.exchange import Export
from profiler import wire
from profiler.wire import LongText, Text, plain_text
from server.parameters import PARAMETERS
from server.schemas import DeviceRequest

TAKEN: list[type[BaseModel]] = [
    *(kind for _, kind in inspect.getmembers(wire, inspect.isclass) if issubclass(kind, wire.Message)),
    *PARAMETERS.values(),
    DeviceRequest,
    Export,
]
TEXT, LONG = TypeAdapter(Text), TypeAdapter(LongText)


def strings(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk a JSON schema; yield every string in it with where it stands."""
    if isinstance(schema, list):
        schema = {str(number): part for number, part in enumerate(schema)}
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "string":
        yield path, schema
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        yield f"{path}/(key)", schema.get("propertyNames", {})
    for name, part in schema.items():
        yield from strings(part, f"{path}/{name}")


@pytest.mark.parametrize("model", TAKEN, ids=lambda model: model.__name__)
def test_no_text_from_outside_is_free(model: type[BaseModel]) -> None:
    for path, schema in strings(model.model_json_schema()):
        assert schema.keys() & {"pattern", "enum", "const", "format"}, path


@pytest.mark.parametrize(
    "text",
    ["a\x00b", "a\nb", "\x1b[2J", "\x7f", "\x85", "\u202eabc", "\u2066", "\u200f", "\ud800"],
    ids=ascii,
)
def test_what_steers_a_terminal_or_is_no_unicode_is_no_text(text: str) -> None:
    for adapter in (TEXT, LONG):
        with pytest.raises(ValidationError):
            adapter.validate_python(text)
        assert adapter.validate_python(plain_text(text)) == plain_text(text)


def test_texts_of_people_pass_as_they_are() -> None:
    for text in ("", "AMD Ryzen 7 5700G", "Prozessor für Müller", "処理装置", "🚀 x", "a" * 512):
        assert TEXT.validate_python(text) == plain_text(text) == text
    with pytest.raises(ValidationError, match="at most 512 characters"):
        TEXT.validate_python("a" * 513)


def test_any_text_is_made_plain() -> None:
    assert plain_text(" two\r\n  lines\t\x1b[31m red \ud800") == "two lines [31m red ?"
    assert plain_text("abcdef", max_length=3) == "abc"
