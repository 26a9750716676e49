import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.summary import count_outliers, median_interval

SAMPLES = st.lists(st.integers(min_value=1, max_value=10**9), min_size=6, max_size=60)


def test_interval_of_twelve_samples_is_the_third_and_tenth() -> None:
    # P(Binomial(12, 1/2) <= 2) = 79/4096, so ranks 3 and 10 cover with 96.1 %; ranks 4 and 9 only with 85.4 %.
    assert median_interval(range(10, 130, 10), 0.95) == (30, 100, 0.95)


def test_interval_of_forty_samples_is_the_fourteenth_and_twenty_seventh() -> None:
    assert median_interval(range(1, 41), 0.95) == (14, 27, 0.95)


def test_five_samples_are_too_few_for_95_percent_and_say_what_they_have() -> None:
    assert median_interval([5, 1, 4, 2, 3], 0.95) == (1, 5, 1 - 2 * 0.5**5)


@given(SAMPLES, st.sampled_from([0.9, 0.95]))
def test_interval_holds_the_median_and_covers_enough(samples: list[int], confidence: float) -> None:
    low, high, got = median_interval(samples, confidence)
    ordered = sorted(samples)
    assert low <= ordered[(len(samples) - 1) // 2] <= ordered[len(samples) // 2] <= high
    assert got == confidence
    # Coverage of the widest rank pair that has these values, by direct summation.
    rank = max(r for r in range(1, len(ordered) // 2 + 1) if ordered[r - 1] == low and ordered[-r] == high)
    tail = sum(math.comb(len(ordered), k) for k in range(rank)) * 0.5 ** len(ordered)
    assert 1 - 2 * tail >= confidence or ordered[rank - 2] == low


def test_one_slow_run_among_steady_ones_is_an_outlier() -> None:
    assert count_outliers([100, 101, 99, 102, 98, 100, 180]) == 1


def test_outliers_are_counted_when_most_samples_are_equal() -> None:
    assert count_outliers([100] * 20 + [500]) == 1


@pytest.mark.parametrize("samples", [[7], [7, 7, 7, 7], [100, 101, 102, 103, 104]])
def test_steady_samples_have_no_outliers(samples: list[int]) -> None:
    assert count_outliers(samples) == 0


def test_thousands_of_samples_have_an_interval_too() -> None:
    # Normal approximation of the rank: 1500 - 1.96 * sqrt(3000) / 2 = 1446.3.
    assert median_interval(range(1, 3001), 0.95) == (1446, 2 + 3000 - 1447, 0.95)
