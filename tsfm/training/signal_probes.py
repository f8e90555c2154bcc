"""Linear probes of frozen embeddings: what do they know, patient by patient?

Ridge regression for numbers and logistic regression for labels, both with an intercept that is not
penalised and features standardised by the training rows alone. Penalties are chosen inside the
training rows without ever splitting a patient. For ridge that needs no refits: with H the hat
matrix, the errors of a patient's rows when all of them are left out are (I - H_gg)^-1 times their
residuals, exactly (for one row a patient this is the usual leave-one-out, PRESS). For labels it is
cross-validation over folds of patients.

A probe is scored by whoever holds other patients' rows. `probe` asks the same of patient timelines
by way of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svd
from scipy.optimize import minimize
from scipy.special import expit

from tsfm.errors import InputError

PENALTIES = tuple(float(p) for p in np.logspace(-4, 4, 17))
"""Penalties that are tried: of the squared weights, for a loss that is a mean over the rows."""

Array = NDArray[np.float64]
_LEAST_FREEDOM = 1e-9  # share of a row's error that the row itself must not have taken up


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        weights: (feature, target), of features as they come.
        intercept: (target,).
        penalty: (target,) chosen, or given.
        validation_loss: (penalty, target) of patients left out: mean squared error, or log loss in
            nats; NaN where a single penalty was given for labels.
        is_logistic: `predict` gives probabilities.
    """

    weights: Array
    intercept: Array
    penalty: Array
    validation_loss: Array
    is_logistic: bool

    def predict(self, x: ArrayLike) -> Array:
        """(row, target) values or probabilities.

        Args:
            x: (row, feature) embeddings.
        """
        linear = np.asarray(x, np.float64) @ self.weights + self.intercept
        return expit(linear) if self.is_logistic else linear


def fit_ridge(
    x: ArrayLike,
    y: ArrayLike,
    *,
    patients: ArrayLike | None,
    penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:
    """Fit ridge regression in closed form; each target has the penalty best for it.

    Args:
        x: (row, feature) embeddings of training patients.
        y: (row,) or (row, target), without gaps.
        patients: Whose each row is; None says that every row is somebody else's.
        penalties: To choose from; the least squared error of patients left out wins. One too
            small for the rows, which are then met exactly, has no such error and is not chosen.

    Raises:
        InputError: Rows do not fit, hold gaps, or are of fewer than two patients; `bad_penalties`.
    """
    x, y = _columns(x), _columns(y)
    owner = _owners(patients, len(x))
    _check(x, y, owner, np.isfinite(y))
    mean, scale = _standard(x)
    centre = y.mean(0)
    u, s, vt = svd((x - mean) / scale, full_matrices=False)
    told = u.T @ (y - centre)
    penalty = _checked_penalties(penalties)
    filters = s**2 / (s**2 + len(x) * penalty[:, None])  # (penalty, direction)
    loss = np.stack([_left_out(u, f, y - centre, told, owner) for f in filters])
    if not np.isfinite(loss).any(0).all():
        raise InputError(
            "every penalty lets the weights meet the rows exactly", code="bad_penalties",
            place="penalties", remedy="Give larger ones, or more rows than features.",
        )  # fmt: skip
    best = loss.argmin(0)
    # Singular values of nought carry nothing: the filter over them is nought as well.
    shrink = filters[best].T / np.where(s > 0, s, 1.0)[:, None]
    weights = (vt.T @ (shrink * told)) / scale[:, None]
    return LinearProbe(weights, centre - mean @ weights, penalty[best], loss, is_logistic=False)


def fit_logistic(
    x: ArrayLike,
    y: ArrayLike,
    *,
    patients: ArrayLike | None,
    penalties: Sequence[float] = PENALTIES,
    n_folds: int = 5,
    seed: int = 0,
) -> LinearProbe:
    """Fit a logistic regression a label, all at once; each has the penalty best for it.

    Args:
        x: (row, feature) embeddings of training patients.
        y: (row,) or (row, label) of 1, 0 or NaN where it is not known.
        patients: Whose each row is; None says that every row is somebody else's.
        penalties: To choose from by the log loss of patients left out; one is taken as it is.
        n_folds: Folds of patients.
        seed: Of the folds.

    Raises:
        InputError: Rows do not fit or hold gaps, a label is none, or there are too few patients;
            `no_labels`: a label is known of no row; `bad_penalties`.
    """
    x, y = _columns(x), _columns(y)
    owner = _owners(patients, len(x))
    _check(x, y, owner, (y == 0) | (y == 1) | np.isnan(y))
    unknown = np.flatnonzero(np.isnan(y).all(0))
    if len(unknown):
        raise InputError(
            f"of {len(unknown)} labels no row's is known, the first in column {unknown[0]}",
            code="no_labels", place="y", remedy="Leave such labels out.",
        )  # fmt: skip
    penalty = _checked_penalties(penalties)
    loss = np.full((len(penalty), y.shape[1]), np.nan)
    chosen = np.repeat(penalty[:1], y.shape[1])
    if len(penalty) > 1:
        fold = patient_folds(owner, n_folds, seed=seed)
        loss = _fold_losses(x, y, fold, penalty)
        chosen = penalty[loss.argmin(0)]
    weights, intercept = _solve_logistic(x, y, chosen, None)
    return LinearProbe(weights, intercept, chosen, loss, is_logistic=True)


def patient_folds(patients: ArrayLike, n_folds: int, *, seed: int) -> NDArray[np.int64]:
    """(row,) fold of each row: all rows of a patient are in one, folds have like many patients.

    Args:
        patients: Whose each row is.
        n_folds: Two or more.
        seed: Of the order.

    Raises:
        InputError: There are fewer patients than folds.
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    if n_folds < 2 or len(names) < n_folds:
        raise InputError(
            f"{len(names)} patients in {n_folds} folds", code="too_few_patients", place="n_folds",
            remedy="Use two folds or more, and a patient a fold at least.",
        )  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % n_folds)[owner].astype(np.int64)


def _left_out(u: Array, filters: Array, y: Array, told: Array, owner: NDArray[np.int64]) -> Array:
    """(target,) mean squared error of each patient's rows, had the patient been left out.

    Infinite where the weights meet a patient's rows whatever they are: nought is then divided by
    nought, and what rounding makes of it is smaller than any error.
    """
    residual = y - u @ (filters[:, None] * told)
    n_rows = np.bincount(owner)
    if n_rows.max() == 1:
        hat = (u**2) @ filters + 1 / len(y)
        if (1 - hat).min() < _LEAST_FREEDOM:
            return np.full(y.shape[1], np.inf)
        return ((residual / (1 - hat)[:, None]) ** 2).mean(0)
    error = np.empty_like(residual)
    for rows in np.split(np.argsort(owner, kind="stable"), np.cumsum(n_rows)[:-1]):
        hat = (u[rows] * filters) @ u[rows].T + 1 / len(y)
        free, axes = np.linalg.eigh(np.eye(len(rows)) - hat)
        if free[0] < _LEAST_FREEDOM:
            return np.full(y.shape[1], np.inf)
        error[rows] = axes @ ((axes.T @ residual[rows]) / free[:, None])
    return (error**2).mean(0)


def _fold_losses(x: Array, y: Array, fold: NDArray[np.int64], penalty: Array) -> Array:
    """(penalty, label) mean log loss of rows in the folds that were left out."""
    total, told = np.zeros((len(penalty), y.shape[1])), (~np.isnan(y)).sum(0)
    for k in np.unique(fold):
        inside = fold != k
        start: Array | None = None
        for i in np.argsort(-penalty):  # from the strongest down, each begins where one ended
            strength = np.full(y.shape[1], penalty[i])
            weights, intercept = _solve_logistic(x[inside], y[inside], strength, start)
            start = np.vstack([weights, intercept])
            z = x[~inside] @ weights + intercept
            total[i] += np.nansum(np.logaddexp(0.0, z) - y[~inside] * z, axis=0)
    return total / np.maximum(told, 1)


def _solve_logistic(x: Array, y: Array, penalty: Array, start: Array | None) -> tuple[Array, Array]:
    """Weights and intercepts, for features as they come, of each label's own penalty."""
    mean, scale = _standard(x)
    x = (x - mean) / scale
    told = ~np.isnan(y)
    n_told = np.maximum(told.sum(0), 1)
    label = np.where(told, y, 0.0)
    n_features, n_labels = x.shape[1], y.shape[1]
    first = np.zeros((n_features + 1, n_labels))
    if start is None:
        share = (label.sum(0) + 0.5) / (told.sum(0) + 1)
        first[-1] = np.log(share / (1 - share))
    else:
        first[:-1] = start[:-1] * scale[:, None]
        first[-1] = start[-1] + mean @ start[:-1]

    def cost(flat: Array) -> tuple[float, Array]:
        theta = flat.reshape(n_features + 1, n_labels)
        z = x @ theta[:-1] + theta[-1]
        each = (np.logaddexp(0.0, z) - label * z) * told / n_told
        slope = (expit(z) - label) * told / n_told
        gradient = np.vstack([x.T @ slope + penalty * theta[:-1], slope.sum(0)])
        value = each.sum() + 0.5 * (penalty * theta[:-1] ** 2).sum()
        return float(value), gradient.ravel()

    found = minimize(
        cost, first.ravel(), jac=True, method="L-BFGS-B",
        options={"maxiter": 1000, "maxfun": 2000, "gtol": 1e-6, "ftol": 1e-12},
    )  # fmt: skip
    theta = found.x.reshape(n_features + 1, n_labels)
    weights = theta[:-1] / scale[:, None]
    return weights, theta[-1] - mean @ weights


def _standard(x: Array) -> tuple[Array, Array]:
    """Mean and deviation of each feature; one that does not vary is left at its own scale."""
    mean, scale = x.mean(0), x.std(0)
    return mean, np.where(scale > 1e-12 * np.maximum(1.0, np.abs(mean)), scale, 1.0)


def _checked_penalties(penalties: Sequence[float]) -> Array:
    found = np.asarray(penalties, np.float64)
    if found.ndim != 1 or not len(found) or not (np.isfinite(found) & (found >= 0)).all():
        raise InputError(
            "penalties that are none, or no numbers from 0 on", code="bad_penalties",
            place="penalties", remedy="Give one or more to choose from.",
        )  # fmt: skip
    return found


def _columns(values: ArrayLike) -> Array:
    found = np.asarray(values, np.float64)
    return found[:, None] if found.ndim == 1 else found


def _owners(patients: ArrayLike | None, n_rows: int) -> NDArray[np.int64]:
    if patients is None:
        return np.arange(n_rows)
    return np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)


def _check(x: Array, y: Array, owner: NDArray[np.int64], good: NDArray[np.bool_]) -> None:
    if x.ndim != 2 or y.ndim != 2 or not len(x) == len(y) == len(owner):
        raise InputError(
            "embeddings, targets and patients do not fit each other", code="bad_probe_rows",
            place="probe", remedy="Give (row, feature), a target and a patient a row.",
        )  # fmt: skip
    if not (np.isfinite(x).all() and good.all()):
        raise InputError(
            "gaps or labels that a probe does not read", code="bad_probe_values", place="probe",
            remedy="Leave rows with gaps out; labels are 1, 0, or NaN where not known.",
        )  # fmt: skip
    if len(np.unique(owner)) < 2:
        raise InputError(
            "rows of fewer than two patients", code="too_few_patients", place="patients",
            remedy="A probe is fitted on several.",
        )  # fmt: skip
