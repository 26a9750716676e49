"""The commands that submit jobs to a server, follow them, and look at what came out."""

import json
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

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
    finite,
    input_size,
)

if TYPE_CHECKING:
    from server.client import Client, Job, JobKind


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
