"""Exports in several child processes, without the processes."""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from server.context import Futile
from server.errors import ChildFailed, UnknownBlob
from server.graphs import export_blocks, graphs_of
from server.parameters import TrainParameters
from tests.server.dry import NANO, Bench, DryContext

Json = dict[str, Any]

BLOCKS = NANO.all_blocks()[:4]


class OneDies(DryContext):
    """Of the two children one dies, the other would go on for many minutes."""

    def child(
        self,
        task: str,
        parameters: Mapping[str, Any],
        on_message: Callable[[Json], None],  # noqa: ARG002
        *,
        is_futile: Callable[[], bool] = lambda: False,
    ) -> Json:
        if parameters["blocks"][0] != BLOCKS[0].model_dump(mode="json"):
            raise ChildFailed(f"{task} was killed", kind="ChildDied")
        for _ in range(200):
            if is_futile():
                raise Futile
            threading.Event().wait(0.05)
        raise AssertionError("it was never told")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.open(tmp_path / "data")
    yield bench
    bench.database.dispose()


def test_the_failure_of_one_child_ends_the_others(bench: Bench) -> None:
    known = bench.context(bench.submit("train", TrainParameters()))
    context = OneDies(
        known.job, known.settings, known.database, known.steps, known.machine, known.children, known.stopping
    )
    with pytest.raises(ChildFailed, match="export_block_graphs was killed"):
        export_blocks(context, BLOCKS, tell=lambda *_: None)


def test_a_graph_whose_file_is_gone_is_named(bench: Bench) -> None:
    context = bench.context(bench.submit("train", TrainParameters()))
    export_blocks(context, BLOCKS, tell=lambda *_: None)
    keys = [block.key for block in BLOCKS]
    assert set(graphs_of(context, keys)) == set(keys)
    context.blobs.path(graphs_of(context, keys)[keys[2]].sha256).unlink()
    with pytest.raises(UnknownBlob, match=rf"1 of 4 exported graphs are gone from .*blobs, such as {keys[2]}: submit"):
        graphs_of(context, keys)
