"""One bearer token guards every route but health: made at first start, kept in the data folder for its owner alone."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Collection
from pathlib import Path

from fastapi import Request

from server.errors import NotAuthenticated

TOKEN_FILE = "token"  # noqa: S105 - a file name
PREFIX = "heatnas_"


def ensure_token(data: Path) -> tuple[str, bool]:
    """Return the token of a data folder, and whether it was made just now."""
    path = data / TOKEN_FILE
    data.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip(), False
    token = PREFIX + secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token, True


class TokenGuard:
    """A dependency of the whole application: refuses every request without the token, whatever its path looks like."""

    def __init__(self, token: str, *, public: Collection[Callable[..., object]]) -> None:
        """Guard everything but the `public` endpoints."""
        self._digest = hashlib.sha256(token.encode()).digest()
        self._public = frozenset(public)

    def __call__(self, request: Request) -> None:
        """Compare in constant time.

        Raises:
            NotAuthenticated: there is no token, or another one.
        """
        # The function that was matched decides, not the path: no Host header or encoded slash can change it.
        if request.scope["endpoint"] in self._public:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._digest):
            raise NotAuthenticated(
                "this route needs the server's token: send `Authorization: Bearer TOKEN`, with the token that "
                "`heatnas serve` printed at its first start (also in the file `token` of its data folder)"
            )
