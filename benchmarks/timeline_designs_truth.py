"""The true risks of a simulated hospital's discharges and stays, from the files it wrote.

`truth_terms.parquet` holds what each discharge's score of readmission is made of, `truth.parquet`
the probabilities of readmission and of death within 30 days. The score of death is not written, but
the probability of dying first within 30 days grows with it, so it is found by halving; with both
scores the hazards, and so the probabilities by any day, are known. `truth_stays.parquet` holds the
risks of a stay a day after its admission.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import event_table, schema
from tsfm.simulation.hazards import BIN_EDGES_DAYS, HORIZON_DAYS, hazards_per_day

_KEYS = ("patient_id", "encounter_id", "discharge_time")
_SCORES = (-30.0, 30.0)
_HALVINGS = 80


def true_courses(hospital: Path, events: Path, days: NDArray[np.float64]) -> pl.DataFrame:
    """P(readmitted by each day, before dying) of every index discharge.

    Args:
        hospital: Folder of the simulation.
        events: Event table that its export was read into.
        days: Days from discharge.

    Returns:
        subject_id, prediction_time, `risk` (within 30 days, as written) and `course` (a list).
    """
    truth = pl.read_parquet(hospital / "truth.parquet")
    terms = pl.read_parquet(hospital / "truth_terms.parquet")
    score = terms.drop(_KEYS).sum_horizontal().to_numpy()
    p_death = truth["p_death_30d"].to_numpy()
    # Each hazard of death is the exponential of its score times that of score 0.
    readmission_hazard = np.array([hazards_per_day(float(x), 0.0)[0] for x in score])
    death_hazard = hazards_per_day(0.0, 0.0)[1]
    low, high = (np.full(len(score), bound) for bound in _SCORES)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        both = readmission_hazard, np.exp(middle)[:, None] * death_hazard
        too_few = incidence(*both, HORIZON_DAYS)[1] < p_death
        low, high = np.where(too_few, middle, low), np.where(too_few, high, middle)
    both = readmission_hazard, np.exp((low + high) / 2)[:, None] * death_hazard
    readmission, death = incidence(*both, HORIZON_DAYS)
    np.testing.assert_allclose(readmission, truth["p_readmission_30d"].to_numpy(), atol=1e-9)
    np.testing.assert_allclose(death, p_death, atol=1e-9)
    course = np.stack([incidence(*both, float(day))[0] for day in days], axis=1)
    subjects = {source: subject for subject, source in event_table.subject_ids(events).items()}
    return truth.select(
        pl.col("patient_id")
        .replace_strict(subjects, return_dtype=pl.Int64)
        .alias(schema.SUBJECT_ID),
        pl.col("discharge_time").cast(pl.Datetime("us")).alias(schema.PREDICTION_TIME),
        pl.col("p_readmission_30d").alias("risk"),
        pl.Series("course", course.tolist(), dtype=pl.List(pl.Float64)),
    )


def true_stays(hospital: Path, events: Path) -> pl.DataFrame:
    """Risks of every stay in progress a day after its admission.

    Args:
        hospital: Folder of the simulation.
        events: Event table that its export was read into.

    Returns:
        subject_id, prediction_time, `p_death_in_stay` and `p_stay_7d`.
    """
    subjects = {source: subject for subject, source in event_table.subject_ids(events).items()}
    return pl.read_parquet(hospital / "truth_stays.parquet").select(
        pl.col("patient_id")
        .replace_strict(subjects, return_dtype=pl.Int64)
        .alias(schema.SUBJECT_ID),
        pl.col("prediction_time").cast(pl.Datetime("us")).alias(schema.PREDICTION_TIME),
        "p_death_in_stay",
        "p_stay_7d",
    )


def incidence(
    hazard_1: NDArray[np.float64], hazard_2: NDArray[np.float64], day: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(cause 1 first, by a day) and P(cause 2 first, by it) of hazards constant within bins."""
    edges = np.array(BIN_EDGES_DAYS)
    spent = np.clip(np.minimum(edges[1:], day) - edges[:-1], 0.0, None)
    both = hazard_1 + hazard_2
    gone = both * spent
    before = np.exp(-(np.cumsum(gone, axis=1) - gone))
    weight = before * -np.expm1(-gone) / both
    return (hazard_1 * weight).sum(1), (hazard_2 * weight).sum(1)
