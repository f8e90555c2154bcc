"""What a series was a day, a week or a year before a moment, and how well that foretold it so far.

The oldest forecast of a seasonal series is its value one season ago. Irregular points have no such
value, so it is interpolated between the two points around that moment. Seasons are calendar ones,
in seconds: a patient's day and an epidemic's year need not be found out from the points. No
parameters, no gradients.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from tsfm.models.forecast_data import ForecastContext

SEASONS_SECONDS = (86_400.0, 604_800.0, 31_556_952.0)
N_LAG_BASES = 2 * len(SEASONS_SECONDS)
N_LAG_FEATURES = 2 * len(SEASONS_SECONDS)
_MOST_SECONDS = 2e9  # sixty years
_ROW = 4 * _MOST_SECONDS


class SeasonalLags:
    """Values of a standardised context a season before given moments.

    Args:
        context: Standardised, with a clock.
    """

    def __init__(self, context: ForecastContext) -> None:
        """Lay the series out on one axis, so that one search finds all."""
        context = context.all_points()
        self.context = context
        self.now = context.now_of_series()
        self.keys = self._key(context.series_of_point(), context.seconds)

    def _key(self, series: Tensor, seconds: Tensor) -> Float64[Tensor, " row"]:
        since = (seconds - self.now[series]).clamp(-_MOST_SECONDS, _MOST_SECONDS)
        return series * _ROW + since

    @torch.no_grad()
    def at(
        self, series: Int[Tensor, " row"], seconds: Float64[Tensor, " row"], season: float
    ) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
        """Values a whole number of seasons before, the fewest that lie in the past.

        Args:
            series: Of each row.
            seconds: Moment of each row.
            season: In seconds.

        Returns:
            Interpolated values, nought where there is none, and where there is one.
        """
        z, context = self.context.values, self.context
        if not len(z):
            return z.new_zeros(len(series)), torch.zeros_like(series, dtype=torch.bool)
        n_seasons = torch.ceil((seconds - self.now[series]).clamp(min=0) / season).clamp(min=1)
        return self._between(series, seconds - n_seasons * season, context)

    def _between(
        self, series: Tensor, moment: Tensor, context: ForecastContext
    ) -> tuple[Tensor, Tensor]:
        key = self._key(series, moment)
        after = torch.searchsorted(self.keys, key)
        first, end = context.cu_points[series], context.cu_points[series + 1]
        before = after - 1
        there = (before >= first) & (after < end) & (moment > self.now[series] - _MOST_SECONDS)
        before, after = before.clamp(0, len(self.keys) - 1), after.clamp(0, len(self.keys) - 1)
        gap = (self.keys[after] - self.keys[before]).clamp(min=1e-9)
        share = ((key - self.keys[before]) / gap).clamp(0, 1).float()
        z = context.values
        value = z[before] + share * (z[after] - z[before])
        return torch.where(there, value, 0.0), there

    @torch.no_grad()
    def features(self) -> Float[Tensor, "series feature"]:
        """Mean absolute change over each season so far, and the share of points it rests on."""
        context = self.context
        series = context.series_of_point()
        n_series = len(context.variable)
        n = context.cu_points.diff().clamp(min=1)
        parts = []
        for season in SEASONS_SECONDS:
            value, there = self._between(series, context.seconds - season, context)
            off = torch.where(there, (context.values - value).abs(), 0.0)
            counts = n.new_zeros(n_series).index_add_(0, series, there.long())
            total = off.new_zeros(n_series).index_add_(0, series, off)
            parts += [(total / counts.clamp(min=1)).asinh(), (counts / n).to(off)]
        return torch.stack(parts, -1)

    @torch.no_grad()
    def base_forecasts(
        self, series: Int[Tensor, " query"], seconds: Float64[Tensor, " query"],
        last: Float[Tensor, " series"],
    ) -> tuple[Float[Tensor, "query base"], Bool[Tensor, "query base"]]:  # fmt: skip
        """For each season its value then, and that moved by how the level has changed since.

        Args:
            series: Of each query.
            seconds: Moment of each query.
            last: Level of each series now.

        Returns:
            `N_LAG_BASES` forecasts, and which of them there are.
        """
        rows = torch.arange(len(self.now), device=series.device)
        values, known = [], []
        for season in SEASONS_SECONDS:
            then, there = self.at(series, seconds, season)
            level, has_level = self.at(rows, self.now, season)
            moved = then + (last - level)[series]
            values += [then, moved]
            known += [there, there & has_level[series]]
        return torch.stack(values, -1), torch.stack(known, -1)


def calendar_features(seconds: Float64[Tensor, " row"]) -> Float64[Tensor, "row feature"]:
    """Sine and cosine of the time of day, week and year (UTC)."""
    turns = seconds.unsqueeze(-1) / torch.tensor(SEASONS_SECONDS, device=seconds.device)
    angle = 2 * math.pi * turns.frac()
    return torch.cat([angle.sin(), angle.cos()], -1)
