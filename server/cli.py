"""The command `heatnas`: serve, work, train, profile, thin, and look at what came out.

Everything heavy is imported by the command that needs it, so that `--help` answers at once on a base install.
"""

import json
import re
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from server.cli_data import data_app
from server.cli_detect import detect
from server.cli_detectors import evaluate, macs, train
from server.cli_export import export
from server.cli_options import (
    DEFAULT_DATA,
    DEFAULT_SERVER,
    DataOption,
    DetachOption,
    DeviceOption,
    ImageOption,
    JsonOption,
    SecondsOption,
    SeedOption,
    ServerOption,
    SpaceOption,
    ThreadsOption,
    TokenOption,
    connect,
    fail,
    finite,
    input_size,
)
from server.cli_pretrain import pretrain
from server.cli_tables import table_app

if TYPE_CHECKING:
    from server.client import Client, Job, JobKind
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
app.add_typer(data_app, name="data")
app.add_typer(table_app, name="table")
app.command()(macs)
app.command()(train)
app.command()(pretrain)
app.command("eval")(evaluate)
app.command()(export)
app.command()(detect)


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


@app.command()
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


@app.command()
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


@app.command()
def supernet(
    *,
    space: SpaceOption = "heatdetr-nano",
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: the server's.")] = None,
    images: Annotated[int | None, typer.Option(min=8, help="Training images; default: the server's.")] = None,
    seed: SeedOption = 0,
    noise: Annotated[
        str, typer.Option(help="Noise on the logits: gumbel, or uniform as the paper prints it.")
    ] = "gumbel",
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
    detach: DetachOption = False,
) -> None:
    """Train a supernet and read the importance of each choice.

    Example: `heatnas supernet --space heatdetr-nano --steps 320`
    """
    parameters = {"space": space, "seed": seed, "noise": noise} | _given(steps=steps, images=images)
    with connect(server, token, data) as client:
        _run_job(client, "train", parameters, detach=detach)


@app.command()
def profile(
    *,
    device: DeviceOption,
    space: SpaceOption = "heatdetr-nano",
    classes: Annotated[int, typer.Option(min=1, help="Object classes of the head.")] = 3,
    threads: ThreadsOption = 1,
    references: Annotated[int, typer.Option(min=1, help="Whole networks measured to calibrate the table.")] = 6,
    measure_seconds: SecondsOption = None,
    seed: SeedOption = 0,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
    detach: DetachOption = False,
) -> None:
    """Have a device time every block of a space, and publish its table.

    The device's agent must be running: `heatnas-agent --server URL --token TOKEN --device laptop`

    Example: `heatnas profile --device laptop --space heatdetr-nano`
    """
    parameters = {
        "device": device,
        "space": space,
        "classes": classes,
        "threads": threads,
        "references": references,
        "seed": seed,
    } | _given(measure_seconds=measure_seconds)
    with connect(server, token, data) as client:
        _run_job(client, "profile", parameters, detach=detach)


@app.command()
def thin(
    *,
    device: DeviceOption,
    target_fps: Annotated[float, typer.Option(callback=finite, help="Frames per second to reach on the device.")],
    supernet: Annotated[str, typer.Option(help="Id of the trained supernet, or latest.")] = "latest",
    verify: Annotated[bool, typer.Option(help="Export, score and measure the answer, and correct it.")] = True,
    solver: Annotated[str, typer.Option(help="thin_all_stages, thin_paper or exact.")] = "thin_all_stages",
    threads: ThreadsOption = 1,
    image: ImageOption = None,
    edition: Annotated[str | None, typer.Option(help="Table edition; default: the newest.")] = None,
    max_rounds: Annotated[int, typer.Option(min=1, max=10, help="Measured rounds before a miss is final.")] = 3,
    measure_seconds: SecondsOption = None,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
    detach: DetachOption = False,
) -> None:
    """Find the detector that reaches a target FPS on a device, and measure it there.

    Example: `heatnas thin --device laptop --target-fps 60 --supernet latest`
    """
    parameters: dict[str, Any] = {
        "device": device,
        "supernet": supernet,
        "target_fps": target_fps,
        "verify": verify,
        "solver": solver,
        "threads": threads,
        "max_rounds": max_rounds,
    } | _given(image=input_size(image), edition=edition, measure_seconds=measure_seconds)
    with connect(server, token, data) as client:
        _run_job(client, "thin", parameters, detach=detach)


@app.command()
def jobs(
    *,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, such as running.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Most jobs listed.")] = 20,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first.

    Example: `heatnas jobs --state running`
    """
    from server.console import table  # noqa: PLC0415

    with connect(server, token, data) as client:
        found = client.jobs(state=state, limit=limit)
    if as_json:
        typer.echo(json.dumps([job.model_dump() for job in found], indent=1))
        return
    rows = [(job.id, job.kind, job.state, f"{job.progress:.0%}", job.failure) for job in found]
    typer.echo(table(("job", "kind", "state", "progress", "error"), rows))


@app.command()
def show(
    job: Annotated[str, typer.Argument(help="Id of the job.")],
    *,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
    as_json: JsonOption = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until the job ends.")] = False,
    save: Annotated[Path | None, typer.Option(help="Folder to save the job's files in.")] = None,
) -> None:
    """Show a job: what happened, its result and its files.

    Example: `heatnas show thin-0a1b2c3d4e5f --save answer`
    """
    with connect(server, token, data) as client:
        seen = client.job(job)
        if follow and not seen.is_final:
            seen = _follow(client, seen, sys.stderr if as_json else sys.stdout)
        elif not as_json:
            _show(client, seen)
        try:
            if as_json:
                typer.echo(json.dumps(client.outcome(seen), indent=1))
            elif seen.is_final:
                _tell_outcome(client, seen)
        finally:  # a job that failed has files too
            if save is not None:
                _save_files(client, seen, save, sys.stderr if as_json else sys.stdout)


@app.command()
def cancel(
    job: Annotated[str, typer.Argument(help="Id of the job.")],
    *,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Stop a job; what was measured is kept.

    Example: `heatnas cancel train-0a1b2c3d4e5f`
    """
    with connect(server, token, data) as client:
        typer.echo(f"job {job} is {client.cancel(job).state}")


@app.command()
def spaces() -> None:
    """List the search spaces, and what each is built for: alone, or with a runtime profile as NAME@PROFILE.

    A profile chooses layout and activation. The activation is part of the weights: name it before training, as in
    `heatnas supernet --space heatdetr-edge@cpu`.

    Example: `heatnas spaces`
    """
    from nas.blocks import Layout  # noqa: PLC0415
    from nas.macs import gmacs  # noqa: PLC0415
    from nas.runtime_profile import RuntimeProfile  # noqa: PLC0415
    from nas.space import SPACE_NAMES, named_space  # noqa: PLC0415
    from server.console import table  # noqa: PLC0415

    rows = []
    for name in SPACE_NAMES:
        space = named_space(name, classes=3)
        inputs = " ".join(f"{height}x{width}" for height, width in space.images)
        low, high = (gmacs(space.blocks(config)) for config in (space.smallest(), space.largest()))
        rows.append((name, inputs, f"{low:.3f}", f"{high:.3f}", str(len(space.all_blocks()))))
    typer.echo(table(("space", "input sizes", "smallest GMACs", "largest GMACs", "table rows"), rows))
    profiles = [(f"{name}@{profile}", profile.runtime) for profile in RuntimeProfile for name in SPACE_NAMES]
    built = []
    for name, runtime in (*((name, "no runtime in particular") for name in SPACE_NAMES), *profiles):
        has = named_space(name, classes=3).structure
        built.append((name, runtime, has.linear_layout or Layout.TOKENS, has.activation))
    typer.echo("\n" + table(("space", "built for", "layout of Linears", "activation"), built))


def missing_module(error: ModuleNotFoundError) -> str:
    """Say which extra brings the module that an import did not find."""
    name = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(name)
    if extra is None:
        return f"the module {error.name} is missing: install HeatNAS again"
    also = "" if extra == "server" else ', or everything: pip install "heatnas[all]"'
    return f'this command needs the extra {extra!r} (module {name} is missing): pip install "heatnas[{extra}]"{also}'


def _run_job(client: "Client", kind: "JobKind", parameters: dict[str, Any], *, detach: bool) -> None:
    """Submit a job and follow it to its end."""
    job = client.submit(kind, parameters, idempotency_key=secrets.token_hex(16))
    typer.echo(f"{kind} job {job.id}")
    if not detach:
        _tell_outcome(client, _follow(client, job, sys.stdout))


def _follow(client: "Client", job: "Job", out: TextIO) -> "Job":
    """Tell what happens to a job until it ends; return it as it ended."""
    from server.console import follow  # noqa: PLC0415

    try:
        return follow(client, job, out)
    except KeyboardInterrupt:
        typer.echo(f"the job goes on: `heatnas show {job.id} --follow` follows it, `heatnas cancel {job.id}` stops it")
        raise


def _show(client: "Client", job: "Job") -> None:
    for event in client.events(job.id):
        typer.echo(event.message)
    for file in client.artifacts(job.id):
        typer.echo(f"file {file.name}, {file.bytes} bytes, SHA-256 {file.sha256}")
    if not job.is_final:
        typer.echo(f"{job.kind} job {job.id} is {job.state}, {job.progress:.0%} done")


def _tell_outcome(client: "Client", job: "Job") -> None:
    from server.console import result_text  # noqa: PLC0415

    typer.echo(result_text(job.kind, client.outcome(job)))


def _save_files(client: "Client", job: "Job", folder: Path, out: TextIO) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in client.artifacts(job.id):
        name = re.sub(r"[^A-Za-z0-9._-]", "_", file.name).lstrip(".") or "file"
        (folder / name).write_bytes(client.download(job.id, file.name))
        typer.echo(f"saved {folder / name}", file=out)


def _given(**values: object) -> dict[str, object]:
    """Leave out what was not given: the server has the defaults."""
    return {name: value for name, value in values.items() if value is not None}


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
