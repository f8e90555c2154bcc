"""Whether a probability means what it says.

Calibration slope and intercept follow Cox's recalibration: logit P(y) = a + b logit(p). A slope
below one says that high scores are too high and low ones too low. It belongs to data that took no
part in the fit: `fit_platt` is for the tuning split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError
from tsfm.evaluation.bootstrap import Interval, bootstrap_interval
from tsfm.evaluation.discrimination import brier, check_pair

_EDGE = 1e-9  # probabilities are held off 0 and 1 by this much before their logit is taken
_WIDEST = 25.0  # log odds beyond which a probability is 0 or 1 to all digits that count
_RIDGE = 1e-8  # keeps a fit finite where the classes are separable
_ROUNDING = 1e-12  # share of its size by which rounding may move a number that is one and the same


class LogisticLine(NamedTuple):
    """Logit P(y) = intercept + slope x."""

    intercept: float
    slope: float

    def probability(self, x: ArrayLike) -> NDArray[np.float64]:
        """P(y) at x."""
        return _sigmoid(self.intercept + self.slope * np.asarray(x, dtype=np.float64))


def logit(p: ArrayLike) -> NDArray[np.float64]:
    """Log odds; probabilities of 0 and 1 are held finite."""
    held = np.clip(np.asarray(p, dtype=np.float64), _EDGE, 1 - _EDGE)
    return np.log(held) - np.log1p(-held)


def calibration_slope_intercept(y: ArrayLike, p: ArrayLike) -> LogisticLine:
    """Cox's recalibration line of probabilities; ideal is intercept 0 and slope 1.

    NaN where only one class, or only one probability, is there.
    """
    labels, probability = check_probability(y, p)
    return _fit_line(logit(probability), labels)


def calibration_in_the_large(y: ArrayLike, p: ArrayLike) -> float:
    """What must be added to all log odds for the expected events to be as many as the observed.

    The intercept of Cox's line at slope one; above zero the risks are too low. NaN where only one
    class is there.
    """
    labels, probability = check_probability(y, p)
    observed = float(labels.sum())
    if not 0 < observed < len(labels):
        return float("nan")
    x = logit(probability)
    low, high = -x.max() - _WIDEST, -x.min() + _WIDEST
    while high - low > 1e-10:
        middle = (low + high) / 2
        too_few = float(_sigmoid(x + middle).sum()) < observed
        low, high = (middle, high) if too_few else (low, middle)
    return float((low + high) / 2)


def calibration_intervals(
    subject_ids: ArrayLike, y: ArrayLike, p: ArrayLike, *, n: int = 500, seed: int = 0
) -> dict[str, Interval]:
    """Measures of calibration with intervals over resampled subjects.

    The calibration error has no lower end at zero even for a calibrated model: chance alone leaves
    some in every bin, more in fewer rows, and a resample has more of it than the data.

    Args:
        subject_ids: Subject of each row, shape (n_rows,).
        y: Labels, shape (n_rows,).
        p: Probabilities, shape (n_rows,).
        n: Resamples.
        seed: Of the draws.

    Returns:
        slope, intercept (Cox's line), in_the_large, observed_to_expected, ece (ten bins of equal
        mass) and brier.
    """
    measures = {
        "slope": lambda y, p: calibration_slope_intercept(y, p).slope,
        "intercept": lambda y, p: calibration_slope_intercept(y, p).intercept,
        "in_the_large": calibration_in_the_large,
        "observed_to_expected": lambda y, p: float(y.sum() / p.sum()) if p.sum() else float("nan"),
        "ece": ece,
        "brier": brier,
    }
    labels, probability = check_probability(y, p)
    return {
        name: bootstrap_interval(measure, subject_ids, labels, probability, n, seed)
        for name, measure in measures.items()
    }


def fit_platt(y: ArrayLike, p: ArrayLike) -> LogisticLine:
    """Recalibration map of probabilities, for `recalibrate`; fit it on the tuning split.

    Raises:
        InputError: Only one class or only one probability: nothing can be fitted.
    """
    line = calibration_slope_intercept(y, p)
    if not np.isfinite(line.slope):
        raise InputError(
            "one class or one probability only: no recalibration can be fitted",
            code="nothing_to_calibrate",
            place="fit_platt",
            remedy="Use a larger tuning split.",
        )
    return line


def recalibrate(p: ArrayLike, line: LogisticLine) -> NDArray[np.float64]:
    """Probabilities after the map of `fit_platt`."""
    return line.probability(logit(p))


def fit_score_model(score: ArrayLike, y: ArrayLike) -> LogisticLine:
    """Probability of a point score (LACE, HOSPITAL), from the training split.

    Args:
        score: Points, shape (n,).
        y: Labels, shape (n,).

    Raises:
        InputError: Only one class or only one score.
    """
    labels, points = check_pair(y, score)
    line = _fit_line(points, labels)
    if not np.isfinite(line.slope):
        raise InputError(
            "one class or one score only: no probability can be fitted",
            code="nothing_to_calibrate",
            place="fit_score_model",
            remedy="Use a larger training split.",
        )
    return line


def ece(y: ArrayLike, p: ArrayLike, n_bins: int = 10, *, equal_mass: bool = True) -> float:
    """Expected calibration error: mean distance of predicted and observed, over bins by their size.

    Args:
        y: Labels, shape (n,).
        p: Probabilities, shape (n,).
        n_bins: Bins, at most.
        equal_mass: Bins of equal counts (ties stay together), else of equal width.
    """
    labels, probability = check_probability(y, p)
    if not len(labels):
        return float("nan")
    bins = _bins(probability, n_bins, equal_mass=equal_mass)
    gap = np.bincount(bins, weights=labels - probability)
    return float(np.abs(gap).sum() / len(labels))


@dataclass(frozen=True)
class ReliabilityCurve:
    """Observed against predicted, by bins of equal counts.

    Attributes:
        predicted: Mean probability of each bin.
        observed: Share of events.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end.
        n: Rows.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.int64]


def reliability_curve(
    y: ArrayLike,
    p: ArrayLike,
    n_bins: int = 10,
    *,
    subject_ids: ArrayLike | None = None,
    fewest: int = 1,
) -> ReliabilityCurve:
    """Points of a calibration plot; bins that ties leave empty are not there.

    Args:
        y: Labels, shape (n,).
        p: Probabilities, shape (n,).
        n_bins: Bins of equal counts, at most.
        subject_ids: Subject of each row, shape (n,); None takes each row for a subject.
        fewest: Subjects that a bin must have: smaller ones are joined with the next above, the
            last with the one below.
    """
    labels, probability = check_probability(y, p)
    bins = _bins(probability, n_bins, equal_mass=True)
    if fewest > 1:
        bins = _joined(bins, np.arange(len(bins)) if subject_ids is None else subject_ids, fewest)
    n = np.bincount(bins)
    used = n > 0
    n = n[used]
    predicted = np.bincount(bins, weights=probability)[used] / n
    events = np.bincount(bins, weights=labels)[used]
    low, high = wilson_interval(events, n)
    return ReliabilityCurve(predicted, events / n, low, high, n)


def wilson_interval(
    events: ArrayLike, n: ArrayLike, *, z: float = 1.959963984540054
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's score interval of a share; `z` is 95 % by default."""
    total = np.asarray(n, dtype=np.float64)
    share = np.asarray(events, dtype=np.float64) / total
    denominator = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / denominator
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / denominator
    # At no events, and at nothing else, the ends meet the share: rounding must not cross them.
    return np.clip(centre - half, 0.0, share), np.clip(centre + half, share, 1.0)


def check_probability(
    y: ArrayLike, p: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and probabilities as float64 vectors.

    Raises:
        InputError: As `check_pair`, or a value outside [0, 1].
    """
    labels, probability = check_pair(y, p)
    if len(probability) and not (probability.min() >= 0 and probability.max() <= 1):
        raise InputError(
            "probabilities lie outside 0 and 1",
            code="bad_probability",
            place="p",
            remedy="Map scores to probabilities first, for example with fit_score_model.",
        )
    return labels, probability


def _bins(probability: NDArray[np.float64], n_bins: int, *, equal_mass: bool) -> NDArray[np.int64]:
    if n_bins < 1:
        raise InputError("fewer than one bin", code="bad_n_bins", place="n_bins")
    if equal_mass:
        inner = np.quantile(probability, np.arange(1, n_bins) / n_bins) if len(probability) else []
    else:
        inner = np.arange(1, n_bins) / n_bins
    return np.searchsorted(np.unique(inner), probability, side="left").astype(np.int64)


def _joined(bins: NDArray[np.int64], subject_ids: ArrayLike, fewest: int) -> NDArray[np.int64]:
    """Bins of at least so many subjects, of neighbouring ones; one bin where there are fewer."""
    subjects = np.asarray(subject_ids)
    if subjects.shape != bins.shape:
        raise InputError(
            f"{len(subjects)} subjects for {len(bins)} rows",
            code="unequal_lengths", place="subject_ids", remedy="Give every row its subject.",
        )  # fmt: skip
    start, last, joined = 0, 0, np.zeros_like(bins)
    for end in range(1, int(bins.max(initial=-1)) + 2):
        part = (bins >= start) & (bins < end)
        joined[part] = last
        if len(np.unique(subjects[part])) >= fewest:
            start, last = end, last + 1
    joined[joined == last] = max(last - 1, 0)
    return joined


def _fit_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> LogisticLine:
    """Maximum likelihood of logit P(y) = a + b x by Newton's method with step halving."""
    # The standard deviation of one and the same number is seldom nought after rounding.
    apart = float(x.max() - x.min()) if len(x) else 0.0
    if not apart > _ROUNDING * np.abs(x).max(initial=1.0) or y.min() == y.max():
        return LogisticLine(float("nan"), float("nan"))
    spread, centre = float(x.std()), float(x.mean())
    design = np.column_stack([np.ones_like(x), (x - centre) / spread])
    beta = np.array([float(logit(y.mean())), 0.0])
    loss = _loss(design, y, beta)
    for _ in range(200):
        fitted = _sigmoid(design @ beta)
        gradient = design.T @ (y - fitted) - _RIDGE * beta
        weight = fitted * (1 - fitted)
        hessian = (design * weight[:, None]).T @ design + _RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient).astype(np.float64)
        while (stepped := _loss(design, y, beta + step)) > loss + 1e-12 * abs(loss):
            step /= 2
            if np.abs(step).max() < 1e-14:
                break
        beta, loss = (beta + step).astype(np.float64), stepped
        if np.abs(step).max() < 1e-10:
            break
    slope = float(beta[1]) / spread
    return LogisticLine(float(beta[0]) - slope * centre, slope)


def _loss(design: NDArray[np.float64], y: NDArray[np.float64], beta: NDArray[np.float64]) -> float:
    z = design @ beta
    return float(np.sum(np.logaddexp(0.0, z) - y * z) + _RIDGE * beta @ beta / 2)


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -z))
