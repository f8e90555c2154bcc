"""Rates of last points are worked out from the points that have a say, and are those of all."""

from __future__ import annotations

import pytest
import torch

from tsfm.models.experts import BAND_LOOKBACK, rate_features
from tsfm.models.forecast_data import ForecastContext


@pytest.mark.parametrize("lengths", [[300, 300], [0, 5, BAND_LOOKBACK + 2, BAND_LOOKBACK, 100, 0]])
def test_rates_of_last_points_are_the_last_rows_of_the_rates_of_all(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    borders = torch.tensor([0, *lengths]).cumsum(0)
    n = sum(lengths)
    gaps = 9000 * torch.rand(n, generator=generator, dtype=torch.float64) ** 3
    gaps[::7] = 0.0
    context = ForecastContext(
        1.7e9 + gaps.cumsum(0), torch.randn(n, generator=generator), borders,
        torch.zeros(len(lengths), dtype=torch.int64), torch.tensor([0, len(lengths)]),
        torch.tensor([3e9], dtype=torch.float64),
    ).with_clock(1800.0)  # fmt: skip
    there = borders.diff() > 0
    hours = context.gaps() / 2
    every = rate_features(context.values, hours, borders.unique_consecutive())
    assert torch.equal(context.rates()[there], every[(borders[1:] - 1)[there]])
    assert not context.rates()[~there].any()
