"""The command `heatnas`: serve, work, train, profile, thin, and look at what came out.

Everything heavy is imported by the command that needs it, so that `--help` answers at once on a base install.
"""

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from server.cli_data import data_app
from server.cli_detect import detect
from server.cli_detectors import evaluate, train
from server.cli_export import export
from server.cli_jobs import cancel, jobs, profile, show, supernet, thin
from server.cli_options import DEFAULT_DATA, DataOption, fail
from server.cli_pretrain import pretrain
from server.cli_spaces import macs, spaces
from server.cli_tables import table_app

if TYPE_CHECKING:
    from server.settings import Settings

EXTRA_OF = {
    **dict.fromkeys(
        ("sqlalchemy", "alembic", "dbos", "fastapi", "starlette", "uvicorn", "pydantic_settings", "scipy", "plotly"),
        "server",
    ),
    **dict.fromkeys(
        ("torch", "onnx", "onnxscript", "safetensors", "pycocotools", "PIL", "matplotlib", "tensorboard", "yaml"),
        "train",
    ),
    "psycopg": "postgres",
}
"""Which extra brings a module that a base install lacks."""

app = typer.Typer(
    name="heatnas",
    help="Say a target FPS, get a detector that was measured at it on your device.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Run the command line; errors of the product are one line, not a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except ModuleNotFoundError as error:
        fail(missing_module(error))
    except KeyboardInterrupt:
        sys.stderr.write("heatnas: stopped\n")
        raise SystemExit(130) from None
    except OSError as error:
        where = f"{error.filename} cannot be used" if error.filename else "the system refuses"
        fail(f"{where} ({error.strerror or error}): see that the path exists, is yours to write and has space left")
    except Exception as error:
        if not _is_ours(error):
            raise
        fail(str(error))


def serve(
    *,
    data: DataOption = DEFAULT_DATA,
    host: Annotated[str, typer.Option(envvar="HEATNAS_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="HEATNAS_PORT", min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve the REST interface and run jobs, on one data folder.

    Example: `heatnas serve --data my-data --port 8000`
    """
    from server.auth import TOKEN_FILE  # noqa: PLC0415
    from server.serving import serve as run  # noqa: PLC0415

    settings = _settings(data=data, host=host, port=port)
    path = settings.data / TOKEN_FILE
    is_first_start = not path.exists()

    def announce() -> None:
        typer.echo(f"HeatNAS on http://{_shown_host(host)}:{port}, data in {settings.data.resolve()}")
        typer.echo(f"token: {path.read_text().strip()}" if is_first_start else f"token: in {path}")

    run(settings, announce)


def worker(
    *,
    data: DataOption = DEFAULT_DATA,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> None:
    """Run jobs without serving; `heatnas serve` already starts a worker.

    Example: `heatnas worker --data my-data`
    """
    from server.worker import run_worker  # noqa: PLC0415

    run_worker(_settings(data=data), with_parent=with_parent)


_COMMANDS: tuple[Callable[..., None], ...] = (
    *(serve, worker, supernet, profile, thin, jobs, show, cancel),
    *(train, pretrain, evaluate, export, detect, spaces, macs),
)
for command in _COMMANDS:
    app.command("eval" if command is evaluate else None)(command)
app.add_typer(data_app, name="data")
app.add_typer(table_app, name="table")


def missing_module(error: ModuleNotFoundError) -> str:
    """Say which extra brings the module that an import did not find."""
    name = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(name)
    if extra is None:
        return f"the module {error.name} is missing: install HeatNAS again"
    also = "" if extra == "server" else ', or everything: pip install "heatnas[all]"'
    return f'this command needs the extra {extra!r} (module {name} is missing): pip install "heatnas[{extra}]"{also}'


def _settings(**given: object) -> "Settings":
    """Read the environment; what does not fit is named as it is set there."""
    from pydantic import ValidationError  # noqa: PLC0415

    from server.settings import Settings  # noqa: PLC0415

    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        faults = error.errors()
        named = "; ".join(
            f"HEATNAS_{str(fault['loc'][0]).upper()}={fault['input']}: {fault['msg']}" for fault in faults
        )
        fail(f"{named}: set what fits, or unset it to have the default")


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_ours(error: Exception) -> bool:
    """Tell whether an error is one of the product's own, which speak for themselves."""
    roots = {"NasError", "ProfilerError", "TablesError", "SupernetError", "ServerError", "ClientError"}
    return any(kind.__name__ in roots for kind in type(error).__mro__)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
