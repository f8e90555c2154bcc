"""The known risk after a discharge: two competing piecewise-constant hazards.

After every discharge alive two clocks run, one to the next admission (cause 1) and one to death
(cause 2). Each hazard is a shape that is constant between the days of `BIN_EDGES_DAYS`, times the
exponential of a score; planned admissions add a low constant rate to cause 1. So the probability of
a readmission within a horizon, with death competing, is a finite sum (`cumulative_incidence`) and
the first event can be drawn exactly (`draw_first_event`): the true risk of every simulated
discharge is known, and with it the best discrimination that any model can reach.

The scores read nothing but `Covariates`: facts that stand in the exported record and are known by
the hour of discharge (`tsfm.simulation.chart` reads them off). Hidden physiology enters only by the
values that were recorded. The sizes of the effects are chosen for a plausible spread of risk; they
are not estimates from patients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BIN_EDGES_DAYS = (0.0, 1.0, 3.0, 7.0, 14.0, 30.0, 60.0, 90.0, 180.0, 365.0, math.inf)
HORIZON_DAYS = 30.0
PLANNED_PER_DAY = 0.08 / 365.25

READMISSION_PER_DAY = 0.00092
# Few come back on the very day: cohorts take such stays for one, and would lose the event.
READMISSION_SHAPE = (0.25, 2.1, 1.5, 1.25, 1.0, 0.9, 0.85, 0.8, 0.8, 0.75)
DEATH_PER_DAY = 0.00072
DEATH_SHAPE = (1.2, 1.5, 1.4, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.35)

READMISSION, DEATH = "readmission", "death"


@dataclass(frozen=True, slots=True)
class Covariates:
    """What the record says of a patient at a discharge; None where it was never measured.

    Attributes:
        age_years: At discharge.
        heart_failure: 1 if on the problem list by now; so for the other chronic conditions.
        copd: As above.
        ckd_grade: 0 without chronic kidney disease, 1 to 3 for stages 3 to 5.
        cancer: As above.
        dementia: As above.
        atrial_fibrillation: As above.
        diabetes: As above.
        prior_stays: Sum over earlier discharges of exp(-elapsed / 90 d).
        ed_visits: Sum over arrivals in the emergency department of exp(-elapsed / 30 d).
        haemoglobin: Last result known, g/dL.
        sodium: Last result known, mmol/L.
        creatinine: Last result known, mg/dL.
        bnp: Last NT-proBNP known, pg/mL.
        albumin: Last result known, g/dL.
        creatinine_slope: Recency-weighted slope of the results known, mg/dL per day.
        weight_slope: Recency-weighted slope of recorded weights, kg per day.
        furosemide: Sum over administrations of exp(-elapsed / 36 h).
        opioids: Sum over administrations of exp(-elapsed / 24 h).
        antibiotics: As opioids.
        intensive_care: exp(-elapsed / 72 h) since intensive care was last left; 0 if never.
        elective: 1 if the stay was a planned one.
        stay_hours: From admission to discharge.
    """

    age_years: float
    heart_failure: float
    copd: float
    ckd_grade: float
    cancer: float
    dementia: float
    atrial_fibrillation: float
    diabetes: float
    prior_stays: float
    ed_visits: float
    haemoglobin: float | None
    sodium: float | None
    creatinine: float | None
    bnp: float | None
    albumin: float | None
    creatinine_slope: float
    weight_slope: float
    furosemide: float
    opioids: float
    antibiotics: float
    intensive_care: float
    elective: float
    stay_hours: float


def readmission_terms(facts: Covariates) -> dict[str, float]:
    """Contributions to the log hazard of readmission, by name; their sum is the score."""
    bnp = bend(log_or_none(facts.bnp), 6.7, 1.2)
    visits = saturate(facts.ed_visits)
    return {
        "age": 0.15 * bend(facts.age_years, 68.0, 18.0),
        "heart_failure": 0.25 * facts.heart_failure,
        "copd": 0.25 * facts.copd,
        "ckd": 0.08 * facts.ckd_grade,
        "cancer": 0.35 * facts.cancer,
        "dementia": 0.10 * facts.dementia,
        "atrial_fibrillation": 0.15 * facts.atrial_fibrillation,
        "diabetes": 0.15 * facts.diabetes,
        "prior_stays": 0.75 * saturate(facts.prior_stays),
        "ed_visits": 0.65 * visits,
        "ed_visits_dementia": 0.55 * visits * facts.dementia,
        "haemoglobin": -0.30 * bend(facts.haemoglobin, 11.5, 2.5),
        "sodium": -0.25 * bend(facts.sodium, 137.0, 4.0),
        "creatinine": 0.18 * bend(log_or_none(facts.creatinine), 0.25, 0.7),
        "albumin": -0.28 * bend(facts.albumin, 3.4, 0.6),
        "bnp": 0.10 * bnp,
        "bnp_heart_failure": 0.40 * bnp * facts.heart_failure,
        "creatinine_slope": 0.52 * math.tanh(facts.creatinine_slope / 0.12),
        "weight_slope": 0.52 * math.tanh(facts.weight_slope / 0.45),
        "furosemide": 1.20 * saturate(facts.furosemide),
        "opioids": 1.20 * saturate(facts.opioids),
        "antibiotics": 1.10 * saturate(facts.antibiotics),
        "intensive_care": 1.00 * facts.intensive_care,
        "elective": -0.40 * facts.elective,
        "stay_hours": 0.25 * bend(math.log(facts.stay_hours), 4.6, 0.8),
    }


def death_terms(facts: Covariates) -> dict[str, float]:
    """Contributions to the log hazard of death outside the hospital, by name."""
    return {
        "age": 1.00 * bend(facts.age_years, 72.0, 18.0),
        "heart_failure": 0.25 * facts.heart_failure,
        "copd": 0.20 * facts.copd,
        "ckd": 0.12 * facts.ckd_grade,
        "cancer": 0.90 * facts.cancer,
        "dementia": 0.50 * facts.dementia,
        "prior_stays": 0.40 * saturate(facts.prior_stays),
        "haemoglobin": -0.30 * bend(facts.haemoglobin, 11.5, 2.5),
        "sodium": -0.30 * bend(facts.sodium, 137.0, 4.0),
        "albumin": -0.80 * bend(facts.albumin, 3.4, 0.6),
        "bnp": 0.40 * bend(log_or_none(facts.bnp), 6.7, 1.2),
        "opioids": 0.30 * saturate(facts.opioids),
        "elective": -0.80 * facts.elective,
        "stay_hours": 0.35 * bend(math.log(facts.stay_hours), 4.6, 0.8),
    }


def hazards_per_day(
    readmission_score: float, death_score: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both hazards in each bin of `BIN_EDGES_DAYS`, events per day.

    Args:
        readmission_score: Log hazard ratio of unplanned readmission.
        death_score: Log hazard ratio of death.

    Returns:
        Hazard of any admission, planned ones included, and hazard of death; (n_bins,) each.
    """
    unplanned = READMISSION_PER_DAY * math.exp(readmission_score) * np.array(READMISSION_SHAPE)
    return unplanned + PLANNED_PER_DAY, DEATH_PER_DAY * math.exp(death_score) * np.array(
        DEATH_SHAPE
    )


def cumulative_incidence(
    hazard_1: Sequence[float] | NDArray[np.float64],
    hazard_2: Sequence[float] | NDArray[np.float64],
    horizon_days: float = HORIZON_DAYS,
    edges_days: Sequence[float] = BIN_EDGES_DAYS,
) -> tuple[float, float]:
    """Probability that cause 1, and that cause 2, comes first and within the horizon.

    In a bin with hazards a and b that is entered event-free with probability S, cause 1 happens
    with probability S a/(a+b) (1 - exp(-(a+b) dt)).

    Args:
        hazard_1: Events per day in each bin, (n_bins,).
        hazard_2: The competing cause's, (n_bins,).
        horizon_days: Days from the start.
        edges_days: Of the bins, (n_bins + 1,).
    """
    survival, first, second = 1.0, 0.0, 0.0
    for start, end, a, b in zip(edges_days[:-1], edges_days[1:], hazard_1, hazard_2, strict=True):
        if start >= horizon_days:
            break
        total = float(a + b)
        if total <= 0.0:
            continue
        left = survival * -math.expm1(-total * (min(end, horizon_days) - start))
        first += left * float(a) / total
        second += left * float(b) / total
        survival -= left
    return first, second


def draw_first_event(
    exponential: float,
    uniform: float,
    hazard_1: Sequence[float] | NDArray[np.float64],
    hazard_2: Sequence[float] | NDArray[np.float64],
    edges_days: Sequence[float] = BIN_EDGES_DAYS,
) -> tuple[bool, float, int]:
    """Draw which event comes first and when, exactly, by inverting the total hazard.

    Args:
        exponential: A draw from the unit exponential distribution.
        uniform: A draw from [0, 1).
        hazard_1: Hazard of cause 1, events per day in each bin; with the other's above 0 in the
            last one, which has no end.
        hazard_2: Hazard of cause 2.
        edges_days: Of the bins, (n_bins + 1,).

    Returns:
        Whether it is cause 1, days from the start, and the bin in which it happens.
    """
    left = exponential
    for i, (start, end) in enumerate(itertools.pairwise(edges_days)):
        total = float(hazard_1[i] + hazard_2[i])
        width = end - start
        if left < total * width:
            return uniform * total < float(hazard_1[i]), start + left / total, i
        left -= total * width
    raise AssertionError("the last bin has no end")


def bend(value: float | None, centre: float, scale: float) -> float:
    """Linear near the centre, levelling off beyond the scale; 0 where nothing was measured."""
    return 0.0 if value is None else math.tanh((value - centre) / scale)


def saturate(exposure: float) -> float:
    """Linear for a little of a drug or a visit, levelling off with more of it."""
    return exposure / (1.0 + 0.4 * exposure)


def log_or_none(value: float | None) -> float | None:
    """The logarithm of what was measured."""
    return None if value is None else math.log(value)
