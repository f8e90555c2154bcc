"""How fast a series moves at its last point: what experts' routers are told, for one series.

`tsfm.models.experts.rate_features` tells it of every point of many series by some hundred
operations on tensors. A stream asks for one row at each point, of forty numbers: here in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsfm.models.experts import (
    LAGS,
    LOG_UNIT,
    N_RATE_FEATURES,
    ONE_MOMENT_HOURS,
    RESOLUTION,
    WINDOW,
)

_HOUR = 3600.0


def last_rates(seconds: Sequence[float], values: Sequence[float]) -> NDArray[np.float32]:
    """The row of `rate_features` that belongs to the last of some points.

    Args:
        seconds: Absolute times of one series, ascending; the last `BAND_LOOKBACK` + 1 suffice.
        values: Standardised values, finite.

    Returns:
        `N_RATE_FEATURES` numbers.
    """
    t = np.array(seconds)
    t = (t - t[-1]) / _HOUR  # first the difference: hours since 1970 have no milliseconds
    x = np.array(values, dtype=np.float32).astype(np.float64)  # as the model has them
    told = np.zeros(N_RATE_FEATURES, dtype=np.float32)
    if len(t) > 1:
        gap = t[-1] - t[-2]
        told[0] = np.log(np.clip(gap, ONE_MOMENT_HOURS, 1 / ONE_MOMENT_HOURS)) / LOG_UNIT
        told[0] *= gap > 0
        told[1], told[2] = gap > 0, gap == 0
    n_bands = 2 * len(LAGS)
    for i, lag in enumerate(LAGS):
        if len(t) <= lag:
            break
        hours = t[lag:] - t[:-lag]
        sloped = hours > ONE_MOMENT_HOURS
        span = np.where(sloped, hours, 1.0)
        slope = (x[lag:] - x[:-lag]) / span
        bent = sloped[lag:] & sloped[:-lag]
        half = np.where(bent, (t[2 * lag :] - t[: -2 * lag]) / 2, 1.0)
        bend = (slope[lag:] - slope[:-lag]) / half
        parts = ((1, sloped, slope, span), (2, bent, bend, half))
        for column, (order, there, d, width) in enumerate(parts, 2 * i):
            inside = there[-WINDOW:]
            d, width = d[-WINDOW:][inside], width[-WINDOW:][inside]
            if len(d):
                power = d * d + (RESOLUTION / width**order) ** 2
                mean = float((power * width).sum() / width.sum())
                told[3 + column] = np.log(min(max(mean, 1e-300), 1e300)) / 2 / (order * LOG_UNIT)
                told[3 + n_bands + column] = 1.0
    return told
