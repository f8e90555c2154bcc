"""Episodes for a forecaster that has never seen the series it will be asked about.

Series come from the synthetic prior (`series_prior`) and, for a share, from real series that the
caller may train on. Each is cut somewhere; a share of the context's points is taken away, since
sensors fail and clinics close; then the points after the cut are asked for. A drawn batch serves a
few steps with other cuts and other losses, as drawing costs about as much as learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.forecasting.series_prior import draw_series
from tsfm.models.forecast_data import ForecastContext, ForecastQueries
from tsfm.training.forecast import Episode

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
_FEWEST_POINTS = 16


LEAST_CONTEXT = 16


@dataclass(frozen=True)
class ZeroEpisodes:
    """Draws episodes; the same step of the same seed gives the same episode.

    Attributes:
        seed: Of everything.
        n_series: Series an episode.
        most_context: Context points a series.
        most_queries: Queries a series.
        reuse: Steps that share a draw of the prior.
        real: Series that may be trained on: times in seconds, values.
        real_share: Share of an episode's series that are taken from them.
    """

    seed: int
    n_series: int = 48
    most_context: int = 512
    most_queries: int = 64
    reuse: int = 3
    real: Sequence[Series] = ()
    real_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what can't be cut into a past and a future.

        Raises:
            InputError: A real series of one point, or a context of fewer than 16.
        """
        if self.most_context < LEAST_CONTEXT or any(len(values) < 2 for _, values in self.real):
            raise InputError(
                "a series or a context is too short to be cut", code="too_short", place="real",
                remedy=f"Give series of two points and more, contexts of {LEAST_CONTEXT} and more.",
            )  # fmt: skip

    def episode(self, step: int) -> Episode:
        """The episode of a step."""
        drawn = np.random.default_rng([self.seed, 1, step // self.reuse])
        rng = np.random.default_rng([self.seed, 2, step])
        n_real = int(rng.binomial(self.n_series, self.real_share)) if self.real else 0
        batch = draw_series(drawn, self.n_series, self.most_context + self.most_queries)
        cuts: list[tuple[Series, Series]] = []
        for i in range(self.n_series - n_real):
            rows = slice(batch.cu_seqlens[i], batch.cu_seqlens[i + 1])
            series = batch.seconds[rows], batch.values[rows]
            cuts.append(self._cut(series, int(batch.n_tail[i]), rng))
        for _ in range(n_real):
            seconds, values = self.real[int(rng.integers(len(self.real)))]
            n = len(values)
            length = int(rng.integers(min(n, 80), min(n, self.most_context + 64) + 1))
            start = int(rng.integers(0, n - length + 1))
            series = seconds[start : start + length], values[start : start + length]
            cuts.append(self._cut(series, length, rng, missing=True))
        return _pack(cuts)

    def _cut(
        self, series: Series, n_tail: int, rng: np.random.Generator, *, missing: bool = False
    ) -> tuple[Series, Series]:
        """Context and future of one series."""
        seconds, values = series
        n = len(values)
        least = min(_FEWEST_POINTS, n - 1)
        # Mostly long horizons: the regular tail, or up to a half of the points.
        most = min(self.most_queries, n - least, n_tail if n_tail >= 8 else max(8, n // 2))
        ahead = int(rng.integers(max(1, most // 2), most + 1)) if most > 1 else 1
        cut = n - ahead
        if rng.random() < 0.3 and n_tail == 0:  # anywhere, so that young series are known too
            cut = int(rng.integers(least, n - ahead + 1))
        first = max(0, cut - self.most_context)
        if rng.random() < 0.3:
            first = int(rng.integers(first, max(first + 1, cut - 2 * _FEWEST_POINTS)))
        past = slice(first, cut)
        context = seconds[past], values[past]
        if missing:
            kept = rng.random(cut - first) >= rng.choice([0.0, 0.1, 0.3, 0.5, 0.8])
            kept[-1] |= not kept.any()
            context = context[0][kept], context[1][kept]
        future = slice(cut, cut + ahead)
        return context, (seconds[future], values[future])


def _pack(cuts: Sequence[tuple[Series, Series]]) -> Episode:
    past, future = [c for c, _ in cuts], [f for _, f in cuts]

    def borders(parts: Sequence[Series]) -> torch.Tensor:
        return torch.from_numpy(np.cumsum([0, *(len(values) for _, values in parts)]))

    def joined(parts: Sequence[Series], column: int) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([part[column] for part in parts]))

    n = len(cuts)
    context = ForecastContext(
        joined(past, 0), joined(past, 1), borders(past), torch.zeros(n, dtype=torch.int64),
        torch.arange(n + 1), torch.tensor([seconds[-1] for seconds, _ in past]).double(),
    )  # fmt: skip
    queries = ForecastQueries(joined(future, 0), borders(future))
    weight = _weights(context)[queries.series()]
    return Episode(context, queries, joined(future, 1), weight, weight)


def _weights(context: ForecastContext) -> torch.Tensor:
    """One over how far each series is likely to move, in units of its spread, from its context.

    A smooth curve's errors are small against its spread and would not be learnt from. The future
    has no say: weights that look at it would make narrow forecasts look right.
    """
    scaled = context.scaled_by_itself()
    z, series = scaled.values.double(), scaled.series_of_point()
    steps = torch.zeros_like(z)
    steps[1:] = (z[1:] - z[:-1]).abs()
    steps[context.is_first()] = 0.0
    mean = torch.zeros(len(context.variable), dtype=torch.float64).index_add_(0, series, steps)
    mean = mean / (context.cu_points.diff() - 1).clamp(min=1)
    return (1 / (4 * mean).clamp(0.1, 1.5)).float()
