"""The command `heatnas-agent`: `run` (the default), `describe`, `measure`.

Everything heavy is imported by the command that needs it, so that `--help` answers at once.
"""

import re
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from profiler.agent import Agent
    from profiler.console import BarReporter, PlainReporter
    from profiler.wire import Timing

DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""As `profiler.wire.Name` has it; here without pydantic, which takes a moment to import."""

COMMANDS = ("run", "describe", "measure")

app = typer.Typer(
    name="heatnas-agent",
    help="Measures graphs on this device for a HeatNAS server. Without a command: run.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
)


def _device_name(name: str | None) -> str | None:
    """Refuse a name that no device can have."""
    if name is not None and DEVICE_NAME.fullmatch(name) is None:
        raise typer.BadParameter(
            f"{name!r} is no name of a device: 1 to 63 letters, digits, dots, dashes and underscores, "
            "the first a letter or digit"
        )
    return name


def main() -> None:
    """Run the command line; errors of the product are one line, not a traceback."""
    from profiler.errors import ProfilerError  # noqa: PLC0415

    arguments = sys.argv[1:]
    if not arguments or (arguments[0] not in COMMANDS and arguments[0] != "--help"):
        arguments = ["run", *arguments]
    try:
        app(arguments)
    except ProfilerError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@app.command()
def run(
    *,
    server: Annotated[str, typer.Option(envvar="HEATNAS_SERVER", help="Address of the server.")],
    token: Annotated[
        str,
        typer.Option(envvar="HEATNAS_TOKEN", help="The server's bearer token; better in the variable than typed."),
    ],
    device: Annotated[
        str | None, typer.Option(help="Name of this device; by default its host name.", callback=_device_name)
    ] = None,
    state: Annotated[Path, typer.Option(help="Folder of the journal and the graph cache.")] = Path(
        "~/.local/state/heatnas-agent"
    ),
    once: Annotated[bool, typer.Option("--once", help="Stop when there is nothing left to measure.")] = False,
    max_tasks: Annotated[int, typer.Option(min=1, max=1024, help="Most graphs measured together.")] = 128,
) -> None:
    """Lease tasks from a server, measure them here, hand the results over.

    Example: `heatnas-agent --server http://192.168.1.5:8000 --device laptop`, with the token in HEATNAS_TOKEN
    """
    signal.signal(signal.SIGTERM, _interrupt)
    reporter = _reporter()
    with ExitStack() as stack:
        stack.callback(reporter.close)
        try:
            agent = _agent(
                stack,
                server,
                token,
                device or default_device(socket.gethostname()),
                state.expanduser(),
                max_tasks,
                reporter,
            )
            agent.run(once=once)
        except KeyboardInterrupt:
            reporter.note("stopped; what was measured is kept and handed over at the next start")
            raise SystemExit(130) from None


@app.command()
def describe() -> None:
    """Print what this machine is, as JSON.

    Example: `heatnas-agent describe`
    """
    from profiler.device import describe_device  # noqa: PLC0415

    typer.echo(describe_device().model_dump_json(indent=2))


@app.command()
def measure(
    graph: Annotated[Path, typer.Argument(help="An ONNX file with static shapes.")],
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads within an operator.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="Shortest time to measure for, against a machine's slow drift.")
    ] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole measurement, raw samples included.")] = False,
) -> None:
    """Measure one graph on this machine, without any server.

    Example: `heatnas-agent measure model.onnx --threads 2`
    """
    timing = _measure(graph, threads, seconds)
    if as_json:
        typer.echo(timing.model_dump_json(indent=2))
        return
    typer.echo(f"{timing.hot_ms:.4f} ms  {1000 / timing.hot_ms:.2f} FPS  median of {len(timing.hot_ns)} runs")
    typer.echo(f"{timing.low_ms:.4f} .. {timing.high_ms:.4f} ms  {timing.confidence:.0%} interval of the median")
    typer.echo(f"{timing.cold_ms:.4f} ms  cold: median of {len(timing.cold_ns)} runs with emptied caches")
    if not timing.converged:
        typer.echo("the interval is wider than asked: other programs may disturb, close them and measure again")


def default_device(host: str) -> str:
    """Return a host name as a device name: what is not a letter, digit, dot, dash or underscore becomes a dash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", host).strip("-._")[:63]
    return name or "device"


def _measure(graph: Path, threads: int, seconds: float) -> "Timing":
    import random  # noqa: PLC0415
    import time  # noqa: PLC0415

    from profiler.caches import make_eviction  # noqa: PLC0415
    from profiler.errors import GraphRefused  # noqa: PLC0415
    from profiler.session import open_session  # noqa: PLC0415
    from profiler.timing import Watch, measure_group  # noqa: PLC0415
    from profiler.wire import Execution, Policy  # noqa: PLC0415

    try:
        content = graph.read_bytes()
    except OSError as error:
        _fail(f"cannot read {graph}: {error.strerror}. Name an ONNX file.")
    try:
        session = open_session(content, Execution(threads=threads))
    except GraphRefused as error:
        _fail(f"{graph}: {error}")
    rng = random.Random(0)  # noqa: S311  one item has no order
    policy = Policy(min_hot_runs=40, max_hot_runs=400, min_seconds=seconds)  # as a server has its answers measured
    with ExitStack() as stack:
        reporter = _reporter()
        stack.callback(reporter.close)
        watch = Watch(progress=lambda seen: reporter.progress(seen.done, seen.total, seen.seconds_left))
        clock, evict = time.perf_counter_ns, make_eviction()
        return measure_group({"graph": session}, policy, clock=clock, rng=rng, evict=evict, watch=watch)["graph"]


def _agent(
    stack: ExitStack,
    server: str,
    token: str,
    device: str,
    state: Path,
    max_tasks: int,
    reporter: "PlainReporter | BarReporter",
) -> "Agent":
    """Put an agent together on a state folder; `stack` closes its parts."""
    import random  # noqa: PLC0415

    from profiler.agent import Agent  # noqa: PLC0415
    from profiler.client import AgentClient  # noqa: PLC0415
    from profiler.device import describe_device  # noqa: PLC0415
    from profiler.graphs import GraphCache  # noqa: PLC0415
    from profiler.journal import Journal  # noqa: PLC0415
    from profiler.session import check_runtime  # noqa: PLC0415
    from profiler.supervisor import ChildMeasurer  # noqa: PLC0415

    check_runtime()
    return Agent(
        device=device,
        description=describe_device(),
        journal=stack.enter_context(Journal(state / "journal.sqlite")),
        client=stack.enter_context(AgentClient(server, token)),
        cache=GraphCache(state / "graphs"),
        measurer=ChildMeasurer(state / "measuring"),
        reporter=reporter,
        rng=random.Random(),  # noqa: S311  seeds of visit orders, no secrets
        max_tasks=max_tasks,
    )


def _reporter() -> "PlainReporter | BarReporter":
    from profiler.console import BarReporter, PlainReporter  # noqa: PLC0415

    if sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415

        console = Console(stderr=True)
        if not console.is_dumb_terminal:  # one that cannot move its cursor
            return BarReporter(console)
    return PlainReporter(lambda text: typer.echo(text, err=True))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str) -> NoReturn:
    typer.echo(f"heatnas-agent: {message}", err=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
