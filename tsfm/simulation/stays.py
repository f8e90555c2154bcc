"""Stays in hospital: who is admitted why, how the stay goes on, and how and when it ends.

A few stays end within their first day. All others are cared for up to that hour, and what the chart
then says sets the hazards of a discharge alive and of death (`tsfm.simulation.stay_hazards`): the
true risk of a stay is known from then on. The first panel is always back before a discharge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tsfm.simulation.chart import DAY, HOUR, STAY, YEAR, Encounter, read_stay_facts
from tsfm.simulation.hazards import draw_first_event
from tsfm.simulation.patient import Patient
from tsfm.simulation.physiology import CONGESTION, INFLAMMATION
from tsfm.simulation.stay_care import Care
from tsfm.simulation.stay_hazards import (
    ASKED_HOURS,
    STAY_EDGES_DAYS,
    stay_hazards_per_day,
    stay_risk,
)
from tsfm.simulation.stay_reasons import Reason, choose_reason

_MIN_STAY = 14 * HOUR


@dataclass(frozen=True, slots=True)
class StayRisk:
    """The true risk of a stay a day after the admission, and what really followed.

    Attributes:
        encounter: Number of the stay in the patient's chart.
        time: When it is asked, seconds since 1970 UTC.
        p_death: P(the stay ends in death).
        p_long: P(it lasts seven days from the admission or more).
        end: Of the stay, seconds since 1970 UTC; may lie after the export.
        dies: How it ends.
    """

    encounter: int
    time: int
    p_death: float
    p_long: float
    end: int
    dies: bool


def simulate_stay(
    patient: Patient,
    start: int,
    export: int,
    *,
    elective: bool,
    through_ed: bool,
) -> tuple[Encounter, StayRisk | None]:
    """Add one stay to the chart, as far as it has gone by the export.

    Args:
        patient: Moved forward to the discharge.
        start: Admission, seconds since 1970 UTC.
        export: Nothing later is written.
        elective: Planned or emergency admission.
        through_ed: Whether the patient comes from the emergency department.

    Returns:
        The stay, whose `end` is None while it lasts, and its risk if it lasts for a day.
    """
    rng, chart, body = patient.rng, patient.chart, patient.body
    reason = choose_reason(patient, elective=elective)
    stay = Encounter(len(chart.encounters), STAY, start, elective=elective)
    stay.admit_source = "emd" if through_ed else ("outp" if elective else "gp")
    chart.encounters.append(stay)
    body.advance(start)
    body.admit(reason.kicks)
    intensive = not elective and rng.random() < _expit(
        -3.4 + 0.7 * body.state[INFLAMMATION] + 0.4 * body.state[CONGESTION]
    )
    care = Care(patient, stay, reason, intensive=intensive)
    asked = start + int(ASKED_HOURS * HOUR)
    risk: StayRisk | None = None
    early = _ends_early(patient, stay, reason, intensive=intensive)
    if early is not None:
        end, dies = early
    else:
        care.go_on(asked)
        facts = read_stay_facts(chart, stay, asked)
        home, days, _ = draw_first_event(
            rng.standard_exponential(), rng.random(), *stay_hazards_per_day(facts), STAY_EDGES_DAYS
        )
        # Stamps have whole seconds; a stay that is asked about is still in progress then.
        end, dies = asked + max(round(days * DAY), 1), not home
        risk = StayRisk(stay.number, asked, *stay_risk(facts), end, dies)
    care.finish(end, home=not dies)
    body.advance(end)
    body.discharge()
    if end <= export:
        stay.end = end
        stay.disposition = "exp" if dies else _choose_disposition(patient, _age(patient, start))
        stay.diagnoses = _diagnoses(patient, stay, reason)
        if dies:
            chart.death = end
    return stay, risk


def _ends_early(
    patient: Patient, stay: Encounter, reason: Reason, *, intensive: bool
) -> tuple[int, bool] | None:
    """End of a stay of under a day and whether by death, or None for a longer one."""
    rng, start = patient.rng, stay.start
    inflamed = max(patient.body.state[INFLAMMATION], 0.0)
    log_hours = math.log(reason.median_hours) + 0.1 * inflamed + 0.35 * intensive
    hours = math.exp(log_hours + 0.5 * rng.standard_normal())
    dies = not stay.elective and rng.random() < _expit(
        -7.3
        + 0.035 * (_age(patient, start) - 70.0)
        + 0.5 * patient.body.state[INFLAMMATION]
        + 0.8 * ("cancer" in patient.conditions)
        + 1.3 * intensive
    )
    if dies:
        return start + _MIN_STAY + int(9 * HOUR * rng.random()), True
    if hours < ASKED_HOURS:
        return start + max(int(HOUR * hours), _MIN_STAY), False
    return None


def _age(patient: Patient, time: int) -> float:
    return (time - patient.chart.birth) / YEAR


def _choose_disposition(patient: Patient, age_years: float) -> str:
    rng, conditions = patient.rng, patient.conditions
    share = rng.random()
    if share < 0.016 + 0.03 * ("cancer" in conditions):
        return "hosp"
    share = rng.random()
    for code, chance in (("aadvice", 0.008), ("ACUTE HOSPITAL", 0.010), ("other-hcf", 0.012)):
        share -= chance
        if share < 0.0:
            return code
    frail = _expit(-2.2 + 0.05 * (age_years - 72.0) + 0.9 * ("dementia" in conditions))
    share = rng.random()
    if share < frail:
        return "snf"
    return "rehab" if share < frail + 0.06 else "home"


def _diagnoses(patient: Patient, stay: Encounter, reason: Reason) -> list[str]:
    """Billing codes, the reason first; set by coders after the patient has left."""
    charted = patient.chart.measurements
    names = [reason.diagnosis]
    names += [name for name in sorted(patient.conditions) if patient.rng.random() < 0.7]

    def values(name: str) -> list[float]:
        return [m.value for m in charted.get(name, ()) if m.encounter == stay.number]

    if min(values("haemoglobin"), default=99.0) < 9.5:
        names.append("anaemia")
    if min(values("sodium"), default=999.0) < 132.0:
        names.append("hyponatraemia")
    if min(values("albumin"), default=9.0) < 2.9:
        names.append("malnutrition")
    creatinine = values("creatinine")
    if creatinine and max(creatinine) > 1.5 * min(creatinine):
        names.append("kidney_injury")
    return list(dict.fromkeys(names))


def _expit(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))
