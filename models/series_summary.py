"""What the past of a series comes to at its last point: the numbers that good simple rules use.

Last values, extremes, forgetting means and forgetting lines of each packed series, in the units of
its standardised values and of its own clock. A forecaster gets them beside what it learns to
remember, and `base_forecasts` turns them into the simple forecasts that it mixes and corrects:
trees that see these numbers beat most published networks on irregular clinical series, and a
network that has to find the last value by itself spends its training on that.

Forgetting is by half-lives counted back from the series' last point, so that a summary does not
depend on when it is asked for and can be kept up point by point. No parameters, no gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

HALF_LIVES = (2.0, 8.0, 32.0)  # clock units
N_BASES = 3 + 2 * len(HALF_LIVES)
N_SUMMARY_FEATURES = 11 + 3 * len(HALF_LIVES)
_LEAST_SPREAD_OF_TIME = 0.25  # clock units squared: points closer than that have no slope
_FARTHEST = 12.0  # a line is not followed farther than this, in units of the standardised value
_LEAST_STEP = 1e-4
_LARGEST = 1e9  # of a standardised value


@dataclass(frozen=True)
class SeriesSummary:
    """Running numbers of each series, a row a series; nought where a series has no point.

    Attributes:
        count: Points.
        last: Last value.
        before: The value before it; the last if there is one only.
        before_that: The value before that; likewise.
        first: First value.
        low: Least value.
        high: Largest value.
        total: Sum of values.
        squares: Sum of their squared distances from the first, which costs no digits far from 0.
        weight: Sum of forgetting weights, (series, half-life).
        level: Weighted sum of values.
        time: Weighted sum of times, counted back from the last point in clock units.
        time_squares: Weighted sum of their squares.
        time_level: Weighted sum of time times value.
        steps: Weighted sum of squared steps between neighbours, of the middle half-life.
        last_clock: Time of the last point in clock units after the series' first point.
    """

    count: Tensor
    last: Tensor
    before: Tensor
    before_that: Tensor
    first: Tensor
    low: Tensor
    high: Tensor
    total: Tensor
    squares: Tensor
    weight: Tensor
    level: Tensor
    time: Tensor
    time_squares: Tensor
    time_level: Tensor
    steps: Tensor
    last_clock: Tensor

    @classmethod
    def empty(cls, n_series: int, device: torch.device | str = "cpu") -> SeriesSummary:
        """Of series that have shown nothing."""
        weighted = {"weight", "level", "time", "time_squares", "time_level"}
        shapes = {f.name: [len(HALF_LIVES)] * (f.name in weighted) for f in fields(cls)}
        return cls(
            **{name: torch.zeros(n_series, *wide, device=device) for name, wide in shapes.items()}
        )

    def rows(self, index: Int[Tensor, " pick"]) -> SeriesSummary:
        """Some of the rows."""
        return SeriesSummary(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def update(self, z: Float[Tensor, " series"], gap: Float[Tensor, " series"]) -> SeriesSummary:
        """After one more point of every row.

        Args:
            z: Standardised values.
            gap: Clock units since the row's last point; of a first point it is not looked at.
        """
        some = self.count > 0
        gap = torch.where(some, gap, 0.0)
        half_lives = torch.tensor(HALF_LIVES, device=z.device)
        kept = torch.exp2(-gap.unsqueeze(-1) / half_lives)
        # Times are counted from the last point, which moves.
        time = self.time - gap.unsqueeze(-1) * self.weight
        time_squares = (
            self.time_squares - 2 * gap.unsqueeze(-1) * self.time
            + gap.square().unsqueeze(-1) * self.weight
        )  # fmt: skip
        time_level = self.time_level - gap.unsqueeze(-1) * self.level
        step = torch.where(some, z - self.last, 0.0)
        return SeriesSummary(
            count=self.count + 1,
            last=z,
            before=torch.where(some, self.last, z),
            before_that=torch.where(some, self.before, z),
            first=torch.where(some, self.first, z),
            low=torch.where(some, torch.minimum(self.low, z), z),
            high=torch.where(some, torch.maximum(self.high, z), z),
            total=self.total + z,
            squares=self.squares + torch.where(some, z - self.first, 0.0).square(),
            weight=kept * self.weight + 1,
            level=kept * self.level + z.unsqueeze(-1),
            time=kept * time,
            time_squares=kept * time_squares,
            time_level=kept * time_level,
            steps=kept[:, 1] * self.steps + step.square(),
            last_clock=self.last_clock + gap,
        )

    def features(self) -> Float[Tensor, "series feature"]:
        """`N_SUMMARY_FEATURES` numbers of the size of one, for a network."""
        n = self.count.clamp(min=1)
        mean = self.total / n
        spread = (self.squares / n - (mean - self.first).square()).clamp(min=0).sqrt()
        level, slope, _ = self._lines()
        there = (self.count > 0).to(mean)
        flat = torch.stack(
            [there, torch.log1p(self.count), self.last, self.before, self.before_that, self.first,
             mean, spread, self.low, self.high, self.step_size()], -1,
        )  # fmt: skip
        half_lives = torch.tensor(HALF_LIVES, device=mean.device)
        drift = (self.last.unsqueeze(-1) - level) * there.unsqueeze(-1)
        wide = torch.cat([level, slope * half_lives, drift], -1)
        # Logarithmic far out: one wild value must not shake every weight.
        return torch.cat([flat, wide], -1).asinh()

    def step_size(self) -> Float[Tensor, " series"]:
        """Root mean square of the recent steps between neighbours; positive."""
        steps = (self.weight[:, 1] - 1).clamp(min=0.5)
        return (self.steps / steps).sqrt().clamp(min=_LEAST_STEP)

    def base_forecasts(
        self, series: Int[Tensor, " query"], ahead: Float[Tensor, " query"]
    ) -> Float[Tensor, "query base"]:
        """`N_BASES` simple forecasts: last, mean, nought, forgetting means, forgetting lines.

        Args:
            series: Row of each query.
            ahead: Clock units from the row's last point to the query.
        """
        level, slope, centre = self._lines()
        mean = self.total / self.count.clamp(min=1)
        flat = torch.stack([self.last, mean, torch.zeros_like(mean)], -1)[series]
        lines = level[series] + slope[series] * (ahead.unsqueeze(-1) - centre[series])
        low, high = self.low[series, None], self.high[series, None]
        lines = lines.clamp(min=low - _FARTHEST, max=high + _FARTHEST)
        return torch.cat([flat, level[series], lines], -1)

    def _lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted mean, slope a clock unit, and the time that they are of, of each half-life."""
        weight = self.weight.clamp(min=1e-9)
        level, centre = self.level / weight, self.time / weight
        spread = (self.time_squares / weight - centre.square()).clamp(min=0)
        slope = (self.time_level / weight - centre * level) / (spread + _LEAST_SPREAD_OF_TIME)
        return level, slope, centre


@torch.no_grad()
def summarise(
    z: Float[Tensor, " point"],
    clock: Float[Tensor, " point"],
    cu_points: Int[Tensor, " borders"],
) -> SeriesSummary:
    """Summaries of packed series, some of which may be empty.

    Equal to `SeriesSummary.update` point by point, up to rounding.

    Args:
        z: Standardised values, finite.
        clock: Times in clock units, each series' own origin, ascending.
        cu_points: Borders of the series.
    """
    lengths = cu_points.diff()
    n_series = len(lengths)
    if len(z) == 0:
        return SeriesSummary.empty(n_series, z.device)
    z = z.clamp(-_LARGEST, _LARGEST)  # its square must stay a number in float32
    there = lengths > 0
    series = torch.repeat_interleave(torch.arange(n_series, device=z.device), lengths)
    first = cu_points[:-1].clamp(max=len(z) - 1)
    last = (cu_points[1:] - 1).clamp(min=0)

    def at(index: Tensor) -> Tensor:
        return torch.where(there, z[index], 0.0)

    def segments(x: Tensor, how: str) -> Tensor:
        return torch.segment_reduce(x, how, lengths=lengths, initial=0.0 if how == "sum" else None)

    def summed(x: Tensor) -> Tensor:
        return x.new_zeros(n_series, *x.shape[1:]).index_add_(0, series, x)

    back = clock - clock[last][series]
    half_lives = torch.tensor(HALF_LIVES, device=z.device)
    weight = torch.exp2(back.unsqueeze(-1).float() / half_lives)
    back = back.float().unsqueeze(-1)
    follows = torch.ones_like(z)
    follows[first[there]] = 0.0
    step = torch.zeros_like(z)
    step[1:] = (z[1:] - z[:-1]) * follows[1:]
    parts = summed(
        torch.cat(
            [weight, weight * z.unsqueeze(-1), weight * back, weight * back.square(),
             weight * back * z.unsqueeze(-1), (weight[:, 1] * step.square()).unsqueeze(-1),
             z.unsqueeze(-1), (z - z[first][series]).square().unsqueeze(-1)], -1,
        )
    )  # fmt: skip
    k = len(HALF_LIVES)
    low = torch.where(there, segments(z, "min"), 0.0)
    high = torch.where(there, segments(z, "max"), 0.0)
    return SeriesSummary(
        count=lengths.to(z.dtype), last=at(last),
        before=at(torch.maximum(last - 1, first)), before_that=at(torch.maximum(last - 2, first)),
        first=at(first), low=low, high=high, total=parts[:, -2], squares=parts[:, -1],
        weight=parts[:, :k], level=parts[:, k : 2 * k], time=parts[:, 2 * k : 3 * k],
        time_squares=parts[:, 3 * k : 4 * k], time_level=parts[:, 4 * k : 5 * k],
        steps=parts[:, 5 * k],
        last_clock=torch.where(there, clock[last] - clock[first], 0.0).to(z.dtype),
    )  # fmt: skip
