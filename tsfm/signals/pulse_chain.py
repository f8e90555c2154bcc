"""Which of many rises of a noisy pulse wave are pulses: the strongest and most even chain of them.

Each candidate has a strength in multiples of the usual pulse's. A chain earns the strength of its
members above a floor and pays for every change of interval (absolute logarithm of the ratio of
neighbouring intervals), up to a bound, so that one early beat does not break it; a pause breaks it,
and a new chain may begin for a small price. The best set of chains is found exactly by dynamic
programming over pairs of neighbours, as beat trackers of music do (Ellis, J. New Music Research
2007), with the interval itself free from beat to beat.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

_SHORTEST_S, _LONGEST_S = 0.28, 2.2
_FLOOR, _MOST = 0.35, 1.2  # of the usual strength: what costs nothing, and what counts no more
_UNEVEN, _MOST_UNEVEN = 1.0, 0.7
_BEGIN = 0.5
_NEIGHBOURS = 24  # candidates back that a predecessor may be


def best_chain(
    at: npt.NDArray[np.int64], strength: npt.NDArray[np.float64], *, fs_hz: float
) -> npt.NDArray[np.bool_]:
    """Candidates that are pulses.

    Args:
        at: (n,) samples, in order.
        strength: (n,) in multiples of the usual pulse's.
        fs_hz: Sampling rate.
    """
    earned = np.minimum(strength, _MOST) - _FLOOR
    return _chain(np.asarray(at, np.float64) / fs_hz, earned)


@numba.njit(cache=True)
def _chain(time_s: npt.NDArray[np.float64], earned: npt.NDArray[np.float64]):
    n = len(time_s)
    alone = _NEIGHBOURS  # column of a candidate that begins a chain; column k: k + 1 back is before
    best = np.full((n, _NEIGHBOURS + 1), -np.inf)
    back = np.zeros((n, _NEIGHBOURS + 1), np.int64)
    total = np.zeros(n + 1)  # best of all chains that ended before a candidate
    end, column = np.full(n + 1, -1), np.full(n + 1, -1)
    for i in range(n):
        free = i
        while free > 0 and time_s[i] - time_s[free - 1] < _SHORTEST_S:
            free -= 1
        best[i, alone] = total[free] - _BEGIN + earned[i]
        back[i, alone] = free
        for k in range(min(_NEIGHBOURS, i)):
            j = i - 1 - k
            interval = time_s[i] - time_s[j]
            if interval < _SHORTEST_S:
                continue
            if interval > _LONGEST_S:
                break
            found, via = best[j, alone] + earned[i], alone
            for m in range(min(_NEIGHBOURS, j)):
                if best[j, m] > -np.inf:
                    uneven = abs(np.log(interval / (time_s[j] - time_s[j - 1 - m])))
                    value = best[j, m] + earned[i] - _UNEVEN * min(uneven, _MOST_UNEVEN)
                    if value > found:
                        found, via = value, m
            best[i, k] = found
            back[i, k] = via
        total[i + 1], end[i + 1], column[i + 1] = total[i], end[i], column[i]
        for k in range(_NEIGHBOURS + 1):
            if best[i, k] > total[i + 1]:
                total[i + 1], end[i + 1], column[i + 1] = best[i, k], i, k
    kept = np.zeros(n, np.bool_)
    i, k = end[n], column[n]
    while i >= 0:
        kept[i] = True
        if k == alone:
            free = back[i, k]
            i, k = end[free], column[free]
        else:
            i, k = i - 1 - k, back[i, k]
    return kept
