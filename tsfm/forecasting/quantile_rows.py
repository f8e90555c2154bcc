"""Forecasts as rows: a variable, a lead time and quantiles; checked once for all who read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError
from tsfm.evaluation.bootstrap import number_subjects


@dataclass(frozen=True)
class QuantileRows:
    """Quantiles of n forecasts.

    Attributes:
        names: Variables, each once, in order.
        name: Index in `names`, (n,).
        lead_bin: Index of the lead time between the edges, (n,).
        quantiles: Not descending along the levels, (n, level).
        dtype: Type of the quantiles as they were given.
    """

    names: list[str]
    name: NDArray[np.int64]
    lead_bin: NDArray[np.int64]
    quantiles: NDArray[np.float64]
    dtype: np.dtype[Any]

    def take(self, used: NDArray[np.bool_]) -> QuantileRows:
        """Some of the rows; `names` stay all."""
        return replace(
            self, name=self.name[used], lead_bin=self.lead_bin[used], quantiles=self.quantiles[used]
        )


def side_of(level: float) -> int:
    """-1 below the median, 1 above it."""
    return 0 if abs(level - 0.5) < 1e-9 else int(np.sign(level - 0.5))


def shifted(
    rows: QuantileRows, shift: NDArray[np.float64], levels: tuple[float, ...]
) -> NDArray[np.floating]:
    """Shifted quantiles, of the type of those given, that do not cross.

    From the median outwards, levels above it only rise to that end and those below only fall:
    sorting them would take from one level what another is given.

    Args:
        rows: The forecasts.
        shift: What is added, (n, level).
        levels: Levels of the quantiles.
    """
    q = rows.quantiles + shift
    sides = [side_of(level) for level in levels]
    n_low, n_high = sides.count(-1), sides.count(1)
    low, rest, high = q[:, :n_low], q[:, n_low:], q[:, len(levels) - n_high :]
    low[:] = np.minimum.accumulate(low[:, ::-1], axis=1)[:, ::-1]
    if n_low:
        rest[:] = np.maximum(rest, low[:, -1:])
    high[:] = np.maximum.accumulate(high, axis=1)
    if n_high:
        rest[:, 0] = np.minimum(rest[:, 0], high[:, 0])
    return q.astype(rows.dtype)


def check_rows(
    variable: ArrayLike,
    lead_hours: ArrayLike,
    n_levels: int,
    quantiles: ArrayLike,
    edges_hours: tuple[float, ...],
) -> QuantileRows:
    """Rows of one forecast each.

    Args:
        variable: Names, (n,); a number is named by its digits.
        lead_hours: Hours from forecast to truth, (n,).
        n_levels: Number of levels.
        quantiles: Not descending along the levels, (n, level); NaN is let through.
        edges_hours: Edges of the lead bins; a lead time on an edge is in the bin below it.

    Raises:
        InputError: Shapes that do not fit, a lead time that is not finite, or quantiles that cross.
    """
    q = np.asarray(quantiles)
    if not np.issubdtype(q.dtype, np.floating):
        q = q.astype(np.float64)
    names, name = np.unique(np.asarray(variable).astype(str), return_inverse=True)
    lead = np.asarray(lead_hours, np.float64)
    if name.ndim != 1 or lead.shape != name.shape or q.shape != (len(name), n_levels):
        raise refused(
            f"shapes {name.shape}, {lead.shape} and {q.shape} of variables, lead times and "
            f"quantiles do not fit {n_levels} levels",
            place="quantiles",
            remedy="Give (n,), (n,) and (n, level).",
        )
    if not np.isfinite(lead).all():
        raise refused("a lead time is not finite", place="lead_hours")
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        crossing = int((np.diff(q, axis=1) < 0).any(1).sum())
    if crossing:
        raise refused(
            f"quantiles of {crossing} rows cross",
            place="quantiles",
            remedy="Sort them along the levels.",
        )
    lead_bin = np.searchsorted(np.array(edges_hours), lead, side="left")
    return QuantileRows(names.tolist(), name, lead_bin, q.astype(np.float64), q.dtype)


def check_levels(levels: ArrayLike) -> tuple[float, ...]:
    """Levels of quantiles, ascending, each between 0 and 1.

    Raises:
        InputError: They are not.
    """
    found = np.asarray(levels, np.float64)
    inside = found.ndim == 1 and len(found) > 0 and bool(((found > 0) & (found < 1)).all())
    if not inside or (np.diff(found) <= 0).any():
        raise refused("levels are not an ascending row between 0 and 1", place="levels")
    return tuple(found.tolist())


def check_edges(lead_edges_hours: ArrayLike) -> tuple[float, ...]:
    """Edges between lead bins, ascending; none is one bin.

    Raises:
        InputError: They are not.
    """
    found = np.asarray(lead_edges_hours, np.float64)
    if found.ndim != 1 or not np.isfinite(found).all() or (np.diff(found) <= 0).any():
        raise refused("lead edges are not an ascending row", place="lead_edges_hours")
    return tuple(found.tolist())


def check_truth(
    truth: ArrayLike, groups: ArrayLike | None, rows: QuantileRows
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Truths and the patient of each row, and where truth and forecast are finite; (n,) each.

    Args:
        truth: Truths, (n,).
        groups: Patient of each row, (n,); None takes each row for a patient.
        rows: The forecasts.

    Raises:
        InputError: There are not as many as forecasts, or rows whose patient is not known.
    """
    y = np.asarray(truth, np.float64)
    n = len(rows.name)
    patient = np.arange(n) if groups is None else _patients(groups)
    if y.shape != (n,) or patient.shape != (n,):
        raise refused(
            f"shapes {y.shape} of truths and {patient.shape} of groups, of {n} forecasts",
            place="truth",
        )
    return y, patient, np.isfinite(y) & np.isfinite(rows.quantiles).all(1)


def _patients(groups: ArrayLike) -> NDArray[np.int64]:
    """Number of each row's patient; rows of an unknown one are of how many nobody can say."""
    found = number_subjects(groups)
    if found is None:
        raise refused(
            "patients are missing, or of several types",
            place="groups",
            remedy="Give every row its patient, all as text or all as numbers.",
        )
    return found


def patient_weights(patient: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
    """Weight of each point, one over its patient's points among them; and how many patients.

    Args:
        patient: Patient of each point, (n,).
    """
    _, index, counts = np.unique(patient, return_inverse=True, return_counts=True)
    return 1 / counts[index], len(counts)


def refused(message: str, *, place: str, remedy: str = "") -> InputError:
    """The error of a forecast that can't be read as such."""
    return InputError(message, code="bad_forecast", place=place, remedy=remedy)
