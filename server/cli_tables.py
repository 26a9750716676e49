"""The commands `heatnas table`: look at lookup tables and carry them from server to server."""

import json
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from server.cli_options import DEFAULT_DATA, DEFAULT_SERVER, DataOption, ServerOption, TokenOption, connect, fail

table_app = typer.Typer(help="Lookup tables: show, export, import.", no_args_is_help=True)


@table_app.command("show")
def show_table(
    edition: Annotated[str, typer.Argument(help="Id of the edition.")],
    *,
    kind: Annotated[str | None, typer.Option(help="Only blocks of this kind, such as wmsa.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Print the rows of a table in milliseconds and frames per second.

    Example: `heatnas table show 0123456789abcdef --kind wmsa`
    """
    from nas.blocks import Block, Kind  # noqa: PLC0415
    from server.console import table  # noqa: PLC0415

    if kind is not None and kind not in tuple(Kind):
        fail(f"--kind {kind} is no kind of block: choose one of {', '.join(Kind)}")
    with connect(server, token, data) as client:
        found = client.rows(edition)
    rows = [
        (
            Block.model_validate(row["block"]).label,
            f"{row['latency_ms']:.4f}",
            f"{row['fps']:.2f}",
            f"{row['hot_ms']:.4f}",
            f"{row['cold_ms']:.4f}",
        )
        for row in found
        if kind is None or row["kind"] == kind
    ]
    typer.echo(table(("block", "ms", "FPS", "hot ms", "cold ms"), rows))


@table_app.command("export")
def export_table(
    edition: Annotated[str, typer.Argument(help="Id of the edition.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; .csv or .json decides the format.")],
    *,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Write a table to a file: JSON can be imported elsewhere, CSV is for spreadsheets.

    Example: `heatnas table export 0123456789abcdef --out laptop.json`
    """
    form: Literal["json", "csv"]
    match out.suffix.lower():
        case ".json":
            form = "json"
        case ".csv":
            form = "csv"
        case _:
            fail(f"cannot tell the format of {out}: end its name in .json or .csv")
    with connect(server, token, data) as client:
        content = client.export_table(edition, form)
    out.write_bytes(content)
    typer.echo(f"edition {edition} is in {out}")


@table_app.command("import")
def import_table(
    file: Annotated[Path, typer.Argument(help="A JSON export.", exists=True, dir_okay=False)],
    *,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Take over a table that was exported elsewhere.

    Example: `heatnas table import laptop.json`
    """
    from server.client import RequestRefused  # noqa: PLC0415

    try:
        content = json.loads(file.read_bytes(), parse_constant=_refuse_constant)
    except ValueError as error:
        fail(f"{file} is not JSON ({error}): import what `heatnas table export --out FILE.json` wrote")
    with connect(server, token, data) as client:
        try:
            imported = client.import_table(content)
        except RequestRefused as error:
            fail(f"{file}: {error}")
    typer.echo(f"edition {imported['edition']} is here")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
