"""Macro AUROC over several labels, with intervals in which no label can vanish.

Resampling records lets a rare label lose its positives, and then the interval of a mean over labels
lies beside the mean. Here each label is resampled by itself, its positives among positives and its
negatives among negatives, as the AUROC of one label is a statement about such pairs. Two models
are resampled together, so their difference has an interval of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError
from tsfm.evaluation.bootstrap import Interval, check_draws
from tsfm.evaluation.discrimination import auroc


def macro_auroc(y: ArrayLike, p: ArrayLike) -> float:
    """Mean AUROC over the labels that have both kinds of records.

    Args:
        y: (record, label) 1 or 0.
        p: (record, label) scores, higher for 1.

    Raises:
        InputError: Shapes differ, a label is not 0 or 1, a score is not finite, or no label has
            both kinds.
    """
    truth, score = _checked(y, p)
    return float(np.mean([auroc(t, s) for t, s in zip(truth.T, score.T, strict=True)]))


def macro_auroc_interval(
    y: ArrayLike, p: ArrayLike, *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of `macro_auroc`; see there.

    Raises:
        InputError: See `macro_auroc`; or resamples or a level that are none.
    """
    check_draws(n_resamples, level)
    truth, score = _checked(y, p)
    found = _resampled(truth, [score], n_resamples, seed)[0]
    return _interval(macro_auroc(truth, score), found, level)


def paired_macro_difference(
    y: ArrayLike, p_a: ArrayLike, p_b: ArrayLike, *, n_resamples: int = 1000, level: float = 0.95,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """How much higher the macro AUROC of the first scores is, on the same resamples of records.

    Raises:
        InputError: See `macro_auroc_interval`.
    """
    check_draws(n_resamples, level)
    truth, first = _checked(y, p_a)
    _, second = _checked(y, p_b)
    a, b = _resampled(truth, [first, second], n_resamples, seed)
    return _interval(macro_auroc(truth, first) - macro_auroc(truth, second), a - b, level)


def _checked(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    label = np.asarray(y)
    if not np.isin(label, (0, 1)).all():
        raise InputError(
            "labels other than 0 and 1", code="bad_label", place="macro_auroc",
            remedy="Leave out records with a label that is not known.",
        )  # fmt: skip
    truth, score = label == 1, np.asarray(p, np.float64)
    if truth.ndim != 2 or truth.shape != score.shape or not np.isfinite(score).all():
        raise InputError(
            f"labels {truth.shape} and scores {score.shape} do not fit, or a score is not finite",
            code="bad_scores", place="macro_auroc", remedy="Give (record, label) for both.",
        )  # fmt: skip
    both = truth.any(0) & ~truth.all(0)
    if not both.any():
        raise InputError(
            "no label has records of both kinds", code="one_class", place="macro_auroc",
            remedy="Score records that differ in a label.",
        )  # fmt: skip
    return truth[:, both], score[:, both]


def _resampled(
    truth: NDArray[np.bool_], scores: list[NDArray[np.float64]], n_resamples: int, seed: int
) -> list[NDArray[np.float64]]:
    """Macro AUROC of each scores in every resample; the weights of a label are counts of draws."""
    rng = np.random.default_rng(seed)
    found = [np.zeros(n_resamples) for _ in scores]
    for label in range(truth.shape[1]):
        is_one = truth[:, label]
        ones, zeros = np.flatnonzero(is_one), np.flatnonzero(~is_one)
        drawn_ones = rng.multinomial(len(ones), np.full(len(ones), 1 / len(ones)), n_resamples)
        drawn_zeros = rng.multinomial(len(zeros), np.full(len(zeros), 1 / len(zeros)), n_resamples)
        for total, score in zip(found, scores, strict=True):
            high, low = score[ones, label], score[zeros, label]
            wins = (high[:, None] > low).astype(np.float64) + 0.5 * (high[:, None] == low)
            pairs = len(ones) * len(zeros)
            total += np.einsum("ro,oz,rz->r", drawn_ones, wins, drawn_zeros, optimize=True) / pairs
    return [total / truth.shape[1] for total in found]


def _interval(value: float, found: NDArray[np.float64], level: float) -> Interval:
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(found, ends) if len(found) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high), len(found), len(found))
