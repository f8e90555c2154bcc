"""How well scores rank: AUROC, average precision, Brier score, and alerts at a capacity.

Exact where scores tie. A measure that is not defined (one class only, or no rows) is NaN, so that
resamples and small subgroups need no special case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError


def auroc(y: ArrayLike, p: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties by half.

    Args:
        y: Labels, shape (n,).
        p: Scores, shape (n,); only their order matters.

    >>> auroc([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.4])
    0.875
    """
    labels, scores = check_pair(y, p)
    n_positive = int(labels.sum())
    n_negative = len(labels) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    counts = np.diff(ends, prepend=0)
    mean_rank = ends - (counts - 1) / 2  # of each run of ties, from 1
    rank_sum = float(np.dot(mean_rank, _per_run(labels[order], ends)))
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def auprc(y: ArrayLike, p: ArrayLike) -> float:
    """Average precision: the mean over positives of the precision at their threshold.

    Args:
        y: Labels, shape (n,).
        p: Scores, shape (n,).
    """
    labels, scores = check_pair(y, p)
    n_positive = int(labels.sum())
    if not n_positive:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    hits = _per_run(labels[order], ends)
    return float(np.dot(hits, np.cumsum(hits) / ends)) / n_positive


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Mean squared distance of probability and outcome."""
    labels, probability = check_pair(y, p)
    return float(np.mean((probability - labels) ** 2)) if len(labels) else float("nan")


@dataclass(frozen=True)
class Alerts:
    """What a number of alerts would find.

    Attributes:
        threshold: Lowest score that is alerted.
        n_alerts: Alerts.
        true_positives: Events among them; a fraction where scores tie at the threshold.
        ppv: Events per alert.
        sensitivity: Events found of all events.
        number_needed_to_evaluate: Alerts for one event.
    """

    threshold: float
    n_alerts: int
    true_positives: float
    ppv: float
    sensitivity: float
    number_needed_to_evaluate: float


def alerts_at_capacity(y: ArrayLike, p: ArrayLike, capacity: float) -> Alerts:
    """Alert on the highest scores, as many as there are hands.

    Where more rows tie at the threshold than may be alerted, the figures are those of a fair draw
    among them.

    Args:
        y: Labels, shape (n,).
        p: Scores, shape (n,).
        capacity: A whole number is a count of alerts, a float a fraction of rows (rounded up, but
            for what floating point adds: 0.07 of 100 rows are 7).

    Raises:
        InputError: No rows, a fraction outside (0, 1], or a count below 1.
    """
    labels, scores = check_pair(y, p)
    is_count = isinstance(capacity, int | np.integer) and not isinstance(capacity, bool)
    if not len(labels) or not (capacity >= 1 if is_count else 0 < capacity <= 1):
        raise InputError(
            "no rows to alert on, or a capacity that is neither a count nor a fraction",
            code="bad_capacity",
            place="capacity",
            remedy="Use a whole number of alerts such as 50, or a fraction such as 0.05.",
        )
    asked = capacity if is_count else np.ceil(round(capacity * len(labels), 9))
    n_alerts = min(max(int(asked), 1), len(labels))
    threshold = float(np.partition(scores, len(scores) - n_alerts)[len(scores) - n_alerts])
    above, at = scores > threshold, scores == threshold
    share = (n_alerts - int(above.sum())) / int(at.sum())
    found = float(labels[above].sum() + share * labels[at].sum())
    n_positive = float(labels.sum())
    return Alerts(
        threshold=threshold,
        n_alerts=n_alerts,
        true_positives=found,
        ppv=found / n_alerts,
        sensitivity=found / n_positive if n_positive else float("nan"),
        number_needed_to_evaluate=n_alerts / found if found else float("inf"),
    )


def check_pair(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and scores as equally long float64 vectors.

    Raises:
        InputError: Other shapes, labels other than 0 and 1, or scores that are no numbers.
    """
    labels = np.asarray(y, dtype=np.float64)
    scores = np.asarray(p, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise InputError(
            f"labels {labels.shape} and scores {scores.shape} are not two equal vectors",
            code="unequal_lengths",
            place="y, p",
        )
    if not ((labels == 0.0) | (labels == 1.0)).all():
        raise InputError("labels are not all 0 or 1", code="bad_label", place="y")
    if np.isnan(scores).any():
        raise InputError(
            "scores hold NaN",
            code="nan_score",
            place="p",
            remedy="Leave rows that were not scored out, and count them.",
        )
    return labels, scores


def _per_run(labels: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of labels in each run of ties."""
    return np.diff(np.cumsum(labels)[ends - 1], prepend=0.0)
