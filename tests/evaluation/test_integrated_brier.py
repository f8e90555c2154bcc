"""The integrated Brier score against counting, hand calculation and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.evaluation.competing_risks import cumulative_incidence
from tsfm.evaluation.integrated_brier import brier_curve, integrated_brier

DAYS = np.array([1.0, 5.0, 10.0, 30.0])


def indicator(outcome: NDArray[np.str_], when: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, k) whether the event had come by each of `DAYS`."""
    return ((outcome == "event")[:, None] & (when[:, None] <= DAYS)).astype(float)


def drawn(n: int, seed: int = 0) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Event or competing event of each of n stays, and its day."""
    rng = np.random.default_rng(seed)
    event, competing = rng.exponential(40, n), rng.exponential(60, n)
    return np.where(event < competing, "event", "competing"), np.minimum(event, competing)


def test_without_censoring_it_is_the_plain_mean_squared_distance():
    outcome, when = drawn(200)
    predicted = np.random.default_rng(1).random((200, 4))
    plain = ((indicator(outcome, when) - predicted) ** 2).mean(0)
    np.testing.assert_allclose(brier_curve(outcome, when, predicted, DAYS), plain, rtol=1e-12)


def test_a_perfect_prediction_scores_zero_whatever_the_censoring():
    outcome, when = drawn(300)
    truth = indicator(outcome, when)
    assert integrated_brier(outcome, when, truth, DAYS) == 0.0
    ends = np.random.default_rng(2).exponential(50, 300)
    seen = np.where(ends < when, "censored", outcome)
    assert integrated_brier(seen, np.minimum(ends, when), truth, DAYS) == 0.0


def test_a_hand_calculated_example():
    # Day 2: event. Day 4: one of three is censored, so watching past it has the chance 2/3.
    # Day 6: competing. Day 9: the last one is censored.
    outcome, when = ["event", "censored", "competing", "censored"], [2, 4, 6, 9]
    predicted = np.full((4, 3), 0.25)
    curve = brier_curve(outcome, when, predicted, [4, 6, 9])
    yes, no = 0.75**2, 0.25**2
    assert curve[0] == pytest.approx((yes + no + no + no) / 4)  # the one censored today counts
    assert curve[1] == pytest.approx((yes + 1.5 * no + 1.5 * no) / 4)
    assert curve[2] == pytest.approx(curve[1])
    area = 4 * curve[0] / 2 + 2 * (curve[0] + curve[1]) / 2 + 3 * curve[1]
    assert integrated_brier(outcome, when, predicted, [4, 6, 9]) == pytest.approx(area / 9)


def test_an_event_comes_before_the_end_of_anothers_watching_on_its_day():
    # On day 3 one stay has its event and one is censored: that one of two, not of three, is lost.
    curve = brier_curve(["event", "censored", "none"], [3, 3, 8], np.zeros((3, 1)), [5])
    assert curve[0] == pytest.approx(1 / 3)
    late = brier_curve(["event", "censored", "event"], [3, 3, 5], np.zeros((3, 1)), [5])
    assert late[0] == pytest.approx((1 + 2) / 3)


def test_censoring_does_not_bias_it():
    outcome, when = drawn(60_000)
    ends = np.random.default_rng(3).exponential(30, len(when))
    seen, until = np.where(ends < when, "censored", outcome), np.minimum(ends, when)
    rate = 1 / 40 + 1 / 60
    exact = (1 / 40) / rate * -np.expm1(-rate * DAYS)
    predicted = np.tile(exact, (len(when), 1))
    expected = exact * (1 - exact)  # the event is Bernoulli with the predicted chance
    np.testing.assert_allclose(brier_curve(seen, until, predicted, DAYS), expected, atol=0.006)
    kept = seen != "censored"
    naive = ((indicator(outcome, when) - predicted)[kept] ** 2).mean(0)
    assert abs(naive[-1] - expected[-1]) > 0.01


def test_the_competing_cause_has_a_score_of_its_own():
    outcome, when = drawn(500)
    swapped = np.where(outcome == "event", "competing", "event")
    predicted = np.random.default_rng(4).random((500, 4))
    other = brier_curve(outcome, when, predicted, DAYS, cause="competing")
    np.testing.assert_array_equal(other, brier_curve(swapped, when, predicted, DAYS))


def test_nobody_predicts_better_than_the_curve_of_all_if_all_are_told_the_same():
    outcome, when = drawn(2_000)
    ends = np.random.default_rng(5).exponential(60, len(when))
    seen, until = np.where(ends < when, "censored", outcome), np.minimum(ends, when)
    curve = cumulative_incidence(seen, until)
    marginal = curve.event[np.searchsorted(curve.days, DAYS, side="right") - 1]
    scores = [
        integrated_brier(seen, until, np.tile(np.clip(marginal + shift, 0, 1), (2_000, 1)), DAYS)
        for shift in (-0.03, -0.01, 0.0, 0.01, 0.03)
    ]
    assert int(np.argmin(scores)) == 2


def test_beyond_all_watching_there_is_no_score():
    curve = brier_curve(["event", "censored"], [3, 12], np.zeros((2, 2)), [12, 13])
    assert np.isfinite(curve[0])
    assert math.isnan(curve[1])
    assert math.isnan(integrated_brier(["event", "censored"], [3, 12], np.zeros((2, 2)), [12, 13]))
    assert math.isnan(integrated_brier([], [], np.zeros((0, 1)), [5]))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"outcome": ["event", "alive"]}, "bad_outcome"),
        ({"days": [1, -1]}, "bad_outcome"),
        ({"cause": "censored"}, "bad_outcome"),
        ({"at_days": [5, 5]}, "bad_prediction"),
        ({"at_days": [0, 5]}, "bad_prediction"),
        ({"at_days": [2, math.inf]}, "bad_prediction"),
        ({"at_days": [math.inf, math.inf]}, "bad_prediction"),
        ({"predicted": [[0.1], [0.2]]}, "bad_prediction"),
        ({"predicted": [[0.1, 0.2], [0.2, 1.1]]}, "bad_probability"),
        ({"predicted": [[0.1, 0.2], [0.2, math.nan]]}, "bad_probability"),
        ({"at_days": [], "predicted": np.zeros((2, 0))}, "no_days"),
    ],
)
def test_what_cannot_be_scored_is_refused(change: dict[str, object], code: str) -> None:
    good = {
        "outcome": ["event", "none"], "days": [1, 9], "at_days": [2, 5],
        "predicted": [[0.1, 0.2], [0.2, 0.3]],
    }  # fmt: skip
    with pytest.raises(InputError, match=code):
        integrated_brier(**{**good, **change})  # type: ignore[arg-type]
