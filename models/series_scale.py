"""One scale for each series, from what is known of it: its context, or its past.

    z = (x - location) / scale,   or its asinh

`fit_series_scale` looks at context points alone: location is their median, scale their
interquartile range brought to the standard deviation of a normal. What comes later changes nothing,
so a forecast is never told its answer's mean. `RunningScale` is for streams: mean and standard
deviation of the points so far, forgetting by a half-life in hours if asked to, in a few operations
a point; `running_scale` gives it after every point of packed series at once (West 1979; weighted
variances by reliability weights).

The two differ: a running mean follows each outlier and a median does not, and a running scale moves
while a series is read, so a model must be given the one that it was trained with.
`tsfm.tokens.value_scale` is a third thing: one scale a code, from all training subjects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import check_borders, wrong_shape
from tsfm.kernels.selective_scan import selective_scan

RULES = ("interquartile range", "mean absolute deviation", "none")
_IQR_OF_UNIT_NORMAL = 1.3489795003921634
_MEAN_DEVIATION_OF_UNIT_NORMAL = math.sqrt(2 / math.pi)
# A spread of fewer units in the last place of the numbers it is a difference of is rounding.
_LAST_PLACES = 8


@dataclass(frozen=True)
class SeriesScale:
    """Location and scale of each series; see `fit_series_scale`.

    Attributes:
        location: Median of the context, 0 without any; float64.
        scale: Positive; float64.
        n_points: Finite context points it rests on.
        n_ignored: Context points that are not finite, which were left out.
        rule: Index in `RULES` of what the scale was taken from.
        asinh: Whether z is the inverse hyperbolic sine of the standardised value.
    """

    location: Tensor
    scale: Tensor
    n_points: Tensor
    n_ignored: Tensor
    rule: Tensor
    asinh: bool

    def apply(
        self, values: Float[Tensor, "token ..."], cu_seqlens: Int[Tensor, " borders"] | None = None
    ) -> Float[Tensor, "token ..."]:
        """Standardised values of the same series; NaN stays NaN.

        Args:
            values: Of the context, of a horizon or both, several a point if need be.
            cu_seqlens: Borders of the series among these values; None is one.

        Raises:
            InputError: The borders are of another number of series.
        """
        return _apply(values, *self._of_tokens(values, cu_seqlens), self.asinh)

    def invert(
        self, z: Float[Tensor, "token ..."], cu_seqlens: Int[Tensor, " borders"] | None = None
    ) -> Float[Tensor, "token ..."]:
        """Values in the series' own units from standardised ones; see `apply`."""
        return _invert(z, *self._of_tokens(z, cu_seqlens), self.asinh)

    def _of_tokens(self, x: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        borders = _borders(cu_seqlens, x)
        if len(borders) - 1 != len(self.scale):
            raise wrong_shape("cu_seqlens", borders, f"({len(self.scale) + 1},)")
        lengths = borders.diff()
        location, scale = self.location, self.scale
        return location.repeat_interleave(lengths), scale.repeat_interleave(lengths)


@torch.no_grad()
def fit_series_scale(
    values: Float[Tensor, " token"],
    context: Bool[Tensor, " token"],
    cu_seqlens: Int[Tensor, " borders"] | None = None,
    *,
    asinh: bool = False,
) -> SeriesScale:
    """Robust location and scale of each series from its context.

    The scale is the interquartile range / 1.349. Where more than half of the points are equal and
    that is nought, it is the mean absolute deviation from the median / 0.798, and where all are, 1.
    (The median absolute deviation is nought whenever the interquartile range is.) Nought means at
    most 8 units in the last place of `values`' type, relative to the quartiles, or to the largest
    point. A series without context is left as it is: location 0, scale 1.

    Args:
        values: Values; those of the context that are not finite are left out and counted.
        context: Points that may be looked at. The others' values have no influence.
        cu_seqlens: Borders of the series; None is one.
        asinh: Standardise to asinh(z): linear near the median, logarithmic far from it.

    Raises:
        InputError: The borders do not fit the values.
    """
    lengths = _borders(cu_seqlens, values).diff()
    used = context & values.isfinite()
    n_points = _sums(used, lengths).long()
    x = values[used].double()
    q25, median, q75 = _quantiles(x, n_points, (0.25, 0.5, 0.75))
    deviation = (x - median.repeat_interleave(n_points)).abs()
    mean_deviation = _sums(deviation, n_points) / n_points.clamp(min=1)
    largest = torch.segment_reduce(x.abs(), "max", lengths=n_points, initial=0.0)
    epsilon = _LAST_PLACES * torch.finfo(values.dtype).eps
    spread = q75 - q25
    has_quartiles = spread > epsilon * torch.maximum(q25.abs(), q75.abs())
    has_deviation = mean_deviation > epsilon * largest
    scale = torch.where(
        has_quartiles,
        spread / _IQR_OF_UNIT_NORMAL,
        torch.where(has_deviation, mean_deviation / _MEAN_DEVIATION_OF_UNIT_NORMAL, 1.0),
    )
    rule = torch.where(has_quartiles, 0, torch.where(has_deviation, 1, 2))
    n_ignored = _sums(context, lengths).long() - n_points
    return SeriesScale(median, scale, n_points, n_ignored, rule, asinh)


@dataclass(frozen=True)
class RunningScale:
    """Mean and spread of what each series has shown so far, a row a series.

    A point's weight halves every `half_life_hours`; None never forgets, which is Welford's
    recurrence. A gap that is infinite, or some thousand half-lives long, forgets all.

    Attributes:
        weight: Sum of the points' weights; float64.
        pairs: Sum of the products of the weights of two different points: what is lost of
            `weight` squared where few points count. Nought until there are two.
        mean: Weighted mean, 0 without points.
        squares: Weighted sum of squared deviations from it.
        half_life_hours: Hours in which a weight halves.
        dtype: Type of the values.
        asinh: See `SeriesScale`.
    """

    weight: Tensor
    pairs: Tensor
    mean: Tensor
    squares: Tensor
    half_life_hours: float | None
    dtype: torch.dtype
    asinh: bool = False

    @classmethod
    def start(
        cls, n_rows: int, *, half_life_hours: float | None, asinh: bool = False,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> RunningScale:  # fmt: skip
        """Of series that have shown nothing: the identity.

        Raises:
            InputError: The half-life is not positive.
        """
        _check_half_life(half_life_hours)
        nothing = torch.zeros(n_rows, dtype=torch.float64, device=device)
        return cls(nothing, nothing, nothing, nothing, half_life_hours, dtype, asinh)

    @property
    def scale(self) -> Float[Tensor, " row"]:
        """Standard deviation; 1 until two points differ by more than their rounding; float64."""
        some = self.pairs > 0
        variance = self.squares * (self.weight / torch.where(some, self.pairs, 1.0))
        std = variance.sqrt()
        rounding = _LAST_PLACES * torch.finfo(self.dtype).eps * self.mean.abs()
        return torch.where(some & (std > rounding), std, 1.0)

    @torch.no_grad()
    def update(
        self, values: Float[Tensor, " row"], gap_hours: Float[Tensor, " row"]
    ) -> RunningScale:
        """After one more point of every row; this object stays as it is.

        Args:
            values: Next values; one that is not finite only lets time pass.
            gap_hours: Hours since the row's last point; before the first it is not looked at.

        Raises:
            InputError: A gap is negative or no number.
        """
        _check_gaps(gap_hours, self.weight > 0)
        kept = torch.ones_like(self.weight)
        if self.half_life_hours is not None:
            kept = torch.exp2(-gap_hours.double() / self.half_life_hours)
            kept = torch.where(self.weight > 0, kept, 1.0)
        seen = values.isfinite()
        old = kept * self.weight
        weight = old + seen
        distance = torch.where(seen, values, 0.0).double() - self.mean
        share = torch.where(seen, 1 / weight, 0.0)
        return replace(
            self,
            weight=weight,
            pairs=kept.square() * self.pairs + torch.where(seen, 2 * old, 0.0),
            mean=self.mean + distance * share,
            squares=kept * self.squares + distance.square() * old * share,
        )

    def rows(self, index: Int[Tensor, " pick"]) -> RunningScale:
        """Some of the rows, such as those after each series' last point."""
        picked = {name: getattr(self, name)[index] for name in _STATE}
        return replace(self, **picked)

    def apply(self, values: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        """Standardised values, each by its row; NaN stays NaN."""
        return _apply(values, self.mean, self.scale, self.asinh)

    def invert(self, z: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        """Values in the series' own units from standardised ones."""
        return _invert(z, self.mean, self.scale, self.asinh)


_STATE = ("weight", "pairs", "mean", "squares")


@torch.no_grad()
def running_scale(
    values: Float[Tensor, " token"],
    gap_hours: Float[Tensor, " token"],
    cu_seqlens: Int[Tensor, " borders"] | None = None,
    *,
    half_life_hours: float | None,
    asinh: bool = False,
) -> RunningScale:
    """The running scale after each point of packed series: a row a point, of points up to it.

    Equal to `RunningScale.update` point by point, but for rounding. `rows` of the last points goes
    on with a stream.

    Args:
        values: Values; those that are not finite are left out.
        gap_hours: Hours since the previous point of the same series; of a first it is not looked
            at.
        cu_seqlens: Borders of the series; None is one.
        half_life_hours: Hours in which a point's weight halves; None never forgets.
        asinh: See `SeriesScale`.

    Raises:
        InputError: A gap is negative or no number, the half-life is not positive, or the borders do
            not fit.
    """
    _check_half_life(half_life_hours)
    borders = _borders(cu_seqlens, values)
    follows = torch.ones_like(values, dtype=torch.bool)
    follows[borders[:-1]] = False
    _check_gaps(gap_hours, follows)
    rate = 0.0 if half_life_hours is None else math.log(2) / half_life_hours
    # In units in which weights fall e-fold; without forgetting, an infinite gap is nothing too.
    felt = torch.where(follows & (rate > 0), gap_hours.double(), 0.0) * rate
    kept = torch.exp(-felt)
    seen = values.isfinite()
    x = torch.where(seen, values, 0.0).double()
    # Counted from a value of the series' own, so that a far-off level costs no digits.
    level = x[_first_seen(seen, borders)].repeat_interleave(borders.diff())
    shown = torch.where(seen, x - level, 0.0)
    weight, total = _decayed_sums(torch.stack([seen.double(), shown], -1), felt, borders)
    mean = torch.where(weight > 0, total / torch.where(weight > 0, weight, 1.0), 0.0)
    old = torch.where(follows, kept * _previous(weight), 0.0)
    distance = shown - torch.where(follows, _previous(mean), 0.0)
    gained = torch.where(seen, distance.square() * old / torch.where(seen, weight, 1.0), 0.0)
    (squares,) = _decayed_sums(gained.unsqueeze(-1), felt, borders)
    (pairs,) = _decayed_sums(torch.where(seen, 2 * old, 0.0).unsqueeze(-1), 2 * felt, borders)
    mean = torch.where(weight > 0, mean + level, 0.0)
    return RunningScale(weight, pairs, mean, squares, half_life_hours, values.dtype, asinh)


def _apply(values: Tensor, location: Tensor, scale: Tensor, asinh: bool) -> Tensor:
    # In float64: the difference of two large float32 numbers, or their quotient, may be beyond it.
    rows = (-1,) + (1,) * (values.dim() - 1)
    z = (values.double() - location.view(rows)) / scale.view(rows)
    return (z.asinh() if asinh else z).to(values.dtype)


def _invert(z: Tensor, location: Tensor, scale: Tensor, asinh: bool) -> Tensor:
    rows = (-1,) + (1,) * (z.dim() - 1)
    wide = z.double()
    wide = wide.sinh() if asinh else wide
    return (wide * scale.view(rows) + location.view(rows)).to(z.dtype)


def _quantiles(x: Tensor, lengths: Tensor, levels: tuple[float, ...]) -> list[Tensor]:
    """Quantiles of packed series, linear between order statistics; 0 of an empty one."""
    series = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths)
    order = x.argsort()
    order = order[series[order].argsort(stable=True)]
    # One more number, for empty series at the end to point at.
    ranked = torch.cat([x[order], x.new_zeros(1)])
    first, last = lengths.cumsum(0) - lengths, (lengths - 1).clamp(min=0)
    found = []
    for level in levels:
        rank = last * level
        below = ranked[first + rank.floor().long()]
        above = ranked[first + rank.ceil().long()]
        found.append(torch.where(lengths > 0, below + (above - below) * rank.frac(), 0.0))
    return found


def _sums(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.segment_reduce(x.double(), "sum", lengths=lengths, initial=0.0)


def _first_seen(seen: Tensor, borders: Tensor) -> Tensor:
    """Index of each series' first point that is seen, or of its first one."""
    starts = borders[:-1]
    before = seen.cumsum(0) - seen.long()
    lengths = borders.diff()
    leads = seen & (before == before[starts].repeat_interleave(lengths))
    index = torch.arange(len(seen), device=seen.device)
    at = torch.where(leads, index - starts.repeat_interleave(lengths), 0)
    return starts + _sums(at, lengths).long()


def _decayed_sums(x: Tensor, felt: Tensor, borders: Tensor) -> tuple[Tensor, ...]:
    """Columns of sum over s <= t of exp(-(time felt from s to t)) x_s, within each series."""
    n_channels = x.shape[1]
    one = x.new_ones(len(x), 1)
    summed = selective_scan(
        x, torch.zeros_like(x), -x.new_ones(n_channels, 1), one, one,
        gap=felt, gap_rate=x.new_ones(n_channels), input="impulse", cu_seqlens=borders,
    )  # fmt: skip
    return summed.unbind(-1)


def _previous(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x[:-1]])


def _borders(cu_seqlens: Tensor | None, x: Tensor) -> Tensor:
    if cu_seqlens is None:
        return torch.tensor([0, len(x)], device=x.device)
    return check_borders(cu_seqlens, len(x), x.device).long()


def _check_half_life(half_life_hours: float | None) -> None:
    if half_life_hours is not None and not 0 < half_life_hours < math.inf:
        raise InputError(
            f"a half-life of {half_life_hours} hours", code="bad_half_life",
            place="half_life_hours", remedy="Give hours above 0, or None never to forget.",
        )  # fmt: skip


def _check_gaps(gap_hours: Tensor, follows: Tensor) -> None:
    if not bool(((gap_hours >= 0) | ~follows).all()):
        raise InputError(
            "a gap is negative or no number", code="bad_gap", place="gap_hours",
            remedy="Sort the points of each series by time.",
        )  # fmt: skip
