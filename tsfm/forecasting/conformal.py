"""Quantiles that hold what they promise, from forecasts of patients that were held out.

    score_j = (y - q_j) / w        q_j + shift_j w  in place of  q_j

`fit_split_conformal` takes shift_j from the scores of a cell (variable and lead time):
conformalised quantile regression (Romano, Patterson and Candes 2019) in its asymmetric form, so
that every level stands for itself. The unit w is the variable's typical predicted spread: scores
know no physical unit, so that a rare variable can borrow from all others. It is not the spread of
each forecast itself, which is known badly just where a forecast is too sure of itself.

Points of one patient resemble each other; patients are what is exchangeable. Each patient's points
share one weight and the correction for finite samples counts patients, K + 1 of them (hierarchical
conformal prediction: Lee, Barber and Willett 2023). The promise is for a point drawn from a new
patient's, P(y <= q_j) >= level above the median and P(y >= q_j) >= 1 - level below it. It is
marginal: over patients, not for each of them, and it holds as long as new patients are like those.

`AdaptiveConformal` is for a stream where they are not. Adaptive conformal inference (Gibbs and
Candes 2021) moves the level asked for and has to answer infinity on the way; here the same step is
taken in units of the score (quantile tracking: Angelopoulos, Candes and Tibshirani 2023), which is
always finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import FormatError
from tsfm.forecasting.quantile_rows import (
    QuantileRows,
    check_edges,
    check_levels,
    check_rows,
    check_truth,
    patient_weights,
    refused,
    shifted,
    side_of,
)

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Cell:
    """What one variable at some lead times was found to need.

    Attributes:
        variable: Its name; None is all variables.
        lead_bin: Index of the lead times between two edges; None is all.
        shift: What is added at each level, in units of the variable's `spread`.
        n_points: Points it rests on.
        n_groups: Patients they are of.
    """

    variable: str | None
    lead_bin: int | None
    shift: tuple[float, ...]
    n_points: int
    n_groups: int


@dataclass(frozen=True)
class SplitConformal:
    """Shifts by cell; see `fit_split_conformal`.

    Attributes:
        levels: Levels of the quantiles, ascending.
        lead_edges_hours: Edges between the lead bins; a lead time on an edge is in the lower one.
        cells: Cells with enough points; a row that has none of its own takes its variable's, or
            that of all variables, or is left as it is.
        spread: Typical predicted spread of each variable, in its own units; of a variable that is
            not there, a forecast's own spread is taken.
        n_points: Points of the fit.
        n_ignored: Points without a finite truth and forecast, which were left out.
    """

    levels: tuple[float, ...]
    lead_edges_hours: tuple[float, ...]
    cells: tuple[Cell, ...]
    spread: dict[str, float]
    n_points: int
    n_ignored: int

    def apply(
        self, variable: ArrayLike, lead_hours: ArrayLike, levels: ArrayLike, quantiles: ArrayLike
    ) -> NDArray[np.floating]:
        """Calibrated quantiles, of the type of those given; NaN stays NaN.

        Where shifts would make them cross, levels above the median only rise and those below it
        only fall: sorting them would take from one level what it was promised.

        Args:
            variable: Names, (n,).
            lead_hours: Hours from forecast to truth, (n,).
            levels: Those of the fit.
            quantiles: Ascending along the levels, (n, level).

        Raises:
            InputError: Other levels, shapes that do not fit, or quantiles that cross.
        """
        rows = self._rows(variable, lead_hours, levels, quantiles)
        return shifted(rows, self._shift(rows), self.levels)

    def called(self, names: ArrayLike, known: Sequence[str]) -> NDArray[np.str_]:
        """Names as this calibration has them.

        A model without known variables takes all series alike: one name's cells hold for any name.

        Args:
            names: As users have them, (n,).
            known: Variables that the model knows.
        """
        given = np.asarray(names, dtype=str)
        one_name = not known and len(self.spread) == 1
        return np.full(given.shape, next(iter(self.spread))) if one_name else given

    @property
    def clamped(self) -> NDArray[np.bool_]:
        """Cells and levels, (cell, level), that too few patients stand behind for their promise.

        K patients can promise levels from 1 / (K + 1) to K / (K + 1). Beyond, the most extreme
        score is the shift, if it widens, and the promise is K / (K + 1) only.
        """
        n_groups = np.array([cell.n_groups for cell in self.cells]).reshape(-1, 1)
        tail = np.minimum(self.levels, 1 - np.array(self.levels))
        return tail * (n_groups + 1) < 1 - _ROUNDING

    def to_dict(self) -> dict[str, Any]:
        """Plain scalars and lists, for JSON."""
        plain = asdict(self)
        plain["levels"], plain["lead_edges_hours"] = list(self.levels), list(self.lead_edges_hours)
        plain["cells"] = [{**asdict(cell), "shift": list(cell.shift)} for cell in self.cells]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SplitConformal:
        """From `to_dict`.

        Raises:
            FormatError: Unknown or missing keys, wrong types, numbers that are not finite, or
                cells that do not fit the levels and edges.
        """
        _check_keys(plain, cls)
        try:
            for cell in plain["cells"]:
                _check_keys(cell, Cell)
            cells = tuple(Cell(**{**c, "shift": _numbers(c["shift"])}) for c in plain["cells"])
            found = cls(
                _numbers(plain["levels"]),
                _numbers(plain["lead_edges_hours"]),
                cells,
                dict(zip(plain["spread"], _numbers(plain["spread"].values()), strict=True)),
                plain["n_points"],
                plain["n_ignored"],
            )
            check_levels(found.levels)
            check_edges(found.lead_edges_hours)
            counts = [found.n_points, found.n_ignored]
            counts += [n for cell in cells for n in (cell.n_points, cell.n_groups)]
            bins = [cell.lead_bin for cell in cells if cell.lead_bin is not None]
            names = [cell.variable for cell in cells if cell.variable is not None]
            n_bins, n_levels = len(found.lead_edges_hours) + 1, len(found.levels)
            defects = {
                "a count that is none": any(type(n) is not int or n < 0 for n in counts),
                "a lead bin outside its edges": any(
                    type(b) is not int or b not in range(n_bins) for b in bins
                ),
                "a variable without a name": any(not isinstance(name, str) for name in names),
                "shifts of another number of levels": any(len(c.shift) != n_levels for c in cells),
                "a cell twice": len({(c.variable, c.lead_bin) for c in cells}) < len(cells),
                "a negative spread": min(found.spread.values(), default=0.0) < 0,
            }
        except (TypeError, ValueError, AttributeError) as error:
            raise _unreadable("is not a calibration") from error
        for defect, is_there in defects.items():
            if is_there:
                raise _unreadable(f"has {defect}")
        return found

    def _shift(self, rows: QuantileRows) -> NDArray[np.float64]:
        """Shift of every row in its variable's units, (n, level)."""
        place = {(cell.variable, cell.lead_bin): i for i, cell in enumerate(self.cells)}
        shifts = np.array([cell.shift for cell in self.cells] + [(0.0,) * len(self.levels)])
        pooled = place.get((None, None), -1)
        n_bins = len(self.lead_edges_hours) + 1
        own = [
            [place.get((name, b), place.get((name, None), pooled)) for b in range(n_bins)]
            for name in rows.names
        ]
        index = np.array(own, np.int64).reshape(-1, n_bins)[rows.name, rows.lead_bin]
        return shifts[index] * self._spread(rows)[:, None]

    def _spread(self, rows: QuantileRows) -> NDArray[np.float64]:
        known = np.array([self.spread.get(name, np.nan) for name in rows.names])[rows.name]
        return np.where(np.isnan(known), rows.quantiles[:, -1] - rows.quantiles[:, 0], known)

    def _rows(
        self, variable: ArrayLike, lead_hours: ArrayLike, levels: ArrayLike, quantiles: ArrayLike
    ) -> QuantileRows:
        if check_levels(levels) != self.levels:
            raise refused("levels are not those of the calibration", place="levels")
        return check_rows(variable, lead_hours, len(self.levels), quantiles, self.lead_edges_hours)


def fit_split_conformal(
    variable: ArrayLike,
    lead_hours: ArrayLike,
    levels: ArrayLike,
    quantiles: ArrayLike,
    truth: ArrayLike,
    *,
    lead_edges_hours: ArrayLike,
    groups: ArrayLike | None = None,
    min_points: int = 50,
) -> SplitConformal:
    """Shifts that make quantiles hold, from patients that took no part in training.

    Args:
        variable: Names, (n,).
        lead_hours: Hours from forecast to truth, (n,).
        levels: Levels of the quantiles, ascending, between 0 and 1.
        quantiles: Ascending along the levels, (n, level).
        truth: What came, in the units of the quantiles, (n,). Rows where it or a quantile is not
            finite are left out and counted.
        lead_edges_hours: Ascending edges between lead bins; none is one bin.
        groups: Patient of each row, (n,); None takes each row for a patient.
        min_points: Fewest points that a cell may rest on, all of one patient counting as one. The
            cell of all variables is kept whatever its size.

    Raises:
        InputError: Shapes that do not fit, quantiles that cross, or levels or edges out of order.
    """
    edges = check_edges(lead_edges_hours)
    asked = check_levels(levels)
    rows = check_rows(variable, lead_hours, len(asked), quantiles, edges)
    y, patient, used = check_truth(truth, groups, rows)
    n_ignored = int((~used).sum())
    rows, y, patient = rows.take(used), y[used], patient[used]
    typical = _typical_spread(rows, y, patient)
    spread = np.array([typical.get(name, 0.0) for name in rows.names])[rows.name, None]
    distance = y[:, None] - rows.quantiles
    scores = np.divide(distance, spread, out=np.zeros_like(distance), where=spread > 0)
    cells = []
    for v, name in enumerate(rows.names):
        of_name = np.flatnonzero(rows.name == v)
        parts = [(b, of_name[rows.lead_bin[of_name] == b]) for b in range(len(edges) + 1)]
        for lead_bin, part in [*parts, (None, of_name)]:
            cell = _fit_cell(name, lead_bin, asked, scores[part], patient[part])
            if cell.n_groups >= max(min_points, 1):
                cells.append(cell)
    if len(y):
        cells.append(_fit_cell(None, None, asked, scores, patient))
    return SplitConformal(asked, edges, tuple(cells), typical, len(y), n_ignored)


@dataclass(frozen=True)
class AdaptiveConformal:
    """Shifts of one patient's stream on top of a split calibration, moved by every truth.

        shift_j += gamma (level_j - [y <= q_j + shift_j w])

    Over T truths of a cell, the share below level j is off the level by at most
    (B + gamma) / (gamma T), where B bounds the distance of score and shift at the start: whatever
    the stream does. A larger gamma follows faster and is less steady.

    Attributes:
        split: Where it starts from, and whose levels, bins and spreads it has.
        gamma: Step, in units of the variable's spread.
        shifts: Added by (variable, lead bin); what is not there has not moved.
        n_updates: Truths that moved it.
        n_ignored: Truths without a finite value and forecast.
    """

    split: SplitConformal
    gamma: float = 0.1
    shifts: dict[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    n_updates: int = 0
    n_ignored: int = 0

    def __post_init__(self) -> None:
        """Refuse a step that leads nowhere."""
        if not (np.isfinite(self.gamma) and self.gamma > 0):
            raise refused("gamma is not positive and finite", place="gamma")

    def apply(
        self, variable: ArrayLike, lead_hours: ArrayLike, levels: ArrayLike, quantiles: ArrayLike
    ) -> NDArray[np.floating]:
        """Quantiles for what comes next in this stream; see `SplitConformal.apply`."""
        rows = self.split._rows(variable, lead_hours, levels, quantiles)
        return shifted(rows, self._shift(rows), self.split.levels)

    def update(
        self, variable: str, lead_hours: float, quantiles: ArrayLike, truth: float
    ) -> AdaptiveConformal:
        """After one more truth; this object stays as it is.

        Args:
            variable: Name.
            lead_hours: Hours from forecast to truth.
            quantiles: The forecaster's own, before any calibration, (level,).
            truth: What came; one that is not finite is only counted.

        Raises:
            InputError: Shapes that do not fit, or quantiles that cross.
        """
        levels = self.split.levels
        rows = self.split._rows([variable], [lead_hours], levels, np.asarray(quantiles)[None])
        if not (np.isfinite(truth) and np.isfinite(rows.quantiles).all()):
            return replace(self, n_ignored=self.n_ignored + 1)
        below = truth <= (rows.quantiles + self._shift(rows))[0]
        key = (str(variable), int(rows.lead_bin[0]))
        moved = self._stream_shift(key) + self.gamma * (np.array(levels) - below)
        shifts = {**self.shifts, key: tuple(moved.tolist())}
        return replace(self, shifts=shifts, n_updates=self.n_updates + 1)

    def _shift(self, rows: QuantileRows) -> NDArray[np.float64]:
        n_bins = len(self.split.lead_edges_hours) + 1
        names = rows.names
        table = np.array([[self._stream_shift((n, b)) for b in range(n_bins)] for n in names])
        table = table.reshape(len(names), n_bins, len(self.split.levels))
        own = table[rows.name, rows.lead_bin]
        return self.split._shift(rows) + own * self.split._spread(rows)[:, None]

    def _stream_shift(self, key: tuple[str, int]) -> NDArray[np.float64]:
        return np.array(self.shifts.get(key, (0.0,) * len(self.split.levels)))


def _fit_cell(
    name: str | None,
    lead_bin: int | None,
    levels: tuple[float, ...],
    scores: NDArray[np.float64],
    patient: NDArray[Any],
) -> Cell:
    weights, n_groups = patient_weights(patient)
    shift = [0.0] * len(levels)
    for j, level in enumerate(levels if n_groups else ()):
        above = _conformal_quantile(scores[:, j], weights, n_groups, level)
        below = -_conformal_quantile(-scores[:, j], weights, n_groups, 1 - level)
        sides = {-1: below, 0: (below + above) / 2, 1: above}
        shift[j] = float(sides[side_of(level)])
    return Cell(name, lead_bin, tuple(shift), len(scores), n_groups)


def _conformal_quantile(
    scores: NDArray[np.float64], weights: NDArray[np.float64], n_groups: int, level: float
) -> float:
    """Least score with `level` of the mass of K + 1 patients at or below it, K of them known.

    Where the unknown one would be needed, the largest score, if it widens.
    """
    order = scores.argsort()
    mass = weights[order].cumsum()
    index = int(np.searchsorted(mass, level * (n_groups + 1) - _ROUNDING * n_groups))
    if index == len(scores):
        return max(float(scores[order[-1]]), 0.0)
    return float(scores[order[index]])


def _typical_spread(
    rows: QuantileRows, y: NDArray[np.float64], patient: NDArray[np.int64]
) -> dict[str, float]:
    """Median spread of each variable; where forecasts are mere points, their mean error."""
    found = {}
    for v in np.unique(rows.name):
        part = rows.name == v
        q, (weights, n_groups) = rows.quantiles[part], patient_weights(patient[part])
        spread = q[:, -1] - q[:, 0]
        order = spread.argsort()
        middle = np.searchsorted(weights[order].cumsum(), n_groups / 2 - _ROUNDING)
        typical = spread[order[middle]]
        if typical == 0:
            typical = weights @ np.abs(y[part] - q[:, q.shape[1] // 2]) / n_groups
        found[rows.names[v]] = float(typical)
    return found


def _numbers(values: Iterable[Any]) -> tuple[float, ...]:
    found = tuple(values)
    if not all(type(x) in (int, float) and np.isfinite(x) for x in found):
        raise _unreadable("has a number that is none")
    return tuple(float(x) for x in found)


def _check_keys(plain: Mapping[str, Any], kind: type[SplitConformal] | type[Cell]) -> None:
    expected = {f.name for f in fields(kind)}
    if not isinstance(plain, Mapping) or set(plain) != expected:
        raise _unreadable(f"has not exactly the keys {', '.join(sorted(expected))}")


def _unreadable(message: str) -> FormatError:
    return FormatError(
        f"the calibration {message}", code="bad_conformal_calibration",
        place="SplitConformal.from_dict", remedy="Use the file as it was written by tsfm.",
    )  # fmt: skip
