"""From raw samples to one number and how far to trust it."""

import math
from collections.abc import Sequence
from statistics import median

OUTLIER_SCORE = 3.5
"""Modified z-score above which a sample counts as an outlier (Iglewicz and Hoaglin, 1993)."""

_MAD_TO_SIGMA = 0.6745
_MEAN_AD_TO_SIGMA = 0.7979
"""Median and mean absolute deviation of a normal distribution with sigma 1."""


def median_interval(samples: Sequence[int], confidence: float) -> tuple[int, int, float]:
    """Return (low, high, confidence) of the median by order statistics: no shape of the noise is assumed.

    The interval is the narrowest symmetric pair of order statistics that covers the median with at least `confidence`.
    Samples too few for that give the whole range, with the confidence that it really has.
    """
    ordered = sorted(samples)
    count = len(ordered)
    rank = _outermost_rank(count, confidence)
    if rank == 0:
        return ordered[0], ordered[-1], 1 - 2 * 0.5**count
    return ordered[rank - 1], ordered[count - rank], confidence


def _outermost_rank(count: int, confidence: float) -> int:
    """Return the largest r with P(r-th smallest <= median <= r-th largest) >= confidence, 0 if there is none."""
    tail, rank = 0, 0  # whole numbers: 2^-count underflows for a thousand samples
    for below in range(count // 2):
        tail += math.comb(count, below)
        if 1 - 2 * tail / 2**count < confidence:
            break
        rank = below + 1
    return rank


def count_outliers(samples: Sequence[int]) -> int:
    """Count samples with a modified z-score above 3.5; nothing is ever dropped for it.

    Where more than half of the samples are equal their median absolute deviation is zero, and the mean absolute
    deviation takes its place; where all are equal there are no outliers.
    """
    middle = median(samples)
    deviations = [abs(sample - middle) for sample in samples]
    sigma = median(deviations) / _MAD_TO_SIGMA or sum(deviations) / len(deviations) / _MEAN_AD_TO_SIGMA
    return sum(deviation > OUTLIER_SCORE * sigma for deviation in deviations) if sigma else 0
