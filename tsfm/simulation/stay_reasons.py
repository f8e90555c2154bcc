"""Why patients are admitted, and what each reason brings: drugs, procedures, acute illness."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tsfm.simulation.patient import Patient
from tsfm.simulation.physiology import (
    ACUTE_KIDNEY,
    ALBUMIN,
    CONGESTION,
    HAEMOGLOBIN,
    INFLAMMATION,
    SODIUM,
)


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for an admission.

    Attributes:
        diagnosis: Name in `catalogue.CONDITIONS`.
        weight: Relative frequency in anybody.
        condition: Chronic condition that adds to it ("" for none).
        added: How much it adds.
        median_hours: Length by which a stay of under a day is drawn.
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


EMERGENCIES = (
    Reason(
        "acute_heart_failure", 0.05, "heart_failure", 2.4, 105.0,
        {CONGESTION: 1.8, SODIUM: -1.5, ACUTE_KIDNEY: 0.15},
        {"furosemide": 13.0}, {"echocardiography": 0.5, "chest_xray": 0.4},
    ),
    Reason(
        "copd_exacerbation", 0.03, "copd", 1.8, 90.0,
        {INFLAMMATION: 1.0, CONGESTION: 0.3},
        {"prednisone": 24.0, "albuterol": 20.0}, {"chest_xray": 0.6},
    ),
    Reason(
        "pneumonia", 0.7, "copd", 0.4, 100.0,
        {INFLAMMATION: 1.7, SODIUM: -2.0, ALBUMIN: -0.2},
        {"ceftriaxone": 24.0}, {"chest_xray": 0.7},
    ),
    Reason(
        "sepsis", 0.35, "cancer", 0.4, 150.0,
        {INFLAMMATION: 2.6, ACUTE_KIDNEY: 0.4, ALBUMIN: -0.4, SODIUM: -1.0},
        {"vancomycin": 18.0, "ceftriaxone": 24.0}, {"chest_xray": 0.4},
    ),
    Reason(
        "kidney_injury", 0.2, "ckd_3", 0.5, 90.0,
        {ACUTE_KIDNEY: 0.8, SODIUM: -1.0}, {}, {},
    ),
    Reason(
        "bleeding", 0.3, "atrial_fibrillation", 0.4, 80.0,
        {HAEMOGLOBIN: -2.8}, {}, {"transfusion": 0.6, "colonoscopy": 0.5},
    ),
    Reason(
        "cancer_pain", 0.0, "cancer", 1.4, 100.0,
        {HAEMOGLOBIN: -0.6, ALBUMIN: -0.3, SODIUM: -2.0}, {"morphine": 9.0}, {},
    ),
    Reason(
        "delirium", 0.1, "dementia", 1.6, 110.0,
        {INFLAMMATION: 0.8, SODIUM: -2.5}, {}, {},
    ),
    Reason("chest_pain", 0.9, "", 0.0, 48.0, {}, {"metoprolol": 20.0}, {"echocardiography": 0.3}),
    Reason(
        "gallstones", 0.4, "", 0.0, 66.0,
        {INFLAMMATION: 1.2}, {"morphine": 11.0, "ceftriaxone": 24.0}, {"cholecystectomy": 0.6},
    ),
)  # fmt: skip
ELECTIVES = (
    Reason(
        "hip_arthritis", 1.0, "", 0.0, 62.0,
        {HAEMOGLOBIN: -1.6, INFLAMMATION: 0.8}, {"oxycodone": 9.0, "heparin": 24.0},
        {"hip_replacement": 1.0, "transfusion": 0.1},
    ),
    Reason(
        "gallstones", 0.7, "", 0.0, 36.0,
        {INFLAMMATION: 0.6}, {"oxycodone": 10.0}, {"cholecystectomy": 1.0},
    ),
    Reason(
        "cancer", 0.0, "cancer", 1.6, 80.0,
        {HAEMOGLOBIN: -0.8, ALBUMIN: -0.2}, {"morphine": 12.0}, {},
    ),
)  # fmt: skip


def choose_reason(patient: Patient, *, elective: bool) -> Reason:
    """Draw why a patient is admitted; chronic conditions add to what they make likely."""
    reasons = ELECTIVES if elective else EMERGENCIES
    weights = [r.weight + r.added * (r.condition in patient.conditions) for r in reasons]
    if not elective:
        weights[0] *= math.exp(0.4 * min(max(patient.body.state[CONGESTION], -1.0), 3.0))
    left = patient.rng.random() * sum(weights)
    for reason, weight in zip(reasons, weights, strict=True):
        left -= weight
        if left < 0.0:
            return reason
    return reasons[-1]
