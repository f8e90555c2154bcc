"""Brier score of a predicted cumulative incidence over time, and its mean over a period.

At a day t the score is the mean squared distance between the predicted probability that the event
has come first by t and whether it has (Graf et al., Statistics in Medicine 1999; with competing
events Schoop et al., Biometrical Journal 2011). A stay whose watching ended before its state at t
was known says nothing at t; those like it that were watched longer stand in for it, each weighing
one over the chance of being watched so long (inverse probability of censoring). That chance is
Kaplan and Meier's of being censored, so censoring is taken to be independent of the risk.

A competing event is a state that is known for ever after, not an end of watching. As in
`tsfm.evaluation.competing_risks`, a stay censored on a day counts as watched through that day.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError

_OUTCOMES = ("event", "competing", "censored", "none")


def brier_curve(
    outcome: ArrayLike,
    days: ArrayLike,
    predicted: ArrayLike,
    at_days: ArrayLike,
    *,
    cause: str = "event",
) -> NDArray[np.float64]:
    """Brier score at each day, (k,); NaN from where nobody's watching reaches.

    Args:
        outcome: `event`, `competing`, `censored` or `none` (both: nothing happened by then), (n,).
        days: Days to the outcome or the last knowledge, (n,).
        predicted: Probability that the cause has come first by each day, inclusive, (n, k).
        at_days: Days, ascending from above 0, finite, (k,).
        cause: `event` or `competing`: whose probability it is.

    Raises:
        InputError: Unknown words, days that are negative, not finite or do not ascend, or unequal
            shapes.
    """
    what, when, chances, moments = _checked(outcome, days, predicted, at_days, cause)
    happened = np.isin(what, ("event", "competing"))
    is_cause = what == cause
    curve = np.full(len(moments), np.nan)
    if not len(when):
        return curve
    at_own_day = _chance_watched(happened, when, when)
    at_moment = _chance_watched(happened, when, moments)
    for k, moment in enumerate(moments):
        over = happened & (when <= moment)
        going = ~over & (when >= moment)
        if at_moment[k] <= 0.0:
            break
        weight = np.zeros(len(when))
        weight[over] = 1.0 / at_own_day[over]
        weight[going] = 1.0 / at_moment[k]
        error = (is_cause & over).astype(np.float64) - chances[:, k]
        curve[k] = float(np.mean(weight * error**2))
    return curve


def integrated_brier(
    outcome: ArrayLike,
    days: ArrayLike,
    predicted: ArrayLike,
    at_days: ArrayLike,
    *,
    cause: str = "event",
) -> float:
    """Mean Brier score from day 0 to the last of the days, by trapezoids between them.

    The score of day 0 is taken as zero, as if nothing could have happened by then; an event on day
    0 itself counts from the first of the days on. NaN if watching ends before the last day.

    Args:
        outcome: As for `brier_curve`, (n,).
        days: Days, (n,).
        predicted: Probabilities, (n, k).
        at_days: Days, (k,), at least one.
        cause: As for `brier_curve`.

    Raises:
        InputError: As `brier_curve`, or no day is given.
    """
    moments = np.concatenate([[0.0], np.asarray(at_days, dtype=np.float64).ravel()])
    curve = brier_curve(outcome, days, predicted, at_days, cause=cause)
    if not len(curve):
        raise InputError("no day to score at", code="no_days", place="at_days")
    return float(np.trapezoid(np.concatenate([[0.0], curve]), moments) / moments[-1])


def _chance_watched(
    happened: NDArray[np.bool_], when: NDArray[np.float64], asked: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Kaplan-Meier chance that watching does not end before each of some days.

    What happens on the day on which another's watching ends comes before that end.
    """
    ends, n_ended = np.unique(when[~happened], return_counts=True)
    still = len(when) - np.searchsorted(np.sort(when), ends, side="left")
    happening = np.sort(when[happened])
    on_day = np.searchsorted(happening, ends, "right") - np.searchsorted(happening, ends, "left")
    chance = np.cumprod(1.0 - n_ended / (still - on_day))
    return np.concatenate([[1.0], chance])[np.searchsorted(ends, asked, side="left")]


def _checked(
    outcome: ArrayLike, days: ArrayLike, predicted: ArrayLike, at_days: ArrayLike, cause: str
) -> tuple[NDArray[np.str_], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    what = np.asarray(outcome, dtype=object).astype(str)
    when, chances, moments = (np.asarray(x, dtype=np.float64) for x in (days, predicted, at_days))
    known = cause in ("event", "competing") and np.isin(what, _OUTCOMES).all()
    if not known or what.shape != when.shape or not (when >= 0).all():
        raise InputError(
            "outcomes and days are not equal vectors of known words and days from 0",
            code="bad_outcome", place="integrated_brier",
            remedy="Pass the eligible rows of a cohort, and 'event' or 'competing' as the cause.",
        )  # fmt: skip
    finite = moments.ndim == 1 and bool(np.isfinite(moments).all())
    ascends = finite and bool((np.diff(moments, prepend=0.0) > 0).all())
    if not ascends or chances.shape != (len(when), len(moments)):
        raise InputError(
            f"predictions {chances.shape} are not a row a stay and a column an ascending day",
            code="bad_prediction", place="integrated_brier",
            remedy="Pass finite days that ascend from above 0, and the probabilities at them.",
        )  # fmt: skip
    if not ((chances >= 0) & (chances <= 1)).all():
        raise InputError(
            "predictions are not all probabilities", code="bad_probability", place="predicted",
            remedy="Leave stays that were not scored out, and count them.",
        )  # fmt: skip
    return what, when, chances, moments
