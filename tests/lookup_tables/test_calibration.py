import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import t as student

from lookup_tables.calibration import SPREAD_FLOOR, Calibration, Point, Source, fit
from lookup_tables.errors import InvalidCalibration
from nas.macs import weights_mib
from tests.lookup_tables.results import BLOCKS

MS = st.floats(1e-3, 1e5)
POINTS = st.lists(
    st.builds(
        Point,
        label=st.sampled_from("abcdef"),
        sum_ms=MS,
        weights_mib=st.just(0.0) | MS,
        measured_ms=MS,
        source=st.sampled_from(Source),
    ),
    min_size=1,
    max_size=9,
)


def reference(sum_ms: float, measured_ms: float, weights_mib: float = 0) -> Point:
    return Point(label=f"r{sum_ms}", sum_ms=sum_ms, weights_mib=weights_mib, measured_ms=measured_ms)


def verification(sum_ms: float, measured_ms: float, weights_mib: float = 0) -> Point:
    return reference(sum_ms, measured_ms, weights_mib).model_copy(
        update={"label": f"v{sum_ms}", "source": Source.VERIFICATION}
    )


def bound_ms(calibration: Calibration, sum_ms: float, weights_mib: float = 0) -> float:
    return calibration.slope * (1 + calibration.margin) * (sum_ms + calibration.fetch_ms_per_mib * weights_mib)


def test_an_exact_ratio_is_found_exactly() -> None:
    calibration = fit([reference(sum_ms, 1.25 * sum_ms) for sum_ms in (3.0, 10.0, 44.0)])
    assert calibration.slope == pytest.approx(1.25)
    assert (calibration.fetch_ms_per_mib, calibration.revision) == (0, 1)
    assert calibration.residuals == pytest.approx((0, 0, 0))
    assert calibration.mape_percent == pytest.approx(0)


def test_the_error_of_the_references_leaves_answers_out() -> None:
    references = [reference(sum_ms, 1.25 * sum_ms) for sum_ms in (3.0, 10.0, 44.0)]
    corrected = fit(references).corrected(verification(20, 50))
    assert corrected.reference_error_percent == pytest.approx(100 * (corrected.slope / 1.25 - 1))
    assert corrected.reference_error_percent != pytest.approx(corrected.mape_percent)
    assert fit(references).reference_error_percent == pytest.approx(0)
    assert fit([verification(20, 50)]).reference_error_percent == pytest.approx(0)


def test_a_reference_first_measured_on_a_drifted_device_is_compared_with_that_drift() -> None:
    late = reference(10, 24).model_copy(update={"drift": 1.2})
    assert fit([late], drift=1.2).drift_of({late.label: 24.0}) == pytest.approx(1.2)


def test_the_scale_is_a_geometric_mean() -> None:
    assert fit([reference(10, 20), reference(10, 5)]).slope == pytest.approx(1)


def test_the_time_to_fetch_weights_is_found_exactly() -> None:
    networks = [(3.0, 2.0), (10.0, 30.0), (20.0, 11.0), (44.0, 60.0)]
    calibration = fit([reference(sum_ms, 1.1 * (sum_ms + 0.04 * mib), mib) for sum_ms, mib in networks])
    assert calibration.fetch_ms_per_mib == pytest.approx(0.04, rel=1e-3)
    assert calibration.slope == pytest.approx(1.1, rel=1e-4)
    assert calibration.residuals == pytest.approx((0, 0, 0, 0), abs=1e-4)
    model = calibration.latency_model(dict.fromkeys(BLOCKS, 2.0))
    assert model.predict_ms(BLOCKS) == pytest.approx(1.1 * (2 * len(BLOCKS) + 0.04 * weights_mib(BLOCKS)), rel=1e-4)


@pytest.mark.parametrize(
    "networks",
    [
        pytest.param([(3.0, 2.0), (10.0, 30.0), (20.0, 11.0)], id="three networks cannot tell"),
        pytest.param([(3.0, 0.0), (10.0, 0.0), (20.0, 0.0), (44.0, 0.0)], id="no weights"),
        pytest.param([(3.0, 1.5), (10.0, 5.0), (20.0, 10.0), (44.0, 22.0)], id="weights in step with the sums"),
    ],
)
def test_without_networks_that_tell_the_slope_carries_the_fetching(networks: list[tuple[float, float]]) -> None:
    points = [reference(sum_ms, sum_ms + 0.04 * mib, mib) for sum_ms, mib in networks]
    calibration = fit(points)
    assert calibration.fetch_ms_per_mib == 0
    assert math.log(calibration.slope) == pytest.approx(np.mean([point.log_ratio(0) for point in points]))


def test_fetching_that_would_widen_the_margin_is_left_out() -> None:
    noise = (1.03, 0.97, 1.0, 0.97, 1.03)
    points = [
        reference(sum_ms, sum_ms * factor, mib)
        for sum_ms, mib, factor in zip((3, 10, 20, 30, 44), (9, 10, 60, 30, 22), noise, strict=True)
    ]
    assert fit(points).fetch_ms_per_mib == 0


def test_the_margin_halves_where_weights_explain_the_spread_and_still_holds() -> None:
    rng = np.random.default_rng(3)
    sums, mib = rng.uniform(2, 20, 200), rng.uniform(1, 60, 200)
    measured = 1.1 * (sums + 0.05 * mib) * np.exp(rng.normal(0, 0.01, 200))
    networks = list(zip(sums, measured, mib, strict=True))
    calibration = fit([reference(*network) for network in networks[:6]])
    kept = sum(one <= bound_ms(calibration, sum_ms, weights) for sum_ms, one, weights in networks[6:])
    plain = fit([reference(sum_ms, one) for sum_ms, one, _ in networks[:6]])
    assert calibration.margin < plain.margin / 2
    assert kept / 194 > 0.9


@pytest.mark.parametrize(
    ("number", "percent"),
    # Student quantile at 0.9 times 2.0 % times sqrt(1 + 1/n): quantiles 3.078, 3.078, 1.886, 1.476, 1.383 from tables.
    [(1, 9.12), (2, 7.85), (3, 4.46), (6, 3.25), (10, 2.95)],
)
def test_margins_of_points_without_spread_come_from_the_noise(number: int, percent: float) -> None:
    points = [reference(sum_ms, sum_ms) for sum_ms in range(1, number + 1)]
    assert 100 * fit(points).margin == pytest.approx(percent, abs=0.01)


def test_the_margin_of_spread_points_is_the_textbook_prediction_bound() -> None:
    ratios = np.array([1.0, 1.1, 1.2, 1.3])
    logs = np.log(ratios)
    expected = math.expm1(1.6377 * logs.std(ddof=1) * math.sqrt(1 + 1 / 4))  # Student, 3 degrees of freedom, 0.9
    assert fit([reference(10, 10 * ratio) for ratio in ratios]).margin == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("number", "confidence"), [(2, 0.9), (6, 0.9), (6, 0.975), (10, 0.8)])
def test_the_next_network_stays_below_the_bound_as_often_as_promised(number: int, confidence: float) -> None:
    rng = np.random.default_rng(7)
    truth, spread, trials, kept = 1.18, 1.0, 600, 0  # a spread far above the floor
    for _ in range(trials):
        sums = rng.uniform(5, 50, number + 1)
        measured = truth * sums * np.exp(rng.normal(0, spread, number + 1))
        *known, (next_sum, next_measured) = zip(sums, measured, strict=True)
        kept += next_measured <= bound_ms(fit([reference(*pair) for pair in known], confidence=confidence), next_sum)
    # Four standard deviations of a share of 600 trials.
    assert kept / trials == pytest.approx(confidence, abs=4 * math.sqrt(confidence * (1 - confidence) / trials))


WILD = [reference(1, 1), reference(1, 100)]
"""Two points 100 times apart: at a confidence of 0.999 their margin is beyond all floats."""


@given(POINTS, st.floats(0.51, 0.999))
@example(WILD, 0.999)
@example([reference(1, 1), reference(1, 1).model_copy(update={"measurement": "m"})], 0.9)
def test_a_fit_is_usable_or_refused_and_ignores_the_order(points: list[Point], confidence: float) -> None:
    try:
        calibration = fit(points, confidence=confidence)
    except InvalidCalibration as error:
        assert "tell nothing of the next one" in str(error)  # noqa: PT017 - either is right
        return
    assert math.isfinite(calibration.slope)
    assert calibration.slope > 0
    assert calibration.margin >= 0
    assert math.isfinite(calibration.margin)
    assert fit(points[::-1], confidence=confidence) == calibration
    assert calibration.fetch_ms_per_mib >= 0
    assert min(calibration.residuals) <= 1e-9
    assert max(calibration.residuals) >= -1e-9


def test_points_that_tell_nothing_are_refused_with_their_range() -> None:
    with pytest.raises(InvalidCalibration, match=r"2 networks that take 1 to 100 times the sum .*: measure more"):
        fit(WILD, confidence=0.999)
    with pytest.raises(InvalidCalibration, match="tell nothing of the next one"):
        fit([reference(1e-300, 1e300)])
    with pytest.raises(InvalidCalibration, match="tell nothing of the next one"):
        fit([reference(1e300, 1e-300)])


def coverage(references: int, verifications: int, *, fetch_ms_per_mib: float, trials: int) -> float:
    """Return the share of next networks below the bound at confidence 0.9, for networks that spread by 5 %."""
    rng, kept, number = np.random.default_rng(1), 0, references + verifications + 1
    for _ in range(trials):
        sums, mib = rng.uniform(2, 20, number), rng.uniform(1, 60, number)
        measured = 1.1 * (sums + fetch_ms_per_mib * mib) * np.exp(rng.normal(0, 0.05, number))
        *known, (next_sum, next_measured, next_mib) = zip(sums, measured, mib, strict=True)
        points = [reference(*one) for one in known[:references]]
        points += [verification(*one) for one in known[references:]]
        kept += next_measured <= bound_ms(fit(points), next_sum, next_mib)
    return kept / trials


@pytest.mark.parametrize(
    ("references", "verifications", "fetch_ms_per_mib"),
    [(4, 0, 0.04), (6, 0, 0.04), (6, 0, 0.0), (10, 1, 0.0), (10, 1, 0.04), (6, 3, 0.04)],
)
def test_the_bound_keeps_its_promise_with_weights_and_verifications(
    references: int, verifications: int, fetch_ms_per_mib: float
) -> None:
    trials = 1200
    share = coverage(references, verifications, fetch_ms_per_mib=fetch_ms_per_mib, trials=trials)
    # Two standard deviations of a share of 1200 trials; verifications may make it larger, each is covered by itself.
    assert share >= 0.9 - 2 * math.sqrt(0.9 * 0.1 / trials)


def test_one_verification_among_ten_references_leaves_the_freedom_of_four_points() -> None:
    references = [reference(sum_ms, sum_ms) for sum_ms in range(1, 11)]
    taken = 10 * 0.05**2 + 0.5**2
    bound = student.ppf(0.9, 1 / taken - 1) * SPREAD_FLOOR * math.sqrt(1 + taken)
    assert fit([*references, verification(11, 11)]).margin == pytest.approx(math.expm1(bound))


@given(POINTS, MS, MS, MS)
def test_a_config_that_missed_is_never_predicted_to_meet_it_again(
    points: list[Point], sum_ms: float, measured_ms: float, weights: float
) -> None:
    try:
        corrected = fit(points).corrected(verification(sum_ms, measured_ms, weights))
    except InvalidCalibration:
        return
    assert bound_ms(corrected, sum_ms, weights) >= measured_ms * (1 - 1e-9)
    assert corrected.revision == 2
    assert len(corrected.points) == len(points) + 1


def test_one_verification_weighs_as_much_as_all_references() -> None:
    references = [reference(sum_ms, sum_ms) for sum_ms in (1, 2, 4, 8, 16, 32)]
    calibration = fit(references).corrected(verification(10, 10.6))
    assert calibration.slope == pytest.approx(math.sqrt(1.06))
    again = calibration.corrected(verification(9, 9.0 * 1.06))
    assert again.slope == pytest.approx(math.sqrt(1.06))
    assert again.revision == 3
    assert [point.source for point in again.points] == [Source.REFERENCE] * 6 + [Source.VERIFICATION] * 2


def test_drift_moves_the_scale_and_nothing_else() -> None:
    calibration = fit([reference(10, 11), reference(20, 23)])
    drifted = calibration.corrected(drift=1.1)
    assert drifted.slope == pytest.approx(1.1 * calibration.slope)
    assert (drifted.revision, drifted.drift) == (2, 1.1)
    assert (drifted.margin, drifted.points) == (calibration.margin, calibration.points)
    assert drifted.residuals == pytest.approx(calibration.residuals)
    assert drifted.corrected(drift=1.0).slope == pytest.approx(calibration.slope)


@pytest.mark.parametrize("seen", [1.0, 1.019, 0.981])
def test_drift_within_the_noise_leaves_the_prediction_alone(seen: float) -> None:
    assert fit([reference(10, 11)]).settled_drift(seen) == 1


@pytest.mark.parametrize(("seen", "settled"), [(1.021, 1.00521), (1.2**4, 1.2), (0.979, 0.99471), (0.8**4, 0.8)])
def test_a_prediction_goes_a_quarter_of_the_way_of_what_was_seen(seen: float, settled: float) -> None:
    calibration = fit([reference(10, 11)])
    assert calibration.settled_drift(seen) == pytest.approx(settled, abs=1e-5)
    assert calibration.settled_drift(seen, share=1) == pytest.approx(seen)


def test_drift_that_lasts_is_learned_in_time() -> None:
    calibration = fit([reference(10, 11)])
    for _ in range(5):
        calibration = calibration.corrected(drift=calibration.settled_drift(1.1))
    assert calibration.drift == pytest.approx(1.1 ** (1 - 0.75**5))
    assert calibration.settled_drift(1.0) < calibration.drift


def test_a_miss_on_a_drifted_device_is_compared_without_its_drift() -> None:
    references = [reference(sum_ms, sum_ms) for sum_ms in (1, 2, 4)]
    missed = verification(10, 10 * 1.2 * 1.06).model_copy(update={"drift": 1.2})
    corrected = fit(references).corrected(missed, drift=1.2)
    assert corrected.slope == pytest.approx(1.2 * math.sqrt(1.06))
    assert bound_ms(corrected, 10) >= missed.measured_ms * (1 - 1e-9)
    assert corrected.corrected(drift=1.0).slope == pytest.approx(math.sqrt(1.06))


def test_drift_is_the_mean_ratio_of_the_references() -> None:
    points = [reference(10, 10), reference(20, 20), verification(30, 30)]
    calibration = fit(points)
    labels = [point.label for point in points]
    assert calibration.drift_of(dict(zip(labels, (11, 20 / 1.1, 90), strict=True))) == pytest.approx(1)
    assert calibration.drift_of({labels[0]: 12.0, "another": 1.0}) == pytest.approx(1.2)
    assert calibration.drift_of({labels[2]: 60.0}) is None


def test_a_correction_keeps_the_confidence() -> None:
    calibration = fit([reference(1, 1), reference(2, 2)], confidence=0.99)
    assert calibration.corrected(verification(1, 1)).confidence == 0.99


def test_the_latency_model_gets_the_numbers() -> None:
    model = fit([reference(10, 11)]).latency_model({BLOCKS[0]: 2.0})
    assert model.predict_ms([BLOCKS[0], BLOCKS[0]]) == pytest.approx(4.4)
    assert model.bound_ms([BLOCKS[0]]) == pytest.approx(2.2 * math.exp(3.0777 * SPREAD_FLOOR * math.sqrt(2)), rel=1e-4)


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(InvalidCalibration, match="needs a network measured whole: measure at least one reference"):
        fit([])


@pytest.mark.parametrize("confidence", [0.5, 1.0, 90.0, float("nan")])
def test_a_confidence_that_is_no_probability_above_one_half_is_refused(confidence: float) -> None:
    with pytest.raises(InvalidCalibration, match=f"confidence {confidence} is not between 0.5 and 1: use 0.9"):
        fit([reference(1, 1)], confidence=confidence)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_point_of_no_time_is_refused(wrong: float) -> None:
    with pytest.raises(ValidationError):
        reference(wrong, 1)
    with pytest.raises(ValidationError):
        reference(1, wrong)
