"""Intervals by resampling subjects.

Rows of one subject are alike, so whole subjects are drawn with replacement (cluster bootstrap);
drawing rows would give intervals that are too narrow. Percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError
from tsfm.evaluation.discrimination import check_pair

Metric = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


@dataclass(frozen=True)
class Interval:
    """A measure with its interval.

    Attributes:
        value: On all rows.
        low: Lower end.
        high: Upper end.
        n_used: Resamples in which the measure was defined.
        n_drawn: Resamples drawn; none of fewer than two subjects, whose ends are NaN.
    """

    value: float
    low: float
    high: float
    n_used: int
    n_drawn: int


def bootstrap_interval(
    metric: Metric,
    subject_ids: ArrayLike,
    y: ArrayLike,
    p: ArrayLike,
    n: int = 1000,
    seed: int = 0,
    *,
    level: float = 0.95,
) -> Interval:
    """Interval of `metric(y, p)` over resampled subjects.

    Args:
        metric: Such as `auroc`; must not depend on the order of rows. NaN: not defined.
        subject_ids: Subject of each row, shape (n_rows,).
        y: Labels, shape (n_rows,).
        p: Scores, shape (n_rows,).
        n: Resamples.
        seed: Of the draws.
        level: Coverage, between 0 and 1.

    Raises:
        InputError: Vectors of unequal length, a row without a subject, a number of resamples that
            is none, or a level that is no share.
    """
    check_draws(n, level)
    labels, scores = check_pair(y, p)
    # Rows stay ordered by score through resampling, which makes a metric's own sort cheap.
    order = np.argsort(scores, kind="stable")
    labels, scores = labels[order], scores[order]
    values = [
        metric(labels[rows], scores[rows]) for rows in _resamples(subject_ids, order, n, seed)
    ]
    return _interval(metric(labels, scores), values, level)


def paired_difference(
    metric: Metric,
    subject_ids: ArrayLike,
    y: ArrayLike,
    p: ArrayLike,
    p_other: ArrayLike,
    n: int = 1000,
    seed: int = 0,
    *,
    level: float = 0.95,
) -> Interval:
    """Interval of `metric(y, p) - metric(y, p_other)`, both on the same resamples.

    Args:
        metric: Such as `auroc`.
        subject_ids: Subject of each row, shape (n_rows,).
        y: Labels, shape (n_rows,).
        p: Scores of one model, shape (n_rows,).
        p_other: Scores of the other, shape (n_rows,).
        n: Resamples.
        seed: Of the draws.
        level: Coverage, between 0 and 1.

    Raises:
        InputError: Vectors of unequal length, a row without a subject, a number of resamples that
            is none, or a level that is no share.
    """
    check_draws(n, level)
    labels, first = check_pair(y, p)
    _, second = check_pair(y, p_other)
    order = np.arange(len(labels))
    values = [
        metric(labels[rows], first[rows]) - metric(labels[rows], second[rows])
        for rows in _resamples(subject_ids, order, n, seed)
    ]
    return _interval(metric(labels, first) - metric(labels, second), values, level)


def _resamples(
    subject_ids: ArrayLike, order: NDArray[np.int64], n: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each resample, ascending; a subject drawn twice gives its rows twice.

    None of a single subject: every draw would be the same, and say that nothing is left to chance.
    """
    row_subject = number_subjects(subject_ids)
    if row_subject is None:
        raise InputError(
            "subjects are missing, or of several types", code="missing_value", place="subject_ids",
            remedy="Give every row its subject, all as text or all as numbers.",
        )  # fmt: skip
    if row_subject.shape != order.shape:
        raise InputError(
            f"{len(row_subject)} subjects for {len(order)} rows",
            code="unequal_lengths",
            place="subject_ids",
        )
    row_subject = row_subject[order]
    n_subjects = int(row_subject.max(initial=-1)) + 1
    rows = np.arange(len(order))
    generator = np.random.default_rng(seed)
    for _ in range(n if n_subjects > 1 else 0):
        drawn = generator.integers(0, n_subjects, n_subjects)
        times = np.bincount(drawn, minlength=n_subjects)
        yield np.repeat(rows, times[row_subject])


def number_subjects(subject_ids: ArrayLike) -> NDArray[np.int64] | None:
    """Number of each row's subject; None where a row has none: rows of nobody are not one's.

    Args:
        subject_ids: (n_rows,) all names or all numbers; of several types there is no order, and
            None is given, too.
    """
    # A list becomes objects: NumPy would write a missing number among names as the name "nan".
    ids = np.asarray(subject_ids, dtype=None if hasattr(subject_ids, "dtype") else object)
    try:
        if not (ids == ids).all() or None in ids.tolist():  # NaN is unlike itself
            return None
        return np.unique(ids, return_inverse=True)[1].astype(np.int64)
    except TypeError:  # None beside names, or names beside numbers
        return None


def check_draws(n: int, level: float) -> None:
    """Check how often is drawn, and the coverage.

    Raises:
        InputError: `bad_level`, or `bad_resamples`.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
        raise InputError(
            "the number of resamples is no whole number from 0", code="bad_resamples", place="n",
            remedy="Give for example 1,000.",
        )  # fmt: skip

    if not 0 < level < 1:
        raise InputError(
            "a coverage lies between 0 and 1", code="bad_level", place="level",
            remedy="Give a share, such as 0.95 for 95 %.",
        )  # fmt: skip


def _interval(value: float, values: list[float], level: float) -> Interval:
    found = np.asarray(values, dtype=np.float64)
    used = found[~np.isnan(found)]
    if not len(used):
        return Interval(value, float("nan"), float("nan"), 0, len(found))
    low, high = np.quantile(used, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(used), len(found))
