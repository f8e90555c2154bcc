"""Visits to the clinic and to the emergency department, and the writing of measurements.

Outside the hospital a patient is seen rarely: a few values every few weeks or months.
"""

from __future__ import annotations

import numpy as np

from tsfm.simulation.catalogue import MEASURES
from tsfm.simulation.chart import ED_VISIT, Chart, Encounter, Measurement
from tsfm.simulation.physiology import Physiology

_COMPLAINTS = ("chest_pain", "abdominal_pain", "dyspnoea")
_ED_MEASURES = {"heart_rate": 1.0, "blood_pressure": 0.6}
_ED_LABS = {"creatinine": 0.4, "haemoglobin": 0.35, "leukocytes": 0.25}
_CLINIC_MEASURES = {
    "weight": 0.7,
    "blood_pressure": 0.6,
    "creatinine": 0.4,
    "sodium": 0.3,
    "haemoglobin": 0.3,
}


def simulate_visit(
    rng: np.random.Generator,
    chart: Chart,
    body: Physiology,
    kind: str,
    start: int,
    end: int,
    conditions: frozenset[str],
    *,
    admitted: bool = False,
) -> Encounter:
    """Add one visit to the chart.

    Args:
        rng: The patient's own generator.
        chart: Written to.
        body: Moved forward to the visit.
        kind: `CLINIC_VISIT` or `ED_VISIT`.
        start: Seconds since 1970 UTC.
        end: As above.
        conditions: The patient's chronic conditions.
        admitted: Whether an emergency visit ends in an admission, whose first panel then stands
            for the laboratory work.
    """
    visit = Encounter(len(chart.encounters), kind, start, end)
    chart.encounters.append(visit)
    time = start + (end - start) // 4
    body.advance(time)
    if kind == ED_VISIT:
        wanted = dict(_ED_MEASURES)
        if not admitted:
            wanted |= _ED_LABS
            visit.disposition = "home"
            visit.diagnoses.append(_COMPLAINTS[int(rng.random() * 3)])
    else:
        wanted = dict(_CLINIC_MEASURES)
        if "diabetes" in conditions:
            wanted["hba1c"] = 0.3
        if "heart_failure" in conditions:
            wanted["bnp"] = 0.25
        listed = [name for name in sorted(conditions) if chart.problems.get(name, end) < start]
        if listed:
            visit.diagnoses.append(listed[int(rng.random() * len(listed))])
    for name, chance in wanted.items():
        if rng.random() < chance:
            take_measurement(rng, chart, body, name, time, visit.number)
    return visit


def take_measurement(
    rng: np.random.Generator, chart: Chart, body: Physiology, name: str, time: int, encounter: int
) -> None:
    """Measure the body as it is and write the value; a laboratory releases it 30-120 min later."""
    value, second = body.measure(name)
    issued = time + int(60 * (30.0 + 90.0 * rng.random())) if MEASURES[name].is_lab else time
    chart.measurements.setdefault(name, []).append(
        Measurement(name, time, issued, value, second, encounter)
    )
