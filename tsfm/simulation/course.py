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

import math
from dataclasses import dataclass, field

import numpy as np

from tsfm.simulation.catalogue import RACES
from tsfm.simulation.chart import (
    CLINIC_VISIT,
    DAY,
    ED_VISIT,
    HOUR,
    YEAR,
    Chart,
    Encounter,
    read_covariates,
)
from tsfm.simulation.hazards import (
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
from tsfm.simulation.physiology import Physiology
from tsfm.simulation.stays import simulate_stay
from tsfm.simulation.visits import simulate_visit

NOT_INDEX = ("exp", "hosp", "aadvice", "ACUTE HOSPITAL")
"""Dispositions after which a stay is no index stay."""


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
    """A patient's chart and index discharges."""

    chart: Chart
    discharges: list[Discharge] = field(default_factory=list)


def simulate_course(rng: np.random.Generator, patient: str, *, start: int, end: int) -> Course:
    """Simulate one patient.

    Args:
        rng: The patient's own generator.
        patient: FHIR id.
        start: First second of the observation window, since 1970 UTC.
        end: The export: nothing later is known.
    """
    entry = start + int(rng.random() * 0.8 * (end - start))
    chart, conditions = _enter(rng, patient, entry)
    body = Physiology(
        rng,
        conditions,
        female=chart.female,
        age_years=(entry - chart.birth) / YEAR,
        time=entry,
    )
    unwell = 0.45 * math.exp(1.0 * rng.standard_normal()) * (1.0 + 0.25 * len(conditions))
    course = Course(chart)
    now, elective = entry, bool(rng.random() < 0.25)
    admission = entry + 2 * DAY + int(rng.standard_exponential() * 40 * DAY)
    while True:
        arrival = _simulate_gap(
            rng, chart, body, now, min(admission, end), conditions, unwell, admission <= end, elective
        )
        if admission > end:
            return course
        stay = simulate_stay(
            rng, chart, body, admission, end, conditions, elective=elective, through_ed=arrival
        )
        if stay.end is None or stay.disposition == "exp":
            return course
        now = stay.end
        covariates = read_covariates(chart, stay)
        scores = (
            sum(readmission_terms(covariates).values()),
            sum(death_terms(covariates).values()),
        )
        hazards = hazards_per_day(*scores)
        if stay.disposition == "hosp":
            hazards = (hazards[0] * 0.1, hazards[1] * 0.0 + 1 / 18)
        cause, days, i = draw_first_event(rng.standard_exponential(), rng.random(), *hazards)
        # Stamps have whole seconds; one second at least keeps the next event after this one.
        event = now + max(round(days * DAY), 1)
        if stay.disposition not in NOT_INDEX:
            course.discharges.append(
                _index_discharge(stay, now, covariates, hazards, cause, event, end)
            )
        if cause == READMISSION:
            admission = event
            elective = bool(rng.random() * hazards[0][i] < PLANNED_PER_DAY)
            continue
        _simulate_gap(rng, chart, body, now, min(event, end), conditions, unwell, False, False)
        if event <= end:
            chart.death = event
        return course


def _index_discharge(
    stay: Encounter,
    now: int,
    covariates: Covariates,
    hazards: tuple[np.ndarray, np.ndarray],
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


def _enter(
    rng: np.random.Generator, patient: str, entry: int
) -> tuple[Chart, frozenset[str]]:
    """Demographics, chronic conditions, and those already on the problem list."""
    age = min(max(67.0 + 15.0 * rng.standard_normal(), 18.5), 98.0)
    birth = (int(entry - age * YEAR) // DAY) * DAY + DAY // 2
    share, race = rng.random(), 0
    while race < len(RACES) - 1 and share > RACES[race][2]:
        share -= RACES[race][2]
        race += 1
    chart = Chart(patient, bool(rng.random() < 0.51), birth, race, bool(rng.random() < 0.12))
    older = (age - 67.0) / 15.0
    chances = {
        "heart_failure": 0.26 + 0.10 * older,
        "copd": 0.22 + 0.04 * older,
        "ckd_3": 0.20 + 0.08 * older,
        "ckd_4": 0.06,
        "ckd_5": 0.04,
        "cancer": 0.14 + 0.03 * older,
        "dementia": 0.10 + 0.08 * older,
        "atrial_fibrillation": 0.18 + 0.09 * older,
        "diabetes": 0.30,
        "hypertension": 0.58 + 0.12 * older,
    }
    have = {name for name, chance in chances.items() if rng.random() < chance}
    if stages := sorted(name for name in have if name.startswith("ckd")):
        have -= set(stages[:-1])
    for name in sorted(have):
        if rng.random() < 0.75:
            chart.problems[name] = entry - int(rng.random() * 5 * YEAR)
    return chart, frozenset(have)


def _simulate_gap(
    rng: np.random.Generator,
    chart: Chart,
    body: Physiology,
    start: int,
    end: int,
    conditions: frozenset[str],
    unwell: float,
    admitted: bool,
    elective: bool,
) -> bool:
    """Clinic and emergency visits between `start` and `end`.

    Returns:
        Whether the gap ends with an emergency visit that leads to an admission at `end`.
    """
    arrival = None
    if admitted and not elective and rng.random() < 0.9:
        arrival = max(end - int((1.5 + 5.0 * rng.random()) * HOUR), start + (end - start) // 2)
    last = (arrival or end) - HOUR
    visits: list[tuple[int, str]] = []
    time = start + int((5 + 20 * rng.random()) * DAY)
    while time < last:
        visits.append((time, CLINIC_VISIT))
        time += int(85 * DAY * math.exp(0.6 * rng.standard_normal()))
    for _ in range(rng.poisson(unwell * (end - start) / YEAR)):
        visits.append((start + HOUR + int(rng.random() * (end - start)), ED_VISIT))
    if arrival is not None and rng.random() < 0.35:
        visits.append((arrival - int(DAY * (1.0 + 12.0 * rng.random())), ED_VISIT))
    free = start + HOUR
    for time, kind in sorted(visits):
        length = int((0.5 if kind == CLINIC_VISIT else 2.5 + 5.0 * rng.random()) * HOUR)
        if time < free or time + length > last:
            continue
        free = time + length + HOUR
        simulate_visit(rng, chart, body, kind, time, time + length, conditions)
    if arrival is not None and arrival < end:
        simulate_visit(rng, chart, body, ED_VISIT, arrival, end, conditions, admitted=True)
        return True
    return False
