"""A simulated patient: a chart, a body, chronic conditions and a random generator of the own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tsfm.simulation.catalogue import MEASURES, RACES
from tsfm.simulation.chart import DAY, YEAR, Chart, Measurement
from tsfm.simulation.physiology import Physiology

_CHANCES = {
    # name: (share at 67 years, added for each 15 years above)
    "heart_failure": (0.26, 0.10),
    "copd": (0.22, 0.04),
    "ckd_3": (0.20, 0.08),
    "ckd_4": (0.06, 0.0),
    "ckd_5": (0.04, 0.0),
    "cancer": (0.14, 0.03),
    "dementia": (0.10, 0.08),
    "atrial_fibrillation": (0.18, 0.09),
    "diabetes": (0.30, 0.0),
    "hypertension": (0.58, 0.12),
}
_LISTED_AT_ENTRY = 0.75


@dataclass(slots=True)
class Patient:
    """One patient on the way through the hospital.

    Attributes:
        rng: The only source of chance in this patient's course.
        chart: What is written down.
        body: The hidden physiology.
        conditions: Chronic conditions the patient really has, listed or not.
        ed_visits_per_year: How often the patient turns to the emergency department.
    """

    rng: np.random.Generator
    chart: Chart
    body: Physiology
    conditions: frozenset[str]
    ed_visits_per_year: float

    def measure(self, name: str, time: int, encounter: int) -> None:
        """Chart a value of the body as it is; a laboratory releases it 30 to 120 min later."""
        value, second = self.body.measure(name)
        minutes = 30.0 + 90.0 * self.rng.random() if MEASURES[name].is_lab else 0.0
        self.chart.measurements.setdefault(name, []).append(
            Measurement(name, time, time + int(60.0 * minutes), value, second, encounter)
        )


def draw_patient(rng: np.random.Generator, name: str, entry: int) -> Patient:
    """Draw who enters the hospital's care at `entry`, seconds since 1970 UTC."""
    age_years = min(max(67.0 + 15.0 * rng.standard_normal(), 18.5), 98.0)
    # The birth date at noon, so that it is the same date in every zone.
    birth = (int(entry - age_years * YEAR) // DAY) * DAY + DAY // 2
    share, race = rng.random(), 0
    while race < len(RACES) - 1 and share > RACES[race][2]:
        share -= RACES[race][2]
        race += 1
    chart = Chart(name, bool(rng.random() < 0.51), birth, race, bool(rng.random() < 0.12))
    older = (age_years - 67.0) / 15.0
    have = {
        name for name, (at_67, per_15) in _CHANCES.items() if rng.random() < at_67 + per_15 * older
    }
    if stages := sorted(name for name in have if name.startswith("ckd")):
        have -= set(stages[:-1])
    for condition in sorted(have):
        if rng.random() < _LISTED_AT_ENTRY:
            chart.problems[condition] = entry - int(rng.random() * 5 * YEAR)
    conditions = frozenset(have)
    body = Physiology(rng, conditions, female=chart.female, age_years=age_years, time=entry)
    visits = 0.45 * math.exp(rng.standard_normal()) * (1.0 + 0.25 * len(conditions))
    return Patient(rng, chart, body, conditions, visits)
