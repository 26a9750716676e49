"""From sums of rows to times of whole networks: one scale factor per table, and how far to trust it.

A few reference networks are measured whole. The scale is the geometric mean of measured time over sum of rows: with so
few networks, more coefficients add more variance than they remove bias. The margin is a one-sided prediction bound:
the next network stays below `slope * (1 + margin) * sum` at the stated confidence.

Networks measured to verify an answer correct the calibration. They lie where the next answer will lie, so that all of
them together weigh as much as all references together, and the margin always covers every one of them: a config that
missed its budget is never predicted to meet the same budget again, unless the device has become faster.

Devices drift: warm ones throttle, shared ones have neighbours. References timed again along with an answer tell by how
much, all networks alike; points are compared with this drift taken out, and the scale has the newest drift in it.
"""

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Self

from pydantic import Field
from scipy.stats import t as student

from lookup_tables.errors import InvalidCalibration
from nas.blocks import Block
from nas.latency import LatencyModel
from nas.values import Value

NOISE = 0.016
"""Mean absolute difference between two passes over the same networks on an undisturbed CPU, as a share."""

SPREAD_FLOOR = NOISE * math.sqrt(math.pi / 2)
"""Standard deviation behind that noise (2.0 %): no handful of residuals proves that the spread is smaller."""

CONFIDENCE = 0.9

NOTABLE_DRIFT = 0.02
"""Change of drift that is worth a revision of its own; less is within the noise of timing."""


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
        measured_ms: hot median of the whole network.
        source: why it was measured.
        drift: how many times slower the references were at that time than when they were first measured.
        measurement: id of the measurement, None for a number from elsewhere.
    """

    label: str
    sum_ms: float = Field(gt=0)
    measured_ms: float = Field(gt=0)
    source: Source = Source.REFERENCE
    drift: float = Field(default=1.0, gt=0)
    measurement: str | None = None

    @property
    def log_ratio(self) -> float:
        """Logarithm of measured over sum, without drift: what the scale averages."""
        return math.log(self.measured_ms) - math.log(self.sum_ms) - math.log(self.drift)


class Calibration(Value):
    """How a table predicts whole networks; `LatencyModel` has the formula.

    Attributes:
        revision: 1 from the references alone, one more with each correction.
        overhead_ms: cost of a run that belongs to no block; the scale carries it, so it is zero.
        slope: measured time over sum of rows, on the device as it was last seen.
        drift: the part of the slope that is drift; 1 is the device as its references were first measured.
        margin: share by which the next network may be slower than predicted.
        confidence: of the margin, one-sided.
        points: what it was fitted to, in a fixed order.
    """

    revision: int = Field(ge=1)
    overhead_ms: float = Field(ge=0)
    slope: float = Field(gt=0)
    drift: float = Field(default=1.0, gt=0)
    margin: float = Field(ge=0)
    confidence: float = Field(gt=0.5, lt=1)
    points: tuple[Point, ...] = Field(min_length=1)

    @property
    def residuals(self) -> tuple[float, ...]:
        """Share by which each point is slower than predicted, drift aside, in the order of `points`."""
        centre = math.log(self.slope) - math.log(self.drift)
        return tuple(math.expm1(point.log_ratio - centre) for point in self.points)

    @property
    def mape_percent(self) -> float:
        """Mean absolute error over the points, in percent of the measured time; on the points it was fitted to."""
        errors = [abs(residual) / (1 + residual) for residual in self.residuals]
        return 100 * sum(errors) / len(errors)

    def latency_model(self, rows_ms: Mapping[Block, float]) -> LatencyModel:
        """Predict with these rows."""
        return LatencyModel(rows_ms, overhead_ms=self.overhead_ms, slope=self.slope, margin=self.margin)

    def drift_of(self, now_ms: Mapping[str, float]) -> float | None:
        """Return how many times slower the references are now than at first (geometric mean); None without any.

        Args:
            now_ms: whole networks timed again, by label; those that are no references are left out.
        """
        logs = [
            math.log(now_ms[point.label] / point.measured_ms)
            for point in self.points
            if point.source is Source.REFERENCE and point.label in now_ms
        ]
        return math.exp(math.fsum(logs) / len(logs)) if logs else None

    def corrected(self, *points: Point, drift: float | None = None) -> Self:
        """Return the next revision: fitted with more points and to a newer drift, None where none was seen.

        Without points, and with the drift as it was but for noise, this very revision still holds and is returned.
        """
        now = self.drift if drift is None else drift
        if not points and abs(now / self.drift - 1) <= NOTABLE_DRIFT:
            return self
        fitted = fit((*self.points, *points), confidence=self.confidence, drift=now)
        return type(self)(**{**dict(fitted), "revision": self.revision + 1})


def fit(points: Iterable[Point], *, confidence: float = CONFIDENCE, drift: float = 1.0) -> Calibration:
    """Fit revision 1 for a device that is `drift` times slower than at first; the order of the points does not matter.

    With one point the spread is unknown and with two it is a guess: the noise floor and the wide Student quantile of
    one degree of freedom stand in (margins of 9 % and 8 % or more at confidence 0.9).

    Raises:
        InvalidCalibration: no points, or a confidence outside (0.5, 1).
    """
    ordered = tuple(sorted(points, key=_order))
    if not ordered:
        raise InvalidCalibration("a calibration needs a network measured whole: measure at least one reference network")
    if not 0.5 < confidence < 1:
        raise InvalidCalibration(f"confidence {confidence} is not between 0.5 and 1: use {CONFIDENCE}")
    weights = _weights(ordered)
    centre = math.fsum(weight * point.log_ratio for weight, point in zip(weights, ordered, strict=True))
    deviations = [point.log_ratio - centre for point in ordered]
    bound = _quantile(len(ordered), confidence) * _spread(weights, deviations) * math.sqrt(1 + _sum_of_squares(weights))
    verified = [deviation for deviation, point in zip(deviations, ordered, strict=True) if _is_verification(point)]
    return Calibration(
        revision=1,
        overhead_ms=0.0,
        slope=math.exp(centre) * drift,
        drift=drift,
        margin=math.expm1(max(bound, *verified, 0.0)),
        confidence=confidence,
        points=ordered,
    )


def _order(point: Point) -> tuple[object, ...]:
    return point.source, point.label, point.sum_ms, point.measured_ms, point.drift


def _is_verification(point: Point) -> bool:
    return point.source is Source.VERIFICATION


def _weights(points: tuple[Point, ...]) -> list[float]:
    """Give references and verifications half of the weight each, or all to the only ones there are; the sum is 1."""
    verifications = sum(map(_is_verification, points))
    references = len(points) - verifications
    groups = 2 if verifications and references else 1
    return [1 / (groups * (verifications if _is_verification(point) else references)) for point in points]


def _spread(weights: list[float], deviations: list[float]) -> float:
    """Estimate the standard deviation of log ratios, never below the noise."""
    total = len(deviations)
    if total == 1:
        return SPREAD_FLOOR
    variance = math.fsum(w * d * d for w, d in zip(weights, deviations, strict=True)) * total / (total - 1)
    return max(math.sqrt(variance), SPREAD_FLOOR)


def _quantile(total: int, confidence: float) -> float:
    return float(student.ppf(confidence, df=max(total - 1, 1)))


def _sum_of_squares(weights: list[float]) -> float:
    """Variance of the weighted mean in units of the variance of one point: 1/n for equal weights."""
    return math.fsum(weight * weight for weight in weights)
