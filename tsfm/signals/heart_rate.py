"""Heart rate and its variability from the times of beats, robust to missed and false ones.

The rate of a window is 60 over the mean of the intervals that are near their median: a missed beat
doubles one interval, a false one splits one, and both fall out. In a bigeminy short and long
intervals take turns, and the median is one of the two: where many would fall out and two successive
intervals always take the same time, all are counted; unless the long ones are twice the short ones,
as where every third beat was missed. A second wave that is taken for a beat of its own each time
looks like a bigeminy, and times alone can't tell it from one. An interval over a gap belongs to no
beat: where `gaps` say that nothing was measured within it, it is left out as well.

The variability measures follow the Task Force of 1996: SDNN, RMSSD and pNN50 are of intervals
between usual beats, so those that come early, and the pauses after them, are left out with their
neighbours. Five minutes are the usual length; shorter windows are given as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]

_LEAST, _MOST = 0.6, 1.6  # of the median interval: the ones that count in a rate
_MANY, _EVEN = 0.2, 0.1  # share that would fall out; spread of two successive intervals together
_DOUBLE = 0.15  # a long interval so near to twice the short one may be a missed beat
_USUAL = 0.2  # an interval further than this share from the local median is no usual one
_FEWEST = 3


@dataclass(frozen=True)
class HeartRateVariability:
    """Spread of the usual intervals; NaN where there are too few.

    Attributes:
        n_intervals: Usual intervals.
        mean_rr_ms: Their mean.
        sdnn_ms: Their deviation.
        rmssd_ms: Root mean square of the differences of neighbours.
        pnn50: Share of these differences over 50 ms.
        share_left_out: Share of all intervals that are not usual.
    """

    n_intervals: int
    mean_rr_ms: float
    sdnn_ms: float
    rmssd_ms: float
    pnn50: float
    share_left_out: float


def heart_rate_bpm(
    beat_times_s: npt.ArrayLike, start_s: float, stop_s: float, *,
    gaps: Sequence[tuple[float, float]] = (),
) -> float:  # fmt: skip
    """Beats a minute within a window.

    Args:
        beat_times_s: (n,) times of beats in order, of the window and beyond.
        start_s: Start of the window.
        stop_s: Its end.
        gaps: Stretches in which nothing was measured.

    Returns:
        The rate; NaN with fewer than three intervals.
    """
    times = np.asarray(beat_times_s, np.float64)
    inside = times[(times >= start_s) & (times < stop_s)]
    first, rr = _intervals(inside, gaps)
    if len(rr) < _FEWEST:
        return float("nan")
    median = np.median(rr)
    near = (rr > _LEAST * median) & (rr < _MOST * median)
    if near.mean() < 1 - _MANY and _takes_turns(first, rr):
        near[:] = True
    return float(60.0 / rr[near].mean()) if near.any() else float("nan")


def variability(
    beat_times_s: npt.ArrayLike, *, gaps: Sequence[tuple[float, float]] = ()
) -> HeartRateVariability:
    """Spread of the intervals between usual beats.

    Args:
        beat_times_s: (n,) times of beats in order.
        gaps: Stretches in which nothing was measured.
    """
    first, rr = _intervals(np.asarray(beat_times_s, np.float64), gaps)
    nan = float("nan")
    if len(rr) < _FEWEST:
        return HeartRateVariability(len(rr), nan, nan, nan, nan, nan)
    local = np.array([np.median(rr[max(0, i - 5) : i + 6]) for i in range(len(rr))])
    odd = np.abs(rr - local) > _USUAL * local
    usual = ~(odd | np.append(odd[1:], False) & (rr < local * (1 - _USUAL)))
    kept, places = rr[usual] * 1000.0, first[usual]
    follows = np.diff(places) == 1
    steps = np.diff(kept)[follows]
    enough = len(kept) >= _FEWEST and len(steps) > 0
    return HeartRateVariability(
        n_intervals=int(usual.sum()),
        mean_rr_ms=float(kept.mean()) if len(kept) else nan,
        sdnn_ms=float(kept.std(ddof=1)) if len(kept) >= _FEWEST else nan,
        rmssd_ms=float(np.sqrt(np.mean(steps**2))) if enough else nan,
        pnn50=float(np.mean(np.abs(steps) > 50.0)) if enough else nan,
        share_left_out=float(1 - usual.mean()),
    )


def _takes_turns(first: npt.NDArray[np.int64], rr: Times) -> bool:
    """Whether two successive intervals always take the same time, whatever each of them takes."""
    pairs = (rr[:-1] + rr[1:])[np.diff(first) == 1]
    if len(pairs) < _FEWEST:
        return False
    middle = float(np.median(pairs))
    long = rr > middle / 2
    if long.all() or not long.any():
        return False
    short = float(np.median(rr[~long]))
    if abs(float(np.median(rr[long])) - 2 * short) < _DOUBLE * short:
        return False  # every third beat may have been missed
    return float(np.mean(np.abs(pairs - middle) < _EVEN * middle)) > 1 - _MANY


def _intervals(
    times: Times, gaps: Sequence[tuple[float, float]]
) -> tuple[npt.NDArray[np.int64], Times]:
    """Number and length of the intervals that no gap touches."""
    rr = np.diff(times)
    whole = np.ones(len(rr), np.bool_)
    for start, stop in gaps:
        whole &= (times[1:] <= start) | (times[:-1] >= stop)
    return np.flatnonzero(whole), rr[whole]
