"""Quantiles at any level from those that the network gives.

Between its levels a quantile lies on the line between its neighbours. Beyond the outermost it
follows a normal tail: the straight line over the normal quantile z through the two outermost,

    q(p) = q_1 + (z(p) - z(p_1)) (q_2 - q_1) / (z(p_2) - z(p_1))

which is an extrapolation and no more than that. Both rise with the level, so nothing crosses.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.models.quantile_head import LEVELS


def check_quantile_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Levels as asked for, each once and between 0 and 1.

    Raises:
        InputError: They are not.
    """
    try:
        found = tuple(float(level) for level in levels)
    except (TypeError, ValueError):
        found = (float("nan"),)
    if not all(0 < level < 1 for level in found) or len(set(found)) < len(found):
        raise InputError(
            "levels of quantiles are not numbers between 0 and 1, each once", code="bad_levels",
            place="quantile_levels", remedy="Give such as (0.1, 0.5, 0.9).",
        )  # fmt: skip
    return found


def at_levels(quantiles: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.float64]:
    """Quantiles at other levels, (row, level).

    Args:
        quantiles: Of `quantile_head.LEVELS`, ascending, (row, 13).
        levels: Levels asked for, in any order, each between 0 and 1.
    """
    out = np.empty((len(quantiles), len(levels)))
    for j, level in enumerate(levels):
        if level in LEVELS:
            out[:, j] = quantiles[:, LEVELS.index(level)]
            continue
        right = int(np.clip(np.searchsorted(LEVELS, level), 1, len(LEVELS) - 1))
        ends = LEVELS[right - 1], LEVELS[right]
        if LEVELS[0] <= level <= LEVELS[-1]:
            share = (level - ends[0]) / (ends[1] - ends[0])
        else:
            z, low, high = (NormalDist().inv_cdf(p) for p in (level, *ends))
            share = (z - low) / (high - low)
        left = quantiles[:, right - 1]
        out[:, j] = left + share * (quantiles[:, right] - left)
    order = np.argsort(levels)  # rounding must not make neighbours cross
    out[:, order] = np.maximum.accumulate(out[:, order], axis=1)
    return out
