import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import Message

from server.app import create_app
from server.auth import TOKEN_FILE, ensure_token
from server.errors import DamagedToken
from server.settings import Settings


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FastAPI]:
    app = create_app(Settings(data=tmp_path))
    yield app
    app.state.services.database.dispose()


def test_the_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    token, is_new = ensure_token(tmp_path / "data")
    path = tmp_path / "data" / TOKEN_FILE
    assert is_new
    assert token.startswith("heatnas_")
    assert len(token) == len("heatnas_") + 43  # 256 bits
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == token + "\n"
    assert ensure_token(tmp_path / "data") == (token, False)
    assert ensure_token(tmp_path / "other")[0] != token


def test_processes_that_start_together_agree_on_one_token(tmp_path: Path) -> None:
    barrier = Barrier(8)

    def start(_: int) -> tuple[str, bool]:
        barrier.wait()
        return ensure_token(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(start, range(8)))
    assert len({token for token, _ in found}) == 1
    assert [is_new for _, is_new in found].count(True) == 1
    assert [path.name for path in tmp_path.iterdir()] == [TOKEN_FILE]


@pytest.mark.parametrize("content", ["", "\n", "heatnas_short", "two words " * 9])
def test_a_token_file_without_a_token_opens_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / TOKEN_FILE).write_text(content)
    message = r"token holds no token \(at least 32 characters without spaces\): delete the file and start again"
    with pytest.raises(DamagedToken, match=message):
        create_app(Settings(data=tmp_path))


def test_only_the_whole_token_opens(app: FastAPI, tmp_path: Path) -> None:
    token = (tmp_path / TOKEN_FILE).read_text().strip()
    client = TestClient(app)

    def status(header: str) -> int:
        return client.get("/v1/devices", headers={"Authorization": header}).status_code

    assert status(f"Bearer {token}") == status(f"bearer  {token}") == 200
    for wrong in (token, f"Basic {token}", f"Bearer {token[:-1]}", f"Bearer {token}x", f"Bearer {token.upper()}", ""):
        assert status(wrong) == 401, wrong
    refused = client.get("/v1/devices", params={"token": token})
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert token not in refused.text


def test_a_route_that_is_added_later_is_guarded_too(app: FastAPI) -> None:
    def late() -> None:
        raise AssertionError("it was called")

    app.add_api_route("/v1/late", late, methods=["GET"])
    assert TestClient(app).get("/v1/late").status_code == 401


@pytest.mark.parametrize(
    ("path", "query", "host"),
    [
        ("/v1/devices", b"x=/v1/health", b"x"),
        ("/v1/devices", b"", b"x/v1/health?"),
        ("/v1/devices", b"", b"x/v1/health#"),
        ("/v1/devices/%2e%2e", b"", b"x"),
        ("/v1/spaces/health", b"", b"x"),
    ],
)
def test_no_spelling_of_a_path_leads_around_the_guard(app: FastAPI, path: str, query: bytes, host: bytes) -> None:
    assert status_of_raw(app, path, query=query, host=host) == 401


@pytest.mark.parametrize("path", ["//v1/devices", "/v1//devices", "/v1/health/../devices", "/v1/health/%2e%2e/devices"])
def test_no_other_spelling_of_a_path_is_a_route(app: FastAPI, tmp_path: Path, path: str) -> None:
    token = (tmp_path / TOKEN_FILE).read_text().strip()
    assert status_of_raw(app, path) == status_of_raw(app, path, token=token) == 404


def status_of_raw(app: FastAPI, path: str, *, query: bytes = b"", host: bytes = b"x", token: str = "") -> int:
    """Ask as a server hands it on, since clients tidy a path up before they send it."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query, "root_path": "",
        "headers": [(b"host", host), (b"authorization", f"Bearer {token}".encode())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff"])
def test_whatever_a_stranger_sends_the_guard_alone_answers(app: FastAPI, body: bytes) -> None:
    response = TestClient(app).post("/v1/devices", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 401
    assert response.json()["error"] == "NotAuthenticated"


def test_no_body_of_a_stranger_is_read(app: FastAPI) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "PUT", "scheme": "http",
        "path": f"/v1/results/{'0' * 64}", "raw_path": b"", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"10000000")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401
