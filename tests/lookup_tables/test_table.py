import pytest
from pydantic import ValidationError

from lookup_tables.table import LookupTable, TableContent, TableRow
from nas.latency import LatencyModel
from profiler.wire import Execution
from tests.lookup_tables.results import BLOCKS, NOON, ONE_THREAD


def rows(*latencies_ms: float) -> list[TableRow]:
    return [
        TableRow(block=block, latency_ms=ms, hot_ms=ms, cold_ms=ms, converged=True, measurement=f"m{index}")
        for index, (block, ms) in enumerate(zip(BLOCKS, latencies_ms, strict=False))
    ]


def content(*latencies_ms: float) -> TableContent:
    return TableContent.of("laptop", ONE_THREAD, "1.31.1", rows(*latencies_ms))


@pytest.fixture
def table() -> LookupTable:
    return LookupTable(edition="e1", content=content(1.0, 2.0), created_at=NOON)


def test_a_table_is_a_mapping_from_blocks_to_milliseconds(table: LookupTable) -> None:
    assert dict(table) == {BLOCKS[0]: 1.0, BLOCKS[1]: 2.0}
    assert len(table) == 2
    assert BLOCKS[2] not in table
    assert table.row(BLOCKS[1]).fps == 500
    assert LatencyModel(table, slope=1.1).predict_ms([BLOCKS[0], BLOCKS[1], BLOCKS[1]]) == pytest.approx(5.5)


def test_a_missing_row_is_an_error_and_never_zero(table: LookupTable) -> None:
    with pytest.raises(KeyError, match="edition e1 has no row for wmsa 64 @8x16 tokens"):
        table[BLOCKS[2]]
    assert table.get(BLOCKS[2]) is None


def test_the_id_is_the_content_whatever_its_order() -> None:
    assert TableContent.of("laptop", ONE_THREAD, "1.31.1", rows(1, 2)[::-1]).id == content(1, 2).id
    others = [
        content(1, 2.0000001),
        content(1),
        TableContent.of("board", ONE_THREAD, "1.31.1", rows(1, 2)),
        TableContent.of("laptop", Execution(threads=2), "1.31.1", rows(1, 2)),
        TableContent.of("laptop", ONE_THREAD, "1.32.0", rows(1, 2)),
        TableContent.of("laptop", ONE_THREAD, None, rows(1, 2)),
    ]
    assert len({content(1, 2).id, *(other.id for other in others)}) == 1 + len(others)


def test_the_id_is_the_same_for_ever() -> None:
    """Editions are cited by id: a change of this number would orphan every table out there."""
    assert content(1.5, 2.25).id == "50505baae8af6da0"


def test_a_table_without_rows_or_with_time_zero_cannot_exist() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        content()
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            content(wrong)
