"""Jobs without the slow parts: no child process, no torch, and an agent that reads its times from a plan.

Everything between is the product's own: tables, tasks, leases, results, blobs, calibrations.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from nas.blocks import Block
from nas.config import Config
from nas.macs import gmacs
from nas.named import named_space
from profiler.identity import result_id
from profiler.wire import Failure, FailureClass
from server import leases
from server.children import Children
from server.context import Context
from server.database import Job, JobState, Supernet, TaskState, make_engine, reading, writing
from server.database import Task as TaskRecord
from server.gate import Gate
from server.jobs import Jobs
from server.machine import Machine
from server.migrations import upgrade
from server.parameters import Parameters
from server.settings import Settings
from server.tasks import network_key
from tests.lookup_tables.results import a_result, timed
from tests.planted_space import planted_importance
from tests.server.agents import enrol_agent

Json = dict[str, Any]
T = TypeVar("T")

NANO = named_space("heatdetr-nano", classes=3)
DEVICE = "bench"
TERMS = leases.LeaseTerms()

WHOLE_PER_SUM = 1.1
"""On the planned device a whole network takes this much more than its blocks together."""


def now() -> datetime:
    return datetime.now(UTC)


def block_ms(block: Block) -> float:
    """The planned time of a block: it grows with its work."""
    return 0.02 + 10 * gmacs([block])


def network_ms(config: Config) -> float:
    """The planned time of a whole network."""
    return WHOLE_PER_SUM * sum(map(block_ms, NANO.blocks(config)))


class Crash(BaseException):
    """The worker dies here."""


@dataclass
class DrySteps:
    """Durable steps in memory; `dies_in` names a step that is run and then lost."""

    finished: dict[str, str] = field(default_factory=dict)
    dies_in: str | None = None
    run: list[str] = field(default_factory=list)

    def __call__(self, name: str, function: Callable[[], T]) -> T:
        if name not in self.finished:
            self.run.append(name)
            result = function()
            if name == self.dies_in:
                raise Crash
            self.finished[name] = json.dumps(result)
        value: T = json.loads(self.finished[name])
        return value


@dataclass(frozen=True)
class DryContext(Context):
    """A context whose heavy tasks are done at once; `orders` are the children that would have run."""

    orders: list[tuple[str, Json]] = field(default_factory=list)
    networks: dict[str, Config] = field(default_factory=dict)

    def child(
        self,
        task: str,
        parameters: Mapping[str, Any],
        on_message: Callable[[Json], None],
        *,
        is_futile: Callable[[], bool] = lambda: False,
    ) -> Json:
        assert not is_futile()
        assert parameters["threads"] == (1 if "graphs:" in task else self.settings.train_threads)
        self.orders.append((task, dict(parameters)))
        match task.rpartition(":")[2]:
            case "export_block_graphs":
                for block in map(Block.model_validate, parameters["blocks"]):
                    on_message({"type": "item", **self._item(block.key)})
            case "export_references":
                for config in map(Config.model_validate, parameters["configs"]):
                    on_message({"type": "item", **self._network(config)})
            case "deploy":
                config = Config.model_validate(parameters["config"])
                return {**self._network(config), "evaluation": {"ap": 0.25, "ap50": 0.5}}
            case "train":
                on_message({"type": "progress", "step": 1, "total": 2, "loss": 3.0, "seconds_left": None})
                on_message({"type": "progress", "step": 2, "total": 2, "loss": 2.0, "seconds_left": 0.0})
                return {
                    "checkpoint_sha256": self.blobs.put(b"weights"),
                    "importance": planted_importance(NANO, parameters["seed"]).model_dump(mode="json"),
                    "metrics": {"ap50": 0.4},
                }
        return {}

    def _network(self, config: Config) -> Json:
        self.networks[network_key(config)] = config
        return self._item(network_key(config))

    def _item(self, key: str) -> Json:
        content = f"graph of {key}".encode()
        return {
            "key": key,
            "sha256": self.blobs.put(content),
            "bytes": len(content),
            "label": key,
            "parity": {"max_abs_diff": 0.0},
        }


@dataclass
class Bench:
    """A data folder with one device, and how long things take on it.

    Attributes:
        networks: configs by item key, of every network that was exported.
        slowdown: factor on the planned time of one item, by key.
        drift: factor on the planned time of every item.
        refuses: keys that the agent cannot measure.
    """

    settings: Settings
    database: Engine
    networks: dict[str, Config] = field(default_factory=dict)
    slowdown: dict[str, float] = field(default_factory=dict)
    drift: float = 1.0
    refuses: frozenset[str] = frozenset()

    @classmethod
    def open(cls, data: Path) -> "Bench":
        data.mkdir(parents=True, exist_ok=True)
        settings = Settings(data=data, export_processes=2)
        database = make_engine(settings.database_url)
        upgrade(database)
        return cls(settings, database)

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.database)

    def submit(self, kind: str, parameters: Parameters) -> str:
        job = self.jobs.submit(kind, parameters, key=None, now=now()).id
        self.jobs.mark(job, JobState.RUNNING, now=now())
        return job

    def context(self, job: str, steps: DrySteps | None = None, *, identity: str = "elsewhere") -> DryContext:
        return DryContext(
            job,
            self.settings,
            self.database,
            steps or DrySteps(),
            Machine(identity, Gate(self.database, identity, clock=now)),
            Children(),
            threading.Event(),
            networks=self.networks,
        )

    def told(self, job: str) -> list[str]:
        return [event.message for event in self.jobs.events(job)]

    def plant_supernet(self, seed: int = 0) -> str:
        """Store a supernet whose importance is drawn, not trained."""
        identity = f"train-{seed}"
        with writing(self.database) as session:
            session.add(
                Job(
                    id=identity, kind="train", state=JobState.SUCCEEDED, parameters={}, result={}, created_at=now(),
                    finished_at=now(),
                )
            )  # fmt: skip
            session.flush()
            session.add(
                Supernet(
                    id=identity, job_id=identity, space=NANO.model_dump(mode="json"),
                    checkpoint_sha256=self.context(identity).blobs.put(b"weights"),
                    importance=planted_importance(NANO, seed).model_dump(mode="json"), metrics={"data": "shapes"},
                    created_at=now(),
                )
            )  # fmt: skip
        return identity

    @contextmanager
    def agent(self) -> Iterator[None]:
        """Have an agent at work."""
        agent, stop = enrol_agent(self.database, DEVICE), threading.Event()

        def work() -> None:
            while not stop.wait(0.02):
                with writing(self.database) as session:
                    lease = leases.lease(session, agent, 64, TERMS, now=now())
                # One commit for all of them: what is tested here is the job, not the protocol.
                with writing(self.database) as session:
                    for task in lease.tasks:
                        self._report(session, session.get_one(TaskRecord, task.task_id), agent)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def report(self, agent: str, *tasks: TaskRecord) -> None:
        """Have the agent hand in the results of these tasks, or of all that are leased."""
        with writing(self.database) as session:
            leased = session.scalars(select(TaskRecord).where(TaskRecord.state == TaskState.LEASED)).all()
            for task in tasks or leased:
                self._report(session, task, agent)

    def _report(self, session: Session, task: TaskRecord, agent: str) -> None:
        if task.item_key in self.refuses:
            failure = Failure(
                agent_id=agent, attempt=task.attempt, failure=FailureClass.UNSUPPORTED, message="no kernel for this"
            )
            leases.record_failure(session, task.id, failure, now=now())
            return
        planned = network_ms(self.networks[task.item_key]) if task.block is None else block_ms(Block(**task.block))
        ns = round(planned * self.slowdown.get(task.item_key, 1.0) * self.drift * 1e6)
        result = a_result(
            task=task.id,
            agent=agent,
            attempt=task.attempt,
            graph=task.graph_sha256,
            timing=timed(hot_ns=(ns - 10, ns, ns + 10), cold_ns=(2 * ns, 2 * ns)),
            measured_at=now().isoformat(),
        )
        leases.record_result(session, result_id(result), result, now=now())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tasks_of(bench: Bench, job: str) -> list[TaskRecord]:
    with reading(bench.database) as session:
        found = session.query(TaskRecord).filter(TaskRecord.job_id == job).order_by(TaskRecord.position).all()
    return list(found)
