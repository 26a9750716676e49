from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.importance import Importance
from server.handlers.train import train
from server.parameters import TrainParameters
from server.supernets import find_supernet
from tests.server.dry import NANO, Bench, Crash, DrySteps, digest

PARAMETERS = TrainParameters(images=32, steps=2, seed=7)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.open(tmp_path / "data")
    yield bench
    bench.database.dispose()


def test_a_training_stores_checkpoint_importance_and_metrics(bench: Bench) -> None:
    job = bench.submit("train", PARAMETERS)
    context = bench.context(job)
    result = train(context, PARAMETERS)
    supernet = find_supernet(bench.database, job)
    files = {file.name: file for file in bench.jobs.artifacts(job)}
    assert result["supernet"] == supernet.id == job
    assert (supernet.space, supernet.data) == (NANO, "shapes-192-32-seed7")
    assert supernet.checkpoint_sha256 == files["supernet.safetensors"].sha256 == digest(b"weights")
    assert supernet.importance == Importance.model_validate_json(context.blobs.get(files["importance.json"].sha256))
    assert supernet.metrics["ap50"] == result["metrics"]["ap50"] == 0.4
    assert "step 2 of 2, loss 2.000, 0 s left" in bench.told(job)


def test_the_child_is_told_where_to_resume(bench: Bench) -> None:
    job = bench.submit("train", PARAMETERS)
    context = bench.context(job)
    train(context, PARAMETERS)
    ((task, order),) = context.orders
    assert task == "server.heavy.training:train"
    assert order["out"] == str(bench.settings.scratch(job))
    assert (order["steps"], order["images"], order["seed"], order["noise"]) == (2, 32, 7, "gumbel")


@pytest.mark.parametrize("step", ["train", "store"])
def test_a_worker_that_dies_stores_one_supernet(bench: Bench, step: str) -> None:
    job, steps = bench.submit("train", PARAMETERS), DrySteps(dies_in=step)
    with pytest.raises(Crash):
        train(bench.context(job, steps), PARAMETERS)
    steps.dies_in = None
    assert train(bench.context(job, steps), PARAMETERS)["supernet"] == job
    assert find_supernet(bench.database, "latest").id == job
