"""Every answer that a test gets from a served application is one that its OpenAPI document knows."""

from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from httpx2 import Response
from starlette.routing import compile_path
from starlette.testclient import TestClient


def hold_to_the_document(client: TestClient) -> None:
    """Have every answer checked as it comes."""
    app: FastAPI = client.app  # type: ignore[assignment]
    document = app.openapi()
    client.event_hooks = {"request": [], "response": [lambda answer: check(document, answer)]}


def check(document: dict[str, Any], answer: Response) -> None:
    """Fail when the operation that answered does not list this status; what is no operation is not its matter."""
    path, method = unquote(answer.request.url.path), answer.request.method.lower()
    for template, item in document["paths"].items():
        if method in item and compile_path(template)[0].match(path):
            listed = item[method]["responses"]
            assert str(int(answer.status_code)) in listed, f"{method} {template} answers {int(answer.status_code)}"
            return
