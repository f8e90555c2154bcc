"""The hidden physiology of a simulated patient, and how measurements see it.

Six quantities follow Ornstein-Uhlenbeck processes in real time, so the step over any gap is exact:
congestion, renal function (log creatinine), haemoglobin, inflammation, sodium, nutrition (albumin),
plus an acute kidney component. Acute illness moves them at once; treatment in hospital shortens
their time constants. Measurements are noisy readings, rounded as a laboratory prints them.

Plausible shapes, not a model of any disease.
"""

from __future__ import annotations

import math

import numpy as np

from tsfm.simulation.catalogue import MEASURES
from tsfm.simulation.chart import DAY

CONGESTION, RENAL, HAEMOGLOBIN, INFLAMMATION, SODIUM, ALBUMIN, ACUTE_KIDNEY = range(7)
_TAU_DAYS = [25.0, 60.0, 40.0, 10.0, 15.0, 50.0, 8.0]
_TREATED_TAU_DAYS = [2.5, 60.0, 40.0, 3.0, 6.0, 50.0, 2.0]
_SPREAD = [0.5, 0.12, 0.8, 0.45, 2.0, 0.3, 0.08]


class Physiology:
    """State of one patient, moved forward in time by `advance`.

    Args:
        rng: The patient's own generator.
        conditions: Names of the chronic conditions the patient really has.
        female: Sex.
        age_years: At entry.
        time: Seconds since 1970 of the first state.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        conditions: frozenset[str],
        *,
        female: bool,
        age_years: float,
        time: int,
    ) -> None:
        """Draw the patient's own levels and a first state around them."""
        draw = rng.standard_normal
        failing, cancer = "heart_failure" in conditions, "cancer" in conditions
        grade = next((g for g in (3, 2, 1) if f"ckd_{g + 2}" in conditions), 0)
        self._rng = rng
        self._failing = failing
        self._copd = "copd" in conditions
        self._fibrillating = "atrial_fibrillation" in conditions
        self._diabetic = "diabetes" in conditions
        self._grade = grade
        self._age_years = age_years
        self.time = time
        self.treated = False
        self.level = [
            0.7 * failing + 0.4 * draw(),
            math.log(0.8 if female else 0.98) + (0.0, 0.5, 0.95, 1.5)[grade] + 0.15 * draw(),
            (12.9 if female else 14.0) - 0.7 * grade - 1.3 * cancer + 0.8 * draw(),
            0.3 * cancer + 0.2 * self._copd + 0.25 * draw(),
            138.8 - 1.0 * cancer + 1.3 * draw(),
            4.0 - 0.35 * cancer - 0.006 * max(age_years - 60.0, 0.0) + 0.25 * draw(),
            0.0,
        ]
        self.spread = list(_SPREAD)
        if failing:
            self.spread[CONGESTION] *= 1.6
        self.state = [
            level + spread * draw() for level, spread in zip(self.level, self.spread, strict=True)
        ]
        self.target = list(self.level)
        self._weight_kg = (70.0 if female else 84.0) + 13.0 * draw()
        self._weight_kg = min(max(self._weight_kg, 42.0), 150.0)
        self._pressure = 132.0 + 12.0 * draw()

    def advance(self, time: int) -> None:
        """Move the state to `time`; a time already passed changes nothing."""
        days = (time - self.time) / DAY
        if days <= 0.0:
            return
        self.time = time
        taus = _TREATED_TAU_DAYS if self.treated else _TAU_DAYS
        noise = self._rng.standard_normal(7).tolist()
        state, target, spread = self.state, self.target, self.spread
        for j in range(7):
            kept = math.exp(-days / taus[j])
            state[j] = (
                target[j]
                + (state[j] - target[j]) * kept
                + spread[j] * math.sqrt(1.0 - kept * kept) * noise[j]
            )

    def admit(self, kicks: dict[int, float]) -> None:
        """Acute illness: move components at once, and begin treatment."""
        for component, size in kicks.items():
            self.state[component] += size * (0.6 + 0.4 * self._rng.standard_exponential())
        self.treated = True
        self.turn()

    def turn(self) -> None:
        """Where fluid balance and kidney are heading; it differs from stay to stay and within."""
        self.target[CONGESTION] = self.level[CONGESTION] + 1.1 * self._rng.standard_normal()
        self.target[ACUTE_KIDNEY] = 0.4 * self._rng.standard_normal()

    def discharge(self) -> None:
        """Treatment ends; the patient drifts back to the own level."""
        self.target = list(self.level)
        self.treated = False

    def measure(self, name: str) -> tuple[float, float]:
        """One recorded value, and the diastolic one for a blood pressure (else 0)."""
        g, renal, haemoglobin, inflamed, sodium, albumin, acute = self.state
        z = self._rng.standard_normal()
        second = 0.0
        if name == "creatinine":
            value = min(math.exp(renal + acute + 0.03 * z), 14.0)
        elif name == "sodium":
            value = min(max(sodium - 0.9 * max(g, 0.0) + 0.7 * z, 112.0), 160.0)
        elif name == "haemoglobin":
            value = min(max(haemoglobin + 0.2 * z, 4.5), 18.5)
        elif name == "bnp":
            log = 5.2 + 0.95 * g + 0.3 * self._grade + 0.9 * self._failing + 0.2 * z
            value = min(max(math.exp(log + 0.02 * (self._age_years - 70.0)), 20.0), 70_000.0)
        elif name == "albumin":
            value = min(max(albumin - 0.22 * max(inflamed, 0.0) + 0.08 * z, 1.2), 5.2)
        elif name == "crp":
            value = min(max(math.exp(1.2 + 1.1 * inflamed + 0.25 * z), 0.2), 480.0)
        elif name == "leukocytes":
            value = min(max(7.6 + 2.4 * inflamed + 0.8 * z, 0.8), 60.0)
        elif name == "potassium":
            value = min(max(4.1 + 0.25 * (renal + acute) + 0.25 * z, 2.6), 7.4)
        elif name == "lactate":
            value = min(max(math.exp(0.25 + 0.3 * inflamed + 0.2 * z), 0.4), 18.0)
        elif name == "hba1c":
            value = min(max(5.6 + 1.7 * self._diabetic + 0.8 * z, 4.4), 14.0)
        elif name == "heart_rate":
            value = 74.0 + 6.0 * inflamed + 4.0 * g + 8.0 * self._fibrillating + 6.0 * z
            value = min(max(value, 38.0), 180.0)
        elif name == "respiratory_rate":
            value = min(max(16.0 + 1.6 * g + 1.4 * inflamed + 1.5 * z, 8.0), 44.0)
        elif name == "temperature":
            value = min(max(36.7 + 0.4 * inflamed + 0.25 * z, 35.0), 41.0)
        elif name == "oxygen_saturation":
            value = min(
                max(97.0 - 1.0 * max(g, 0.0) - 0.9 * inflamed - 2.5 * self._copd + z, 72.0), 100.0
            )
        elif name == "weight":
            value = self._weight_kg + 2.0 * g + 0.35 * z
        else:
            value = min(max(self._pressure - 5.0 * inflamed + 9.0 * z, 70.0), 220.0)
            second = float(round(value * 0.56 + 6.0 + 5.0 * self._rng.standard_normal()))
        return round(value, MEASURES[name].digits), second
