"""Visits to the clinic and to the emergency department between stays.

Outside the hospital a patient is seen rarely: a few values every few weeks or months.
"""

from __future__ import annotations

import math

from tsfm.simulation.chart import CLINIC_VISIT, DAY, ED_VISIT, HOUR, YEAR, Encounter
from tsfm.simulation.patient import Patient

_COMPLAINTS = ("chest_pain", "abdominal_pain", "dyspnoea")
_ED_MEASURES = {"heart_rate": 1.0, "blood_pressure": 0.4}
_ED_LABS = {"creatinine": 0.4, "haemoglobin": 0.35, "leukocytes": 0.25}
_CLINIC_MEASURES = {
    "weight": 0.7,
    "blood_pressure": 0.4,
    "creatinine": 0.4,
    "sodium": 0.3,
    "haemoglobin": 0.3,
}


def simulate_visits(patient: Patient, start: int, end: int, *, through_ed: bool) -> None:
    """Add the visits between two stays, or between a stay and death or the export.

    Args:
        patient: Moved forward from visit to visit.
        start: Seconds since 1970 UTC.
        end: As above.
        through_ed: Whether the patient is admitted at `end` from the emergency department.
    """
    rng = patient.rng
    arrival = end
    if through_ed:
        arrival = max(end - int((1.5 + 5.0 * rng.random()) * HOUR), start + (end - start) // 2)
    visits: list[tuple[int, str]] = []
    time = start + int((5.0 + 20.0 * rng.random()) * DAY)
    while time < arrival:
        visits.append((time, CLINIC_VISIT))
        time += int(85.0 * DAY * math.exp(0.6 * rng.standard_normal()))
    for _ in range(rng.poisson(patient.ed_visits_per_year * (end - start) / YEAR)):
        visits.append((start + int(rng.random() * (end - start)), ED_VISIT))
    if through_ed and rng.random() < 0.35:
        # Sent home once before being admitted.
        visits.append((arrival - int((1.0 + 12.0 * rng.random()) * DAY), ED_VISIT))
    free, last = start + HOUR, arrival - HOUR
    for time, kind in sorted(visits):
        hours = 0.5 if kind == CLINIC_VISIT else 2.5 + 5.0 * rng.random()
        length = int(hours * HOUR)
        if time >= free and time + length <= last:
            _simulate_visit(patient, kind, time, time + length)
            free = time + length + HOUR
    if through_ed:
        _simulate_visit(patient, ED_VISIT, arrival, end, admitted=True)


def _simulate_visit(
    patient: Patient, kind: str, start: int, end: int, *, admitted: bool = False
) -> None:
    rng, chart = patient.rng, patient.chart
    visit = Encounter(len(chart.encounters), kind, start, end)
    chart.encounters.append(visit)
    time = start + (end - start) // 4
    patient.body.advance(time)
    if kind == ED_VISIT:
        wanted = dict(_ED_MEASURES)
        if not admitted:
            # An admitted patient's laboratory work is the ward's first panel.
            wanted |= _ED_LABS
            visit.disposition = "home"
            visit.diagnoses.append(_COMPLAINTS[int(rng.random() * len(_COMPLAINTS))])
    else:
        wanted = dict(_CLINIC_MEASURES)
        if "diabetes" in patient.conditions:
            wanted["hba1c"] = 0.3
        if "heart_failure" in patient.conditions:
            wanted["bnp"] = 0.25
        listed = [c for c in sorted(patient.conditions) if chart.problems.get(c, end) < start]
        if listed:
            visit.diagnoses.append(listed[int(rng.random() * len(listed))])
    for name, chance in wanted.items():
        if rng.random() < chance:
            patient.measure(name, time, visit.number)
