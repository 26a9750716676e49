"""From nothing to three detectors measured at their target FPS on this machine, in one command.

Everything goes through the REST interface, as a user's own scripts would. All work is kept in one folder and every job
has an idempotency key of what it is asked to do: started again on the same folder (`--data`), the quickstart takes up
where it was. A job that has failed or was cancelled is tried anew.
"""

import hashlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from nas.importance import Importance
from nas.named import named_space
from server.client import Client, ClientError, Job, JobKind, JobNotSucceeded, RequestRefused
from server.console import JobTeller, duration, table
from server.local_stack import STOP_SIGNALS, LocalStack, LocalStackError
from server.report import HEADER, cells
from server.run_report import Reach, answer_of, feasible_range, latency_model, write_report

DEVICE = "this-machine"
SPACE = "heatdetr-nano"
CLASSES = 3
SHARES = (0.15, 0.45, 0.75)
"""Where the three targets lie between the slowest and the fastest FPS that thinning reaches."""

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
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: the server's.")] = None,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Leave server and agent up at the end, until Ctrl-C.")
    ] = False,
) -> None:
    """Train the nano supernet, measure this machine, and thin three detectors to three target FPS, each measured."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, or in the background of a script
            signal.signal(number, _interrupt)
    folder = data or new_folder(Path.cwd())
    try:
        with LocalStack(folder) as stack:
            failures = Quickstart(stack, sys.stdout, seed).run(steps)
            if keep_serving:
                _keep_serving(stack)
    except KeyboardInterrupt:
        sys.stdout.write(f"\nstopped; take it up again with: scripts/quickstart --data {folder}\n")
        raise SystemExit(130) from None
    except OSError as error:
        sys.stderr.write(
            f"quickstart: {error.filename or folder} cannot be used ({error.strerror or error}): see that the folder "
            "is yours to write and has space left, or choose another with --data\n"
        )
        raise SystemExit(1) from None
    except (LocalStackError, ClientError) as error:
        sys.stderr.write(f"quickstart: {error}\nAll logs are in {folder / 'logs'}.\n")
        raise SystemExit(1) from None
    raise SystemExit(1 if failures else 0)


@dataclass(frozen=True)
class Quickstart:
    """One run on one folder."""

    stack: LocalStack
    out: TextIO
    seed: int
    started: float = field(default_factory=time.monotonic)

    def run(self, steps: int | None) -> int:
        """Do it all; return the number of thinning jobs that failed."""
        self.say(f"starting server, worker and agent; everything is kept in {self.stack.folder}")
        self.stack.serve()
        self.stack.run_agent(DEVICE)
        with self.stack.client() as client:
            training: Json = {"space": SPACE, "seed": self.seed} | ({"steps": steps} if steps else {})
            supernet = self.do(client, "train", training, title="training the supernet")["supernet"]
            order: Json = {"device": DEVICE, "space": SPACE, "classes": CLASSES, "seed": self.seed}
            edition = self.do(client, "profile", order, title="measuring this machine")["edition"]
            return self.thin_thrice(client, supernet, edition)

    def thin_thrice(self, client: Client, supernet: str, edition: str) -> int:
        """Thin to three targets, one after another: while the agent measures, nothing else shall load the machine.

        Return how many failed.
        """
        rows, described = client.rows(edition), client.edition(edition)
        importance = Importance.model_validate(client.importance(supernet))
        reach = feasible_range(named_space(SPACE, classes=CLASSES), importance, latency_model(rows, described))
        self.say(f"this machine reaches {reach.slowest_fps:.1f} to {reach.fastest_fps:.1f} FPS with this supernet")
        results, failures = self.thin_all(client, supernet, edition, self.targets(supernet, reach))
        self.out.write(f"\n{table(HEADER, [cells(answer_of(result)) for result in results])}\n\n")
        (self.stack.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        facts = _facts(client, described) | {"seed": str(self.seed)}
        report = write_report(self.stack.folder / "report.html", results, rows=rows, facts=facts)
        self.say(f"report: {report}")
        return failures

    def thin_all(self, client: Client, supernet: str, edition: str, targets: Sequence[float]) -> tuple[list[Json], int]:
        """Thin to the targets, one after another; return the results and the number of jobs that failed."""
        results, failures = list[Json](), 0
        for target in targets:
            order = {"device": DEVICE, "supernet": supernet, "edition": edition, "target_fps": target, "verify": True}
            try:
                results.append(self.do(client, "thin", order, title=f"thinning to {target} FPS"))
            except JobNotSucceeded as error:
                failures += 1
                self.say(str(error))
            except RequestRefused as error:
                # An answer that missed its target has corrected the table: what was in reach before may be no longer.
                if error.error != "BudgetUnreachable":
                    raise
                failures += 1
                self.say(str(error))
        return results, failures

    def targets(self, supernet: str, reach: Reach) -> list[float]:
        """Return the target FPS of a supernet: chosen once, since corrections of the table move what is in reach."""
        kept = self.stack.folder / f"targets-{supernet}.json"
        if not kept.exists():
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps([round(reach.at(share), 2) for share in SHARES]))
            partial.replace(kept)
        targets: list[float] = json.loads(kept.read_text())
        return targets

    def do(self, client: Client, kind: JobKind, parameters: Json, *, title: str) -> Json:
        """Submit a job, or find the one that a quickstart on this folder submitted before; return its result.

        Raises:
            JobNotSucceeded: it failed.
            ChildDied: the server or the agent ended meanwhile.
        """
        self.say(title)
        teller = JobTeller(self.out)

        def on_progress(seen: Job) -> None:
            self.stack.check()
            teller.progress(seen)

        try:
            job = submit(client, kind, parameters)
            return client.outcome(client.follow(job.id, on_event=teller.event, on_progress=on_progress))
        except ClientError:
            self.stack.check()  # a process that died explains more than a server that does not answer
            raise
        finally:
            teller.close()

    def say(self, text: str) -> None:
        """Say what comes next, with the time since the start."""
        self.out.write(f"== {text} ({duration(time.monotonic() - self.started)})\n")
        self.out.flush()


def submit(client: Client, kind: JobKind, parameters: Json) -> Job:
    """Submit a job, or find the one that was submitted with these parameters before, unless it came to nothing."""
    content = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]
    attempt = 0
    while True:
        attempt += 1
        try:
            job = client.submit(kind, parameters, idempotency_key=f"quickstart-{kind}-{content}-{attempt}")
        except RequestRefused as error:
            if error.error != "IdempotencyConflict":  # as after an upgrade that changed a default
                raise
        else:
            if job.state not in {"failed", "cancelled"}:
                return job


def new_folder(parent: Path) -> Path:
    """Return quickstart-run, or the first free quickstart-run-2, -3, ..."""
    folder, number = parent / "quickstart-run", 1
    while folder.exists():
        number += 1
        folder = parent / f"quickstart-run-{number}"
    return folder


def _facts(client: Client, edition: Json) -> dict[str, str]:
    device = next(known for known in client.devices() if known["name"] == DEVICE)["description"]
    calibration = edition["calibration"]
    return {
        "device": f"{device['cpu_model']}, {device['logical_cores']} cores, {device['system']}",
        "runtime": ", ".join(f"{name} {number}" for name, number in device["runtimes"].items()),
        "space": SPACE,
        "calibration": f"slope {calibration['slope']:.4f}, margin {100 * calibration['margin']:.1f} %, weights "
        f"{1000 * calibration['fetch_ms_per_mib']:.0f} us/MiB",
    }


def _keep_serving(stack: LocalStack) -> None:
    sys.stdout.write(f"serving on {stack.url} with token {stack.token}; Ctrl-C stops it\n")
    sys.stdout.flush()
    while True:
        stack.check()
        time.sleep(1)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
