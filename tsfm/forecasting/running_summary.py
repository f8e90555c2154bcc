"""`SeriesSummary` of series whose points come one at a time: a table of numbers, a row a series.

`SeriesSummary.update` takes a point of every series by operations on tensors, of which one series'
point needs as many. Here a point is some tens of plain numbers, and tensors are made when they are
asked for. Numbers are held in float64: sums over ten thousand points lose nothing.

`FrozenScale` watches a series whose scale and clock were taken from it at one moment, as
`fit_series_scale` and `ForecastContext.with_clock` do, and says when it has left them.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from tsfm.models.series_summary import HALF_LIVES, SeriesSummary

_WIDE = ("weight", "level", "time", "time_squares", "time_level")
_FLAT = tuple(field.name for field in fields(SeriesSummary) if field.name not in _WIDE)
_STEPS_OF = 1  # the half-life by which steps are forgotten, the middle one
assert {field.name for field in fields(SeriesSummary)} == {*_WIDE, *_FLAT}


_ALWAYS = 1024  # points up to which one reading costs as little as some twenty updates
_GROWTH = 1.25  # beyond, a series is read anew when its points have grown by this factor,
_DRIFT = 0.05  # when its median has moved by this share of its spread, or spread or clock by it,
_REST = 256  # which is asked once in this part of its points, so that readings stay rare,
_FAR = 3.0  # and at once when a value lies this many times farther out than any before
_IQR_OF_UNIT_NORMAL = 1.349
_MEAN_DEVIATION_OF_UNIT_NORMAL = math.sqrt(2 / math.pi)


class RunningSummary:
    """The summaries of some series, empty at first."""

    def __init__(self, n_series: int) -> None:
        """Begin without points."""
        self._table = np.zeros((n_series, len(_FLAT) + len(_WIDE) * len(HALF_LIVES)))

    def take(self, row: int, z: float, gap: float) -> None:
        """Take one more point of one series; see `SeriesSummary.update`.

        Args:
            row: The series.
            z: Standardised value.
            gap: Clock units since its last point; of a first point it is not looked at.
        """
        k = len(HALF_LIVES)
        numbers: list[float] = self._table[row].tolist()
        held = dict(zip(_FLAT, numbers, strict=False))
        weight, level, time, time_squares, time_level = (
            numbers[i : i + k] for i in range(len(_FLAT), len(numbers), k)
        )
        some = held["count"] > 0
        gap = gap if some else 0.0
        last, first = (held["last"], held["first"]) if some else (z, z)
        kept = [2.0 ** (-gap / half_life) for half_life in HALF_LIVES]
        after = {
            "count": held["count"] + 1, "last": z, "before": last,
            "before_that": held["before"] if some else z, "first": first,
            "low": min(held["low"], z) if some else z,
            "high": max(held["high"], z) if some else z,
            "total": held["total"] + z, "squares": held["squares"] + (z - first) ** 2,
            "steps": kept[_STEPS_OF] * held["steps"] + (z - last) ** 2,
            "last_clock": held["last_clock"] + gap,
        }  # fmt: skip
        told = [after[name] for name in _FLAT]
        told += [share * w + 1 for share, w in zip(kept, weight, strict=True)]
        told += [share * x + z for share, x in zip(kept, level, strict=True)]
        # Times are counted from the last point, which moves.
        told += [kept[i] * (time[i] - gap * weight[i]) for i in range(k)]
        told += [
            kept[i] * (time_squares[i] - 2 * gap * time[i] + gap * gap * weight[i])
            for i in range(k)
        ]
        told += [kept[i] * (time_level[i] - gap * level[i]) for i in range(k)]
        self._table[row] = told

    def set(self, summary: SeriesSummary) -> None:
        """Take over the summaries of all series."""
        flat = [getattr(summary, name).unsqueeze(-1) for name in _FLAT]
        wide = [getattr(summary, name) for name in _WIDE]
        self._table[:] = torch.cat([x.double() for x in (*flat, *wide)], -1).cpu().numpy()

    def tensors(self, device: torch.device | str = "cpu") -> SeriesSummary:
        """The summaries as a model takes them: columns of one tensor that is not written to."""
        table = torch.tensor(self._table, dtype=torch.float32, device=device)
        n, k = len(_FLAT), len(HALF_LIVES)
        columns: dict[str, Tensor] = dict(zip(_FLAT, table[:, :n].unbind(1), strict=True))
        columns |= dict(zip(_WIDE, table[:, n:].split(k, 1), strict=True))
        return SeriesSummary(**columns)


class FrozenScale:
    """Scale and clock of one series as of a reading, and what its points have become since.

    Args:
        seconds: Times read, ascending, each once, (point,).
        values: Values read, (point,).
        location: What was taken off the values.
        spread: What they were divided by.
        clock: Seconds of a clock unit.
    """

    def __init__(
        self, seconds: np.ndarray, values: np.ndarray, location: float, spread: float, clock: float
    ) -> None:
        """Begin at the reading."""
        self._location, self._spread, self._clock = location, spread, clock
        self._values, self._gaps = np.sort(values).tolist(), np.sort(np.diff(seconds)).tolist()
        self._last, self._n, self._asked_at = float(seconds[-1]), len(values), len(values)
        deviations = np.abs(values - location)
        self._total, farthest = float(deviations.sum()), float(deviations.max())
        # The spread of equal values is not taken from them: any other value leaves it.
        self._far = _FAR * farthest if spread <= 2 * farthest else 0.0

    def left_by(self, seconds: float, value: float) -> bool:
        """Whether the series has to be read anew once it has one more point, later than all."""
        insort(self._values, value)
        insort(self._gaps, seconds - self._last)
        self._last, n = seconds, len(self._values)
        deviation = abs(value - self._location)
        self._total += deviation
        if n <= _ALWAYS or n >= _GROWTH * self._n or deviation > self._far:
            return True
        if n - self._asked_at < n // _REST:
            return False
        self._asked_at = n
        return self._drifted()

    def _drifted(self) -> bool:
        q25, median, q75 = (self._quantile(level) for level in (0.25, 0.5, 0.75))
        # With half of the values equal, the median is theirs and the sum of deviations holds.
        mean_deviation = self._total / len(self._values)
        spread = (q75 - q25) / _IQR_OF_UNIT_NORMAL or (
            mean_deviation / _MEAN_DEVIATION_OF_UNIT_NORMAL or self._spread
        )
        clock = self._gaps[len(self._gaps) // 2]
        ratios = spread / self._spread, clock / self._clock
        moved = abs(median - self._location) > _DRIFT * self._spread
        return moved or any(abs(math.log(ratio)) > _DRIFT for ratio in ratios)

    def _quantile(self, level: float) -> float:
        rank = level * (len(self._values) - 1)
        below, above = self._values[math.floor(rank)], self._values[math.ceil(rank)]
        return below + (above - below) * (rank % 1)
