"""What a forecaster of tables may know of a PhysioNet 2012 query, as columns of numbers.

A query is (stay, variable, hours). Three groups of columns:

* of the variable's own history: its last three values, first, mean, sd, least, most, count, two
  forgetting means (2 and 8 hours), slope an hour, and the age of the last value at the cut;
* of the stay: last, mean, age and count of every variable (the descriptors are among them in A);
* of the query: lead (hours after the cut) and lead + age.

`QueryPattern` has a fourth group, which a forecast at the bedside can't have: what else is asked.
In a hospital a measurement that will be made says something of the patient, so a model that sees
the list of queries is told part of the answer. It is kept apart for that reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from p12_data import Points, Protocol

OWN = (
    "last", "second_last", "third_last", "first", "mean", "sd", "min", "max", "count",
    "forgetting_2h", "forgetting_8h", "trend", "age",
)  # fmt: skip
SHARED = ("last", "mean", "age", "count")
NEAREST = (
    "MechVent", "FiO2", "PaO2", "GCS", "Urine", "Temp", "HR", "SysABP", "NISysABP", "Lactate",
    "RespRate",
)  # fmt: skip
FAR_HOURS = 1000.0


@dataclass(frozen=True)
class HistoryFeatures:
    """Summaries of all histories of a protocol.

    Attributes:
        own: (n_stays, n_variables, len(OWN)) float32, in protocol units and hours; NaN where the
            variable has no history (the count is 0 there).
        shared: (n_stays, n_variables * len(SHARED)) float32, `last` of all variables first.
    """

    own: np.ndarray
    shared: np.ndarray


def history_features(protocol: Protocol) -> HistoryFeatures:
    """Summarise every variable's history of every stay."""
    h = protocol.history
    n_stays, n_variables = len(protocol.record_ids), len(protocol.variables)
    cell = h.stay * n_variables + h.variable
    cells, start, n = np.unique(cell, return_index=True, return_counts=True)
    end = start + n - 1
    group = np.repeat(np.arange(len(cells)), n)
    value, hours = h.value.astype(np.float64), h.hours

    def back(steps: int) -> np.ndarray:
        return np.where(n > steps, value[np.maximum(end - steps, start)], np.nan)

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(group, x, len(cells))

    mean, middle = total(value) / n, total(hours) / n
    off_value, off_hours = value - mean[group], hours - middle[group]
    spread = total(off_hours**2)
    slope = np.full(len(cells), np.nan)
    np.divide(total(off_hours * off_value), spread, out=slope, where=spread > 1e-9)
    since = hours[end][group] - hours
    forgetting = []
    for span_hours in (2.0, 8.0):
        weight = np.exp(-since / span_hours)
        forgetting.append(total(weight * value) / total(weight))
    columns = [
        back(0), back(1), back(2), value[start], mean, np.sqrt(total(off_value**2) / n),
        np.minimum.reduceat(value, start), np.maximum.reduceat(value, start), n, *forgetting,
        slope, protocol.cut_hours - hours[end],
    ]  # fmt: skip
    own = np.full((n_stays * n_variables, len(OWN)), np.nan, dtype=np.float32)
    own[:, OWN.index("count")] = 0
    own[cells] = np.column_stack(columns)
    own = own.reshape(n_stays, n_variables, len(OWN))
    shared = own[:, :, [OWN.index(name) for name in SHARED]].transpose(0, 2, 1)
    return HistoryFeatures(own, np.ascontiguousarray(shared).reshape(n_stays, -1))


def query_matrix(protocol: Protocol, features: HistoryFeatures, points: Points) -> np.ndarray:
    """(n, len(OWN) + 2 + n_variables * len(SHARED)) float32: own, lead, lead + age, shared."""
    own = features.own[points.stay, points.variable]
    lead = (points.hours - protocol.cut_hours).astype(np.float32)
    return np.column_stack([own, lead, lead + own[:, -1], features.shared[points.stay]])


def feature_names(protocol: Protocol) -> list[str]:
    """Names of the columns of `query_matrix`."""
    shared = [f"{kind} of {variable}" for kind in SHARED for variable in protocol.variables]
    return [*OWN, "lead", "lead_and_age", *shared]


class QueryPattern:
    """Which other questions are asked of the same stay, for each of the targets of a protocol."""

    def __init__(self, protocol: Protocol) -> None:
        t = protocol.targets
        n_variables = len(protocol.variables)
        self._targets = t
        self._counts = np.zeros((len(protocol.record_ids), n_variables), dtype=np.float32)
        np.add.at(self._counts, (t.stay, t.variable), 1)
        # Stays lie so far apart on one axis that no query is near one of another stay.
        self._axis = t.stay * 2 * FAR_HOURS + t.hours
        moments, self._moment = np.unique(self._axis, return_inverse=True)
        self._together = np.zeros((len(moments), n_variables), dtype=np.uint8)
        self._together[self._moment, t.variable] = 1
        self._gaps = self._gaps_and_rank()
        self._nearest = np.column_stack(
            [self._hours_to(protocol.variables.index(name)) for name in NEAREST
             if name in protocol.variables]
        )  # fmt: skip

    def columns(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), n_columns) float32 for the targets at `rows`, indices into the targets.

        Counts of queries of every variable, which are asked at the same moment, hours from the
        previous and to the next query of the variable, its rank among these, and hours to the
        nearest query of some variables that tell of ventilation and rounds.
        """
        return np.column_stack(
            [
                self._counts[self._targets.stay[rows]],
                self._together[self._moment[rows]].astype(np.float32),
                self._gaps[rows],
                self._nearest[rows],
            ]
        )

    def _gaps_and_rank(self) -> np.ndarray:
        t = self._targets
        n = len(t)
        starts = np.ones(n, dtype=bool)
        starts[1:] = (np.diff(t.stay) != 0) | (np.diff(t.variable) != 0)
        before = np.full(n, np.nan)
        before[1:] = np.where(starts[1:], np.nan, np.diff(t.hours))
        after = np.append(before[1:], np.nan)
        first = np.maximum.accumulate(np.where(starts, np.arange(n), 0))
        return np.column_stack([before, after, np.arange(n) - first]).astype(np.float32)

    def _hours_to(self, variable: int) -> np.ndarray:
        asked = np.sort(self._axis[self._targets.variable == variable])
        if not len(asked):
            return np.full(len(self._axis), np.nan, dtype=np.float32)
        at = np.searchsorted(asked, self._axis)
        right = asked[np.minimum(at, len(asked) - 1)]
        left = asked[np.maximum(at - 1, 0)]
        hours = np.minimum(np.abs(right - self._axis), np.abs(self._axis - left))
        return np.where(hours < FAR_HOURS, hours, np.nan).astype(np.float32)
