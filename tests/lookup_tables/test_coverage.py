from lookup_tables.coverage import coverage, missing_blocks
from nas.space import SearchSpace
from tests.lookup_tables.results import BLOCKS


def test_each_missing_block_is_listed_once_in_order() -> None:
    assert missing_blocks({BLOCKS[1]}, (*BLOCKS[::-1], *BLOCKS)) == (BLOCKS[2], BLOCKS[0])


def test_every_single_missing_block_is_found(space: SearchSpace) -> None:
    blocks = space.all_blocks()
    for block in blocks:
        found = coverage(set(blocks) - {block}, space, device="laptop", threads=1)
        assert found.missing == (block,)
        assert found.message == (
            f"1 of {len(blocks)} blocks of the space have no row: {block.label}. "
            "Measure them with `heatnas profile --device laptop --space small --classes 2 --threads 1`."
        )


def test_many_missing_blocks_are_counted(space: SearchSpace) -> None:
    total = len(space.all_blocks())
    found = coverage((), space, device="board", threads=4)
    assert not found.is_complete
    assert found.message.startswith(f"{total} of {total} blocks of the space have no row: ")
    assert f" and {total - 5} more. Measure them with `heatnas profile --device board" in found.message


def test_a_complete_table_says_so(space: SearchSpace) -> None:
    found = coverage(space.all_blocks(), space, device="laptop", threads=1, image=space.images[0])
    assert found.is_complete
    assert found.message == f"all {found.total} blocks of the space have a row"
