"""Stays in hospital: why, how long, what is measured, given and done, and how they end.

Specimens are taken and vital signs recorded at irregular hours, drugs act on the physiology while
they are given, and diuretics and opioids are stopped a varying time before discharge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tsfm.simulation.catalogue import OPIOIDS
from tsfm.simulation.chart import DAY, HOUR, STAY, YEAR, Encounter, Entry, Place
from tsfm.simulation.patient import Patient
from tsfm.simulation.physiology import (
    ACUTE_KIDNEY,
    ALBUMIN,
    CONGESTION,
    HAEMOGLOBIN,
    INFLAMMATION,
    SODIUM,
)

_MIN_STAY = 14 * HOUR  # the first panel is always back before the discharge
_MAX_STAY = 60 * DAY


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why a patient is admitted.

    Attributes:
        diagnosis: Name in `catalogue.CONDITIONS`.
        weight: Relative frequency in anybody.
        condition: Chronic condition that adds to it ("" for none).
        added: How much it adds.
        median_hours: Length of stay.
        kicks: What it does to the physiology.
        drugs: Given regularly, with hours between doses.
        procedures: Done, with probability.
    """

    diagnosis: str
    weight: float
    condition: str
    added: float
    median_hours: float
    kicks: dict[int, float]
    drugs: dict[str, float]
    procedures: dict[str, float]


_EMERGENCIES = (
    _Reason(
        "acute_heart_failure", 0.05, "heart_failure", 2.4, 105.0,
        {CONGESTION: 1.8, SODIUM: -1.5, ACUTE_KIDNEY: 0.15},
        {"furosemide": 13.0}, {"echocardiography": 0.5, "chest_xray": 0.4},
    ),
    _Reason(
        "copd_exacerbation", 0.03, "copd", 1.8, 90.0,
        {INFLAMMATION: 1.0, CONGESTION: 0.3},
        {"prednisone": 24.0, "albuterol": 20.0}, {"chest_xray": 0.6},
    ),
    _Reason(
        "pneumonia", 0.7, "copd", 0.4, 100.0,
        {INFLAMMATION: 1.7, SODIUM: -2.0, ALBUMIN: -0.2},
        {"ceftriaxone": 24.0}, {"chest_xray": 0.7},
    ),
    _Reason(
        "sepsis", 0.35, "cancer", 0.4, 150.0,
        {INFLAMMATION: 2.6, ACUTE_KIDNEY: 0.4, ALBUMIN: -0.4, SODIUM: -1.0},
        {"vancomycin": 18.0, "ceftriaxone": 24.0}, {"chest_xray": 0.4},
    ),
    _Reason(
        "kidney_injury", 0.2, "ckd_3", 0.5, 90.0,
        {ACUTE_KIDNEY: 0.8, SODIUM: -1.0}, {}, {},
    ),
    _Reason(
        "bleeding", 0.3, "atrial_fibrillation", 0.4, 80.0,
        {HAEMOGLOBIN: -2.8}, {}, {"transfusion": 0.6, "colonoscopy": 0.5},
    ),
    _Reason(
        "cancer_pain", 0.0, "cancer", 1.4, 100.0,
        {HAEMOGLOBIN: -0.6, ALBUMIN: -0.3, SODIUM: -2.0}, {"morphine": 9.0}, {},
    ),
    _Reason(
        "delirium", 0.1, "dementia", 1.6, 110.0,
        {INFLAMMATION: 0.8, SODIUM: -2.5}, {}, {},
    ),
    _Reason("chest_pain", 0.9, "", 0.0, 48.0, {}, {"metoprolol": 20.0}, {"echocardiography": 0.3}),
    _Reason(
        "gallstones", 0.4, "", 0.0, 66.0,
        {INFLAMMATION: 1.2}, {"morphine": 11.0, "ceftriaxone": 24.0}, {"cholecystectomy": 0.6},
    ),
)  # fmt: skip
_ELECTIVES = (
    _Reason(
        "hip_arthritis", 1.0, "", 0.0, 62.0,
        {HAEMOGLOBIN: -1.6, INFLAMMATION: 0.8}, {"oxycodone": 9.0, "heparin": 24.0},
        {"hip_replacement": 1.0, "transfusion": 0.1},
    ),
    _Reason(
        "gallstones", 0.7, "", 0.0, 36.0,
        {INFLAMMATION: 0.6}, {"oxycodone": 10.0}, {"cholecystectomy": 1.0},
    ),
    _Reason(
        "cancer", 0.0, "cancer", 1.6, 80.0,
        {HAEMOGLOBIN: -0.8, ALBUMIN: -0.2}, {"morphine": 12.0}, {},
    ),
)  # fmt: skip
_HOME_DRUGS = {
    "heart_failure": "furosemide",
    "copd": "albuterol",
    "dementia": "donepezil",
    "atrial_fibrillation": "apixaban",
    "diabetes": "metformin",
    "hypertension": "lisinopril",
}
_PANEL = {
    "creatinine": 0.9,
    "sodium": 0.8,
    "haemoglobin": 0.8,
    "potassium": 0.2,
    "leukocytes": 0.2,
}
_VITALS = {
    "heart_rate": 0.7,
    "blood_pressure": 0.35,
    "oxygen_saturation": 0.3,
    "respiratory_rate": 0.15,
    "temperature": 0.25,
}


def simulate_stay(
    patient: Patient,
    start: int,
    export: int,
    *,
    elective: bool,
    through_ed: bool,
) -> Encounter:
    """Add one stay to the chart, as far as it has gone by the export.

    Args:
        patient: Moved forward to the discharge.
        start: Admission, seconds since 1970 UTC.
        export: Nothing later is written.
        elective: Planned or emergency admission.
        through_ed: Whether the patient comes from the emergency department.

    Returns:
        The stay; its `end` is None while it lasts.
    """
    rng, chart, body, conditions = patient.rng, patient.chart, patient.body, patient.conditions
    reason = _choose_reason(patient, _ELECTIVES if elective else _EMERGENCIES)
    stay = Encounter(len(chart.encounters), STAY, start, elective=elective)
    stay.admit_source = "emd" if through_ed else ("outp" if elective else "gp")
    chart.encounters.append(stay)
    body.advance(start)
    body.admit(reason.kicks)
    intensive = not elective and rng.random() < _expit(
        -3.4 + 0.7 * body.state[INFLAMMATION] + 0.4 * body.state[CONGESTION]
    )
    inflamed = max(body.state[INFLAMMATION], 0.0)
    log_hours = math.log(reason.median_hours) + 0.1 * inflamed + 0.35 * intensive
    seconds = int(HOUR * math.exp(log_hours + 0.5 * rng.standard_normal()))
    end = start + min(max(seconds, _MIN_STAY), _MAX_STAY)
    age_years = (start - chart.birth) / YEAR
    dies = rng.random() < (not elective) * _expit(
        -5.3
        + 0.035 * (age_years - 70.0)
        + 0.5 * body.state[INFLAMMATION]
        + 0.8 * ("cancer" in conditions)
        + 1.3 * intensive
    )
    if dies:
        end = start + max(int((end - start) * (0.3 + 0.7 * rng.random())), _MIN_STAY)

    for name in sorted(conditions - chart.problems.keys()):
        chart.problems[name] = start + int((0.1 + 0.8 * rng.random()) * (end - start))
    _give_drugs(patient, stay.number, reason, start, end)
    _observe(patient, stay.number, reason, start, end, intensive=intensive)
    _place(rng, stay, start, end, intensive)
    for name, chance in reason.procedures.items():
        if rng.random() < chance:
            chart.procedures.append(Entry(name, _within(rng, start, end), stay.number))
    if intensive and rng.random() < 0.35:
        chart.procedures.append(Entry("ventilation", start + 3 * HOUR, stay.number))
    if "ckd_5" in conditions and rng.random() < 0.7:
        chart.procedures.append(Entry("haemodialysis", _within(rng, start, end), stay.number))
    body.advance(end)
    body.discharge()
    if end <= export:
        stay.end = end
        stay.disposition = "exp" if dies else _choose_disposition(patient, age_years)
        stay.diagnoses = _diagnoses(patient, stay, reason)
        if dies:
            chart.death = end
    return stay


def _choose_reason(patient: Patient, reasons: tuple[_Reason, ...]) -> _Reason:
    weights = [r.weight + r.added * (r.condition in patient.conditions) for r in reasons]
    if reasons is _EMERGENCIES:
        weights[0] *= math.exp(0.4 * min(max(patient.body.state[CONGESTION], -1.0), 3.0))
    left = patient.rng.random() * sum(weights)
    for reason, weight in zip(reasons, weights, strict=True):
        left -= weight
        if left < 0.0:
            return reason
    return reasons[-1]


def _give_drugs(patient: Patient, number: int, reason: _Reason, start: int, end: int) -> None:
    rng, chart = patient.rng, patient.chart
    drugs = dict(reason.drugs)
    if patient.body.state[CONGESTION] > 1.0:
        drugs.setdefault("furosemide", 15.0)
    if not any(drug in OPIOIDS for drug in drugs) and rng.random() < 0.2:
        drugs["oxycodone"] = 12.0
    for drug, every_hours in drugs.items():
        time = start + int((1.0 + 3.0 * rng.random()) * HOUR)
        chart.orders.append(Entry(drug, time - HOUR // 2, number))
        # Some are still given on the last day, others stopped days before.
        stop = end - HOUR
        if rng.random() > 0.35:
            stop -= int(rng.standard_exponential() * 60 * HOUR)
        stretch = every_hours * max(1.0, ((end - start) / (6.0 * DAY)) ** 0.7)
        while time < stop:
            chart.administrations.append(Entry(drug, time, number))
            time += int(stretch * HOUR * math.exp(0.25 * rng.standard_normal()))
    for name, drug in _HOME_DRUGS.items():
        if name in patient.conditions and rng.random() < 0.35:
            chart.orders.append(Entry(drug, end - HOUR - int(3 * HOUR * rng.random()), number))


def _observe(
    patient: Patient, number: int, reason: _Reason, start: int, end: int, *, intensive: bool
) -> None:
    """Specimens and vital signs at irregular hours, sparser in longer stays."""
    rng, body, conditions = patient.rng, patient.body, patient.conditions
    stretch = max(1.0, ((end - start) / (5.0 * DAY)) ** 0.5)
    failing = "heart_failure" in conditions
    times: list[tuple[int, bool]] = []
    for is_panel, median_hours, spread in ((True, 25.0, 0.45), (False, 23.0, 0.5)):
        time = start + int((0.2 + 1.2 * rng.random()) * HOUR)
        while time < end - HOUR // 2:
            times.append((time, is_panel))
            hours = median_hours * stretch * math.exp(spread * rng.standard_normal())
            time += int(HOUR * hours)
    turn = _within(rng, start, end)
    first_panel = True
    for time, is_panel in sorted(times):
        if time > turn:
            body.advance(turn)
            body.turn()
            turn = end
        body.advance(time)
        if not is_panel:
            wanted = dict(_VITALS)
            wanted["weight"] = 0.85 if failing or reason.diagnosis == "kidney_injury" else 0.6
        elif first_panel:
            wanted = dict.fromkeys(("creatinine", "sodium", "haemoglobin"), 1.0)
            wanted |= {"potassium": 0.5, "leukocytes": 0.5, "albumin": 0.65}
            wanted["bnp"] = 0.95 if failing or "copd" in conditions else 0.25
            wanted["crp"] = 0.6 if INFLAMMATION in reason.kicks else 0.1
            wanted["lactate"] = 0.8 if intensive else 0.0
            first_panel = False
        else:
            wanted = dict(_PANEL)
            wanted["bnp"] = 0.3 if failing else 0.04
            wanted["albumin"] = 0.12
        for name, chance in wanted.items():
            if rng.random() < chance:
                patient.measure(name, time, number)


def _place(
    rng: np.random.Generator, stay: Encounter, start: int, end: int, intensive: bool
) -> None:
    ward = "ward-surgery" if stay.elective else f"ward-medicine-{1 + int(2 * rng.random())}"
    if not intensive:
        stay.places.append(Place(ward, start, end))
        return
    moved_in = start + int(8 * HOUR * rng.random())
    moved_out = moved_in + int((end - moved_in) * (0.2 + 0.5 * rng.random()))
    stay.places += [
        Place(ward, start, moved_in),
        Place("icu", moved_in, moved_out),
        Place(ward, moved_out, end),
    ]


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


def _diagnoses(patient: Patient, stay: Encounter, reason: _Reason) -> list[str]:
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


def _within(rng: np.random.Generator, start: int, end: int) -> int:
    return start + int((0.1 + 0.8 * rng.random()) * (end - start))


def _expit(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))
