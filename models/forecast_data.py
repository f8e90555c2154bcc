"""What goes into a forecaster and what comes out: packed series, packed queries, forecasts.

Points of a series lie end to end in the order of time, series of an entity end to end, entities end
to end. A series may be empty: a variable that was never measured can still be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.experts import BAND_LOOKBACK, N_RATE_FEATURES, rate_features
from tsfm.models.series_scale import fit_series_scale

# A slip of the keyboard (1e25 for a heart rate) must not become an overflow in float32.
LARGEST_STANDARDISED = 1e4
_DEFAULT_CLOCK_SECONDS = 3600.0  # of an entity whose points tell no step


@dataclass(frozen=True)
class ForecastContext:
    """Series up to now.

    Attributes:
        seconds: Absolute times, float64, ascending within a series.
        values: Values, finite: in the series' own units, or standardised if `spread` is given.
        cu_points: Borders of the series' points, (series + 1,); a series may be empty.
        variable: Variable of each series.
        cu_series: Borders of the entities' series, (entity + 1,).
        now_seconds: When each entity is forecast from, not before its last point.
        location: What was taken off the values of each series, float64.
        spread: What they were divided by, float64.
        clock_seconds: Length of the clock unit of each series, float64.
    """

    seconds: Float64[Tensor, " point"]
    values: Float[Tensor, " point"]
    cu_points: Int[Tensor, " borders"]
    variable: Int[Tensor, " series"]
    cu_series: Int[Tensor, " entities"]
    now_seconds: Float64[Tensor, " entity"]
    location: Float64[Tensor, " series"] | None = None
    spread: Float64[Tensor, " series"] | None = None
    clock: Float64[Tensor, " series"] | None = None

    def check(self) -> None:
        """Check what the arithmetic takes for granted; costs a pass over the points.

        Raises:
            InputError: Borders, lengths, order, finiteness or a time after now.
        """
        n_points, n_series = len(self.seconds), len(self.variable)
        for name, borders, n, of in (
            ("cu_points", self.cu_points, n_series, n_points),
            ("cu_series", self.cu_series, len(self.now_seconds), n_series),
        ):
            fits = borders.shape == (n + 1,) and int(borders[0]) == 0 and int(borders[-1]) == of
            if not fits or bool((borders.diff() < 0).any()):
                raise InputError(
                    f"borders do not lead from 0 to {of} over {n} parts", code="bad_borders",
                    place=name, remedy="Give one border more than parts, ascending.",
                )  # fmt: skip
        if len(self.values) != n_points or bool((self.cu_series.diff() < 1).any()):
            raise InputError(
                "there is not a value for each time, or an entity has no series",
                code="bad_lengths", place="values", remedy="Give as many values as times, and "
                "leave out entities without series.",
            )  # fmt: skip
        every = (self.values, self.seconds, self.now_seconds)
        if not all(bool(part.isfinite().all()) for part in every):
            raise InputError(
                "a value or a time is not finite", code="not_finite", place="values",
                remedy="Leave out points without a value.",
            )  # fmt: skip
        if bool(((self.seconds.diff() < 0) & ~self.is_first()[1:]).any()):
            raise InputError(
                "points of a series are not in the order of time", code="unsorted",
                place="seconds", remedy="Sort each series by time.",
            )  # fmt: skip
        if bool((self.seconds > self.now_of_series()[self.series_of_point()]).any()):
            raise InputError(
                "a point lies after now", code="point_after_now", place="now_seconds",
                remedy="Give a later now, or leave the point out.",
            )  # fmt: skip

    @cached_property
    def _series(self) -> Tensor:
        index = torch.arange(len(self.variable), device=self.values.device)
        return torch.repeat_interleave(index, self.cu_points.diff())

    @cached_property
    def _entity(self) -> Tensor:
        index = torch.arange(len(self.now_seconds), device=self.values.device)
        return torch.repeat_interleave(index, self.cu_series.diff())

    def series_of_point(self) -> Int[Tensor, " point"]:
        """Series of each point."""
        return self._series

    def all_points(self) -> ForecastContext:
        """The context itself; a stream's, which holds the last points, gives all of them."""
        return self

    def entity_of_series(self) -> Int[Tensor, " series"]:
        """Entity of each series."""
        return self._entity

    def now_of_series(self) -> Float64[Tensor, " series"]:
        """Now of each series' entity."""
        return self.now_seconds[self._entity]

    def is_first(self) -> Tensor:
        """Whether a point is the first of its series."""
        first = torch.zeros(len(self.seconds), dtype=torch.bool, device=self.values.device)
        starts = self.cu_points[:-1]
        first[starts[self.cu_points.diff() > 0]] = True
        return first

    def points_of_entity(self) -> Int[Tensor, " entities"]:
        """Borders of the entities' points."""
        return self.cu_points[self.cu_series]

    @property
    def clock_seconds(self) -> Float64[Tensor, " series"]:
        """Length of each series' clock unit."""
        assert self.clock is not None
        return self.clock

    def clock_times(self) -> Float64[Tensor, " point"]:
        """Times in clock units before (below nought) or at now."""
        series = self._series
        return (self.seconds - self.now_of_series()[series]) / self.clock_seconds[series]

    @cached_property
    def _gaps(self) -> Tensor:
        gaps = torch.zeros_like(self.seconds)
        gaps[1:] = self.seconds.diff()
        return torch.where(self.is_first(), 0.0, gaps / self.clock_seconds[self._series]).float()

    def gaps(self) -> Float[Tensor, " point"]:
        """Clock units since the point before; nought for a first."""
        return self._gaps

    def last_seconds(self) -> Float64[Tensor, " series"]:
        """Time of each series' last point; now for an empty one."""
        last = (self.cu_points[1:] - 1).clamp(min=0)
        now = self.now_of_series()
        if not len(self.seconds):
            return now
        return torch.where(self.cu_points.diff() > 0, self.seconds[last], now)

    def age(self) -> Float[Tensor, " series"]:
        """Clock units from each series' last point to now; nought for an empty series."""
        return ((self.now_of_series() - self.last_seconds()) / self.clock_seconds).float()

    def watched(self) -> Float[Tensor, " series"]:
        """Clock units from the first point of each series' entity to now; nought without any."""
        starts = self.cu_points[:-1].clamp(max=max(len(self.seconds) - 1, 0))
        now = self.now_of_series()
        if not len(self.seconds):
            return torch.zeros_like(now).float()
        first = torch.where(self.cu_points.diff() > 0, self.seconds[starts], now)
        earliest = self.now_seconds.scatter_reduce(0, self._entity, first, "amin")
        return ((now - earliest[self._entity]) / self.clock_seconds).float()

    def rates(self) -> Float[Tensor, "series feature"]:
        """How fast each series moves at its last point: what a router of experts is told."""
        rates = self.values.new_zeros(len(self.variable), N_RATE_FEATURES)
        there = self.cu_points.diff() > 0
        if not bool(there.any()):
            return rates
        # Earlier points have no say in the features of a last one.
        counts = self.cu_points.diff()[there].clamp(max=BAND_LOOKBACK + 1)
        place = torch.arange(len(self.values), device=rates.device)
        late = place >= (self.cu_points[1:] - BAND_LOOKBACK - 1)[self._series]
        hours = self.gaps() * (self.clock_seconds[self._series] / 3600.0).float()
        ends = counts.cumsum(0)
        told = rate_features(self.values[late], hours[late], F.pad(ends, (1, 0)))
        rates[there] = told[ends - 1].to(rates)
        return rates

    def scaled_by(self, location: Tensor, spread: Tensor) -> ForecastContext:
        """With standardised values, none further out than `LARGEST_STANDARDISED`.

        Args:
            location: Of each series, float64.
            spread: Of each series, positive, float64.
        """
        series = self._series
        z = (self.values.double() - location[series]) / spread[series]
        z = z.clamp(-LARGEST_STANDARDISED, LARGEST_STANDARDISED)
        return replace(self, values=z.float(), location=location, spread=spread)

    def scaled_by_itself(self) -> ForecastContext:
        """Standardised by the median and the spread of each series' own points."""
        there = self.cu_points.diff() > 0
        location = torch.zeros(len(there), dtype=torch.float64, device=self.values.device)
        spread = torch.ones_like(location)
        if bool(there.any()):
            every = torch.ones_like(self.values, dtype=torch.bool)
            fitted = fit_series_scale(self.values, every, self.cu_points.unique_consecutive())
            location[there], spread[there] = fitted.location, fitted.scale
        return self.scaled_by(location, spread)

    def with_clock(self, seconds: float | None) -> ForecastContext:
        """With a clock.

        Args:
            seconds: Length of its unit; None is each entity's own: the median gap between points
                of its series, of different times.
        """
        if seconds is not None:
            return replace(self, clock=torch.full_like(self.now_of_series(), seconds))
        gaps = self.seconds.diff()
        counted = ~self.is_first()[1:] & (gaps > 0)
        entity = self._entity[self._series[1:]][counted]
        gaps = gaps[counted]
        order = gaps.argsort()
        order = order[entity[order].argsort(stable=True)]
        counts = torch.bincount(entity, minlength=len(self.now_seconds))
        middle = counts.cumsum(0) - counts + counts // 2
        if not len(gaps):
            return replace(
                self, clock=torch.full_like(self.now_of_series(), _DEFAULT_CLOCK_SECONDS)
            )
        median = gaps[order][middle.clamp(max=len(gaps) - 1)]
        clock = torch.where(counts > 0, median, _DEFAULT_CLOCK_SECONDS)
        return replace(self, clock=clock[self._entity])


@dataclass(frozen=True)
class ForecastQueries:
    """Times at which series are asked for.

    Attributes:
        seconds: Absolute times, float64, not before now.
        cu_queries: Borders of the queries of each series of the context, (series + 1,); a series
            may have none.
        known: Covariates known for these times, standardised, NaN where not known.
    """

    seconds: Float64[Tensor, " query"]
    cu_queries: Int[Tensor, " borders"]
    known: Float[Tensor, "query covariate"] | None = None

    @cached_property
    def _series(self) -> Tensor:
        index = torch.arange(len(self.cu_queries) - 1, device=self.seconds.device)
        return torch.repeat_interleave(index, self.cu_queries.diff())

    def series(self) -> Int[Tensor, " query"]:
        """Series of each query."""
        return self._series

    def known_features(self, n_known: int) -> Float[Tensor, "query feature"]:
        """Each covariate, nought where it is not known, and whether it is.

        Raises:
            InputError: There are not as many as the model was built for.
        """
        known = self.known
        if known is None:
            known = torch.full((len(self.seconds), n_known), torch.nan, device=self.seconds.device)
        if known.shape != (len(self.seconds), n_known):
            raise InputError(
                f"{tuple(known.shape)} known covariates, expected ({len(self.seconds)}, {n_known})",
                code="bad_known_covariates", place="known",
                remedy="Give a row a query and a column a covariate of the model.",
            )  # fmt: skip
        there = known.isfinite()
        return torch.cat([torch.where(there, known, 0.0).clamp(-8, 8), there.to(known)], -1)


@dataclass(frozen=True)
class Forecast:
    """Answers in standardised units, and how to undo them.

    Attributes:
        mean: Mean of each query.
        quantiles: Ascending quantiles of `quantile_head.LEVELS`.
        location: What was taken off, of each query's series, float64.
        spread: What it was divided by, float64.
    """

    mean: Float[Tensor, " query"]
    quantiles: Float[Tensor, "query level"]
    location: Float64[Tensor, " query"]
    spread: Float64[Tensor, " query"]

    def mean_in_units(self) -> Float64[Tensor, " query"]:
        """Means in the series' own units."""
        return self.mean.double() * self.spread + self.location

    def quantiles_in_units(self) -> Float64[Tensor, "query level"]:
        """Quantiles in the series' own units."""
        return self.quantiles.double() * self.spread[:, None] + self.location[:, None]

    def standardise(self, truth: Float[Tensor, " query"]) -> Float[Tensor, " query"]:
        """True values in the units of `mean`."""
        return ((truth.double() - self.location) / self.spread).float()
