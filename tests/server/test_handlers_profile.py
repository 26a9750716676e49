from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookup_tables.errors import UnknownDevice
from lookup_tables.store import TableStore
from nas.macs import gmacs
from server.errors import JobCancelled, StepFailed
from server.handlers.profile import profile, reference_configs, spread
from server.parameters import ProfileParameters
from server.tasks import network_key
from tests.server.dry import DEVICE, NANO, WHOLE_PER_SUM, Bench, Crash, DrySteps, now, tasks_of

PARAMETERS = ProfileParameters(device=DEVICE, references=4)
BLOCKS = NANO.all_blocks()
REFERENCES = reference_configs(NANO, 4, seed=0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.open(tmp_path / "data")
    yield bench
    bench.database.dispose()


def test_every_block_is_timed_published_and_calibrated(bench: Bench) -> None:
    with bench.agent():
        job = bench.submit("profile", PARAMETERS)
        context = bench.context(job)
        result = profile(context, PARAMETERS)
    table = context.tables.load(result["edition"])
    calibration = context.tables.calibration(result["edition"])
    assert set(table) == set(BLOCKS)
    assert (result["rows"], result["space"], result["device"]) == (len(BLOCKS), NANO.name, DEVICE)
    assert (calibration.revision, len(calibration.points)) == (1, 4)
    assert {point.label for point in calibration.points} == {config.id for config in REFERENCES}
    assert result["slope"] == calibration.slope == pytest.approx(WHOLE_PER_SUM, rel=1e-3)
    assert result["calibration_revision"] == 1
    assert sorted(task.item_key for task in tasks_of(bench, job)) == sorted(
        [*(block.key for block in BLOCKS), *map(network_key, REFERENCES)]
    )
    told = bench.told(job)
    assert f"to measure: {len(BLOCKS)} of {len(BLOCKS)} blocks of heatdetr-nano, 4 whole networks" in told
    assert f"{len(BLOCKS) + 4} of {len(BLOCKS) + 4} graphs measured on bench" in told


def test_a_second_profile_times_references_alone_and_keeps_the_edition(bench: Bench) -> None:
    with bench.agent():
        first = profile(bench.context(bench.submit("profile", PARAMETERS)), PARAMETERS)
        job = bench.submit("profile", PARAMETERS)
        context = bench.context(job)
        second = profile(context, PARAMETERS)
    assert context.orders == []
    assert [task.item_key for task in tasks_of(bench, job)] == [network_key(config) for config in REFERENCES]
    assert second == first


def test_a_second_profile_tells_a_calibrated_table_how_far_the_device_has_drifted(bench: Bench) -> None:
    with bench.agent():
        first = profile(bench.context(bench.submit("profile", PARAMETERS)), PARAMETERS)
        bench.drift = 1.2
        context = bench.context(bench.submit("profile", PARAMETERS))
        second = profile(context, PARAMETERS)
    assert (second["edition"], second["calibration_revision"]) == (first["edition"], 2)
    assert second["slope"] == pytest.approx(1.2 * first["slope"], rel=1e-3)
    assert second["margin"] == first["margin"]
    assert context.tables.calibration(first["edition"]).drift == pytest.approx(1.2, rel=1e-3)


def test_a_calibration_that_another_job_corrects_meanwhile_is_corrected_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench.agent():
        first = profile(bench.context(bench.submit("profile", PARAMETERS)), PARAMETERS)
        bench.drift = 1.2
        context = bench.context(bench.submit("profile", PARAMETERS))
        edition = first["edition"]

        def lose_the_race_once(store: TableStore, *args: Any, **kwargs: Any) -> None:
            monkeypatch.undo()
            store.add_calibration(edition, store.calibration(edition).corrected(drift=1.05), now=now())
            store.add_calibration(*args, **kwargs)

        monkeypatch.setattr(TableStore, "add_calibration", lose_the_race_once)
        second = profile(context, PARAMETERS)
    assert second["calibration_revision"] == 3
    assert [one.drift for one in context.tables.calibrations(edition)] == pytest.approx([1, 1.05, 1.2], rel=1e-3)


def test_a_second_profile_brings_new_references_into_the_calibration(bench: Bench) -> None:
    """They were timed for this: twenty seconds for each group of them."""
    more = PARAMETERS.model_copy(update={"references": 8, "seed": 1})
    with bench.agent():
        first = profile(bench.context(bench.submit("profile", PARAMETERS)), PARAMETERS)
        bench.drift = 1.2
        context = bench.context(bench.submit("profile", more))
        second = profile(context, more)
        steps = DrySteps(dies_in="calibrate")
        with pytest.raises(Crash):
            profile(bench.context(bench.submit("profile", more), steps), more)
    labels = {config.id for config in (*REFERENCES, *reference_configs(NANO, 8, seed=1))}
    calibration = context.tables.calibration(first["edition"])
    assert (second["edition"], second["calibration_revision"], calibration.revision) == (first["edition"], 2, 2)
    assert {point.label for point in calibration.points} == labels
    assert len(calibration.points) == len(labels) == 10
    assert calibration.drift == pytest.approx(1.2, rel=1e-3)
    assert second["slope"] == pytest.approx(1.2 * first["slope"], rel=1e-3)
    assert second["reference_error_percent"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("step", ["export", "measure", "calibrate"])
def test_a_worker_that_dies_in_any_step_loses_and_doubles_nothing(bench: Bench, step: str) -> None:
    job, steps = bench.submit("profile", PARAMETERS), DrySteps(dies_in=step)
    with bench.agent():
        with pytest.raises(Crash):
            profile(bench.context(job, steps), PARAMETERS)
        steps.dies_in = None
        again = bench.context(job, steps)
        result = profile(again, PARAMETERS)
    assert steps.run.count(step) == 2
    assert len(steps.run) == 6
    assert again.orders == []
    tasks = tasks_of(bench, job)
    assert len(tasks) == len(BLOCKS) + 4
    assert {task.attempt for task in tasks} == {1}
    assert len(again.tables.calibrations(result["edition"])) == 1


def test_a_graph_that_the_device_refuses_fails_the_job_by_name(bench: Bench) -> None:
    bench.refuses = frozenset({BLOCKS[3].key})
    job = bench.submit("profile", PARAMETERS)
    with bench.agent(), pytest.raises(StepFailed) as caught:
        profile(bench.context(job), PARAMETERS)
    assert caught.value.kind == "TasksFailed"
    assert str(caught.value) == (
        f"1 of {len(BLOCKS) + 4} graphs could not be measured on bench ({BLOCKS[3].label}: no kernel for this): "
        "mend the cause there and submit the job again; what was measured is kept"
    )


def test_an_unknown_device_is_told_before_anything_is_exported(bench: Bench) -> None:
    context = bench.context(bench.submit("profile", PARAMETERS))
    with pytest.raises(UnknownDevice, match="device 'bench' is unknown"):
        profile(context, PARAMETERS)
    assert context.orders == []


def test_a_cancelled_profile_ends_while_it_waits(bench: Bench) -> None:
    job = bench.submit("profile", PARAMETERS)
    context = bench.context(job)
    context.tables.register_device(DEVICE, now=now())
    steps = DrySteps(dies_in="export")
    with pytest.raises(Crash):
        profile(bench.context(job, steps), PARAMETERS)
    bench.jobs.cancel(job, now=now())
    with pytest.raises(JobCancelled, match=f"job {job} was cancelled"):
        profile(bench.context(job, steps), PARAMETERS)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_references_are_the_extremes_and_random_ones_between(count: int) -> None:
    configs = reference_configs(NANO, count, seed=1)
    work = [gmacs(NANO.blocks(config)) for config in configs]
    assert len({config.id for config in configs}) == count
    assert configs[0] == NANO.largest()
    assert configs == reference_configs(NANO, count, seed=1)
    if count > 1:
        assert configs[1] == NANO.smallest()
        assert work[2:] == sorted(work[2:])
    if count == 8:
        assert configs != reference_configs(NANO, count, seed=2)


@given(items=st.integers(0, 200), among=st.integers(1, 20))
def test_references_stand_at_even_distances(items: int, among: int) -> None:
    mixed = spread([f"block{number}" for number in range(items)], [f"network{number}" for number in range(among)])
    assert [one for one in mixed if one.startswith("block")] == [f"block{number}" for number in range(items)]
    assert [one for one in mixed if one.startswith("network")] == [f"network{number}" for number in range(among)]
    places = [place for place, one in enumerate(mixed) if one.startswith("network")]
    gaps = [later - earlier for earlier, later in pairwise(places)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
