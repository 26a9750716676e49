"""From nothing to three detectors measured at their target FPS on this machine, in one command.

Everything goes through the REST interface, as a user's own scripts would. All work is kept in one folder and every job
has an idempotency key: started again on the same folder (`--data`), the quickstart takes up where it was.
"""

import json
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from nas.importance import Importance
from nas.space import named_space
from server.client import Client, ClientError, Event, Job, JobKind, JobNotSucceeded
from server.local_stack import LocalStack, LocalStackError
from server.report import HEADER, Answer, cells
from server.run_report import answer_of, feasible_range, latency_model, write_report

DEVICE = "this-machine"
SPACE = "heatdetr-nano"
CLASSES = 3
SHARES = (0.15, 0.5, 0.85)
"""Where the three targets lie between the slowest and the fastest FPS that thinning reaches."""

LINE_SECONDS = 10.0
"""Where output goes to a file, progress is told this often."""

Json = dict[str, Any]


def main() -> None:
    """Run the command line."""
    typer.run(quickstart)


def quickstart(
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder for everything; an interrupted run in it is taken up. Default: a new quickstart-run."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, training and reference networks.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of the supernet; default: the server's.")
    ] = None,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Leave server and agent up at the end, until Ctrl-C.")
    ] = False,
) -> None:
    """Train the nano supernet, measure this machine, and thin three detectors to three target FPS, each measured."""
    signal.signal(signal.SIGTERM, _interrupt)
    folder = data or _new_folder(Path.cwd())
    teller = Teller(sys.stdout)
    try:
        with LocalStack(folder) as stack:
            failures = _run(stack, teller, seed=seed, steps=steps)
            if keep_serving:
                _keep_serving(stack, teller)
    except KeyboardInterrupt:
        teller.say(f"stopped; take it up again with: scripts/quickstart --data {folder}")
        raise SystemExit(130) from None
    except (LocalStackError, ClientError) as error:
        sys.stderr.write(f"quickstart: {error}\nAll logs are in {folder / 'logs'}.\n")
        raise SystemExit(1) from None
    raise SystemExit(1 if failures else 0)


@dataclass
class Teller:
    """Says how far things are: a line that moves on a terminal, a line now and then in a file."""

    out: TextIO
    started: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def say(self, text: str) -> None:
        """Say one line, with the time since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        self._write(f"[{minutes:2d}:{seconds:02d}] {text}", "\n")

    def progress(self, label: str, share: float, *, since: float) -> None:
        """Say which share of a piece of work, begun at `since`, is done, and how long the rest takes at that pace."""
        now = time.monotonic()
        if not self.out.isatty() and now - self.told < LINE_SECONDS:
            return
        self.told = now
        left = f", about {(now - since) * (1 - share) / share:.0f} s left" if share > 0 else ""
        self._write(f"        {label}: {share:.0%}{left}", "" if self.out.isatty() else "\n")

    def _write(self, text: str, end: str) -> None:
        clear = "\r\x1b[K" if self.out.isatty() else ""
        self.out.write(clear + text + end)
        self.out.flush()


def _run(stack: LocalStack, teller: Teller, *, seed: int, steps: int | None) -> int:
    """Do it all; return the number of thinning jobs that failed."""
    teller.say(f"starting server, worker and agent; everything is kept in {stack.folder}")
    stack.serve()
    stack.run_agent(DEVICE)
    with stack.client() as client:
        work = Work(stack, client, teller, seed)
        train: Json = {"space": SPACE, "seed": seed} | ({"steps": steps} if steps else {})
        supernet = work.do("train", train, key="train", label="training the supernet")
        profile = {"device": DEVICE, "space": SPACE, "seed": seed}
        edition = work.do("profile", profile, key="profile", label="measuring this machine")
        return _thin_thrice(work, supernet=supernet["supernet"], edition=edition["edition"])


def _thin_thrice(work: "Work", *, supernet: str, edition: str) -> int:
    """Thin to three targets, one after another: while the agent measures, nothing else shall load the machine."""
    rows, table = work.client.rows(edition), work.client.edition(edition)
    importance = Importance.model_validate(work.client.importance(supernet))
    reach = feasible_range(named_space(SPACE, classes=CLASSES), importance, latency_model(rows, table))
    work.teller.say(f"this machine reaches {reach.slowest_fps:.1f} to {reach.fastest_fps:.1f} FPS with this supernet")
    results, failures = list[Json](), 0
    for share in SHARES:
        target = round(reach.at(share), 2)
        parameters = {"device": DEVICE, "supernet": supernet, "edition": edition, "target_fps": target, "verify": True}
        try:
            results.append(work.do("thin", parameters, key=f"thin-{share}", label=f"thinning to {target:.2f} FPS"))
        except JobNotSucceeded as error:
            failures += 1
            work.teller.say(str(error))
    _print_table([answer_of(result) for result in results])
    (work.stack.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report = write_report(work.stack.folder / "report.html", results, rows=rows, facts=_facts(work, table))
    work.teller.say(f"report: {report}")
    return failures


def _facts(work: "Work", table: Json) -> dict[str, str]:
    device = next(known for known in work.client.devices() if known["name"] == DEVICE)["description"]
    calibration = table["calibration"]
    return {
        "device": f"{device['cpu_model']}, {device['logical_cores']} cores, {device['system']}",
        "runtime": ", ".join(f"{name} {number}" for name, number in device["runtimes"].items()),
        "space": SPACE,
        "calibration": f"slope {calibration['slope']:.4f}, margin {100 * calibration['margin']:.1f} %",
        "seed": str(work.seed),
    }


@dataclass(frozen=True)
class Work:
    """What submitting and waiting need."""

    stack: LocalStack
    client: Client
    teller: Teller
    seed: int

    def do(self, kind: JobKind, parameters: Json, *, key: str, label: str) -> Json:
        """Submit a job, or find the one that this folder's quickstart submitted before; return its result.

        Raises:
            JobNotSucceeded: it failed.
            ChildDied: the server or the agent ended meanwhile.
        """
        job = self.client.submit(kind, parameters, idempotency_key=f"quickstart-{self.seed}-{key}")
        since = time.monotonic()
        self.teller.say(label)

        def on_progress(seen: Job) -> None:
            self.stack.check()
            self.teller.progress(label, seen.progress, since=since)

        def on_event(event: Event) -> None:
            self.teller.say(f"  {event.message}")

        try:
            return self.client.outcome(self.client.follow(job.id, on_event=on_event, on_progress=on_progress))
        except ClientError:
            self.stack.check()  # a process that died explains more than a server that does not answer
            raise


def _print_table(answers: list[Answer]) -> None:
    lines = [HEADER, *map(cells, answers)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    sys.stdout.write(f"\n{text}\n\n")
    sys.stdout.flush()


def _keep_serving(stack: LocalStack, teller: Teller) -> None:
    teller.say(f"serving on {stack.url} with token {stack.token}; Ctrl-C stops it")
    while True:
        stack.check()
        time.sleep(1)


def _new_folder(parent: Path) -> Path:
    """Return quickstart-run, or the first free quickstart-run-2, -3, ..."""
    folder, number = parent / "quickstart-run", 1
    while folder.exists():
        number += 1
        folder = parent / f"quickstart-run-{number}"
    return folder


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
