"""Have a device time some graphs for a job, and wait for them; a worker that died waits again and asks for no more."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta

from sqlalchemy import func, select

from server.context import Context
from server.database import Agent, Device, Job, Lease, Task, TaskState, reading, writing
from server.errors import JobCancelled, TasksFailed
from server.jobs import is_final
from server.tasks import Item, add_tasks

WAIT_SECONDS = 0.5
"""Between two looks at the tasks of a job."""

TOLD_SHARES = 4
"""A campaign tells this often how far it is."""


def measure(
    context: Context, device: str, items: Sequence[Item], *, share: tuple[float, float], round_: int = 1
) -> dict[str, str]:
    """Have the device time these graphs; return the measurement id of each item key.

    Where the device is the worker's own machine, no heavy work is begun before all are timed or the agent is silent.

    Args:
        context: the job.
        device: name of the device.
        items: what to time; one task each, made once however often this is called.
        share: progress of the job when the campaign begins and when it ends.
        round_: raised to time again what the job has timed before.

    Raises:
        JobCancelled: the job was cancelled meanwhile.
        TasksFailed: the device gave up on some of them, or a graph is larger than agents are asked to run.
        UnknownDevice: there is no such device.
    """
    _check_sizes(items, context.settings.max_graph_bytes)
    campaign = _Campaign(context, device, items, share, round_)
    campaign.add()
    while not campaign.is_done():
        campaign.wait_for_agent()
        with campaign.quiet():
            campaign.wait_until_done_or_silent()
    return campaign.measurements()


def _check_sizes(items: Sequence[Item], max_graph_bytes: int) -> None:
    too_large = [item for item in items if item.graph_bytes > max_graph_bytes]
    if too_large:
        largest = max(too_large, key=lambda item: item.graph_bytes)
        raise TasksFailed(
            f"{len(too_large)} of {len(items)} graphs are larger than the {max_graph_bytes} bytes agents are asked to "
            f"run, {largest.label} has {largest.graph_bytes}: start server and worker with a larger "
            "HEATNAS_MAX_GRAPH_BYTES and submit the job again"
        )


class _Campaign:
    """The tasks of one call, and the agent that works on them."""

    def __init__(
        self, context: Context, device: str, items: Sequence[Item], share: tuple[float, float], round_: int
    ) -> None:
        self._context, self._device, self._items, self._share, self._round = context, device, items, share, round_
        self._keys = {item.key for item in items}
        self._silence = timedelta(seconds=context.settings.lease_seconds)
        self._told = -1

    def add(self) -> None:
        """Create the tasks that are not there yet.

        In one transaction with the look at the job: nobody would cancel what is added to a job that has just ended.
        """
        job, now = self._context.job, self._context.now()
        with writing(self._context.database) as session:
            if is_final(session.get_one(Job, job, with_for_update=True)):
                raise JobCancelled(f"job {job} was cancelled")
            add_tasks(session, job, self._device, self._items, now=now, round_=self._round)

    def quiet(self) -> AbstractContextManager[None]:
        """Keep heavy work off the machine if it is the one that measures."""
        described = self._context.tables.device(self._device).described
        is_here = described is not None and described.machine_hash == self._context.machine.identity
        return self._context.machine.measuring(self._context.check) if is_here else nullcontext()

    def is_done(self) -> bool:
        """Tell how far the agent is, and return whether all is done."""
        self._context.check()
        tasks = self._tasks()
        self._tell(tasks)
        return all(task.state == TaskState.DONE for task in tasks)

    def wait_until_done_or_silent(self) -> None:
        """Wait while the agent works, telling how far it is."""
        while not self.is_done() and self._agent_is_awake():
            time.sleep(WAIT_SECONDS)

    def wait_for_agent(self) -> None:
        """Wait until an agent of the device is heard of."""
        if self._agent_is_awake():
            return
        self._context.tell(
            "waiting",
            f"no agent of {self._device} is at work: start `heatnas-agent --device {self._device}` on it; "
            "what was measured is kept",
        )
        while not self._agent_is_awake():
            self._context.check()
            time.sleep(WAIT_SECONDS)
        self._context.tell("waiting", f"the agent of {self._device} is at work")

    def measurements(self) -> dict[str, str]:
        """Return the measurement of each item."""
        return {task.item_key: task.measurement_id for task in self._tasks() if task.measurement_id is not None}

    def _tasks(self) -> Sequence[Task]:
        with reading(self._context.database) as session:
            tasks = session.scalars(
                select(Task).where(
                    Task.job_id == self._context.job, Task.round == self._round, Task.item_key.in_(self._keys)
                )
            ).all()
        failed = [task for task in tasks if task.state == TaskState.FAILED]
        if failed:
            reasons = "; ".join(f"{task.label}: {(task.failure or {}).get('message')}" for task in failed[:3])
            raise TasksFailed(
                f"{len(failed)} of {len(self._keys)} graphs could not be measured on {self._device} ({reasons}): "
                "mend the cause there and submit the job again; what was measured is kept"
            )
        return tasks

    def _tell(self, tasks: Sequence[Task]) -> None:
        first, last = self._share
        self._context.progress(first + (last - first) * self._share_done(tasks))
        done = sum(task.state == TaskState.DONE for task in tasks)
        quarter = done * TOLD_SHARES // max(len(tasks), 1)
        if quarter > self._told:
            self._told = quarter
            self._context.tell(
                "measuring",
                f"{done} of {len(tasks)} graphs measured on {self._device}",
                {"done": done, "total": len(tasks)},
            )

    def _share_done(self, tasks: Sequence[Task]) -> float:
        """Count what is done, and of what is being measured interleaved the share of its time that has passed."""
        done = float(sum(task.state == TaskState.DONE for task in tasks))
        held: dict[str, int] = {}
        for task in tasks:
            if task.state == TaskState.LEASED and task.lease_id is not None:
                held[task.lease_id] = held.get(task.lease_id, 0) + 1
        if held:
            with reading(self._context.database) as session:
                leases = session.scalars(select(Lease).where(Lease.id.in_(held))).all()
            done += sum(held[lease.id] * _passed(lease, self._context.now()) for lease in leases)
        return done / max(len(tasks), 1)

    def _agent_is_awake(self) -> bool:
        with reading(self._context.database) as session:
            seen_at = session.scalar(
                select(func.max(Agent.seen_at))
                .join(Device, Device.id == Agent.device_id)
                .where(Device.name == self._device)
            )
        return seen_at is not None and self._context.now() - seen_at < self._silence


def _passed(lease: Lease, now: datetime) -> float:
    """Return which share of a lease's time has passed, by the agent's last word on the rest; 0 before its first."""
    left: float | None = (lease.progress or {}).get("seconds_left")
    passed = (now - lease.created_at).total_seconds()
    if left is None or not math.isfinite(left) or passed <= 0:
        return 0.0
    return min(passed / (passed + max(left, 0.0)), 0.99)
