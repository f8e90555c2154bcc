"""What a forecast of PhysioNet 2012 scores, under the metric of its protocol.

Protocol A averages the error over the targets of each variable and then over the variables that
have targets (`macro_mse`, `macro_mae`). Two of these have fewer than a hundred test targets and
make most of its noise, so `common_mse` is the same over the variables with at least 200 test
targets. Protocol B averages over points (`mse`, `mae`). Every error is in the protocol's units.

Which of two forecasts is better is asked of the same stays: `paired_bootstrap` draws the stays anew
and scores both on each draw. Nothing here knows how a forecast was made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from p12_data import TEST, Points, Protocol, part_of

from tsfm.errors import InputError

LEAST_COMMON = 200
BIN_HOURS = 6.0
INTERVALS = {"coverage_80": (0.1, 0.9), "coverage_95": (0.025, 0.975)}


def scores(protocol: Protocol, truth: Points, forecast: np.ndarray) -> dict[str, float]:
    """Score a point forecast.

    Args:
        protocol: The task.
        truth: The targets asked, such as `targets_of(protocol, TEST)`.
        forecast: (n,) in the protocol's units, in the order of `truth`.

    Returns:
        `macro_mse`, `macro_mae`, `common_mse` for A; `mse`, `mae` for B.

    Raises:
        InputError: A forecast of another length, without any target, or not finite.
    """
    sums = _sums(protocol, truth, forecast)
    return {
        name: float(value[0])
        for name, value in _totals(protocol, *(part.sum(0)[None] for part in sums)).items()
    }


def per_variable(protocol: Protocol, truth: Points, forecast: np.ndarray) -> list[dict[str, Any]]:
    """A row per variable with targets, largest mse first: variable, n, mse, mae, common.

    Raises:
        InputError: As `scores`.
    """
    n, squared, absolute = (part.sum(0) for part in _sums(protocol, truth, forecast))
    common = common_variables(protocol)
    rows: list[dict[str, Any]] = [
        {
            "variable": protocol.variables[at],
            "n": int(n[at]),
            "mse": float(squared[at] / n[at]),
            "mae": float(absolute[at] / n[at]),
            "common": bool(common[at]),
        }
        for at in np.flatnonzero(n)
    ]
    return sorted(rows, key=lambda row: -row["mse"])


def common_variables(protocol: Protocol) -> np.ndarray:
    """(n_variables,) mask of those with at least 200 test targets."""
    tested = protocol.targets.variable[part_of(protocol, protocol.targets, TEST)]
    return np.bincount(tested, minlength=len(protocol.variables)) >= LEAST_COMMON


def paired_bootstrap(
    protocol: Protocol,
    truth: Points,
    forecast_a: np.ndarray,
    forecast_b: np.ndarray,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """By how much a scores less than b, on the same stays.

    The stays with targets are drawn anew `n` times; a variable that no drawn stay asks for is out
    of that draw's mean for both.

    Args:
        protocol: The task.
        truth: The targets asked.
        forecast_a: (len(truth),) in the protocol's units.
        forecast_b: (len(truth),) the forecast it is held against.
        n: Draws.
        seed: Of the draws.

    Returns:
        For each of the protocol's scores `(delta, low, high)`: a minus b, and the 2.5 % and 97.5 %
        points over the draws.

    Raises:
        InputError: As `scores`.
    """
    counts, *of_a = _sums(protocol, truth, forecast_a)
    _, *of_b = _sums(protocol, truth, forecast_b)
    n_stays = len(counts)
    draws = np.random.default_rng(seed).multinomial(n_stays, np.full(n_stays, 1 / n_stays), size=n)
    weights = np.vstack([np.ones(n_stays), draws])
    drawn = weights @ counts
    a = _totals(protocol, drawn, *(weights @ part for part in of_a))
    b = _totals(protocol, drawn, *(weights @ part for part in of_b))
    found: dict[str, tuple[float, float, float]] = {}
    for name in a:
        delta = a[name] - b[name]
        low, high = np.nanquantile(delta[1:], [0.025, 0.975])
        found[name] = (float(delta[0]), float(low), float(high))
    return found


def crps_from_quantiles(levels: np.ndarray, quantiles: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of each point, approximated from quantiles.

    The score is twice the integral of the pinball loss over the levels (Laio and Tamea 2007). Each
    level stands for the levels nearer to it than to its neighbours, so that uneven levels are not
    counted alike; with levels (k - 1/2) / K this is twice the mean.

    Args:
        levels: (n_levels,) increasing, within (0, 1).
        quantiles: (n, n_levels) in the protocol's units.
        y: (n,) what was measured.

    Returns:
        (n,) scores, in the protocol's units.

    Raises:
        InputError: Levels out of order or range, or shapes that don't fit.
    """
    levels, quantiles, y = (np.asarray(part, dtype=np.float64) for part in (levels, quantiles, y))
    in_order = (np.diff(levels) > 0).all() and len(levels) and levels[0] > 0 and levels[-1] < 1
    if not in_order or quantiles.shape != (len(y), len(levels)):
        raise InputError(
            "levels must increase within (0, 1), and quantiles be (n, n_levels)",
            code="bad_quantiles",
        )
    edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    miss = y[:, None] - quantiles
    pinball = np.maximum(levels * miss, (levels - 1) * miss)
    return 2 * pinball @ np.diff(edges)


def distribution_scores(
    protocol: Protocol, truth: Points, levels: np.ndarray, quantiles: np.ndarray
) -> dict[str, Any]:
    """Score a forecast given as quantiles.

    Args:
        protocol: The task.
        truth: The targets asked.
        levels: (n_levels,) increasing, within (0, 1).
        quantiles: (n, n_levels) in the protocol's units, in the order of `truth`.

    Returns:
        `crps` (mean over variables for A, over points for B) and, where the levels have both ends
        of the interval, `coverage_80` and `coverage_95`, the share of points within it, with
        `..._by_variable` {name: share} and `..._by_horizon` {"0-6 h": share} beside each; the last
        bin holds its end. `..._errors` {name: standard error} of the shares by variable, and
        `..._by_horizon_errors`, count a stay once, however many points it has. `by_horizon` has
        {"0-6 h": [targets, stays]}.

    Raises:
        InputError: As `crps_from_quantiles`, or no targets.
    """
    if not len(truth):
        raise InputError("there are no targets", code="no_targets")
    crps = crps_from_quantiles(levels, quantiles, truth.value)
    by_variable = _shares(truth.variable, crps)
    mean = np.mean(list(by_variable.values())) if protocol.name == "A" else crps.mean()
    found: dict[str, Any] = {"crps": float(mean)}
    bins = (truth.hours - protocol.cut_hours) / BIN_HOURS
    horizon = np.minimum(bins, np.ceil(bins.max()) - 1).astype(np.int64).clip(0)
    bin_name = {k: f"{k * BIN_HOURS:.0f}-{(k + 1) * BIN_HOURS:.0f} h" for k in np.unique(horizon)}
    found["by_horizon"] = {
        name: [int(np.sum(horizon == k)), len(np.unique(truth.stay[horizon == k]))]
        for k, name in bin_name.items()
    }
    for name, ends in INTERVALS.items():
        at = [np.flatnonzero(np.isclose(levels, end)) for end in ends]
        if not all(map(len, at)):
            continue
        low, high = (quantiles[:, place[0]] for place in at)
        within = ((truth.value >= low) & (truth.value <= high)).astype(np.float64)
        found[name] = float(within.mean())
        found[f"{name}_by_variable"] = {
            protocol.variables[at]: share for at, share in _shares(truth.variable, within).items()
        }
        errors = _share_errors(truth.variable, truth.stay, within)
        found[f"{name}_errors"] = {protocol.variables[at]: e for at, e in errors.items()}
        shares = _shares(horizon, within)
        found[f"{name}_by_horizon"] = {bin_name[k]: share for k, share in shares.items()}
        errors = _share_errors(horizon, truth.stay, within)
        found[f"{name}_by_horizon_errors"] = {bin_name[k]: e for k, e in errors.items()}
    return found


def _sums(
    protocol: Protocol, truth: Points, forecast: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(stay with targets, variable): number of points, sum of squared and of absolute errors."""
    forecast = np.asarray(forecast, dtype=np.float64)
    if forecast.shape != (len(truth),) or not len(truth):
        raise InputError(
            f"a forecast of shape {forecast.shape} for {len(truth)} targets",
            code="bad_forecast",
            remedy="Give one number for each target, in their order.",
        )
    if not np.isfinite(forecast).all():
        raise InputError(
            f"{int((~np.isfinite(forecast)).sum())} forecasts are not finite", code="bad_forecast"
        )
    error = forecast - truth.value
    stays, stay = np.unique(truth.stay, return_inverse=True)
    n_variables = len(protocol.variables)
    cell = stay * n_variables + truth.variable
    n, squared, absolute = (
        np.bincount(cell, weight, len(stays) * n_variables).reshape(-1, n_variables)
        for weight in (np.ones(len(truth)), error**2, np.abs(error))
    )
    return n, squared, absolute


def _totals(
    protocol: Protocol, n: np.ndarray, squared: np.ndarray, absolute: np.ndarray
) -> dict[str, np.ndarray]:
    """The protocol's scores from sums over stays, each (n_draws, n_variables)."""
    if protocol.name == "B":
        return {"mse": squared.sum(1) / n.sum(1), "mae": absolute.sum(1) / n.sum(1)}
    common = common_variables(protocol)
    return {
        "macro_mse": _macro(n, squared),
        "macro_mae": _macro(n, absolute),
        "common_mse": _macro(n[:, common], squared[:, common]),
    }


def _macro(n: np.ndarray, total: np.ndarray) -> np.ndarray:
    asked = n > 0
    each = np.where(asked, total / np.maximum(n, 1), 0.0).sum(1)
    n_asked = asked.sum(1)
    return np.where(n_asked > 0, each / np.maximum(n_asked, 1), np.nan)


def _shares(group: np.ndarray, value: np.ndarray) -> dict[int, float]:
    groups, place = np.unique(group, return_inverse=True)
    means = np.bincount(place, value) / np.bincount(place)
    return {int(at): float(mean) for at, mean in zip(groups, means, strict=True)}


def _share_errors(group: np.ndarray, stay: np.ndarray, value: np.ndarray) -> dict[int, float]:
    """Standard errors of the groups' means, where the points of a stay are alike."""
    groups, place = np.unique(group, return_inverse=True)
    count = np.bincount(place)
    residual = value - (np.bincount(place, value) / count)[place]
    _, cell = np.unique(np.stack([place, stay]), axis=1, return_inverse=True)
    of_cell = np.bincount(cell, residual)
    owner = np.zeros(len(of_cell), np.int64)
    owner[cell] = place
    spread = np.bincount(owner, of_cell**2, len(groups))
    return {int(at): float(e) for at, e in zip(groups, np.sqrt(spread) / count, strict=True)}


def variables_within(told: dict[str, Any], points: float = 0.02) -> dict[str, list[int]]:
    """Print and return how many variables are covered within two points.

    Returns:
        For each interval: variables within, variables within but for 1.96 standard errors, and all.
    """
    found: dict[str, list[int]] = {}
    for name, level in (("coverage_80", 0.8), ("coverage_95", 0.95)):
        shares, errors = told[f"{name}_by_variable"], told[f"{name}_errors"]
        off = {v: abs(share - level) for v, share in shares.items()}
        within = sum(distance <= points for distance in off.values())
        beyond = [v for v, distance in off.items() if distance - 1.96 * errors[v] > points]
        found[name] = [within, len(off) - len(beyond), len(off)]
        print(f"{name}: {within} of {len(off)} variables within two points, "
              f"{len(off) - len(beyond)} but for their standard error; beyond: "
              f"{', '.join(beyond) or 'none'}")  # fmt: skip
    return found
