"""Quantiles at any level agree with the network's, go on in normal tails, and never cross."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.forecasting.quantile_levels import at_levels, check_quantile_levels
from tsfm.models.quantile_head import LEVELS


def test_levels_of_the_network_are_its_own_and_normal_tails_go_on() -> None:
    normal = np.array([[NormalDist(3.0, 2.0).inv_cdf(p) for p in LEVELS]])
    assert (at_levels(normal, LEVELS) == normal).all()
    tails = at_levels(normal, (0.001, 0.999))[0]
    expected = [NormalDist(3.0, 2.0).inv_cdf(p) for p in (0.001, 0.999)]
    np.testing.assert_allclose(tails, expected, rtol=1e-12)
    assert at_levels(normal, (0.15,))[0, 0] == pytest.approx(normal[0, 2:4].mean())


def test_quantiles_rise_with_the_level_even_where_they_touch() -> None:
    rng = np.random.default_rng(0)
    steps = rng.exponential(1.0, (50, len(LEVELS))) * (rng.random((50, len(LEVELS))) < 0.5)
    asked = np.unique(np.r_[rng.uniform(0.0001, 0.9999, 300), LEVELS])
    found = at_levels(1e6 + steps.cumsum(1), asked.tolist())
    assert (np.diff(found, axis=1) >= 0).all()


@pytest.mark.parametrize("bad", [(0.0,), (1.0,), (0.5, 0.5), (float("nan"),), ("x",), (1.5,)])
def test_levels_that_are_none_are_refused(bad: tuple[Any, ...]) -> None:
    with pytest.raises(InputError) as caught:
        check_quantile_levels(bad)
    assert caught.value.code == "bad_levels"
