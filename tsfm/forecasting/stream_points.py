"""What a stream keeps of one entity's points: all of them, and of each series how it stands.

A forecaster looks at a series in four ways: at the hidden state of its last point, at running
numbers of it (`series_summary`), at how fast it has moved of late (`last_rates`), and, where it is
told of the calendar, at its points a season ago. All but the last cost the same for every point.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tsfm.forecasting.last_rates import last_rates
from tsfm.forecasting.running_summary import RunningSummary
from tsfm.models.experts import BAND_LOOKBACK, N_RATE_FEATURES
from tsfm.models.forecast_data import ForecastContext
from tsfm.models.series_summary import SeriesSummary


@dataclass(frozen=True)
class LastPoints(ForecastContext):
    """A context of each series' last point alone, with what all points would tell.

    Attributes:
        known_rates: See `rates`.
        watched_since: Time of the entity's first point, or now.
        history: All points, for a model that looks at them.
    """

    known_rates: Float[Tensor, "series feature"] | None = None
    watched_since: float = math.nan
    history: ForecastContext | None = None

    def rates(self) -> Float[Tensor, "series feature"]:
        """How fast each series moves at its last point."""
        assert self.known_rates is not None
        return self.known_rates

    def watched(self) -> Float[Tensor, " series"]:
        """Clock units from the entity's first point to now."""
        return ((self.now_of_series() - self.watched_since) / self.clock_seconds).float()

    def all_points(self) -> ForecastContext:
        """All points so far, standardised."""
        assert self.history is not None
        return self.history


class StreamPoints:
    """Points of the series of one entity.

    Args:
        variable: Variable of each series.
        hidden: Hidden states of no points: their width and device.
        rates: Whether the model asks how fast series move.
        keep_hidden: Whether `new_points` will be asked for.

    Attributes:
        seconds: Times of all points in order of arrival.
        values: Their values in their own units.
        series: Their series.
        first: Time of the earliest point; infinite without any.
        latest: The latest moment that the stream has been told of; minus infinite without any.
        recent: Of each series the last times and standardised values, as far back as rates look.
        there: Which series have points.
        present: Their numbers.
        cu_present: Borders of one point for each of them.
    """

    def __init__(
        self, variable: Int[Tensor, " series"], hidden: Float[Tensor, "0 model"], *, rates: bool,
        keep_hidden: bool,
    ) -> None:  # fmt: skip
        """Begin with empty series."""
        n, device = len(variable), variable.device
        self.variable, self._asks_rates, self._keep_hidden = variable, rates, keep_hidden
        self.seconds, self.values, self.series = array("d"), array("d"), array("q")
        self._new_hidden = [hidden]
        self.first, self.latest = math.inf, -math.inf
        self.recent: list[deque[tuple[float, float]]] = [
            deque(maxlen=BAND_LOOKBACK + 1) for _ in range(n)
        ]
        self._entity = torch.tensor([0, n], device=device)
        self._summary = RunningSummary(n)
        self._last_hidden = hidden.new_zeros(n, hidden.shape[1])
        self._last_seconds = torch.zeros(n, dtype=torch.float64, device=device)
        self._rates = np.zeros((n, N_RATE_FEATURES), dtype=np.float32)
        self._rates_behind: set[int] = set()
        self._note_presence()

    @property
    def n(self) -> int:
        """Points so far."""
        return len(self.series)

    def take(
        self, row: int, seconds: float, value: float, z: float, gap: float,
        hidden: Float[Tensor, "1 model"],
    ) -> None:  # fmt: skip
        """Take one more point.

        Args:
            row: Its series.
            seconds: Its time.
            value: In its own units.
            z: Standardised.
            gap: Clock units since the series' last point.
            hidden: What the reader makes of it.
        """
        new = not self.recent[row]
        self.recent[row].append((seconds, z))
        self._summary.take(row, z, gap)
        self._last_hidden[row] = hidden[0]
        self._last_seconds[row] = seconds
        self.seconds.append(seconds)
        self.values.append(value)
        self.series.append(row)
        if self._keep_hidden:
            self._new_hidden.append(hidden)
        self._rates_behind.add(row)
        self.first, self.latest = min(self.first, seconds), max(self.latest, seconds)
        if new:
            self._note_presence()

    def take_all(
        self, context: ForecastContext, values: Float64[Tensor, " point"],
        hidden: Float[Tensor, "point model"], summary: SeriesSummary,
    ) -> None:  # fmt: skip
        """Take the first points of empty series, all at once.

        Args:
            context: Standardised, with at least one point.
            values: In their own units.
            hidden: What the reader makes of them.
            summary: Of the context's series.
        """
        borders, there = context.cu_points.tolist(), context.cu_points.diff() > 0
        for row, recent in enumerate(self.recent):
            end = borders[row + 1]
            start = max(borders[row], end - BAND_LOOKBACK - 1)
            at, z = context.seconds[start:end].tolist(), context.values[start:end].tolist()
            recent.extend(zip(at, z, strict=True))
            if recent:
                self._rates_behind.add(row)
        self._summary.set(summary)
        last = context.cu_points[1:][there] - 1
        self._last_hidden[there], self._last_seconds[there] = hidden[last], context.seconds[last]
        self.seconds.extend(context.seconds.tolist())
        self.values.extend(values.tolist())
        self.series.extend(context.series_of_point().tolist())
        if self._keep_hidden:
            self._new_hidden.append(hidden)
        self.first = min(self.first, float(context.seconds.min()))
        self._note_presence()

    def new_points(
        self, n_kept: int
    ) -> tuple[Float[Tensor, "point model"], Float64[Tensor, " point"], Int[Tensor, " point"]]:
        """Hidden states, times and series of points that came since the last call.

        Args:
            n_kept: Points that came before.
        """
        hidden = torch.cat(self._new_hidden)
        self._new_hidden = [hidden[:0]]
        seconds, series = self.seconds[n_kept:], self.series[n_kept:]
        return hidden, self._tensor(seconds, torch.float64), self._tensor(series, torch.int64)

    def empty_context(self) -> ForecastContext:
        """Without points, as of the latest moment."""
        none = self._last_seconds[:0]
        borders = torch.zeros(len(self.variable) + 1, dtype=torch.int64, device=none.device)
        return ForecastContext(
            none, none, borders, self.variable, self._entity, none.new_tensor([self.latest])
        )

    def context(self, now: float) -> ForecastContext:
        """All points, series by series, in their own units and float64."""
        series = self._tensor(self.series, torch.int64)
        order = series.argsort(stable=True)
        counts = torch.bincount(series, minlength=len(self.variable))
        return replace(
            self.empty_context(), seconds=self._tensor(self.seconds, torch.float64)[order],
            values=self._tensor(self.values, torch.float64)[order],
            cu_points=F.pad(counts.cumsum(0), (1, 0)),
            now_seconds=self._last_seconds.new_tensor([now]),
        )  # fmt: skip

    def last_points(
        self, now: float, scale: tuple[Tensor, Tensor, Tensor], *, history: bool
    ) -> tuple[LastPoints, Float[Tensor, "present model"], SeriesSummary]:
        """What a model answers from: context, hidden states and summaries of the last points.

        Args:
            now: When it is asked.
            scale: Location, spread and clock of each series.
            history: Give all points as well.
        """
        location, spread, clock = scale
        device = self.variable.device
        if self._asks_rates:
            for row in self._rates_behind:
                self._rates[row] = last_rates(*zip(*self.recent[row], strict=True))
            self._rates_behind.clear()
        summary = self._summary.tensors(device)
        past = None
        if history:
            past = replace(self.context(now).scaled_by(location, spread), clock=clock)
        context = LastPoints(
            self._last_seconds[self.present], summary.last[self.present], self.cu_present,
            self.variable, self._entity, self._last_seconds.new_tensor([now]), location, spread,
            clock, torch.tensor(self._rates, device=device),
            self.first if self.n else now, past,
        )  # fmt: skip
        return context, self._last_hidden[self.present], summary

    def _tensor(self, numbers: array[float] | array[int], dtype: torch.dtype) -> Tensor:
        # By way of numpy: of an array torch reads one number after another.
        return torch.tensor(np.array(numbers), dtype=dtype, device=self.variable.device)

    def _note_presence(self) -> None:
        there = torch.tensor([bool(recent) for recent in self.recent], device=self.variable.device)
        self.there, self.present = there, there.nonzero().squeeze(-1)
        self.cu_present = F.pad(there.cumsum(0), (1, 0))
