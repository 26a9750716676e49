"""One bearer token guards every route but health: made at first start, kept in the data folder for its owner alone."""

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from fastapi import Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import DamagedToken, NotAuthenticated

TOKEN_FILE = "token"  # noqa: S105 - a file name
PREFIX = "heatnas_"
SECRET_BYTES = 32


def ensure_token(data: Path) -> tuple[str, bool]:
    """Return the token of a data folder, and whether it was made just now.

    Raises:
        DamagedToken: the file is there, and what it holds is no token.
    """
    path = data / TOKEN_FILE
    data.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists() and _place(path, PREFIX + secrets.token_urlsafe(SECRET_BYTES))
    token = path.read_text().strip()
    if len(token) < SECRET_BYTES or any(character.isspace() for character in token):
        raise DamagedToken(
            f"{path} holds no token (at least {SECRET_BYTES} characters without spaces): "
            "delete the file and start again, a new token is made"
        )
    return token, is_new


def _place(path: Path, token: str) -> bool:
    """Write the token where nobody sees half of it; return False when another process was first."""
    descriptor, name = tempfile.mkstemp(prefix=f".{TOKEN_FILE}-", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        Path(name).unlink()
    return True


class TokenGuard(HTTPBearer):
    """A dependency of the whole application: refuses every request without the token, whatever its path looks like."""

    def __init__(self, token: str, *, public: Collection[Callable[..., object]]) -> None:
        """Guard everything but the `public` endpoints."""
        super().__init__(scheme_name="token", description="The token that `heatnas serve` printed at its first start.")
        self._digest = hashlib.sha256(token.encode()).digest()
        self._public = frozenset(public)

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        """Let a request with the token pass.

        Raises:
            NotAuthenticated: there is no token, or another one.
        """
        # The function that was matched decides, not the path: no Host header or encoded slash can change it.
        if request.scope["endpoint"] not in self._public and not self.knows(request.headers):
            raise NotAuthenticated(
                "this route needs the server's token: send `Authorization: Bearer TOKEN`, with the token that "
                "`heatnas serve` printed at its first start (also in the file `token` of its data folder)"
            )

    def knows(self, headers: Headers) -> bool:
        """Tell whether a request carries the token, in constant time."""
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        return scheme.lower() == "bearer" and hmac.compare_digest(digest, self._digest)


class StrangersUnread:
    """Middleware that reads no body of a caller without the token.

    The framework reads and parses a body before it asks the guard; a stranger's looks empty to it, so that the guard
    alone answers, whatever was sent and however much.
    """

    def __init__(self, app: ASGIApp, *, guard: TokenGuard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, with no body where the caller is a stranger."""
        if scope["type"] == "http" and not self._guard.knows(Headers(scope=scope)):
            receive = _empty_then(receive)
        await self._app(scope, receive, send)


def _empty_then(receive: Receive) -> Receive:
    """Say first that the body is over, then what else happens, such as the end of the connection."""
    is_told = False

    async def tell() -> Message:
        nonlocal is_told
        if is_told:
            while (message := await receive())["type"] == "http.request":
                pass
            return message
        is_told = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return tell
