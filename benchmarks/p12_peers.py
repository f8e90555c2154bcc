"""Forecasts of PhysioNet 2012 that a new model has to beat: rules of thumb and boosted trees.

Every peer answers `targets_of(protocol, VAL, TEST)`, in that order and in the protocol's units,
from the history and the targets of the train part; boosting also stops early on val. The rules fall
back to the mean of the variable over all that the train stays measured, before and after the cut.

`boosting` is one LightGBM a variable on the columns of `p12_features`. With `mode="query_pattern"`
it also sees which questions are asked, which published graph models do too and a forecast at the
bedside can't: results of the two modes belong in separate tables.

`conformal_quantiles` gives a point forecast the spread of its own val residuals, by variable (split
conformal prediction, Vovk et al. 2005). What the val part chose, such as a number of trees, makes
its residuals a little small.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from p12_data import TEST, TRAIN, VAL, Protocol, part_of, targets_of
from p12_features import OWN, HistoryFeatures, QueryPattern, history_features, query_matrix

from tsfm.errors import InputError

Mode = Literal["independent", "query_pattern"]
Loss = Literal["l2", "l1"]
LEAST_POINTS = 50
FEW_POINTS = 3000
MOST_TREES = 2000
PATIENCE = 50


def train_mean(protocol: Protocol) -> np.ndarray:
    """The variable's mean over the train stays."""
    return _train_means(protocol)[targets_of(protocol, VAL, TEST).variable]


def last_value(protocol: Protocol) -> np.ndarray:
    """The last value before the cut."""
    return _own(protocol, "last")


def patient_mean(protocol: Protocol) -> np.ndarray:
    """The mean of the values before the cut."""
    return _own(protocol, "mean")


def half_last_half_mean(protocol: Protocol) -> np.ndarray:
    """Halfway between the last value and the patient's mean."""
    return (last_value(protocol) + patient_mean(protocol)) / 2


def boosting(
    protocol: Protocol,
    mode: Mode = "independent",
    loss: Loss = "l2",
    seed: int = 0,
    threads: int = 1,
    few_correct_last: bool = False,
) -> np.ndarray:
    """One LightGBM a variable, trained on the targets of the train stays.

    31 leaves at a rate of .05, or 7 at .03 where a variable has fewer than 3,000 train targets;
    stopped on val. A variable with fewer than 50 train targets, or with a constant one, gets the
    patient's mean.

    Args:
        protocol: The task.
        mode: "independent", or "query_pattern" to see what else is asked.
        loss: "l2" aims at the mean, "l1" at the median.
        seed: Of LightGBM.
        threads: Of LightGBM.
        few_correct_last: Where a variable has fewer than 3,000 train targets, learn the difference
            from the last value (the train mean without one). Few trees don't get as far as to
            carry the last value over, so this is the stronger form on variables seldom measured.

    Returns:
        (n,) forecasts for `targets_of(protocol, VAL, TEST)`.

    Raises:
        InputError: Another mode or loss.
    """
    if mode not in ("independent", "query_pattern") or loss not in ("l2", "l1"):
        raise InputError(
            f"no boosting with mode {mode!r} and loss {loss!r}",
            code="unknown_peer",
            remedy="Give independent or query_pattern, and l2 or l1.",
        )
    features = history_features(protocol)
    pattern = QueryPattern(protocol) if mode == "query_pattern" else None
    part = protocol.part[protocol.targets.stay]
    asked = np.isin(part, (VAL, TEST))
    forecast = np.full(len(part), np.nan)
    forecast[asked] = patient_mean(protocol)
    for variable in range(len(protocol.variables)):
        own = protocol.targets.variable == variable
        train, val, test = (np.flatnonzero(own & (part == k)) for k in (TRAIN, VAL, TEST))
        y = protocol.targets.value[train]
        if len(y) < LEAST_POINTS or y.min() == y.max() or not len(val) + len(test):
            continue
        start = np.zeros(len(part))
        if few_correct_last and len(y) < FEW_POINTS:
            last = features.own[protocol.targets.stay[own], variable, OWN.index("last")]
            start[own] = np.where(np.isnan(last), y.mean(dtype=np.float64), last)
        model = _fit(
            _columns(protocol, features, pattern, train), y - start[train],
            _columns(protocol, features, pattern, val), protocol.targets.value[val] - start[val],
            loss, seed, threads,
        )  # fmt: skip
        for rows in (val, test):
            if len(rows):
                columns = _columns(protocol, features, pattern, rows)
                forecast[rows] = start[rows] + model.predict(columns)
    return forecast[asked]


def conformal_quantiles(protocol: Protocol, forecast: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Quantiles around a point forecast, from its val residuals of the same variable.

    The quantile at level q is the forecast plus the ceil(q (n + 1))-th of the n sorted residuals,
    within 1 and n, so that the shares hold for stays that are like those of val. A variable without
    val targets gets no spread.

    Args:
        protocol: The task.
        forecast: (n,) for `targets_of(protocol, VAL, TEST)`.
        levels: (n_levels,) within (0, 1).

    Returns:
        (n, n_levels) in the protocol's units, in the order of the forecast.
    """
    asked = targets_of(protocol, VAL, TEST)
    residual = asked.value - forecast
    in_val = part_of(protocol, asked, VAL)
    quantiles = np.repeat(np.asarray(forecast, dtype=np.float64)[:, None], len(levels), axis=1)
    for variable in np.unique(asked.variable[in_val]):
        own = asked.variable == variable
        spread = np.sort(residual[own & in_val])
        rank = np.ceil(np.asarray(levels) * (len(spread) + 1)).astype(int)
        quantiles[own] += spread[np.clip(rank, 1, len(spread)) - 1]
    return quantiles


def _train_means(protocol: Protocol) -> np.ndarray:
    n_variables = len(protocol.variables)
    total, n = np.zeros(n_variables), np.zeros(n_variables)
    for points in (protocol.history, protocol.targets):
        own = points.where(part_of(protocol, points, TRAIN))
        total += np.bincount(own.variable, own.value, n_variables)
        n += np.bincount(own.variable, minlength=n_variables)
    return total / np.maximum(n, 1)


def _own(protocol: Protocol, column: str) -> np.ndarray:
    asked = targets_of(protocol, VAL, TEST)
    own = history_features(protocol).own[asked.stay, asked.variable, OWN.index(column)]
    return np.where(np.isnan(own), train_mean(protocol), own)


def _columns(
    protocol: Protocol, features: HistoryFeatures, pattern: QueryPattern | None, rows: np.ndarray
) -> np.ndarray:
    columns = query_matrix(protocol, features, protocol.targets.where(rows))
    return columns if pattern is None else np.column_stack([columns, pattern.columns(rows)])


def _fit(
    x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray,
    loss: Loss, seed: int, threads: int,
) -> Any:  # fmt: skip
    import lightgbm

    few = len(y) < FEW_POINTS
    settings: dict[str, Any] = {
        "objective": {"l2": "regression", "l1": "regression_l1"}[loss],
        "metric": loss,
        "num_leaves": 7 if few else 31,
        "learning_rate": 0.03 if few else 0.05,
        "seed": seed,
        "num_threads": threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(x, y)
    if not len(y_val):
        return lightgbm.train(settings, data, 100)
    return lightgbm.train(
        settings, data, MOST_TREES,
        valid_sets=[data.create_valid(x_val, y_val)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )  # fmt: skip
