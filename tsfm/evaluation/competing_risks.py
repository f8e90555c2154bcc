"""Cumulative incidence with competing events and censoring (Aalen and Johansen, 1978).

The share of stays that had their event by a horizon can't be counted where some stays were watched
for less: dropping them biases it, and one minus Kaplan-Meier overstates it when another event can
come first. The estimator here steps through the days at which anything happened; a stay censored on
a day counts as at risk on it. It takes censoring to be independent of the risk.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError


@dataclass(frozen=True)
class CumulativeIncidence:
    """Step functions of time; each value holds from its day on.

    Attributes:
        days: Days at which an event or a competing event happened, ascending.
        event: Probability of the event by then.
        competing: Probability of the competing event by then.
        none: Probability of neither.
    """

    days: NDArray[np.float64]
    event: NDArray[np.float64]
    competing: NDArray[np.float64]
    none: NDArray[np.float64]


class Incidence(NamedTuple):
    """Probabilities at one horizon; they sum to one."""

    event: float
    competing: float
    none: float


def cumulative_incidence(outcome: ArrayLike, days: ArrayLike) -> CumulativeIncidence:
    """Aalen-Johansen curves.

    Args:
        outcome: `event`, `competing`, `censored` or `none` (both: nothing happened by then), (n,).
        days: Days to the outcome or the last knowledge, (n,).

    Raises:
        InputError: Unknown outcomes, unequal lengths, or days that are negative or no numbers.
    """
    what = np.asarray(outcome, dtype=object)
    when = np.asarray(days, dtype=np.float64)
    known = np.isin(what.astype(str), ("event", "competing", "censored", "none"))
    if what.shape != when.shape or not known.all() or not (when >= 0).all():
        raise InputError(
            "outcomes and days are not equal vectors of known words and days from 0",
            code="bad_outcome",
            place="cumulative_incidence",
            remedy="Pass the eligible rows of a cohort.",
        )
    order = np.argsort(when, kind="stable")
    what, when = what[order], when[order]
    happened = np.isin(what.astype(str), ("event", "competing"))
    moments, which = np.unique(when[happened], return_inverse=True)
    is_event = what[happened] == "event"
    n_event = np.bincount(which[is_event], minlength=len(moments))
    n_competing = np.bincount(which[~is_event], minlength=len(moments))
    at_risk = len(when) - np.searchsorted(when, moments, side="left")
    survival = np.cumprod(1 - (n_event + n_competing) / at_risk, dtype=np.float64)
    before = np.concatenate([[1.0], survival])[: len(moments)]
    return CumulativeIncidence(
        moments,
        np.cumsum(before * n_event / at_risk),
        np.cumsum(before * n_competing / at_risk),
        survival,
    )


def observed_incidence(outcome: ArrayLike, days: ArrayLike, horizon: float) -> Incidence:
    """Observed probabilities at a horizon, inclusive; to hold against mean predicted ones.

    NaN where nobody is left at risk before the horizon (the last one was censored) or no rows are
    given.

    Args:
        outcome: As for `cumulative_incidence`, (n,).
        days: Days, (n,).
        horizon: Days, from 0.

    Raises:
        InputError: As `cumulative_incidence`, or the horizon is below 0 or no number.
    """
    if not (isinstance(horizon, Real) and horizon >= 0):
        raise InputError(
            "the horizon is below 0 or no number", code="bad_horizon", place="horizon",
            remedy="Give days from 0.",
        )  # fmt: skip
    curve = cumulative_incidence(outcome, days)
    when = np.asarray(days, dtype=np.float64)
    step = int(np.searchsorted(curve.days, horizon, side="right")) - 1
    survives = float(curve.none[step]) if step >= 0 else 1.0
    if not len(when) or (when.max() < horizon and survives > 1e-12):
        return Incidence(float("nan"), float("nan"), float("nan"))
    if step < 0:
        return Incidence(0.0, 0.0, 1.0)
    return Incidence(float(curve.event[step]), float(curve.competing[step]), survives)
