"""What the commands of `heatnas` share: their options, the way to the server, and how they fail."""

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from server.client import Client

DEFAULT_DATA = Path("heatnas-data")
DEFAULT_SERVER = "http://127.0.0.1:8000"


def finite(value: float | None) -> float | None:
    """Refuse what no JSON number can say."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number: write digits, such as 25 or 0.5")
    return value


DataOption = Annotated[
    Path, typer.Option("--data", envvar="HEATNAS_DATA", help="The server's folder: databases, files, token.")
]
ServerOption = Annotated[str, typer.Option("--server", envvar="HEATNAS_SERVER", help="Address of the server.")]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="HEATNAS_TOKEN",
        help="The server's token; by default the one in the file `token` of the data folder.",
        show_default=False,
    ),
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Submit and return; do not wait for the job.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed: the same again gives the same.")]
SpaceOption = Annotated[
    str,
    typer.Option(help="Search space, alone or for a runtime, such as heatdetr-edge@cpu; `heatnas spaces` lists them."),
]
DeviceOption = Annotated[str, typer.Option(help="Device, as its agent was named.")]
ThreadsOption = Annotated[int, typer.Option(min=1, max=256, help="Threads of the runtime; each has its own table.")]
SecondsOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        callback=finite,
        help="Shortest time that graphs measured together are measured for, against a machine's slow drift; "
        "default: the server's, 20.",
        show_default=False,
    ),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        metavar="HxW", help="Input size, such as 320x320; default: the largest of the space.", show_default=False
    ),
]
DropBadOption = Annotated[
    bool,
    typer.Option(
        "--drop-bad",
        help="Go on without bad images and boxes, and say what was left out; boxes partly outside are clipped. By "
        "default they are refused.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def find_token(token: str | None, data: Path) -> str:
    """Return the token that was given, or else the one in the data folder."""
    if token and not (token.isascii() and token.isprintable()):
        fail(f"the token {token!a} has characters that no token has: copy it again from the server's data folder")
    if token:
        return token
    path = data / "token"
    try:
        return path.read_text().strip()
    except OSError as error:
        fail(
            f"no token: {path} cannot be read ({error.strerror}). Give --token (or HEATNAS_TOKEN), or --data with the "
            "folder of a server on this machine"
        )


def input_size(text: str | None) -> tuple[int, int] | None:
    """Read an input size that was given as HxW, height first; whether the space has it is for the server to say."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if found is None:
        fail(f"--image {text} is not an input size: write height x width in pixels, such as 320x320")
    return int(found[1]), int(found[2])


@contextmanager
def connect(server: str, token: str | None, data: Path) -> "Iterator[Client]":
    """Open a client, with the token that was given or the one in the data folder."""
    from server.client import Client  # noqa: PLC0415

    if re.match(r"https?://[^/]", server) is None:
        fail(f"--server {server!r} is no address: write it with http://, such as {DEFAULT_SERVER}")
    with Client(server, find_token(token, data), patience_seconds=5) as client:
        yield client


def fail(message: str) -> NoReturn:
    """Say what is wrong on one line of standard error and end with status 1."""
    sys.stderr.write(f"heatnas: {message}\n")
    raise SystemExit(1)
