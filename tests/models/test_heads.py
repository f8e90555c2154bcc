"""Hazards integrate exactly; probabilities add up; the likelihood knows censoring."""

from __future__ import annotations

import math

import pytest
import torch

from tsfm.models.heads import DAY_BINS, CompetingHazards


def constant_hazard(event: float, competing: float, n: int = 1) -> torch.Tensor:
    rates = torch.tensor([[math.log(event)], [math.log(competing)]])
    return rates.expand(2, len(DAY_BINS)).unsqueeze(0).expand(n, -1, -1).contiguous()


@pytest.mark.parametrize("horizon", [0.25, 1.0, 29.0, 30.0, 1000.0])
def test_constant_hazards_have_the_textbook_incidence(horizon: float) -> None:
    head = CompetingHazards(8)
    found = head.cumulative_incidence(constant_hazard(0.02, 0.005), horizon)[0]
    total = 1 - math.exp(-0.025 * horizon)
    torch.testing.assert_close(found, torch.tensor([0.8 * total, 0.2 * total]))


def test_incidence_agrees_with_a_fine_numerical_integral() -> None:
    torch.manual_seed(0)
    head = CompetingHazards(8)
    log_hazard = torch.randn(1, 2, len(DAY_BINS)) - 4
    steps = 300_000
    dt = 30.0 / steps
    times = (torch.arange(steps, dtype=torch.float64) + 0.5) * dt
    bins = torch.searchsorted(torch.tensor(DAY_BINS, dtype=torch.float64), times, right=True) - 1
    hazard = log_hazard[0].double().exp()[:, bins]
    survival = torch.exp(-(torch.cumsum(hazard.sum(0) * dt, 0) - hazard.sum(0) * dt / 2))
    expected = (hazard * survival * dt).sum(1)
    found = head.cumulative_incidence(log_hazard, 30.0)[0].double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_the_density_integrates_to_the_incidence() -> None:
    torch.manual_seed(1)
    head = CompetingHazards(8)
    log_hazard = torch.randn(1, 2, len(DAY_BINS)) - 3
    steps = 40_000
    dt = 30.0 / steps
    days = (torch.arange(steps) + 0.5) * dt
    one = torch.ones(steps, dtype=torch.long)
    density = torch.exp(-head.negative_log_likelihood(log_hazard.expand(steps, -1, -1), one, days))
    found = head.cumulative_incidence(log_hazard, 30.0)[0, 0]
    assert float(density.sum() * dt) == pytest.approx(float(found), rel=1e-3)


def test_a_censored_stay_says_only_that_nothing_happened() -> None:
    head = CompetingHazards(8)
    log_hazard = constant_hazard(0.02, 0.005)
    nll = head.negative_log_likelihood(log_hazard, torch.tensor([0]), torch.tensor([12.0]))
    assert float(nll) == pytest.approx(12 * 0.025, rel=1e-6)


def test_an_outcome_at_an_edge_belongs_to_the_bin_that_ends_there() -> None:
    head = CompetingHazards(8)
    log_hazard = torch.zeros(1, 2, len(DAY_BINS))
    log_hazard[0, 0, 0] = -5.0  # first bin, 0 to 1 day
    at_edge = head.negative_log_likelihood(log_hazard, torch.tensor([1]), torch.tensor([1.0]))
    expected = math.exp(-5.0) + 1.0 + 5.0
    assert float(at_edge) == pytest.approx(expected, rel=1e-6)


def test_the_baseline_is_the_occurrence_exposure_rate() -> None:
    torch.manual_seed(0)
    head = CompetingHazards(8)
    n = 40_000
    event = torch.distributions.Exponential(0.02).sample((n,))
    competing = torch.distributions.Exponential(0.004).sample((n,))
    first = torch.minimum(event, competing)
    outcome = torch.where(first > 90, 0, torch.where(event <= competing, 1, 2))
    head.set_baseline(outcome, first.clamp(max=90.0))
    p = head.cumulative_incidence(head.baseline.detach().unsqueeze(0), 30.0)[0]
    assert float(p[0]) == pytest.approx((1 - math.exp(-0.72)) * 0.02 / 0.024, rel=0.03)
    assert float(p[1]) == pytest.approx((1 - math.exp(-0.72)) * 0.004 / 0.024, rel=0.06)
