import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookup_tables.samples import pack, unpack

RUNS = st.lists(st.integers(0, 2**63 - 1), max_size=60).map(tuple)


@given(RUNS, RUNS)
def test_samples_come_back_exactly(hot: tuple[int, ...], cold: tuple[int, ...]) -> None:
    assert unpack(pack(hot, cold)) == (hot, cold)


def test_real_samples_take_less_room_than_their_numbers() -> None:
    hot = tuple(1_000_000 + 37 * index % 5000 for index in range(40))
    assert len(pack(hot, ())) < 8 * len(hot)


def test_damaged_samples_are_not_given_back() -> None:
    packed = bytearray(pack((1, 2, 3), (4,)))
    packed[1] = 7
    with pytest.raises(ValueError, match=r"version 1 with 4 runs for 7 \+ 1: damaged, or newer"):
        unpack(bytes(packed))
