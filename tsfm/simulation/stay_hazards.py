"""How a stay ends that has lasted a day: two competing piecewise-constant hazards.

Twenty-four hours after an admission two clocks begin to run, one to a discharge alive and one to
death in the stay, as two run after a discharge in `tsfm.simulation.hazards`. So the probabilities
that a stay ends in death and that it still lasts on any later day are finite sums (`stay_risk`),
and how it ends can be drawn exactly: the true risk of every stay is known a day after its
admission.

The scores read nothing but `StayFacts`: what stands in the exported record and is known by that
hour (`tsfm.simulation.chart` reads it off). The sizes of the effects are chosen for a plausible
spread of risk; they are not estimates from patients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsfm.simulation.hazards import bend, cumulative_incidence, log_or_none, saturate

ASKED_HOURS = 24.0
STAY_EDGES_DAYS = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 21.0, math.inf)
LONG_STAY_DAYS = 7.0
"""From the admission; what `tasks.length_of_stay` asks."""

DISCHARGE_PER_DAY = 0.34
# Nobody leaves within six hours, so that what is arranged for a discharge, such as orders for
# home, is never on record when the question is asked.
DISCHARGE_SHAPE = (0.0, 0.5, 0.8, 1.0, 1.15, 1.2, 1.15, 1.1, 1.0, 0.95, 0.95)
DEATH_IN_STAY_PER_DAY = 0.0042
DEATH_IN_STAY_SHAPE = (1.5, 1.4, 1.3, 1.2, 1.0, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6)


@dataclass(frozen=True, slots=True)
class StayFacts:
    """What the record says of a patient a day after admission.

    Values are the last result or reading of this stay that is known by then, None without any.

    Attributes:
        age_years: At that hour.
        heart_failure: 1 if on the problem list by then; so for the other chronic conditions.
        copd: As above.
        cancer: As above.
        dementia: As above.
        elective: 1 if the stay was planned.
        intensive_care: 1 if in intensive care at that hour.
        creatinine: mg/dL.
        sodium: mmol/L.
        haemoglobin: g/dL.
        albumin: g/dL.
        crp: mg/L.
        lactate: mmol/L.
        heart_rate: Beats a minute.
        respiratory_rate: Breaths a minute.
        oxygen_saturation: %.
        furosemide: Sum over administrations of exp(-elapsed / 36 h).
        opioids: Sum over administrations of exp(-elapsed / 24 h).
        antibiotics: As opioids.
    """

    age_years: float
    heart_failure: float
    copd: float
    cancer: float
    dementia: float
    elective: float
    intensive_care: float
    creatinine: float | None
    sodium: float | None
    haemoglobin: float | None
    albumin: float | None
    crp: float | None
    lactate: float | None
    heart_rate: float | None
    respiratory_rate: float | None
    oxygen_saturation: float | None
    furosemide: float
    opioids: float
    antibiotics: float


def discharge_terms(facts: StayFacts) -> dict[str, float]:
    """Contributions to the log hazard of a discharge alive, by name; their sum is the score."""
    return {
        "age": -0.20 * bend(facts.age_years, 68.0, 18.0),
        "heart_failure": -0.15 * facts.heart_failure,
        "dementia": -0.30 * facts.dementia,
        "elective": 0.45 * facts.elective,
        "intensive_care": -0.60 * facts.intensive_care,
        "creatinine": -0.20 * bend(log_or_none(facts.creatinine), 0.25, 0.7),
        "sodium": 0.25 * bend(facts.sodium, 137.0, 4.0),
        "haemoglobin": 0.25 * bend(facts.haemoglobin, 11.5, 2.5),
        "albumin": 0.20 * bend(facts.albumin, 3.4, 0.6),
        "crp": -0.30 * bend(log_or_none(facts.crp), 3.0, 1.5),
        "respiratory_rate": -0.25 * bend(facts.respiratory_rate, 18.0, 4.0),
        "oxygen_saturation": 0.20 * bend(facts.oxygen_saturation, 95.0, 3.0),
        "furosemide": -0.45 * saturate(facts.furosemide),
        "opioids": -0.15 * saturate(facts.opioids),
        "antibiotics": -0.50 * saturate(facts.antibiotics),
    }


def death_in_stay_terms(facts: StayFacts) -> dict[str, float]:
    """Contributions to the log hazard of death in the stay, by name."""
    return {
        "age": 0.90 * bend(facts.age_years, 72.0, 18.0),
        "heart_failure": 0.25 * facts.heart_failure,
        "copd": 0.20 * facts.copd,
        "cancer": 0.90 * facts.cancer,
        "dementia": 0.30 * facts.dementia,
        "elective": -1.20 * facts.elective,
        "intensive_care": 1.10 * facts.intensive_care,
        "creatinine": 0.35 * bend(log_or_none(facts.creatinine), 0.25, 0.7),
        "sodium": -0.30 * bend(facts.sodium, 137.0, 4.0),
        "albumin": -0.60 * bend(facts.albumin, 3.4, 0.6),
        "crp": 0.40 * bend(log_or_none(facts.crp), 3.0, 1.5),
        "lactate": 0.70 * bend(log_or_none(facts.lactate), 0.7, 0.5),
        "heart_rate": 0.30 * bend(facts.heart_rate, 85.0, 15.0),
        "respiratory_rate": 0.50 * bend(facts.respiratory_rate, 18.0, 4.0),
        "oxygen_saturation": -0.40 * bend(facts.oxygen_saturation, 95.0, 3.0),
        "antibiotics": 0.30 * saturate(facts.antibiotics),
    }


def stay_hazards_per_day(facts: StayFacts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hazards of a discharge alive and of death in each bin of `STAY_EDGES_DAYS`, per day."""
    alive = DISCHARGE_PER_DAY * math.exp(sum(discharge_terms(facts).values()))
    dead = DEATH_IN_STAY_PER_DAY * math.exp(sum(death_in_stay_terms(facts).values()))
    return alive * np.array(DISCHARGE_SHAPE), dead * np.array(DEATH_IN_STAY_SHAPE)


def stay_risk(facts: StayFacts) -> tuple[float, float]:
    """P(the stay ends in death) and P(it still lasts `LONG_STAY_DAYS` after the admission)."""
    hazards = stay_hazards_per_day(facts)
    _, dies = cumulative_incidence(*hazards, math.inf, STAY_EDGES_DAYS)
    left = LONG_STAY_DAYS - ASKED_HOURS / 24.0
    return dies, 1.0 - sum(cumulative_incidence(*hazards, left, STAY_EDGES_DAYS))
