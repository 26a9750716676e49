"""The OpenAPI document is true: every route is in it, guarded, explained, and its examples fit its own schemas."""

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.server.documented import check
from tests.server.webs import open_web

Json = dict[str, Any]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    app = create_app(Settings(data=tmp_path_factory.mktemp("data")))
    yield app
    app.state.services.database.dispose()


def leaves(routes: Iterable[Any]) -> Iterator[Any]:
    """Walk included routers down to their routes."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from leaves(inner.routes)


def operations(app: FastAPI) -> Iterator[tuple[str, Json]]:
    for path, item in app.openapi()["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def test_every_route_is_an_operation_of_the_document(app: FastAPI) -> None:
    found = list(leaves(app.routes))
    assert [route for route in found if not isinstance(route, APIRoute)] == []  # no mounts, no sockets, no plain routes
    hidden = [route.path for route in found if not route.include_in_schema]
    assert hidden == ["/v1/openapi.json"]
    assert len(found) - len(hidden) == len(dict(operations(app))) >= 31


def test_every_operation_asks_for_the_token_but_health(app: FastAPI) -> None:
    scheme = app.openapi()["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for name, operation in operations(app):
        wanted = [] if name == "GET /v1/health" else [{"token": []}]
        assert operation["security"] == wanted, name


def test_every_operation_says_what_it_does(app: FastAPI) -> None:
    for name, operation in operations(app):
        assert operation["summary"], name
        assert operation["description"], name


def test_refusals_are_described_in_the_shape_they_have(app: FastAPI) -> None:
    document = app.openapi()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for name, operation in operations(app):
        for code, answer in operation["responses"].items():
            if code[0] in "45":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}, f"{name} {code}"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    yield from open_web(tmp_path_factory.mktemp("web") / "data")


def unknown(path: str) -> str:
    """Fill in well-formed ids of nothing."""
    return re.sub(r"\{(\w+)\}", lambda match: "0" * 64 if "sha256" in match[1] else "nothing", path)


def test_what_does_not_exist_is_documented_where_it_can_be_asked_for(app: FastAPI, web: TestClient) -> None:
    """Each path with an id is asked for what is not there; `web` itself refuses a status that is not listed."""
    document, asked = app.openapi(), []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if "{" not in path or path == "/v1/results/{result_id}":  # its id is a hash of what is sent
                continue
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            body = None if content is None else content.get("example") or examples_of(content)[0]
            query = {"space": "heatdetr-nano"} if path.endswith("coverage") else {}
            answer = web.request(method, unknown(path), json=body, params=query)
            assert answer.status_code == 404, f"{method} {path}: {answer.text}"
            asked.append(path)
    assert len(asked) == 20, asked


def test_an_answer_that_is_not_documented_is_seen(app: FastAPI, web: TestClient) -> None:
    document = deepcopy(app.openapi())
    answer = web.get("/v1/jobs/nothing")
    check(document, answer)  # type: ignore[arg-type]
    del document["paths"]["/v1/jobs/{job}"]["get"]["responses"]["404"]
    with pytest.raises(AssertionError, match=r"get /v1/jobs/\{job\} answers 404"):
        check(document, answer)  # type: ignore[arg-type]


def test_whatever_takes_a_body_says_that_it_may_be_too_large(app: FastAPI) -> None:
    for name, operation in operations(app):
        assert ("requestBody" in operation) == ("413" in operation["responses"]), name


def test_every_answer_has_an_example(app: FastAPI) -> None:
    for name, operation in operations(app):
        contents = [
            content
            for code, answer in operation["responses"].items()
            if code.startswith("2") and code != "204"
            for content in answer.get("content", {}).values()
        ]
        assert contents or "204" in operation["responses"], name
        assert all("example" in content for content in contents), name


def test_every_body_has_an_example(app: FastAPI) -> None:
    for name, operation in operations(app):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert "example" in content or examples_of(content), name


def examples_of(content: Json) -> list[object]:
    found: list[object] = content.get("examples") or content["schema"].get("examples", [])
    return found


def test_examples_fit_what_is_taken_and_given(app: FastAPI) -> None:
    """Validate each example with the very model of its route; unknown fields count as a lie."""
    taken, given = [], []
    for route in leaves(app.routes):
        name = f"{min(route.methods)} {route.path}"
        if route.body_field is not None:
            (example,) = route.body_field.field_info.examples
            assert_fits(TypeAdapter(route.body_field.field_info.annotation), example, name)
            taken.append(name)
        # The document itself leaves null fields out of examples, so they are read where they were written.
        answer = route.responses.get(route.status_code or 200, {}).get("content", {}).get("application/json")
        if route.response_field is not None and answer is not None:
            assert_fits(TypeAdapter(route.response_model), answer["example"], name)
            given.append(name)
    assert len(taken) == 10, taken
    assert len(given) == 29, given


def assert_fits(adapter: TypeAdapter[Any], example: Any, name: str) -> None:
    try:
        value = adapter.validate_python(example)
    except ValidationError as error:
        raise AssertionError(f"the example of {name} does not fit: {error}") from error
    kept = adapter.dump_python(value, mode="json", exclude_unset=True)
    assert keys(kept) == keys(example), name


def keys(value: Any) -> Any:
    """Keep the shape of a JSON value, without its numbers and texts."""
    match value:
        case dict():
            return {key: keys(inner) for key, inner in value.items()}
        case list() | tuple():
            return [keys(inner) for inner in value]
    return None
