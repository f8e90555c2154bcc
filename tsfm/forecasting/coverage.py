"""What quantiles promised and what they held, by variable and lead time.

Coverage is read beside width: an interval that is wide enough holds anything. A patient's points
share one weight, so that it is the coverage of a point of a patient who was drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tsfm.forecasting.quantile_rows import (
    check_edges,
    check_levels,
    check_rows,
    check_truth,
    patient_weights,
)


@dataclass(frozen=True)
class CellCoverage:
    """Coverage of one variable at some lead times.

    Attributes:
        variable: Its name; None is all variables.
        lead_bin: Index of the lead times between two edges; None is all.
        n_points: Points with a finite truth and forecast.
        n_groups: Patients they are of.
        n_ignored: The other points.
        below: Share of truths at or below each quantile; NaN without points, like the others.
        nominal: What the intervals from the j-th lowest to the j-th highest quantile promise,
            widest first.
        covered: Share of truths in them, ends included.
        width: Their mean width; NaN of all variables, whose units differ.
    """

    variable: str | None
    lead_bin: int | None
    n_points: int
    n_groups: int
    n_ignored: int
    below: tuple[float, ...]
    nominal: tuple[float, ...]
    covered: tuple[float, ...]
    width: tuple[float, ...]


def coverage_table(
    variable: ArrayLike,
    lead_hours: ArrayLike,
    levels: ArrayLike,
    quantiles: ArrayLike,
    truth: ArrayLike,
    *,
    lead_edges_hours: ArrayLike,
    groups: ArrayLike | None = None,
) -> list[CellCoverage]:
    """Coverage by variable and lead bin, by variable, by lead bin, and of all; empty cells too.

    Args:
        variable: Names, (n,).
        lead_hours: Hours from forecast to truth, (n,).
        levels: Levels of the quantiles, ascending, between 0 and 1.
        quantiles: Not descending along the levels, (n, level).
        truth: What came, (n,). Rows where it or a quantile is not finite are only counted.
        lead_edges_hours: Ascending edges between lead bins; none is one bin.
        groups: Patient of each row, (n,); None takes each row for a patient.

    Raises:
        InputError: Shapes that do not fit, quantiles that cross, or levels or edges out of order.
    """
    edges = check_edges(lead_edges_hours)
    asked = np.array(check_levels(levels))
    rows = check_rows(variable, lead_hours, len(asked), quantiles, edges)
    y, patient, used = check_truth(truth, groups, rows)
    half = len(asked) // 2
    low, high, truths = rows.quantiles[:, :half], rows.quantiles[:, ::-1][:, :half], y[:, None]
    with np.errstate(invalid="ignore"):  # of rows that are not used
        facts = [truths <= rows.quantiles, (low <= truths) & (truths <= high), high - low]
    nominal = tuple((asked[::-1][:half] - asked[:half]).tolist())
    table = []
    for v, name in [*enumerate(rows.names), (None, None)]:
        of_name = np.full(len(y), True) if v is None else rows.name == v
        for lead_bin in [*range(len(edges) + 1), None]:
            inside = of_name if lead_bin is None else of_name & (rows.lead_bin == lead_bin)
            part = inside & used
            weights, n_groups = patient_weights(patient[part])
            weights = weights / max(n_groups, 1) if n_groups else np.full(0, np.nan)
            means = [
                tuple((weights @ fact[part]).tolist()) if n_groups else (np.nan,) * fact.shape[1]
                for fact in facts
            ]
            counts = int(part.sum()), n_groups, int((inside & ~used).sum())
            width = (np.nan,) * half if name is None else means[2]
            table.append(CellCoverage(name, lead_bin, *counts, means[0], nominal, means[1], width))
    return table
