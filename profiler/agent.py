"""The agent: claim tasks, measure them together, hand the results over; whatever fails, lose and double nothing.

One pass, `Agent.run_once`, is: upload what is left over, lease a batch, fetch its graphs, measure it interleaved in a
child process, upload, forget. Each result is on disk before the next is awaited; a pass cut short anywhere is taken up
by the next start: it uploads first, then gives the old leases back, and only then asks for new work.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple, Protocol

from profiler.client import AgentClient
from profiler.device import circumstances
from profiler.errors import HashMismatch, LeaseLost, RequestRefused, ServerError, ServerUnreachable
from profiler.graphs import GraphCache
from profiler.identity import result_id
from profiler.journal import Journal, Upload
from profiler.lease_keeper import LeaseKeeper
from profiler.pipe import Advanced, Item, Measured, Order, Refused
from profiler.supervisor import Measurer
from profiler.timing import Context
from profiler.wire import (
    PROTOCOL,
    DeviceDescription,
    Enrolled,
    Enrolment,
    Execution,
    Failure,
    FailureClass,
    Lease,
    LeaseRequest,
    Policy,
    Result,
    Task,
    plain_text,
)

MAX_TASKS = 128
"""Tasks of one lease: the more are interleaved, the more alike a disturbance hits them."""

GROUP_BYTES = 512 * 2**20
"""Graph bytes opened at the same time; sessions need a few times this in memory."""

MAX_WAIT_SECONDS = 50.0

MAX_MESSAGE = 4000
"""Characters of a failure that are reported."""

UNKNOWN_AGENT = "UnknownAgent"
"""A server's name for having no such agent, as when its database was restored."""


class Reporter(Protocol):
    """Whoever tells the user how it goes."""

    def note(self, text: str) -> None:
        """Say one line."""

    def progress(self, done: int, total: int, seconds_left: float | None) -> None:
        """Say how far the lease is; `seconds_left` is an upper bound for the group in hand."""


class Summary(NamedTuple):
    """What one pass did."""

    leased: int
    measured: int
    failed: int
    uploaded: int


class Agent:
    """Everything an agent remembers lies in its journal; a new one on the same state folder takes up its work."""

    def __init__(
        self,
        *,
        device: str,
        description: DeviceDescription,
        client: AgentClient,
        journal: Journal,
        cache: GraphCache,
        measurer: Measurer,
        reporter: Reporter,
        rng: random.Random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        max_tasks: int = MAX_TASKS,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        """Put the parts together; nothing is sent yet."""
        self._device, self._description = device, description
        self._client, self._journal, self._cache = client, journal, cache
        self._measurer, self._reporter, self._rng = measurer, reporter, rng
        self._now, self._clock, self._sleep = now, clock, sleep
        self._max_tasks, self._group_bytes = max_tasks, group_bytes
        self._enrolled: Enrolled | None = None
        self._pause_seconds: float | None = None

    def run(self, *, once: bool) -> None:
        """Work for ever, or until there is nothing to do; a server that goes away is waited for, unless `once`."""
        while True:
            try:
                summary = self.run_once(wait=not once)
            except (ServerUnreachable, LeaseLost) as error:
                if once or self._pause_seconds is None:
                    raise
                self._reporter.note(f"{error} Trying again in {self._pause_seconds:.0f} s.")
                self._sleep(self._pause_seconds)
                continue
            if once and not summary.leased:
                return

    def run_once(self, *, wait: bool = False) -> Summary:
        """Upload what is left over, measure one lease, upload; `wait` a while for work if there is none.

        Raises:
            ServerError: the server cannot be reached or refuses this agent; results stay in the journal.
        """
        enrolled = self._enrolled or self._start()
        uploaded = self.upload_backlog()
        lease, asked_at = self._lease(enrolled, wait=wait)
        if lease is None or lease.lease_id is None or not lease.tasks:
            self._cache.trim(keep=())
            return Summary(0, 0, 0, uploaded)
        self._journal.claim(lease)
        try:
            measured, failed = self._work(enrolled, lease, lease.lease_id, asked_at)
        except BaseException:
            self._give_back(lease.lease_id)
            raise
        return Summary(len(lease.tasks), measured, failed, uploaded + self.upload_backlog())

    def upload_backlog(self, *, patience_seconds: float | None = None) -> int:
        """Hand over everything the server has not acknowledged; return how many it has taken.

        Only what a HeatNAS server itself refuses is never sent again: a proxy's page, or a server that does not know
        this agent, says nothing about the result.
        """
        taken = 0
        for upload in self._journal.backlog():
            try:
                self._upload(upload, patience_seconds)
            except RequestRefused as error:
                if error.error is None:
                    self._reporter.note(f"task {upload.task_id}: {error} It is kept, and sent again later.")
                elif error.error == UNKNOWN_AGENT:
                    self._enrolled = None
                    self._reporter.note(f"task {upload.task_id}: {error} This agent enrols again and sends it then.")
                    break
                else:
                    self._journal.refuse(upload, str(error))
                    self._reporter.note(
                        f"task {upload.task_id}: {error} It stays in the journal, not to be sent again."
                    )
            else:
                self._journal.acknowledge(upload)
                taken += 1
        return taken

    def _start(self) -> Enrolled:
        """Enrol, hand over what an earlier run left, and give back the leases it held."""
        message = Enrolment(
            device=self._device, protocol=PROTOCOL, agent_version=agent_version(), description=self._description
        )
        enrolled = self._client.enrol(message)
        self.upload_backlog()
        for lease_id in self._journal.open_leases():
            self._client.release(lease_id)
            self._journal.drop_lease(lease_id)
        self._reporter.note(f"enrolled as {enrolled.agent_id} for device {enrolled.device}")
        self._enrolled, self._pause_seconds = enrolled, enrolled.poll_seconds
        return enrolled

    def _lease(self, enrolled: Enrolled, *, wait: bool) -> tuple[Lease | None, float]:
        """Ask for a batch; return it with the moment of asking, or none from a server that has forgotten this agent."""
        asked_at = self._clock()
        wait_seconds = min(enrolled.poll_seconds, MAX_WAIT_SECONDS) if wait else 0
        request = LeaseRequest(max_tasks=self._max_tasks, wait_seconds=wait_seconds)
        try:
            lease = self._client.lease(enrolled.agent_id, request)
        except RequestRefused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            self._enrolled = None
            return None, asked_at
        if not lease.tasks:  # a server that answers at once instead of waiting is not asked in a circle
            self._sleep(max(0.0, wait_seconds - (self._clock() - asked_at)))
        return lease, asked_at

    def _work(self, enrolled: Enrolled, lease: Lease, lease_id: str, asked_at: float) -> tuple[int, int]:
        """Measure the tasks of a lease into the journal; return how many were measured and how many failed."""
        keeper = LeaseKeeper(
            self._client,
            lease_id,
            lease,
            renew_seconds=enrolled.renew_seconds,
            asked_at=asked_at,
            clock=self._clock,
        )
        counts = _Counts(len(lease.tasks))
        with keeper:
            items = dict(self._fetch(lease.tasks, enrolled, counts))
            for tasks in _groups(lease.tasks, items, self._group_bytes):
                if not keeper.stopped:
                    self._measure(tasks, items, enrolled.agent_id, keeper, counts)
        self._journal.drop_lease(lease_id)
        self._cache.trim(keep=())
        if keeper.why is not None:
            self._reporter.note(f"{keeper.why} Its unmeasured tasks are dropped.")
        return counts.measured, counts.failed

    def _fetch(self, tasks: Iterable[Task], enrolled: Enrolled, counts: "_Counts") -> Iterator[tuple[str, Item]]:
        """Yield an item for each task whose graph is here; the others are failures."""
        wanted = {task.graph_sha256 for task in tasks}
        for task in tasks:
            try:
                self._download(task, enrolled)
            except (HashMismatch, RequestRefused) as error:
                self._fail(task, FailureClass.HASH_MISMATCH, str(error), enrolled.agent_id, counts)
                continue
            path = self._cache.find(task.graph_sha256)
            yield task.task_id, Item(key=task.task_id, path=str(path), sha256=task.graph_sha256)
        self._cache.trim(keep=wanted)

    def _download(self, task: Task, enrolled: Enrolled) -> None:
        if self._cache.find(task.graph_sha256) is None:
            partial = self._cache.partial(task.graph_sha256)
            max_bytes = min(task.graph_bytes, enrolled.max_graph_bytes)
            self._client.download(task.graph_sha256, partial, max_bytes=max_bytes)
            self._cache.keep(task.graph_sha256)

    def _measure(
        self, tasks: dict[str, Task], items: dict[str, Item], agent_id: str, keeper: LeaseKeeper, counts: "_Counts"
    ) -> None:
        """Measure one group, journalling each outcome as soon as it is known."""
        first = next(iter(tasks.values()))
        order = Order(
            items=tuple(items[task_id] for task_id in tasks),
            execution=first.execution,
            policy=first.policy,
            seed=self._rng.getrandbits(32),
        )
        around = circumstances()
        for report in self._measurer.measure(order, keeper):
            match report:
                case Measured():
                    self._keep(tasks[report.key], report, around, agent_id)
                    counts.measured += 1
                case Refused():
                    self._fail(tasks[report.key], report.failure, report.message, agent_id, counts)
                case Advanced():
                    seconds_left = report.seconds_left
                    keeper.note(counts.done, counts.total, seconds_left)
                    self._reporter.progress(counts.done, counts.total, seconds_left)

    def _keep(self, task: Task, report: Measured, around: Context, agent_id: str) -> None:
        result = Result(
            agent_id=agent_id,
            task_id=task.task_id,
            attempt=task.attempt,
            graph_sha256=task.graph_sha256,
            execution=task.execution,
            timing=report.timing,
            context={**around, **report.context, "agent_version": agent_version()},
            measured_at=self._now().isoformat(),
        )
        self._journal.keep_result(result_id(result), result)

    def _fail(self, task: Task, failure: FailureClass, message: str, agent_id: str, counts: "_Counts") -> None:
        body = Failure(
            agent_id=agent_id,
            attempt=task.attempt,
            failure=failure,
            message=plain_text(message, max_length=MAX_MESSAGE),
        )
        self._journal.keep_failure(task.task_id, body)
        self._reporter.note(f"{task.label}: {failure}: {message}")
        counts.failed += 1

    def _upload(self, upload: Upload, patience_seconds: float | None) -> None:
        if upload.result_id is None:
            self._client.report_failure(upload.task_id, upload.failure(), patience_seconds=patience_seconds)
        else:
            self._client.put_result(upload.result_id, upload.result(), patience_seconds=patience_seconds)

    def _give_back(self, lease_id: str) -> None:
        """Hand over what is measured and release the rest, with one try each: somebody waits for us to stop."""
        try:
            self.upload_backlog(patience_seconds=0)
            self._client.release(lease_id)
        except ServerError as error:
            self._reporter.note(f"lease {lease_id} is not given back, it will expire by itself: {error}")
            return
        self._journal.drop_lease(lease_id)


class _Counts:
    """How far a lease is."""

    def __init__(self, total: int) -> None:
        self.measured = self.failed = 0
        self.total = total

    @property
    def done(self) -> int:
        return self.measured + self.failed


def agent_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("heatnas")
    except PackageNotFoundError:
        return "not installed"


def _groups(tasks: Iterable[Task], items: dict[str, Item], max_bytes: int) -> Iterator[dict[str, Task]]:
    """Split the tasks that have an item into groups that run alike and fit in memory together."""
    by_way: dict[tuple[Execution, Policy], list[Task]] = {}
    for task in tasks:
        if task.task_id in items:
            by_way.setdefault((task.execution, task.policy), []).append(task)
    for alike in by_way.values():
        group: dict[str, Task] = {}
        for task in alike:
            if group and sum(other.graph_bytes for other in group.values()) + task.graph_bytes > max_bytes:
                yield group
                group = {}
            group[task.task_id] = task
        yield group
