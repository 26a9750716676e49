"""Jobs in our own tables, which are the truth: submitted here, worked on by the engine, followed by their events.

Submitting only inserts a row (the outbox); a worker hands it to the job engine under the same id. Every state change is
a conditional UPDATE, so that of two that race only one happens.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from server.database import FINAL_JOB_STATES, Artifact, Job, JobEvent, JobState, reading, writing
from server.errors import IdempotencyConflict, JobCancelled, JobNotFinished, UnknownArtifact, UnknownJob
from server.parameters import PARAMETERS, Parameters
from server.tasks import cancel_tasks, digest

Json = dict[str, Any]

OPEN_STATES = (JobState.SUBMITTED, JobState.QUEUED, JobState.RUNNING)


class Jobs:
    """The jobs of one database; each method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(
        self, kind: str, parameters: Parameters, *, key: str | None, now: datetime, sent: Parameters | None = None
    ) -> Job:
        """Store a job for a worker to pick up; the same idempotency key gives the job it made before.

        Args:
            kind: what sort of job.
            parameters: what it is to do.
            key: idempotency key, None to make a job in any case.
            now: the time.
            sent: the parameters as they were sent, where something in them was looked up since.

        Raises:
            IdempotencyConflict: the key was used for another request.
        """
        sent = sent or parameters
        job = Job(
            id=f"{kind}-{secrets.token_hex(6)}",
            kind=kind,
            state=JobState.SUBMITTED,
            parameters=parameters.model_dump(mode="json"),
            idempotency_key=key,
            request_digest=None if key is None else _digest(kind, sent),
            created_at=now,
        )
        try:
            with writing(self._engine) as session:
                session.add(job)
                session.flush()
                _add_event(session, job.id, "submitted", f"{kind} job submitted", None, now)
        except IntegrityError:
            known = None if key is None else self.made_by(key, kind, sent)
            if known is None:
                raise
            return known
        return self.get(job.id)

    def made_by(self, key: str, kind: str, sent: Parameters) -> Job | None:
        """Return the job that a key made, None when it made none: a request sent again is not judged anew.

        Requests are compared as they were sent: neither what was looked up for them since, such as the latest supernet,
        nor a default that has changed makes a difference.

        Raises:
            IdempotencyConflict: the key was used for another request.
        """
        with reading(self._engine) as session:
            known = session.scalars(select(Job).where(Job.idempotency_key == key)).one_or_none()
        if known is None:
            return None
        if known.request_digest != _digest(kind, sent):
            raise IdempotencyConflict(
                f"idempotency key {key!r} belongs to {known.kind} job {known.id} with other parameters: use a new key"
            )
        return known

    def get(self, job: str) -> Job:
        """Return a job.

        Raises:
            UnknownJob: there is none of that id.
        """
        with reading(self._engine) as session:
            return _find(session, job)

    def parameters(self, job: str) -> Parameters:
        """Return what a job is asked to do."""
        found = self.get(job)
        return PARAMETERS[found.kind].model_validate(found.parameters)

    def list(
        self, *, kind: str | None = None, state: str | None = None, limit: int, offset: int
    ) -> tuple[int, Sequence[Job]]:
        """Count the jobs that match and return one page, newest first."""
        wanted = select(Job)
        if kind is not None:
            wanted = wanted.where(Job.kind == kind)
        if state is not None:
            wanted = wanted.where(Job.state == state)
        with reading(self._engine) as session:
            total = session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
            ordered = wanted.order_by(Job.created_at.desc(), Job.id)
            return total, session.scalars(ordered.limit(limit).offset(offset)).all()

    def submitted(self) -> Sequence[str]:
        """List the jobs that wait for a worker, oldest first."""
        with reading(self._engine) as session:
            wanted = select(Job.id).where(Job.state == JobState.SUBMITTED).order_by(Job.created_at)
            return session.scalars(wanted).all()

    def under_way(self) -> Sequence[str]:
        """List the jobs that were handed to the engine and are not final, oldest first."""
        with reading(self._engine) as session:
            wanted = select(Job.id).where(Job.state.in_([JobState.QUEUED, JobState.RUNNING])).order_by(Job.created_at)
            return session.scalars(wanted).all()

    def mark(self, job: str, state: JobState, *, now: datetime) -> bool:
        """Move an open job to `queued` or `running`; return whether it was moved."""
        before = (JobState.SUBMITTED,) if state is JobState.QUEUED else (JobState.SUBMITTED, JobState.QUEUED)
        values: Json = {"state": state}
        if state is JobState.RUNNING:
            values["started_at"] = now
        with writing(self._engine) as session:
            moved = _moved(session, job, before, values)
            if moved and state is JobState.RUNNING:
                _add_event(session, job, "running", "a worker has taken the job", None, now)
            return moved

    def progress(self, job: str, share: float) -> None:
        """Note the share of the work done, 0 to 1; it never falls."""
        with writing(self._engine) as session:
            session.execute(
                update(Job)
                .where(Job.id == job, Job.state == JobState.RUNNING, Job.progress < share)
                .values(progress=min(share, 1.0))
            )

    def event(self, job: str, kind: str, message: str, data: Mapping[str, Any] | None = None, *, now: datetime) -> None:
        """Append an event; a job that is final has told its last."""
        with writing(self._engine) as session:
            if _is_open(session, job):
                _add_event(session, job, kind, message, None if data is None else dict(data), now)

    def events(self, job: str, *, after: int = 0, limit: int = 500, offset: int = 0) -> Sequence[JobEvent]:
        """List the events of a job after a number, in order."""
        with reading(self._engine) as session:
            _find(session, job)
            wanted = select(JobEvent).where(JobEvent.job_id == job, JobEvent.seq > after).order_by(JobEvent.seq)
            return session.scalars(wanted.limit(limit).offset(offset)).all()

    def count_events(self, job: str, *, after: int = 0) -> int:
        """Count the events of a job after a number."""
        with reading(self._engine) as session:
            wanted = select(func.count()).where(JobEvent.job_id == job, JobEvent.seq > after)
            return session.scalar(wanted) or 0

    def succeed(self, job: str, result: Mapping[str, Any], *, now: datetime) -> None:
        """Finish a job with its result; a job that is final already stays as it is."""
        values = {"state": JobState.SUCCEEDED, "result": dict(result), "finished_at": now, "progress": 1.0}
        self._finish(job, values, "succeeded", "done", now)

    def fail(self, job: str, *, kind: str, message: str, now: datetime) -> None:
        """Finish a job with what went wrong; a job that is final already stays as it is."""
        values = {"state": JobState.FAILED, "error": {"error": kind, "message": message}, "finished_at": now}
        self._finish(job, values, "failed", message, now)

    def cancel(self, job: str, *, now: datetime) -> Job:
        """Cancel a job with its open tasks; a job that is final already stays as it is."""
        self._finish(job, {"state": JobState.CANCELLED, "finished_at": now}, "cancelled", "cancelled", now)
        return self.get(job)

    def is_cancelled(self, job: str) -> bool:
        """Tell whether a job is to stop."""
        return self.get(job).state == JobState.CANCELLED

    def check(self, job: str) -> None:
        """Raise `JobCancelled` when a job is to stop."""
        if self.is_cancelled(job):
            raise JobCancelled(f"job {job} was cancelled")

    def result(self, job: str) -> Json:
        """Return the result of a job.

        Raises:
            JobNotFinished: it has none, or none yet.
        """
        found = self.get(job)
        if found.result is None:
            hint = "wait for it" if found.state in OPEN_STATES else "see its error and submit it again"
            raise JobNotFinished(f"job {job} is {found.state} and has no result: {hint} (GET /v1/jobs/{job})")
        return found.result

    def add_artifact(self, job: str, name: str, sha256: str, size: int, media_type: str, *, now: datetime) -> None:
        """Name a blob as a file of the job; the newest of a name counts, and a job that is final takes no more."""
        file = Artifact(job_id=job, name=name, sha256=sha256, bytes=size, media_type=media_type, created_at=now)
        with writing(self._engine) as session:
            if _is_open(session, job):
                session.merge(file)

    def artifacts(self, job: str) -> Sequence[Artifact]:
        """List the files of a job by name."""
        with reading(self._engine) as session:
            _find(session, job)
            return session.scalars(select(Artifact).where(Artifact.job_id == job).order_by(Artifact.name)).all()

    def artifact(self, job: str, name: str) -> Artifact:
        """Return one file of a job.

        Raises:
            UnknownArtifact: the job has none of that name.
        """
        files = {artifact.name: artifact for artifact in self.artifacts(job)}
        if name not in files:
            raise UnknownArtifact(f"job {job} has no file {name!r}: it has {', '.join(files) or 'none yet'}")
        return files[name]

    def _finish(self, job: str, values: Json, kind: str, message: str, now: datetime) -> None:
        with writing(self._engine) as session:
            if _moved(session, job, OPEN_STATES, values):
                _add_event(session, job, kind, message, None, now)
                cancel_tasks(session, job, now=now)


def _digest(kind: str, sent: Parameters) -> str:
    content = sent.model_dump(mode="json", exclude_unset=True)
    return digest(kind, json.dumps(content, sort_keys=True))


def _find(session: Session, job: str, *, lock: bool = False) -> Job:
    found = session.get(Job, job, with_for_update=lock)
    if found is None:
        raise UnknownJob(f"job {job!r} is unknown: list the jobs with GET /v1/jobs")
    return found


def _is_open(session: Session, job: str) -> bool:
    """Tell whether a job is not final, and keep it so for the transaction: events are numbered one writer at a time."""
    return _find(session, job, lock=True).state in OPEN_STATES


def _moved(session: Session, job: str, before: Sequence[JobState], values: Json) -> bool:
    _find(session, job)
    done = session.execute(update(Job).where(Job.id == job, Job.state.in_(before)).values(**values))
    return bool(done.rowcount)  # type: ignore[attr-defined]


def _add_event(session: Session, job: str, kind: str, message: str, data: Json | None, now: datetime) -> None:
    """Number and store an event; the caller holds the lock of the job's row, or has just made it."""
    last = session.scalar(select(func.max(JobEvent.seq)).where(JobEvent.job_id == job)) or 0
    session.add(JobEvent(job_id=job, seq=last + 1, at=now, kind=kind, message=message, data=data))
    session.flush()


def is_final(job: Job) -> bool:
    """Tell whether nothing more will happen to a job."""
    return job.state in FINAL_JOB_STATES
