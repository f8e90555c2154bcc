"""Calibration measures: exact where it can be counted, else equal to maximum likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tsfm.errors import InputError
from tsfm.evaluation.calibration import (
    calibration_intervals,
    calibration_slope_intercept,
    ece,
    fit_platt,
    fit_score_model,
    logit,
    recalibrate,
    reliability_curve,
    wilson_interval,
)


def drawn(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    p = generator.beta(1, 4, n)
    return (generator.random(n) < p).astype(float), p


def test_slope_and_intercept_are_the_maximum_likelihood():
    y, p = drawn()
    line = calibration_slope_intercept(y, p**2)
    oracle = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(logit(p**2)[:, None], y)
    assert line.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
    assert line.intercept == pytest.approx(oracle.intercept_[0], rel=1e-4)


def test_a_known_distortion_is_found_and_undone():
    y, p = drawn(60_000)
    distorted = 1 / (1 + np.exp(-(2 * logit(p) + 1)))
    line = fit_platt(y, distorted)
    assert line.slope == pytest.approx(0.5, abs=0.02)
    assert line.intercept == pytest.approx(-0.5, abs=0.03)
    mended = calibration_slope_intercept(y, recalibrate(distorted, line))
    assert mended.slope == pytest.approx(1, abs=1e-6)
    assert mended.intercept == pytest.approx(0, abs=1e-6)


def test_two_groups_give_the_log_odds_by_hand():
    y = [1] * 3 + [0] * 7 + [1] * 6 + [0] * 4
    line = fit_score_model([0] * 10 + [2] * 10, y)
    assert line.intercept == pytest.approx(math.log(3 / 7), abs=1e-6)
    assert line.slope == pytest.approx((math.log(6 / 4) - math.log(3 / 7)) / 2, abs=1e-6)
    assert line.probability([0, 2]) == pytest.approx([0.3, 0.6], abs=1e-6)


def test_separable_classes_end_finite_and_in_order():
    line = fit_score_model([1, 2, 3, 4], [0, 0, 1, 1])
    assert math.isfinite(line.slope)
    assert line.slope > 0


def test_nothing_to_fit_is_an_error_or_nan():
    assert math.isnan(calibration_slope_intercept([0, 1], [0.3, 0.3]).slope)
    with pytest.raises(InputError, match="nothing_to_calibrate"):
        fit_platt([1, 1], [0.3, 0.4])
    with pytest.raises(InputError, match="nothing_to_calibrate"):
        fit_score_model([5, 5], [0, 1])
    with pytest.raises(InputError, match="bad_probability"):
        ece([0, 1], [0.3, 1.4])


def test_calibration_error_by_hand():
    y = [0, 0, 1, 1]
    p = [0.1, 0.3, 0.6, 0.8]
    assert ece(y, p, 2) == pytest.approx(0.5 * 0.2 + 0.5 * 0.3)
    assert ece(y, p, 1) == pytest.approx(0.05)
    assert ece(y, p, 2, equal_mass=False) == pytest.approx(0.25)
    y, p = drawn(50_000)
    assert ece(y, p) < 0.01


def test_calibration_error_does_not_depend_on_row_order_where_scores_tie():
    y = np.array([0, 1, 0, 1, 1, 0, 0, 1])
    p = np.array([0.5] * 6 + [0.7] * 2)
    flipped = ece(y[::-1], p[::-1], 4)
    assert ece(y, p, 4) == pytest.approx(flipped)


def test_reliability_points_add_up():
    y, p = drawn(1000)
    curve = reliability_curve(y, p, 10)
    assert curve.n.tolist() == [100] * 10
    assert np.dot(curve.n, curve.observed) == pytest.approx(y.sum())
    assert (curve.low <= curve.observed).all()
    assert (curve.observed <= curve.high).all()
    assert (np.diff(curve.predicted) > 0).all()
    assert reliability_curve([0, 1], [0.4, 0.4]).n.tolist() == [2]


def test_wilson_interval_as_published():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    low, high = wilson_interval([81, 0], [263, 20])
    assert low == pytest.approx([0.2553, 0.0], abs=5e-5)
    assert high == pytest.approx([0.3662, 0.1611], abs=5e-5)


@pytest.mark.parametrize("constant", [0.05, 0.1, 0.15, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("n", [3, 7, 10, 50, 101])
def test_one_probability_has_no_line_whatever_rounding_makes_of_its_spread(constant, n):
    y = np.arange(n) < n // 3
    assert np.isnan(calibration_slope_intercept(y, np.full(n, constant))).all()
    with pytest.raises(InputError, match="nothing_to_calibrate"):
        fit_platt(y, np.full(n, constant))
    with pytest.raises(InputError, match="nothing_to_calibrate"):
        fit_score_model(np.full(n, 73 * constant), y)


def test_probabilities_close_together_still_have_their_line():
    y = np.array([0, 0, 1, 0, 1, 1])
    p = 0.1 + 1e-7 * np.array([0, 0, 0, 1, 1, 1])
    wide = calibration_slope_intercept(y, logit_line(np.array([0, 0, 0, 1, 1, 1.0])))
    step = logit(0.1 + 1e-7) - logit(0.1)
    assert calibration_slope_intercept(y, p).slope * step == pytest.approx(wide.slope, rel=1e-4)


def logit_line(z: np.ndarray) -> np.ndarray:
    """Probabilities whose log odds are z."""
    return 1 / (1 + np.exp(-z))


def test_resamples_of_one_probability_are_not_used():
    y = np.r_[np.zeros(40), np.ones(18), 0, 1]
    p = np.r_[np.full(58, 0.1), 0.3, 0.3]
    slope = calibration_intervals(np.arange(60), y, p, n=300)["slope"]
    assert 0.75 * slope.n_drawn < slope.n_used < slope.n_drawn  # all but (58/60)^60 of them
    assert abs(slope.high) < 100
