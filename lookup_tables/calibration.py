"""From sums of rows to times of whole networks: two coefficients per table, and how far to trust them.

A few reference networks are measured whole. A network takes `slope * (sum of rows + fetch_ms_per_mib * weights)`: rows
are timed with the weights in the caches, a network fetches them anew in each run (`nas.latency`). On 24 networks of
heatdetr-nano that the fit had not seen (one thread), the second term halved the spread of the errors, from 2.8 to
1.5 %; at 24 GB/s it was what the L3 cache gives. The slope is the geometric mean of what is left. The margin is a
one-sided prediction bound: the next network stays below `(1 + margin)` times its prediction at the stated confidence.
The second term is used where it makes this margin smaller; with so few networks any further coefficient adds more
variance than it removes bias. Where it was tried, the margin counts it, used or not.

Networks measured to verify an answer correct the calibration. They lie where the next answer will lie, so that all of
them together weigh as much as all references together, and the margin always covers every one of them: a config that
missed its budget is never predicted to meet the same budget again, unless the device has become faster.

Devices drift: warm ones throttle, shared ones have neighbours. References timed again along with an answer tell by how
much, all networks alike; points are compared with this drift taken out. Most drift has passed a minute later: in two
runs with three answers each, references took +7.5, +0.3, -0.8 % and +1.4, +6.2, -5.8 % more than at first, and a slope
that took all of it in was wrong by as much the next time. So the slope goes a part of the way, and all of it only after
a miss.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from lookup_tables.errors import InvalidCalibration
from nas.blocks import Block
from nas.latency import LatencyModel
from nas.macs import weights_mib
from nas.values import Value
from profiler.wire import Text

NOISE = 0.016
"""Mean absolute difference between two passes over the same networks on an undisturbed CPU, as a share."""

SPREAD_FLOOR = NOISE * math.sqrt(math.pi / 2)
"""Standard deviation behind that noise (2.0 %): no handful of residuals proves that the spread is smaller."""

CONFIDENCE = 0.9

FETCH_POINTS = 4
"""Networks that a second coefficient needs: with three, one degree of freedom would be left."""

LEAST_LEFT = 1 - 1e-9
"""Degrees of freedom that an estimate of the spread needs: one, but for rounding."""

NOTABLE_DRIFT = 0.02
"""Change of drift that is worth a revision of its own; less is within the noise of timing."""


DRIFT_SHARE = 0.25
"""Share of a change of drift that an answer which met its target brings into the slope; lasting drift adds up."""


class Source(StrEnum):
    """Why a network was measured whole."""

    REFERENCE = "reference"
    """Chosen before anything was searched."""
    VERIFICATION = "verification"
    """The answer of a search: the search prefers what the table underestimates, so these are no fair sample."""


class Point(Value):
    """One network measured whole.

    Attributes:
        label: which network, such as a config id.
        sum_ms: sum of its blocks' rows.
        weights_mib: size of its weights.
        measured_ms: hot median of the whole network.
        source: why it was measured.
        drift: how many times slower the references were at that time than when they were first measured.
        measurement: id of the measurement, None for a number from elsewhere.
    """

    label: Text
    sum_ms: float = Field(gt=0)
    weights_mib: float = Field(ge=0)
    measured_ms: float = Field(gt=0)
    source: Source = Source.REFERENCE
    drift: float = Field(default=1.0, gt=0)
    measurement: Text | None = None

    @classmethod
    def of(
        cls,
        label: str,
        blocks: Iterable[Block],
        rows_ms: Mapping[Block, float],
        measured_ms: float,
        *,
        source: Source = Source.REFERENCE,
        drift: float = 1.0,
        measurement: str | None = None,
    ) -> Self:
        """Set a measured network against the rows of its blocks.

        Raises:
            MissingBlocks: the table lacks a row.
        """
        blocks = tuple(blocks)
        return cls(
            label=label,
            sum_ms=LatencyModel(rows_ms).sum_ms(blocks),
            weights_mib=weights_mib(blocks),
            measured_ms=measured_ms,
            source=source,
            drift=drift,
            measurement=measurement,
        )

    def log_ratio(self, fetch_ms_per_mib: float) -> float:
        """Return the logarithm of measured over sum, fetching included and without drift: what the slope averages."""
        expected_ms = self.sum_ms + fetch_ms_per_mib * self.weights_mib
        return math.log(self.measured_ms) - math.log(expected_ms) - math.log(self.drift)


class Calibration(Value):
    """How a table predicts whole networks; `LatencyModel` has the formula.

    Attributes:
        revision: 1 from the references alone, one more with each correction.
        fetch_ms_per_mib: time to fetch a MiB of weights; 0 where it does not show.
        slope: measured time over sum of rows and fetching, on the device as it was last seen.
        drift: the part of the slope that is drift; 1 is the device as its references were first measured.
        margin: share by which the next network may be slower than predicted.
        confidence: of the margin, one-sided.
        points: what it was fitted to, in a fixed order.
        measurement: id of the measurement that a correction learned from; None for revision 1.
    """

    revision: int = Field(ge=1, lt=2**31)
    fetch_ms_per_mib: float = Field(ge=0)
    slope: float = Field(gt=0)
    drift: float = Field(default=1.0, gt=0)
    margin: float = Field(ge=0)
    confidence: float = Field(gt=0.5, lt=1)
    points: tuple[Point, ...] = Field(min_length=1)
    measurement: Text | None = None

    @property
    def residuals(self) -> tuple[float, ...]:
        """Share by which each point is slower than predicted, drift aside, in the order of `points`."""
        centre = math.log(self.slope) - math.log(self.drift)
        return tuple(math.expm1(point.log_ratio(self.fetch_ms_per_mib) - centre) for point in self.points)

    @property
    def mape_percent(self) -> float:
        """Mean absolute error over the points, in percent of the measured time; on the points it was fitted to."""
        return _mape_percent(self.residuals)

    @property
    def reference_error_percent(self) -> float:
        """The same over the references alone: answers that missed were chosen for where the table is wrong."""
        found = zip(self.residuals, self.points, strict=True)
        return _mape_percent([residual for residual, point in found if not _is_verification(point)] or self.residuals)

    @property
    def sentence(self) -> str:
        """How networks relate to their blocks, for people."""
        fetch = f" and {1000 * self.fetch_ms_per_mib:.0f} us for each MiB of weights" if self.fetch_ms_per_mib else ""
        return (
            f"networks take {self.slope:.3f} times the sum of their blocks{fetch}, "
            f"at most {100 * self.margin:.1f} % more with {100 * self.confidence:.0f} % confidence"
        )

    def latency_model(self, rows_ms: Mapping[Block, float]) -> LatencyModel:
        """Predict with these rows."""
        return LatencyModel(rows_ms, fetch_ms_per_mib=self.fetch_ms_per_mib, slope=self.slope, margin=self.margin)

    def drift_of(self, now_ms: Mapping[str, float]) -> float | None:
        """Return how many times slower the references are now than at first (geometric mean); None without any.

        Args:
            now_ms: whole networks timed again, by label; those that are no references are left out.
        """
        logs = [
            math.log(now_ms[point.label] / point.measured_ms * point.drift)
            for point in self.points
            if point.source is Source.REFERENCE and point.label in now_ms
        ]
        return math.exp(math.fsum(logs) / len(logs)) if logs else None

    def settled_drift(self, seen: float, *, share: float = DRIFT_SHARE) -> float:
        """Return the drift to predict with after references showed this one: a share of the way there from the last.

        A change within the noise leaves it as it is.
        """
        change = seen / self.drift
        return self.drift if abs(change - 1) <= NOTABLE_DRIFT else self.drift * change**share

    def corrected(self, *points: Point, drift: float | None = None, measurement: str | None = None) -> Self:
        """Return the next revision: fitted with more points and to a newer drift, None where none was seen."""
        now = self.drift if drift is None else drift
        fitted = fit((*self.points, *points), confidence=self.confidence, drift=now)
        return type(self)(**{**dict(fitted), "revision": self.revision + 1, "measurement": measurement})


def fit(points: Iterable[Point], *, confidence: float = CONFIDENCE, drift: float = 1.0) -> Calibration:
    """Fit revision 1 for a device that is `drift` times slower than at first; the order of the points does not matter.

    With one point the spread is unknown and with two it is a guess: the noise floor and the wide Student quantile of
    one degree of freedom stand in (margins of 9 % and 8 % or more at confidence 0.9).

    Raises:
        InvalidCalibration: no points, a confidence outside (0.5, 1), or points too far apart for any margin.
    """
    ordered = tuple(sorted(points, key=_order))
    if not ordered:
        raise InvalidCalibration("a calibration needs a network measured whole: measure at least one reference network")
    if not 0.5 < confidence < 1:
        raise InvalidCalibration(f"confidence {confidence} is not between 0.5 and 1: use {CONFIDENCE}")
    found = _choose(ordered, confidence)
    slope, margin = _slope_and_margin(found, drift, ordered)
    return Calibration(
        revision=1,
        fetch_ms_per_mib=found.fetch_ms_per_mib,
        slope=slope,
        drift=drift,
        margin=margin,
        confidence=confidence,
        points=ordered,
    )


@dataclass(frozen=True)
class _Scale:
    """One way to fit the points, drift aside."""

    fetch_ms_per_mib: float
    log_slope: float
    log_bound: float


def _choose(points: tuple[Point, ...], confidence: float) -> _Scale:
    """Fit without the time to fetch weights and, where the points can tell it, with it; choose the smaller bound.

    Having had the choice costs as much as the second coefficient: the smaller of two bounds is too small. With networks
    that spread by 5 % and fetch at 0.04 ms/MiB, 88 instead of 90 % of the next ones stayed below it at four points.
    """
    plain, fetch = _fit_slope(points, 0.0, confidence, coefficients=1), _fit_fetch(points)
    if not fetch:
        return plain
    both = _fit_slope(points, fetch, confidence, coefficients=2)
    return both if both.log_bound < plain.log_bound else _fit_slope(points, 0.0, confidence, coefficients=2)


def _slope_and_margin(scale: _Scale, drift: float, points: tuple[Point, ...]) -> tuple[float, float]:
    """Return both as plain factors.

    Raises:
        InvalidCalibration: they are beyond all floats.
    """
    try:
        slope, margin = math.exp(scale.log_slope) * drift, math.expm1(scale.log_bound)
    except OverflowError:
        slope = margin = math.inf
    if 0 < slope < math.inf and margin < math.inf:
        return slope, margin
    ratios = sorted(point.measured_ms / point.sum_ms for point in points)
    raise InvalidCalibration(
        f"{len(points)} networks that take {ratios[0]:.3g} to {ratios[-1]:.3g} times the sum of their blocks tell "
        "nothing of the next one: measure more reference networks, or the outermost anew"
    )


def _fit_fetch(points: tuple[Point, ...]) -> float:
    """Return the time to fetch a MiB of weights that leaves the least spread, at most as long as the blocks run."""
    if len(points) < FETCH_POINTS:
        return 0.0
    limit = min((point.sum_ms / point.weights_mib for point in points if point.weights_mib), default=0.0)
    if not limit:
        return 0.0
    weights = _weights(points)

    def spread(share: float) -> float:
        logs = _log_ratios(points, share * limit)
        return float(weights @ (logs - weights @ logs) ** 2)

    share = minimize_scalar(spread, bounds=(0, 1), method="bounded").x
    return float(share * limit) if spread(share) < spread(0.0) else 0.0


def _fit_slope(points: tuple[Point, ...], fetch: float, confidence: float, *, coefficients: int) -> _Scale:
    """Fit the slope, and bound the next network when so many coefficients were fitted or chosen among."""
    weights, logs = _weights(points), _log_ratios(points, fetch)
    centre = float(weights @ logs)
    deviations = logs - centre
    # Each coefficient takes as much from the degrees of freedom and adds as much to the variance of a prediction as the
    # mean does: `taken` is 1 / n for equal weights; unequal ones are worth fewer points (Kish's effective sample size).
    taken = float(weights @ weights)
    left = 1 / taken - coefficients
    spread = _spread(float(weights @ deviations**2), coefficients * taken, left)
    bound = _quantile(left, confidence) * spread * math.sqrt(1 + coefficients * taken)
    verified = [float(one) for one, point in zip(deviations, points, strict=True) if _is_verification(point)]
    return _Scale(fetch, centre, max(bound, *verified, 0.0))


def _log_ratios(points: tuple[Point, ...], fetch: float) -> NDArray[np.float64]:
    return np.array([point.log_ratio(fetch) for point in points])


def _order(point: Point) -> tuple[object, ...]:
    numbers = point.sum_ms, point.weights_mib, point.measured_ms, point.drift
    return point.source, point.label, *numbers, point.measurement or ""


def _mape_percent(residuals: Sequence[float]) -> float:
    return 100 * sum(abs(residual) / (1 + residual) for residual in residuals) / len(residuals)


def _is_verification(point: Point) -> bool:
    return point.source is Source.VERIFICATION


def _weights(points: tuple[Point, ...]) -> NDArray[np.float64]:
    """Give references and verifications half of the weight each, or all to the only ones there are; the sum is 1."""
    verified = np.array([_is_verification(point) for point in points])
    weights = 1.0 / np.where(verified, verified.sum(), (~verified).sum())
    return np.asarray(weights / weights.sum())


def _spread(variance: float, taken: float, left: float) -> float:
    """Estimate the standard deviation of log ratios, never below the noise.

    Args:
        variance: weighted mean square of the deviations.
        taken: share of it that the coefficients have taken away.
        left: degrees of freedom left; below one nothing is known but the noise.
    """
    return SPREAD_FLOOR if left < LEAST_LEFT else max(math.sqrt(variance / (1 - taken)), SPREAD_FLOOR)


def _quantile(left: float, confidence: float) -> float:
    return float(student.ppf(confidence, df=max(left, 1.0)))
