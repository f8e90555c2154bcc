"""Waits: a chance of the same moment, else log-normal, and what is left of that after a while."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import lognorm

from tsfm.models.timeline_stepper import NextToken
from tsfm.rollouts.waits import Waits

MEAN, LOG_STD, SAME = 1.2, -0.3, 0.4
LAW = lognorm(s=math.exp(LOG_STD), scale=math.exp(MEAN))


def make_waits(passed_hours: float, n_rows: int = 1, log_std: float = LOG_STD) -> Waits:
    rows = torch.ones(n_rows)
    law = NextToken(
        torch.zeros(n_rows, 2), rows * math.log(SAME / (1 - SAME)), rows * MEAN, rows * log_std
    )
    return Waits.create(law, rows.double() * passed_hours)


def test_the_chance_of_a_token_in_time_is_that_of_the_mixture() -> None:
    limits = torch.tensor([[-1.0, 0.0, 0.5, 3.0, 40.0, 1e9]], dtype=torch.float64)
    found = make_waits(0.0).within(limits)[0].numpy()
    expected = SAME + (1 - SAME) * LAW.cdf(limits[0].numpy())
    assert found[0] == 0.0
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-6)


def test_after_some_hours_it_is_the_chance_given_those_hours() -> None:
    found = make_waits(5.0).within(torch.tensor([[3.0, 5.0, 9.0]], dtype=torch.float64))[0]
    expected = (LAW.cdf(9.0) - LAW.cdf(5.0)) / LAW.sf(5.0)
    np.testing.assert_allclose(found.numpy(), [0.0, 0.0, expected], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("passed_hours", [0.0, 2.0, 300.0])
def test_the_quantile_is_the_inverse_of_the_chance(passed_hours: float) -> None:
    u = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    waits = make_waits(passed_hours, len(u))
    hours = waits.quantile(u)
    assert (hours[1:] >= hours[:-1]).all()
    assert (hours >= passed_hours).all()
    if passed_hours == 0.0:
        assert torch.equal(hours == 0, u < waits.same)
    later = hours > passed_hours
    torch.testing.assert_close(waits.within(hours)[later], u[later], rtol=1e-6, atol=1e-6)


def test_silence_that_the_law_holds_impossible_is_borne() -> None:
    waits = make_waits(1e12, 3, log_std=-4.0)
    u = torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)
    assert torch.isfinite(waits.within(torch.full((3,), 2e12, dtype=torch.float64))).all()
    assert (waits.quantile(u) >= 1e12).all()
