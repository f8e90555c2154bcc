"""Rates of the last point alone are the last row of the rates of all points."""

from __future__ import annotations

import pytest
import torch

from tsfm.forecasting.last_rates import last_rates
from tsfm.models.experts import BAND_LOOKBACK, rate_features

ORIGIN = 1.7e9


@pytest.mark.parametrize("scale_s", [0.004, 60.0, 1e7])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 17, 33, 34, BAND_LOOKBACK + 1, 200])
def test_the_last_row_is_that_of_rate_features(n: int, scale_s: float) -> None:
    generator = torch.Generator().manual_seed(n)
    # Multiples of a clock's tick that float64 holds exactly; some points share a moment.
    gaps = (32 * torch.rand(n, generator=generator)).round().double() * scale_s / 16
    gaps = (gaps * 2**20).round() / 2**20
    gaps[::5] = 0.0
    seconds = ORIGIN + gaps.cumsum(0)
    values = torch.randn(n, generator=generator)
    values[n // 2 :] = values[n // 2 :].round()
    hours = torch.cat([torch.zeros(1), (seconds.diff() / 3600.0).float()])
    wanted = rate_features(values, hours)[-1]
    recent = slice(-BAND_LOOKBACK - 1, None)
    given = last_rates(seconds[recent].tolist(), values[recent].tolist())
    torch.testing.assert_close(torch.from_numpy(given), wanted, atol=2e-6, rtol=2e-6)


def test_a_series_at_rest_or_in_one_moment_has_finite_rates() -> None:
    resting = last_rates([ORIGIN + 60.0 * i for i in range(40)], [1.5] * 40)
    at_once = last_rates([ORIGIN] * 40, [0.1 * i for i in range(40)])
    for given in (resting, at_once):
        assert torch.from_numpy(given).isfinite().all()
    assert at_once[3:].tolist() == [0.0] * 12  # no time, no speed: nothing is known
