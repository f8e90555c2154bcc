"""Classical forecasts of windows with missing points, and the scores that all forecasts get.

Every peer answers a `Window` of `zero_shot_data` with quantiles and a mean at its 64 target times:

| peer | needs a grid | how |
|---|---|---|
| last value | no | random walk: normal, variance of steps from neighbouring points, times the gap |
| seasonal naive | yes | the last season again; where no season is known, as `last value` |
| linear | no | least squares line through the last 16 points, Student-t intervals of a new point |
| ets | yes | `AutoETS` of statsforecast; without season where the period is over 24 |
| stl + ets | yes | `MSTL` of statsforecast, `AutoETS` inside; `ets` under two periods of context |
| theta | yes | `DynamicOptimizedTheta` of statsforecast, which tests for the season itself |

Those that need a grid can't read missing points: gaps are filled on straight lines first, and the
context's ends are held (`fill_gaps`), which is what their users do. It also makes them too sure of
themselves, since a straight line has no noise. Exponential smoothing with a period of 52 has more
states than two years of weeks can tell apart, hence the plain form and STL. Its errors are held to
the additive form: with the multiplicative one, which it would choose for counts near zero, the
intervals grow without bound (`flu`: WQL 17 in place of 2, though MASE 2.6 in place of 3.1).

Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd ed., 5.5 (naive intervals),
7.5 (prediction from a line), 8 (ETS), 12.1 (STL); Fiorucci et al., Int J Forecasting 32 (2016)
1151-1161 (dynamic optimised theta).

statsforecast comes with the extra `benchmarks`; the first three peers run without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from zero_shot_data import Window

from tsfm.errors import InputError

Floats = NDArray[np.float64]
Forecast = tuple[Floats, Floats]  # quantiles (n_targets, n_levels), mean (n_targets,)
Peer = Callable[[Window, Floats], Forecast]

LEVELS = np.arange(1, 10) / 10
LINE_POINTS = 16
LONGEST_SMOOTHED_PERIOD = 24


@dataclass(frozen=True)
class SetForecast:
    """Forecasts of all windows of a set.

    Attributes:
        quantiles: (n_windows, n_targets, n_levels), ascending over levels.
        mean: (n_windows, n_targets).
        n_replaced: Windows where the peer failed or was not finite and `last value` stands in.
    """

    quantiles: Floats
    mean: Floats
    n_replaced: int


def forecast_windows(windows: list[Window], peer: str, levels: Floats = LEVELS) -> SetForecast:
    """Forecast every window by one peer.

    Args:
        windows: Of one set.
        peer: One of `PEERS`.
        levels: (n_levels,) in (0, 1), ascending.

    Raises:
        InputError: No such peer, or statsforecast is not installed.
    """
    if peer not in PEERS:
        raise InputError("There is no such peer.", code="unknown_peer", place=peer)
    levels = np.asarray(levels, dtype=np.float64)
    quantiles = np.empty((len(windows), len(windows[0].target_seconds), len(levels)))
    mean = np.empty(quantiles.shape[:2])
    n_replaced = 0
    for i, window in enumerate(windows):
        try:
            found = PEERS[peer](window, levels)
            if not all(np.isfinite(part).all() for part in found):
                raise FloatingPointError
        except (ValueError, ArithmeticError, np.linalg.LinAlgError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            found = last_value(window, levels)
            n_replaced += 1
        quantiles[i], mean[i] = np.sort(found[0], axis=-1), found[1]
    return SetForecast(quantiles, mean, n_replaced)


def last_value(window: Window, levels: Floats) -> Forecast:
    """Random walk from the last point; time since it counts, missing points and all."""
    return _walk(window.seconds, window.values, window, levels)


def seasonal_naive(window: Window, levels: Floats) -> Forecast:
    """The last season again, normal; its variance grows by one difference a season."""
    grid, period = fill_gaps(window), window.period
    if period < 2 or len(grid) < period + 2:
        return last_value(window, levels)
    differences = grid[period:] - grid[:-period]
    ahead = np.arange(len(window.target_seconds))
    mean = grid[len(grid) - period + ahead % period]
    spread = np.sqrt((differences**2).mean() * (ahead // period + 1))
    return mean[:, None] + spread[:, None] * stats.norm.ppf(levels), mean


def linear(window: Window, levels: Floats) -> Forecast:
    """Least squares line through the last points."""
    t = (window.seconds[-LINE_POINTS:] - window.target_seconds[0]) / window.step_seconds
    x = window.values[-LINE_POINTS:]
    n = len(t)
    if n < 4:
        return last_value(window, levels)
    centre = t.mean()
    weight = ((t - centre) ** 2).sum()
    slope = ((t - centre) * (x - x.mean())).sum() / weight
    residual = x - x.mean() - slope * (t - centre)
    away = np.arange(len(window.target_seconds)) - centre
    mean = x.mean() + slope * away
    spread = np.sqrt((residual**2).sum() / (n - 2) * (1 + 1 / n + away**2 / weight))
    return mean[:, None] + spread[:, None] * stats.t.ppf(levels, n - 2), mean


def ets(window: Window, levels: Floats) -> Forecast:
    """Exponential smoothing, form chosen by AICc."""
    models = _statsforecast()
    if 1 < window.period <= LONGEST_SMOOTHED_PERIOD:
        return _ask(models.AutoETS(season_length=window.period, model="AZZ"), window, levels)
    return _ask(models.AutoETS(season_length=1, model="AZN"), window, levels)


def stl_ets(window: Window, levels: Floats) -> Forecast:
    """Season by loess, the rest by exponential smoothing."""
    models = _statsforecast()
    n_steps = len(fill_gaps(window))
    if window.period < 2 or n_steps < 2 * window.period + 1:
        return _ask(models.AutoETS(season_length=1, model="AZN"), window, levels)
    inner = models.AutoETS(season_length=1, model="AZN")
    return _ask(models.MSTL(window.period, trend_forecaster=inner), window, levels)


def theta(window: Window, levels: Floats) -> Forecast:
    """Dynamic optimised theta."""
    models = _statsforecast()
    period = window.period if len(fill_gaps(window)) >= 2 * window.period + 1 else 1
    return _ask(models.DynamicOptimizedTheta(season_length=period), window, levels)


PEERS: dict[str, Peer] = {
    "last value": last_value,
    "seasonal naive": seasonal_naive,
    "linear": linear,
    "ets": ets,
    "stl + ets": stl_ets,
    "theta": theta,
}


def fill_gaps(window: Window) -> Floats:
    """Context on the grid that ends one step before the first target, gaps on straight lines.

    Returns:
        (n_steps,) from the first point that was left; after the last one its value is held.
    """
    step = window.step_seconds
    ago = (window.target_seconds[0] - window.seconds) / step
    return np.interp(-np.arange(round(ago[0]), 0, -1.0), -ago, window.values)


def weighted_quantile_loss(levels: Floats, quantiles: Floats, y: Floats) -> float:
    """Pinball losses of all points and levels, twice their mean over levels, over the sum of |y|.

    Large series weigh more. With many even levels it tends to the mean CRPS over the mean of |y|.
    NaN where all truths are nought: there is no size to compare the losses with.

    Args:
        levels: (n_levels,) in (0, 1).
        quantiles: (..., n_levels).
        y: (...).
    """
    size = np.abs(y).sum()
    loss = 2 * _pinball(levels, quantiles, y).mean(axis=-1).sum()
    return float(loss / size) if size else float("nan")


def score_forecasts(
    windows: list[Window], levels: Floats, quantiles: Floats, mean: Floats, horizon: int
) -> dict[str, float]:
    """Scores of a set at one horizon.

    `wql` and `mae` are in the series' units, so large series lead them. `mase`, `msse` and `sql`
    divide each window's errors by its `naive_error` first (errors squared: by its square; pinball
    losses: as in `wql`) and leave out windows whose context is constant. One context that hardly
    moves before a leap can lead such a mean (it does in `jhu`); `mase_median` is the median over
    windows. The absolute errors are the median's, the squared ones the mean's. `coverage` is of the
    interval between the lowest and the highest level; `crossing` is the share of neighbouring
    quantiles that are out of order.

    Args:
        windows: Of `cut_windows`, n of them.
        levels: (n_levels,) ascending, 0.5 among them.
        quantiles: (n, >= horizon, n_levels).
        mean: (n, >= horizon).
        horizon: Points to score.

    Raises:
        InputError: Shapes do not fit, a forecast is not finite, or 0.5 is no level.
    """
    levels = np.asarray(levels, dtype=np.float64)
    y = np.stack([window.target_values[:horizon] for window in windows])
    quantiles, mean = quantiles[:, :horizon], mean[:, :horizon]
    middle = np.flatnonzero(np.isclose(levels, 0.5))
    if quantiles.shape != (*y.shape, len(levels)) or mean.shape != y.shape or len(middle) != 1:
        raise InputError("Windows, levels and forecasts do not fit.", code="shape_mismatch")
    if not (np.isfinite(quantiles).all() and np.isfinite(mean).all()):
        raise InputError("A forecast is not finite.", code="forecast_not_finite")
    scale = np.array([window.naive_error for window in windows])
    used = np.isfinite(scale)
    per_window = scale[used, None]
    absolute = np.abs(quantiles[..., middle[0]] - y)
    scaled = absolute[used] / per_window
    pinball = 2 * _pinball(levels, quantiles, y).mean(axis=-1)
    inside = (quantiles[..., 0] <= y) & (y <= quantiles[..., -1])
    return {
        "wql": weighted_quantile_loss(levels, quantiles, y),
        "mae": float(absolute.mean()),
        "mase": float(scaled.mean()),
        "mase_median": float(np.median(scaled.mean(axis=1))),
        "msse": float(((mean[used] - y[used]) ** 2 / per_window**2).mean()),
        "sql": float((pinball[used] / per_window).mean()),
        "coverage": float(inside.mean()),
        "crossing": float((np.diff(quantiles, axis=-1) < 0).mean()),
        "windows": len(windows),
        "windows_scaled": int(used.sum()),
    }


def _pinball(levels: Floats, quantiles: Floats, y: Floats) -> Floats:
    short = np.asarray(y)[..., None] - quantiles
    return np.maximum(levels * short, (levels - 1) * short)


def _walk(seconds: Floats, values: Floats, window: Window, levels: Floats) -> Forecast:
    """Variance a step from all neighbouring points, each difference over its own gap."""
    step = window.step_seconds
    gaps = np.diff(seconds) / step
    spread = np.sqrt((np.diff(values) ** 2 / gaps).mean() if len(gaps) else 0.0)
    ahead = (window.target_seconds - seconds[-1]) / step
    mean = np.full(len(ahead), values[-1])
    return mean[:, None] + (spread * np.sqrt(ahead))[:, None] * stats.norm.ppf(levels), mean


def _statsforecast():
    try:
        from statsforecast import models
    except ImportError as error:
        raise InputError(
            "statsforecast is not installed.",
            code="missing_package",
            remedy='pip install "tsfm[benchmarks]"',
        ) from error
    return models


def _ask(model, window: Window, levels: Floats) -> Forecast:
    """Quantiles of a statsforecast model, from the ends of its central intervals."""
    apart = {round(abs(200 * float(level) - 100), 6) for level in levels} - {0.0}
    # The answer's names are made of the widths as given: whole ones without a point, or "lo-20.0".
    widths = [int(x) if x.is_integer() else x for x in sorted(apart)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.forecast(y=fill_gaps(window), h=len(window.target_seconds), level=widths)
    by_level = {0.5: found["mean"]}
    for width in widths:
        by_level[round(0.5 - width / 200, 8)] = found[f"lo-{width}"]
        by_level[round(0.5 + width / 200, 8)] = found[f"hi-{width}"]
    quantiles = np.stack([by_level[round(float(level), 8)] for level in levels], axis=-1)
    return quantiles.astype(np.float64), np.asarray(found["mean"], dtype=np.float64)
