from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.database import FINAL_JOB_STATES, Base, JobState, make_engine
from server.errors import IdempotencyConflict, JobCancelled, JobNotFinished, UnknownArtifact, UnknownJob
from server.jobs import Jobs
from server.parameters import ProfileParameters, ThinParameters, TrainParameters

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TRAIN = TrainParameters(steps=5)


@pytest.fixture
def jobs(tmp_path: Path, sqlite_template: Path) -> Iterator[Jobs]:
    path = tmp_path / "heatnas.sqlite"
    copyfile(sqlite_template, path)
    engine = make_engine(f"sqlite:///{path}")
    yield Jobs(engine)
    engine.dispose()


def kinds(jobs: Jobs, job: str) -> list[tuple[int, str]]:
    return [(event.seq, event.kind) for event in jobs.events(job)]


def test_a_submitted_job_waits_for_a_worker_with_its_parameters(jobs: Jobs) -> None:
    job = jobs.submit("train", TRAIN, key=None, now=NOW)
    assert (job.state, job.progress, job.created_at) == ("submitted", 0.0, NOW)
    assert job.id.startswith("train-")
    assert jobs.parameters(job.id) == TRAIN
    assert jobs.submitted() == [job.id]
    assert kinds(jobs, job.id) == [(1, "submitted")]


def test_without_a_key_every_request_is_a_job_of_its_own(jobs: Jobs) -> None:
    first, second = (jobs.submit("train", TRAIN, key=None, now=NOW) for _ in range(2))
    assert first.id != second.id


def test_a_hundred_requests_of_one_key_at_once_make_one_job(jobs: Jobs) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: jobs.submit("train", TRAIN, key="night", now=NOW).id, range(100)))
    assert len(set(made)) == 1
    assert jobs.list(limit=10, offset=0)[0] == 1
    assert kinds(jobs, made[0]) == [(1, "submitted")]


@pytest.mark.parametrize(
    ("kind", "other"), [("train", TrainParameters(steps=6)), ("profile", ProfileParameters(device="pi"))]
)
def test_a_key_belongs_to_one_request(jobs: Jobs, kind: str, other: TrainParameters | ProfileParameters) -> None:
    first = jobs.submit("train", TRAIN, key="night", now=NOW)
    message = f"idempotency key 'night' belongs to train job {first.id} with other parameters: use a new key"
    with pytest.raises(IdempotencyConflict, match=message):
        jobs.submit(kind, other, key="night", now=NOW)
    assert jobs.made_by("night", "train", TRAIN).id == first.id  # type: ignore[union-attr]
    assert jobs.made_by("day", "train", TRAIN) is None


def test_requests_are_the_same_that_were_sent_the_same(jobs: Jobs) -> None:
    """Sent again, `latest` may mean another supernet by now; and a newer server may have other defaults."""
    sent = ThinParameters(device="pi", supernet="latest", target_fps=20)
    found = [sent.model_copy(update={"supernet": f"train-{number}"}) for number in (1, 2)]
    made = [jobs.submit("thin", parameters, key="k", now=NOW, sent=sent).id for parameters in found]
    assert made[0] == made[1]
    assert jobs.get(made[0]).parameters["supernet"] == "train-1"
    default = ThinParameters.model_fields["solver"].default
    for other in (found[0], found[1], sent.model_copy(update={"solver": default})):
        with pytest.raises(IdempotencyConflict, match="with other parameters"):
            jobs.made_by("k", "thin", other)
    again = ThinParameters.model_validate_json('{"target_fps": 20.0, "supernet": "latest", "device": "pi"}')
    assert jobs.made_by("k", "thin", again).id == made[0]  # type: ignore[union-attr]


def test_a_job_runs_to_its_result(jobs: Jobs) -> None:
    job = jobs.submit("train", TRAIN, key=None, now=NOW).id
    assert jobs.mark(job, JobState.QUEUED, now=NOW)
    assert not jobs.mark(job, JobState.QUEUED, now=NOW)
    assert jobs.under_way() == [job]
    assert jobs.mark(job, JobState.RUNNING, now=NOW)
    jobs.progress(job, 0.5)
    jobs.progress(job, 0.25)
    assert jobs.get(job).progress == 0.5
    jobs.event(job, "step", "half way", {"step": 5}, now=NOW)
    with pytest.raises(JobNotFinished, match=rf"job {job} is running and has no result: wait for it"):
        jobs.result(job)
    jobs.succeed(job, {"ap50": 0.5}, now=NOW)
    found = jobs.get(job)
    assert (found.state, found.progress, found.finished_at) == ("succeeded", 1.0, NOW)
    assert jobs.result(job) == {"ap50": 0.5}
    assert kinds(jobs, job) == [(1, "submitted"), (2, "running"), (3, "step"), (4, "succeeded")]


def test_what_is_final_stays(jobs: Jobs) -> None:
    job = jobs.submit("train", TRAIN, key=None, now=NOW).id
    jobs.fail(job, kind="ChildFailed", message="out of memory", now=NOW)
    jobs.succeed(job, {}, now=NOW)
    assert jobs.cancel(job, now=NOW).state == "failed"
    assert jobs.get(job).error == {"error": "ChildFailed", "message": "out of memory"}
    assert kinds(jobs, job) == [(1, "submitted"), (2, "failed")]
    with pytest.raises(JobNotFinished, match="see its error and submit it again"):
        jobs.result(job)


def test_nothing_happens_to_a_job_after_its_last_event(jobs: Jobs) -> None:
    """A stream ends with that event; a child that has not yet heard of the cancellation still tells its steps."""
    job = jobs.submit("train", TRAIN, key=None, now=NOW).id
    jobs.add_artifact(job, "log", "a" * 64, 1, "text/plain", now=NOW)
    jobs.cancel(job, now=NOW)
    jobs.event(job, "training", "step 3", now=NOW)
    for name in ("log", "model.onnx"):
        jobs.add_artifact(job, name, "b" * 64, 1, "text/plain", now=NOW)
    assert kinds(jobs, job) == [(1, "submitted"), (2, "cancelled")]
    assert [(file.name, file.sha256) for file in jobs.artifacts(job)] == [("log", "a" * 64)]


def test_events_and_files_need_a_job(jobs: Jobs) -> None:
    with pytest.raises(UnknownJob, match="job 'nope' is unknown"):
        jobs.event("nope", "step", "", now=NOW)


def test_a_cancelled_job_tells_its_worker(jobs: Jobs) -> None:
    job = jobs.submit("train", TRAIN, key=None, now=NOW).id
    jobs.check(job)
    jobs.cancel(job, now=NOW)
    with pytest.raises(JobCancelled, match=f"job {job} was cancelled"):
        jobs.check(job)
    assert not jobs.mark(job, JobState.RUNNING, now=NOW)


def test_events_are_numbered_without_gaps_by_writers_at_once(jobs: Jobs) -> None:
    job = jobs.submit("train", TRAIN, key=None, now=NOW).id
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: jobs.event(job, "step", str(n), now=NOW), range(40)))
    assert [event.seq for event in jobs.events(job)] == list(range(1, 42))
    assert [event.seq for event in jobs.events(job, after=10, limit=5, offset=3)] == [14, 15, 16, 17, 18]
    assert jobs.count_events(job, after=10) == 31


def test_listings_filter_and_page_newest_first(jobs: Jobs) -> None:
    made = [jobs.submit("train", TRAIN, key=None, now=NOW.replace(minute=minute)).id for minute in range(3)]
    profile = jobs.submit("profile", ProfileParameters(device="pi"), key=None, now=NOW.replace(hour=13)).id
    jobs.cancel(made[0], now=NOW)

    def ids(**asked: str | None) -> tuple[int, list[str]]:
        total, found = jobs.list(**asked, limit=2, offset=0)
        return total, [job.id for job in found]

    assert ids() == (4, [profile, made[2]])
    assert ids(kind="train") == (3, [made[2], made[1]])
    assert ids(kind="train", state="cancelled") == (1, [made[0]])
    assert [job.id for job in jobs.list(limit=2, offset=3)[1]] == [made[0]]


def test_the_newest_file_of_a_name_counts(jobs: Jobs) -> None:
    job = jobs.submit("train", TRAIN, key=None, now=NOW).id
    for sha256 in ("a" * 64, "b" * 64):
        jobs.add_artifact(job, "model.onnx", sha256, 4, "application/octet-stream", now=NOW)
    assert [artifact.sha256 for artifact in jobs.artifacts(job)] == ["b" * 64]
    with pytest.raises(UnknownArtifact, match=f"job {job} has no file 'x': it has model.onnx"):
        jobs.artifact(job, "x")


def test_unknown_jobs_are_named(jobs: Jobs) -> None:
    for ask in (jobs.get, jobs.events, jobs.artifacts, jobs.result, jobs.is_cancelled):
        with pytest.raises(UnknownJob, match="job 'nope' is unknown: list the jobs with GET /v1/jobs"):
            ask("nope")
    with pytest.raises(UnknownJob):
        jobs.cancel("nope", now=NOW)


STEPS = st.sampled_from(["queue", "run", "progress", "event", "succeed", "fail", "cancel"])


@settings(max_examples=60)
@given(steps=st.lists(st.tuples(STEPS, st.floats(0, 1)), max_size=12))
def test_no_order_of_steps_leaves_a_final_state_or_a_gap(steps: list[tuple[str, float]]) -> None:
    engine = make_engine("sqlite://")
    Base.metadata.create_all(engine)
    jobs = Jobs(engine)
    job = jobs.submit("train", TRAIN, key=None, now=NOW).id
    before = jobs.get(job)
    for step, share in steps:
        match step:
            case "queue":
                jobs.mark(job, JobState.QUEUED, now=NOW)
            case "run":
                jobs.mark(job, JobState.RUNNING, now=NOW)
            case "progress":
                jobs.progress(job, share)
            case "event":
                jobs.event(job, "step", "", now=NOW)
            case "succeed":
                jobs.succeed(job, {"share": share}, now=NOW)
            case "fail":
                jobs.fail(job, kind="E", message="m", now=NOW)
            case "cancel":
                jobs.cancel(job, now=NOW)
        after = jobs.get(job)
        if before.state in FINAL_JOB_STATES:
            assert (after.state, after.result, after.error) == (before.state, before.result, before.error)
        assert after.progress >= before.progress
        assert (after.state in FINAL_JOB_STATES) == (after.finished_at is not None)
        before = after
    events = jobs.events(job)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert sum(event.kind in FINAL_JOB_STATES for event in events) == (before.state in FINAL_JOB_STATES)
    engine.dispose()
