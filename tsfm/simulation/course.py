"""The course of one simulated patient, from entry to death or the day of the export.

A patient enters with chronic conditions, comes to clinics and the emergency department at irregular
times, and is admitted; after every discharge the next event is drawn from the hazards of
`tsfm.simulation.hazards`, given only what the chart says. Between discharge and that event the
course may do what it likes (visits, drifting physiology): the risk is fixed at the discharge, so
the closed form stays exact.

Each patient has an own random generator: a patient's course depends on the seed and the patient's
number, not on how many others there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tsfm.simulation.chart import DAY, Chart, Encounter, read_covariates
from tsfm.simulation.hazards import (
    DEATH,
    HORIZON_DAYS,
    PLANNED_PER_DAY,
    READMISSION,
    Covariates,
    cumulative_incidence,
    death_terms,
    draw_first_event,
    hazards_per_day,
    readmission_terms,
)
from tsfm.simulation.patient import draw_patient
from tsfm.simulation.stays import StayRisk, simulate_stay
from tsfm.simulation.visits import simulate_visits

NOT_INDEX = ("exp", "hosp", "aadvice", "ACUTE HOSPITAL")
"""Dispositions after which a stay is no index stay."""
_ENTRY_SHARE = 0.8  # of the window in which new patients come
_HOSPICE_DAYS = 18.0  # mean survival


@dataclass(frozen=True, slots=True)
class Discharge:
    """An index discharge with its true risk and what really followed.

    Attributes:
        encounter: Number of the stay in the patient's chart.
        time: Seconds since 1970 UTC.
        p_readmission: P(readmitted within 30 d, before any death).
        p_death: P(died within 30 d, not readmitted before).
        outcome: `readmission`, `death`, `none` or `censored`, within 30 d.
        days: To the outcome, to the horizon, or to the export.
        covariates: What the chart said.
    """

    encounter: int
    time: int
    p_readmission: float
    p_death: float
    outcome: str
    days: float
    covariates: Covariates


@dataclass(slots=True)
class Course:
    """A patient's chart, index discharges, and stays of which the day after admission is known."""

    chart: Chart
    discharges: list[Discharge] = field(default_factory=list)
    stays: list[StayRisk] = field(default_factory=list)


def simulate_course(rng: np.random.Generator, name: str, *, start: int, end: int) -> Course:
    """Simulate one patient.

    Args:
        rng: The patient's own generator.
        name: FHIR id.
        start: First second of the observation window, since 1970 UTC.
        end: The export: nothing later is known.
    """
    entry = start + int(rng.random() * _ENTRY_SHARE * (end - start))
    patient = draw_patient(rng, name, entry)
    course = Course(patient.chart)
    now, elective = entry, bool(rng.random() < 0.25)
    admission = entry + 2 * DAY + int(rng.standard_exponential() * 40 * DAY)
    while True:
        through_ed = admission <= end and not elective and bool(rng.random() < 0.9)
        simulate_visits(patient, now, min(admission, end), through_ed=through_ed)
        if admission > end:
            return course
        stay, risk = simulate_stay(
            patient, admission, end, elective=elective, through_ed=through_ed
        )
        if risk is not None and risk.time <= end:
            course.stays.append(risk)
        if stay.end is None or stay.disposition == "exp":
            return course
        now = stay.end
        covariates = read_covariates(patient.chart, stay)
        hazards = hazards_per_day(
            sum(readmission_terms(covariates).values()), sum(death_terms(covariates).values())
        )
        if stay.disposition == "hosp":
            hazards = (0.1 * hazards[0], np.full_like(hazards[1], 1.0 / _HOSPICE_DAYS))
        returns, days, i = draw_first_event(rng.standard_exponential(), rng.random(), *hazards)
        cause = READMISSION if returns else DEATH
        # Stamps have whole seconds; at least one keeps the next event after this one.
        event = now + max(round(days * DAY), 1)
        if stay.disposition not in NOT_INDEX:
            course.discharges.append(
                _index_discharge(stay, now, covariates, hazards, cause, event, end)
            )
        if not returns:
            simulate_visits(patient, now, min(event, end), through_ed=False)
            if event <= end:
                patient.chart.death = event
            return course
        admission = event
        elective = bool(rng.random() * hazards[0][i] < PLANNED_PER_DAY)


def _index_discharge(
    stay: Encounter,
    now: int,
    covariates: Covariates,
    hazards: tuple[NDArray[np.float64], NDArray[np.float64]],
    cause: str,
    event: int,
    end: int,
) -> Discharge:
    p_readmission, p_death = cumulative_incidence(*hazards)
    days, followed = (event - now) / DAY, (end - now) / DAY
    if days <= min(HORIZON_DAYS, followed):
        outcome = cause
    elif followed < HORIZON_DAYS:
        outcome, days = "censored", followed
    else:
        outcome, days = "none", HORIZON_DAYS
    return Discharge(stay.number, now, p_readmission, p_death, outcome, days, covariates)
