"""Competing hazards: the closed form is right, and the draws follow it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tsfm.simulation import hazards


def test_incidence_of_constant_hazards_is_the_textbook_formula() -> None:
    n = len(hazards.BIN_EDGES_DAYS) - 1
    first, second = hazards.cumulative_incidence([0.02] * n, [0.005] * n, 30.0)
    gone = 1.0 - math.exp(-0.025 * 30.0)
    assert first == pytest.approx(0.8 * gone, rel=1e-12)
    assert second == pytest.approx(0.2 * gone, rel=1e-12)


def test_incidence_equals_numerical_integration_across_bins() -> None:
    a, b = hazards.hazards_per_day(1.7, 0.9)
    days = np.linspace(0.0, 45.0, 450_001)
    middle = (days[1:] + days[:-1]) / 2
    bins = np.searchsorted(hazards.BIN_EDGES_DAYS, middle, side="right") - 1
    total = (a + b)[bins]
    survival = np.exp(-(np.cumsum(total) - total / 2) * 1e-4)
    first, second = hazards.cumulative_incidence(a, b, 45.0)
    assert first == pytest.approx(float((survival * a[bins]).sum() * 1e-4), rel=1e-6)
    assert second == pytest.approx(float((survival * b[bins]).sum() * 1e-4), rel=1e-6)


@pytest.mark.parametrize("horizon", [0.5, 3.0, 30.0, 200.0])
def test_drawn_events_follow_the_incidence(horizon: float) -> None:
    rng = np.random.default_rng(3)
    a, b = hazards.hazards_per_day(1.5, 1.5)
    n = 20_000
    drawn = [hazards.draw_first_event(rng.standard_exponential(), rng.random(), a, b)[:2]
             for _ in range(n)]  # fmt: skip
    for cause, p in zip(
        (True, False),
        hazards.cumulative_incidence(a, b, horizon),
        strict=True,
    ):
        observed = sum(c is cause and days <= horizon for c, days in drawn)
        assert abs(observed - n * p) < 4 * math.sqrt(n * p * (1 - p)) + 1e-9


def test_planned_admissions_keep_the_hazard_above_zero() -> None:
    a, _ = hazards.hazards_per_day(-50.0, 0.0)
    assert a == pytest.approx(np.full(len(a), hazards.PLANNED_PER_DAY))
