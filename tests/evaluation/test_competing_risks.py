"""Aalen-Johansen against a hand calculation, plain counting and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.competing_risks import cumulative_incidence, observed_incidence


def test_a_hand_calculated_example():
    # Six at risk. Day 1: event of 6. Day 2: censored. Day 3: competing of 4. Day 4: event and
    # censored, of 3. Day 5: one left, censored.
    outcome = ["event", "censored", "competing", "event", "censored", "censored"]
    days = [1, 2, 3, 4, 4, 5]
    curve = cumulative_incidence(outcome, days)
    assert curve.days.tolist() == [1, 3, 4]
    assert curve.event == pytest.approx([1 / 6, 1 / 6, 1 / 6 + 5 / 6 * 3 / 4 * 1 / 3])
    assert curve.competing == pytest.approx([0, 5 / 6 / 4, 5 / 6 / 4])
    assert curve.none == pytest.approx([5 / 6, 5 / 8, 5 / 12])
    assert sum(observed_incidence(outcome, days, 3.5)) == pytest.approx(1)


def test_without_censoring_it_is_counting_and_the_horizon_is_inclusive():
    outcome = ["event", "event", "competing", "none"]
    found = observed_incidence(outcome, [3, 30, 10, 365], 30)
    assert found == pytest.approx((0.5, 0.25, 0.25))
    assert observed_incidence(outcome, [3, 30.1, 10, 365], 30).event == 0.25
    assert observed_incidence(outcome, [3, 30, 10, 365], 1) == (0.0, 0.0, 1.0)


def test_censoring_does_not_bias_it():
    generator = np.random.default_rng(0)
    n = 40_000
    event, competing = generator.exponential(40, n), generator.exponential(120, n)
    censored = generator.exponential(50, n)
    days = np.minimum(np.minimum(event, competing), censored)
    outcome = np.where(days == event, "event", np.where(days == competing, "competing", "censored"))
    rate = 1 / 40 + 1 / 120
    exact = (1 / 40) / rate * (1 - math.exp(-rate * 30))
    assert observed_incidence(outcome, days, 30).event == pytest.approx(exact, abs=0.01)
    assert np.mean((outcome == "event") & (days <= 30)) < exact - 0.05


def test_a_horizon_beyond_all_knowledge_is_nan():
    assert math.isnan(observed_incidence(["event", "censored"], [3, 12], 30).event)
    assert observed_incidence(["event", "competing"], [3, 12], 30) == pytest.approx((0.5, 0.5, 0))
    assert math.isnan(observed_incidence([], [], 30).none)


def test_unknown_words_are_refused():
    with pytest.raises(InputError, match="bad_outcome"):
        observed_incidence(["event", "alive"], [3, 4], 30)
    with pytest.raises(InputError, match="bad_outcome"):
        observed_incidence(["event"], [-1], 30)


@pytest.mark.parametrize("horizon", [math.nan, -1, None, "3", [1, 2]], ids=str)
def test_a_horizon_that_is_no_number_of_days_from_0_is_refused(horizon: object):
    with pytest.raises(InputError, match="bad_horizon"):
        observed_incidence(["event", "none"], [3, 40], horizon)  # type: ignore[arg-type]
