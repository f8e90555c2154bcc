"""The truth of a simulated hospital as tables, one row a discharge or a stay.

`TRUTH` has the risks after a discharge, `STAY_TRUTH` those of a stay that is in progress a day
after its admission, each with what then happened as far as the export shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tsfm.event_table import write_table
from tsfm.simulation.chart import DAY
from tsfm.simulation.course import Course
from tsfm.simulation.hazards import DEATH, READMISSION, readmission_terms

CENSORED, DISCHARGE = "censored", "discharge"

TRUTH = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),  # FHIR id
        pa.field("encounter_id", pa.string(), nullable=False),  # FHIR id
        pa.field("discharge_time", pa.timestamp("us"), nullable=False),  # UTC
        pa.field("p_readmission_30d", pa.float64(), nullable=False),
        pa.field("p_death_30d", pa.float64(), nullable=False),  # dead first, not readmitted before
        pa.field("outcome", pa.string(), nullable=False),  # readmission, death, none, censored
        pa.field("outcome_days", pa.float64(), nullable=False),
    ]
)
"""One row an index discharge: alive, not to hospice, another acute hospital or against advice."""

STAY_TRUTH = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),  # FHIR id
        pa.field("encounter_id", pa.string(), nullable=False),  # FHIR id
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),  # UTC, 24 h from admission
        pa.field("p_death_in_stay", pa.float64(), nullable=False),
        pa.field("p_stay_7d", pa.float64(), nullable=False),  # lasts 7 days from the admission
        pa.field("outcome", pa.string(), nullable=False),  # death, discharge, censored
        pa.field("outcome_days", pa.float64(), nullable=False),  # from prediction_time
    ]
)
"""One row a stay in progress 24 hours after its admission."""


@dataclass
class TruthTables:
    """Rows gathered patient by patient, then written.

    Attributes:
        export: Seconds since 1970 UTC; what is later is censored.
        discharges: Columns of `TRUTH`.
        stays: Columns of `STAY_TRUTH`.
        terms: Contributions to the log hazard of readmission, a row a discharge.
    """

    export: int
    discharges: dict[str, list[object]] = field(
        default_factory=lambda: {name: [] for name in TRUTH.names}
    )
    stays: dict[str, list[object]] = field(
        default_factory=lambda: {name: [] for name in STAY_TRUTH.names}
    )
    terms: list[dict[str, float]] = field(default_factory=list)

    def add(self, course: Course) -> None:
        """Add a patient."""
        chart = course.chart
        for discharge in course.discharges:
            row = (
                chart.patient,
                chart.encounter_id(discharge.encounter),
                _utc(discharge.time),
                discharge.p_readmission,
                discharge.p_death,
                discharge.outcome,
                discharge.days,
            )
            _append(self.discharges, row)
            self.terms.append(readmission_terms(discharge.covariates))
        for risk in course.stays:
            known = risk.end <= self.export
            row = (
                chart.patient,
                chart.encounter_id(risk.encounter),
                _utc(risk.time),
                risk.p_death,
                risk.p_long,
                (DEATH if risk.dies else DISCHARGE) if known else CENSORED,
                (min(risk.end, self.export) - risk.time) / DAY,
            )
            _append(self.stays, row)

    def write(self, root: Path) -> None:
        """Write `truth.parquet`, `truth_terms.parquet` and `truth_stays.parquet`."""
        table = pa.table(self.discharges, schema=TRUTH)
        write_table(table, root / "truth.parquet")
        terms = table.select(["patient_id", "encounter_id", "discharge_time"])
        for name in self.terms[0] if self.terms else ():
            values = pa.array([row[name] for row in self.terms], pa.float64())
            terms = terms.append_column(name, values)
        write_table(terms, root / "truth_terms.parquet")
        write_table(pa.table(self.stays, schema=STAY_TRUTH), root / "truth_stays.parquet")

    def rates(self) -> dict[str, float]:
        """What share had each outcome, of the discharges and stays whose outcome is known.

        Returns:
            `readmission` and `death` (first) within 30 days of a discharge, `ceiling` (AUROC of the
            true risk of readmission), `death_in_stay` of the stays and its `death_in_stay_ceiling`;
            NaN where nothing is known.
        """
        outcome = np.array(self.discharges["outcome"])
        known = outcome != CENSORED
        readmitted = outcome[known] == READMISSION
        ended = np.array(self.stays["outcome"]) != CENSORED
        died = np.array(self.stays["outcome"])[ended] == DEATH
        return {
            "readmission": _share(readmitted),
            "death": _share(outcome[known] == DEATH),
            "ceiling": auroc(_floats(self.discharges["p_readmission_30d"])[known], readmitted),
            "death_in_stay": _share(died),
            "death_in_stay_ceiling": auroc(_floats(self.stays["p_death_in_stay"])[ended], died),
        }


def auroc(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Probability that a positive outranks a negative, ties by half; NaN without either."""
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    return float(
        (rank[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    )


def _append(columns: dict[str, list[object]], row: Sequence[object]) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)


def _utc(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _share(happened: NDArray[np.bool_]) -> float:
    return float(happened.mean()) if len(happened) else float("nan")


def _floats(column: list[object]) -> NDArray[np.float64]:
    return np.array(column, np.float64)
