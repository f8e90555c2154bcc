"""Maps that make a model's probabilities mean what they say at one place, task by task.

Three kinds behind one interface, in the order of what they can bend and what they need:

* `temperature`: one number, logit p / T. Cures over-confidence; a hospital where the event is rarer
  or commoner than where the model was trained needs more.
* `platt`: slope and intercept of logit p, which is Cox's recalibration. The usual choice.
* `isotonic`: any map that does not fall. Needs a thousand rows or more, and leaves ties.

Fit them on the tuning split; judge them elsewhere, by `calibration.calibration_intervals`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError
from tsfm.evaluation.calibration import (
    LogisticLine,
    check_probability,
    fit_platt,
    logit,
    recalibrate,
)

_COLDEST, _HOTTEST = 1e-3, 1e3


@dataclass(frozen=True)
class Recalibration:
    """A fitted map of probabilities.

    Attributes:
        kind: One of `KINDS`.
        slope: Of the logit; 1 for `isotonic`.
        offset: Added to the logit; 0 for `isotonic`.
        knots: Probabilities between which `isotonic` is interpolated, ascending; else empty.
        levels: What they become, not falling.
    """

    kind: str
    slope: float = 1.0
    offset: float = 0.0
    knots: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    def apply(self, p: ArrayLike) -> NDArray[np.float64]:
        """Recalibrated probabilities, in the shape of `p`; NaN stays NaN."""
        if self.knots:
            given = np.asarray(p, dtype=np.float64)
            return np.asarray(np.interp(given, self.knots, self.levels), dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return recalibrate(p, LogisticLine(intercept=self.offset, slope=self.slope))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file, with the keys of a model's `calibration.json`."""
        found: dict[str, Any] = {"kind": self.kind, "slope": self.slope, "offset": self.offset}
        if self.knots:
            found |= {"knots": list(self.knots), "levels": list(self.levels)}
        return found

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Recalibration:
        """The map that `as_dict` wrote; without a kind it is Platt's.

        Raises:
            InputError: An unknown kind, values that are no finite numbers, or knots that make no
                map of probabilities.
        """
        try:
            found = cls(
                kind=str(stored.get("kind", "platt")),
                slope=float(stored.get("slope", 1.0)),
                offset=float(stored.get("offset", 0.0)),
                knots=tuple(map(float, stored.get("knots", ()))),
                levels=tuple(map(float, stored.get("levels", ()))),
            )
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise _no_recalibration() from error
        if not found._is_map():
            raise _no_recalibration()
        return found

    def _is_map(self) -> bool:
        finite = bool(np.isfinite([self.slope, self.offset, *self.knots, *self.levels]).all())
        rising = bool((np.diff(self.knots) > 0).all() and (np.diff(self.levels) >= 0).all())
        fits = len(self.knots) == len(self.levels) and (self.kind == "isotonic") == bool(self.knots)
        bounded = all(0 <= p <= 1 for p in (*self.knots, *self.levels))
        return self.kind in KINDS and finite and rising and fits and bounded


def _no_recalibration() -> InputError:
    return InputError(
        "stored values make no recalibration", code="bad_recalibration",
        place="Recalibration.from_dict", remedy="Use what as_dict returned.",
    )  # fmt: skip


def fit_recalibration(kind: str, y: ArrayLike, p: ArrayLike) -> Recalibration:
    """Fit a map of one task's probabilities; use the tuning split.

    Args:
        kind: One of `KINDS`.
        y: Labels, shape (n,).
        p: Probabilities, shape (n,).

    Raises:
        InputError: An unknown kind; one class or one probability only; or, for `temperature`,
            scores that rank no better than chance, which no temperature mends.
    """
    if kind not in KINDS:
        raise InputError(
            f"unknown kind of recalibration '{kind}'", code="unknown_recalibration",
            place="kind", remedy=f"Use one of {', '.join(KINDS)}.",
        )  # fmt: skip
    labels, probability = check_probability(y, p)
    line = fit_platt(labels, probability)  # refuses what nothing can be fitted to
    return _FITS[kind](labels, probability, line)


def fit_recalibrations(
    kind: str, scored: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> dict[str, Recalibration]:
    """One map a task, from task to (labels, probabilities); see `fit_recalibration`."""
    return {task: fit_recalibration(kind, y, p) for task, (y, p) in scored.items()}


def _platt(
    labels: NDArray[np.float64], probability: NDArray[np.float64], line: LogisticLine
) -> Recalibration:
    return Recalibration("platt", slope=line.slope, offset=line.intercept)


def _temperature(
    labels: NDArray[np.float64], probability: NDArray[np.float64], line: LogisticLine
) -> Recalibration:
    """The slope at which the likelihood is flat: its derivative rises, so it is bisected."""
    x = logit(probability)

    def derivative(slope: float) -> float:
        return float(x @ (np.exp(-np.logaddexp(0.0, -slope * x)) - labels))

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if derivative(low) >= 0:
        raise InputError(
            "the scores rank no better than chance around one half: no temperature fits",
            code="nothing_to_calibrate", place="temperature",
            remedy="Use platt, or look for labels that are the wrong way round.",
        )  # fmt: skip
    while high / low - 1 > 1e-12:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if derivative(middle) < 0 else (low, middle)
    return Recalibration("temperature", slope=float(np.sqrt(low * high)))


def _isotonic(
    labels: NDArray[np.float64], probability: NDArray[np.float64], line: LogisticLine
) -> Recalibration:
    """Least squares among maps that do not fall (pool adjacent violators), held off 0 and 1."""
    from scipy.optimize import isotonic_regression

    knots, row, count = np.unique(probability, return_inverse=True, return_counts=True)
    mean = np.bincount(row, weights=labels) / count
    fitted = isotonic_regression(mean, weights=count.astype(np.float64))
    # No event among a few rows is no proof that there is none.
    least = 1 / (len(labels) + 2)
    levels = np.clip(fitted.x, least, 1 - least)
    # Of a run of equal levels the ends say all.
    same = np.zeros(len(knots), bool)
    same[1:-1] = (levels[1:-1] == levels[:-2]) & (levels[1:-1] == levels[2:])
    return Recalibration(
        "isotonic", knots=tuple(knots[~same].tolist()), levels=tuple(levels[~same].tolist())
    )


_FITS: dict[str, Callable[..., Recalibration]] = {
    "temperature": _temperature,
    "platt": _platt,
    "isotonic": _isotonic,
}

KINDS = tuple(_FITS)
"""Kinds of recalibration, from the stiffest to the most flexible."""
