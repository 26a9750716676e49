"""A random walk through the agent protocol, compared step by step with a model of a few lines."""

from dataclasses import dataclass, field
from datetime import datetime

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from lookup_tables.models import Measurement
from profiler.identity import result_id
from profiler.wire import Failure, FailureClass, Release, Renewal, Result, ResultReceipt
from server.database import Base, Task, make_engine, reading, writing
from server.errors import DuplicateIdentity, LeaseLost
from server.leases import MAX_TRIES, expire, lease, record_failure, record_result, release, renew
from server.tasks import cancel_tasks
from tests.server.campaigns import CRASHED, GIVEN_BACK, TERMS, campaign, enrolled, result_for, seconds

DEVICES = ("laptop", "board")
MAX_JOBS = 6


@dataclass
class ModelTask:
    job: str
    device: str
    state: str = "pending"
    attempt: int = 0
    failures: int = 0
    silences: int = 0
    told: int = 0
    lease: str | None = None


@dataclass
class ModelLease:
    expires_at: float
    is_open: bool = True
    tasks: list[str] = field(default_factory=list)


class AgentProtocol(RuleBasedStateMachine):
    """Whatever agents and the clock do: one current attempt, `done` is final, no acknowledged result is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = make_engine("sqlite://")
        Base.metadata.create_all(self.engine)
        self.clock = 0.0
        self.tasks: dict[str, ModelTask] = {}
        self.leases: dict[str, ModelLease] = {}
        self.receipts: dict[str, tuple[Result, ResultReceipt]] = {}
        self.agents: dict[str, str] = {}
        self.jobs: list[str] = []

    def teardown(self) -> None:
        self.engine.dispose()

    @property
    def now(self) -> datetime:
        return seconds(self.clock)

    @initialize()
    def begin(self) -> None:
        for device in DEVICES:
            self.agents[device] = enrolled(self.engine, device=device).agent_id
            self.submit_a_job(device)

    @precondition(lambda self: len(self.jobs) < MAX_JOBS and not self._waiting())
    @rule(device=st.sampled_from(DEVICES))
    def submit_a_job(self, device: str) -> None:
        self.jobs.append(f"job {len(self.jobs)}")
        for identity in campaign(self.engine, 2, job=self.jobs[-1], device=device):
            self.tasks[identity] = ModelTask(self.jobs[-1], device)

    @precondition(lambda self: self.leases)
    @rule(duration=st.sampled_from([119.0, 120.0]))
    def time_passes(self, duration: float) -> None:
        self.clock += duration

    @precondition(lambda self: self._waiting())
    @rule(device=st.sampled_from(DEVICES), number=st.integers(1, 2))
    def ask_for_work(self, device: str, number: int) -> None:
        self._expire()
        held = [task for task in self.tasks.values() if task.device == device and task.state == "leased"]
        try:
            with writing(self.engine) as session:
                given = lease(session, self.agents[device], number, TERMS, now=self.now)
        except DuplicateIdentity:
            assert held
            with writing(self.engine) as session:  # what had expired as well was rolled back with the refusal
                expire(session, now=self.now)
            return
        assert not held
        free = self._handed_out(device, number)
        assert [task.task_id for task in given.tasks] == free
        if given.lease_id is None:
            assert free == []
            return
        assert given.lease_id not in self.leases
        self.leases[given.lease_id] = ModelLease(self.clock + TERMS.lease_seconds, tasks=free)
        for handed in given.tasks:
            task = self.tasks[handed.task_id]
            task.state, task.attempt, task.lease = "leased", task.attempt + 1, given.lease_id
            assert handed.attempt == task.attempt

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew_a_lease(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        known = self.leases[lease_id]
        holds = known.is_open and known.expires_at > self.clock
        try:
            with writing(self.engine) as session:
                renewed = renew(session, lease_id, Renewal(done=0, total=1), TERMS, now=self.now)
        except LeaseLost:
            assert not holds
        else:
            assert holds
            known.expires_at = self.clock + TERMS.lease_seconds
            cancelled = [
                key for key, task in self.tasks.items() if task.lease == lease_id and task.state == "cancelled"
            ]
            assert sorted(renewed.cancelled) == sorted(cancelled)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), asked=st.sampled_from([GIVEN_BACK, CRASHED]))
    def release_a_lease(self, data: st.DataObject, asked: Release) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        with writing(self.engine) as session:
            number = release(session, lease_id, asked, now=self.now)
        assert number == self._end(lease_id, in_silence=asked.crashed)

    @precondition(lambda self: any(known.is_open for known in self.leases.values()))
    @rule()
    def look_for_expired_leases(self) -> None:
        with writing(self.engine) as session:
            freed = expire(session, now=self.now)
        assert set(freed) == self._expire()

    @precondition(lambda self: any(task.attempt for task in self.tasks.values()))
    @rule(data=st.data(), nonce=st.sampled_from("ab"))
    def send_a_result(self, data: st.DataObject, nonce: str) -> None:
        self._send(*self._draw_attempt(data), nonce)

    @precondition(lambda self: any(self.tasks[key].attempt > 1 for key in self._waiting()))
    @rule(data=st.data(), nonce=st.sampled_from("ab"))
    def send_a_result_of_an_older_attempt(self, data: st.DataObject, nonce: str) -> None:
        key = data.draw(st.sampled_from([key for key in self._waiting() if self.tasks[key].attempt > 1]))
        self._send(key, data.draw(st.integers(1, self.tasks[key].attempt - 1)), nonce)

    def _send(self, key: str, attempt: int, nonce: str) -> None:
        task = self.tasks[key]
        result = result_for(key, self.agents[task.device], attempt=attempt, nonce=nonce)
        identity = result_id(result)
        with writing(self.engine) as session:
            receipt = record_result(session, identity, result, now=self.now)
        if identity in self.receipts:
            assert receipt == self.receipts[identity][1]
            return
        completes = attempt == task.attempt and task.state in {"pending", "leased"}
        assert receipt.late is not completes
        if completes:
            task.state = "done"
        self.receipts[identity] = (result, receipt)

    @precondition(lambda self: any(task.attempt for task in self.tasks.values()))
    @rule(data=st.data(), failure=st.sampled_from(FailureClass))
    def report_a_failure(self, data: st.DataObject, failure: FailureClass) -> None:
        key, attempt = self._draw_attempt(data)
        task = self.tasks[key]
        report = Failure(agent_id=self.agents[task.device], attempt=attempt, failure=failure, message="")
        with writing(self.engine) as session:
            state = record_failure(session, key, report, now=self.now)
        if task.state in {"leased", "pending"} and task.attempt == attempt != task.told:
            task.failures, task.silences, task.told = task.failures + 1, 0, attempt
            final = failure is FailureClass.UNSUPPORTED or task.failures == MAX_TRIES
            task.state = "failed" if final else "pending"
        assert state == task.state

    @precondition(lambda self: self.clock > TERMS.lease_seconds and self._waiting())
    @rule(data=st.data())
    def cancel_a_job(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        with writing(self.engine) as session:
            number = cancel_tasks(session, job, now=self.now)
        waiting = [task for task in self.tasks.values() if task.job == job and task.state in {"pending", "leased"}]
        assert number == len(waiting)
        for task in waiting:
            task.lease = task.lease if task.state == "leased" else None
            task.state = "cancelled"

    @invariant()
    def the_database_agrees_with_the_model(self) -> None:
        with reading(self.engine) as session:
            stored = {task.id: task for task in session.scalars(select(Task))}
            measured = {record.id: record for record in session.scalars(select(Measurement))}
        assert {key: (task.state, task.attempt, task.failures, task.silences) for key, task in stored.items()} == {
            key: (task.state, task.attempt, task.failures, task.silences) for key, task in self.tasks.items()
        }
        assert set(measured) == set(self.receipts)
        for key, task in stored.items():
            completing = [record for record in measured.values() if record.task_id == key and not record.late]
            assert [record.id for record in completing] == [task.measurement_id] * (task.state == "done")

    def _waiting(self) -> list[str]:
        return [key for key, task in self.tasks.items() if task.state in {"pending", "leased"}]

    def _draw_attempt(self, data: st.DataObject) -> tuple[str, int]:
        """Choose any attempt that was ever handed out."""
        attempted = [(key, n) for key, task in self.tasks.items() for n in range(1, task.attempt + 1)]
        return data.draw(st.sampled_from(attempted))

    def _expire(self) -> set[str]:
        """End what is over in the model, and return the tasks that are free again."""
        over = [key for key, known in self.leases.items() if known.is_open and known.expires_at <= self.clock]
        held = {key for key, task in self.tasks.items() if task.state == "leased" and task.lease in over}
        for lease_id in over:
            self._end(lease_id, in_silence=True)
        return held

    def _handed_out(self, device: str, number: int) -> list[str]:
        """Choose as the server does: by job, those on their last try after the others and apart from them."""
        pending = [(key, task) for key, task in self.tasks.items() if task.device == device and task.state == "pending"]
        pending.sort(key=lambda known: (self.jobs.index(known[1].job), known[1].silences == MAX_TRIES - 1))
        tries = [task.silences == MAX_TRIES - 1 for _, task in pending[:number]]
        return [key for (key, _), is_last in zip(pending, tries, strict=False) if is_last == tries[0]]

    def _end(self, lease_id: str, *, in_silence: bool) -> int:
        self.leases[lease_id].is_open = False
        held = [task for task in self.tasks.values() if task.state == "leased" and task.lease == lease_id]
        for task in held:
            task.state, task.lease = "pending", None
            if in_silence:
                task.silences += 1
                task.state = "failed" if task.silences == MAX_TRIES else "pending"
        return len(held)


TestAgentProtocol = AgentProtocol.TestCase
TestAgentProtocol.settings = settings(
    max_examples=20,
    stateful_step_count=50,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
