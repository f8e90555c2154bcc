"""`SeriesSummary` of series whose points come one at a time: a table of numbers, a row a series.

`SeriesSummary.update` takes a point of every series by operations on tensors, of which one series'
point needs as many. Here a point is some tens of plain numbers, and tensors are made when they are
asked for. Numbers are held in float64: sums over ten thousand points lose nothing.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from tsfm.models.series_summary import HALF_LIVES, SeriesSummary

_WIDE = ("weight", "level", "time", "time_squares", "time_level")
_FLAT = tuple(field.name for field in fields(SeriesSummary) if field.name not in _WIDE)
_STEPS_OF = 1  # the half-life by which steps are forgotten, the middle one
assert {field.name for field in fields(SeriesSummary)} == {*_WIDE, *_FLAT}


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
