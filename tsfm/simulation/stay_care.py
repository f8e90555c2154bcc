"""What is done for a patient in hospital: places, drugs, specimens and vital signs, procedures.

Specimens are taken and vital signs recorded at irregular hours, drugs act on the physiology while
they are given, and diuretics and opioids are stopped a varying time before discharge.

Nothing that is written down in a stay's first day depends on how the stay will end: `Care` is moved
forward to that hour without knowing the end, and told of it afterwards. So the record of that hour
holds no hint of the future beyond what `tsfm.simulation.stay_hazards` makes of it.
"""

from __future__ import annotations

import math

from tsfm.simulation.catalogue import OPIOIDS
from tsfm.simulation.chart import DAY, HOUR, Encounter, Entry, Place
from tsfm.simulation.patient import Patient
from tsfm.simulation.physiology import CONGESTION, INFLAMMATION
from tsfm.simulation.stay_reasons import Reason

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
_ROUNDS = {"panel": (25.0, 0.45), "vitals": (23.0, 0.5)}
"""Median hours between two rounds, and the spread of their logarithm."""


class Care:
    """The care of one stay, moved forward in time by `go_on` and ended by `finish`.

    Args:
        patient: Whose body has been admitted.
        stay: In the chart already.
        reason: Why the patient is here.
        intensive: Whether intensive care is needed.
    """

    def __init__(
        self, patient: Patient, stay: Encounter, reason: Reason, *, intensive: bool
    ) -> None:
        """Order drugs and plan what is not decided by how the stay ends."""
        rng, start = patient.rng, stay.start
        self._patient, self._stay, self._reason, self._intensive = patient, stay, reason, intensive
        self._ward = (
            "ward-surgery" if stay.elective else f"ward-medicine-{1 + int(2 * rng.random())}"
        )
        moved_in = start + int(8 * HOUR * rng.random())
        hours = 66.0 * math.exp(0.6 * rng.standard_normal())
        self._intensive_until = (moved_in, moved_in + int(HOUR * hours))
        stay.places = self._places(None)
        self._turn = start + int((8.0 + 64.0 * rng.random()) * HOUR)
        self._turned = self._had_panel = False
        self._next_round = {
            kind: start + int((0.2 + 1.2 * rng.random()) * HOUR) for kind in _ROUNDS
        }
        self._every_hours = self._order_drugs()
        self._next_dose = {
            entry.name: entry.time + HOUR // 2
            for entry in patient.chart.orders
            if entry.encounter == stay.number
        }
        self._procedures = {
            name: start + int((3.0 + 45.0 * rng.random()) * HOUR)
            for name, chance in reason.procedures.items()
            if rng.random() < chance
        }
        if intensive and rng.random() < 0.35:
            self._procedures["ventilation"] = start + 3 * HOUR
        if "ckd_5" in patient.conditions and rng.random() < 0.7:
            self._procedures["haemodialysis"] = start + int((4.0 + 40.0 * rng.random()) * HOUR)
        # What is not on the list by the end is put there as the patient leaves.
        self._listed = {
            name: start + int((4.0 + 60.0 * rng.random()) * HOUR)
            for name in sorted(patient.conditions - patient.chart.problems.keys())
        }

    def go_on(self, until: int) -> None:
        """Write down all that happens by `until`, whatever may come after it."""
        self._dose(dict.fromkeys(self._every_hours, until + 1), 1.0)
        self._observe(until + 1, 1.0)
        self._list_problems(until)

    def finish(self, end: int, *, home: bool) -> None:
        """Write down the rest of a stay that is now known to end.

        Args:
            end: Of the stay; no earlier than what `go_on` has come to.
            home: Whether the patient leaves alive.
        """
        patient, stay, rng = self._patient, self._stay, self._patient.rng
        days = (end - stay.start) / DAY
        stops: dict[str, int] = {}
        for drug in self._every_hours:
            # Some are still given on the last day, others stopped days before.
            stops[drug] = end - HOUR
            if rng.random() > 0.35:
                stops[drug] -= int(rng.standard_exponential() * 60 * HOUR)
        self._dose(stops, max(1.0, (days / 6.0) ** 0.7))
        self._observe(end - HOUR // 2, max(1.0, (days / 5.0) ** 0.5))
        stay.places = self._places(end)
        chart = patient.chart
        for name, time in self._procedures.items():
            if time < end:
                chart.procedures.append(Entry(name, time, stay.number))
        self._list_problems(end)
        chart.problems |= dict.fromkeys(self._listed, end)
        for name, drug in _HOME_DRUGS.items():
            if home and name in patient.conditions and rng.random() < 0.35:
                time = end - HOUR - int(3 * HOUR * rng.random())
                chart.orders.append(Entry(drug, time, stay.number))

    def _places(self, end: int | None) -> list[Place]:
        """Where the patient lies; planned ends stand while the end of the stay is not known."""
        start, ward = self._stay.start, self._ward
        if not self._intensive:
            return [Place(ward, start, end)]
        moved_in, moved_out = self._intensive_until
        places = [Place(ward, start, moved_in)]
        if end is not None and moved_out >= end:
            return [*places, Place("icu", moved_in, end)]
        return [*places, Place("icu", moved_in, moved_out), Place(ward, moved_out, end)]

    def _order_drugs(self) -> dict[str, float]:
        """Order what the reason asks for; hours between two doses by drug."""
        rng, stay = self._patient.rng, self._stay
        drugs = dict(self._reason.drugs)
        if self._patient.body.state[CONGESTION] > 1.0:
            drugs.setdefault("furosemide", 15.0)
        if not any(drug in OPIOIDS for drug in drugs) and rng.random() < 0.2:
            drugs["oxycodone"] = 12.0
        for drug in drugs:
            first = stay.start + int((1.0 + 3.0 * rng.random()) * HOUR)
            self._patient.chart.orders.append(Entry(drug, first - HOUR // 2, stay.number))
        return drugs

    def _dose(self, stops: dict[str, int], stretch: float) -> None:
        rng = self._patient.rng
        for drug, every_hours in self._every_hours.items():
            time = self._next_dose[drug]
            while time < stops[drug]:
                self._patient.chart.administrations.append(Entry(drug, time, self._stay.number))
                hours = stretch * every_hours * math.exp(0.25 * rng.standard_normal())
                time += int(HOUR * hours)
            self._next_dose[drug] = time

    def _observe(self, until: int, stretch: float) -> None:
        """Specimens and vital signs at irregular hours, sparser in longer stays."""
        rng, body = self._patient.rng, self._patient.body
        while (time := min(self._next_round.values())) < until:
            if time > self._turn and not self._turned:
                body.advance(self._turn)
                body.turn()
                self._turned = True
            body.advance(time)
            kind = min(self._next_round, key=self._next_round.__getitem__)
            for name, chance in self._wanted(kind).items():
                if rng.random() < chance:
                    self._patient.measure(name, time, self._stay.number)
            median_hours, spread = _ROUNDS[kind]
            hours = median_hours * stretch * math.exp(spread * rng.standard_normal())
            self._next_round[kind] = time + int(HOUR * hours)

    def _list_problems(self, until: int) -> None:
        for name, time in list(self._listed.items()):
            if time <= until:
                self._patient.chart.problems[name] = time
                del self._listed[name]

    def _wanted(self, kind: str) -> dict[str, float]:
        """What a round measures, with its chances."""
        conditions, reason = self._patient.conditions, self._reason
        failing = "heart_failure" in conditions
        if kind == "vitals":
            often = failing or reason.diagnosis == "kidney_injury"
            return _VITALS | {"weight": 0.85 if often else 0.6}
        if self._had_panel:
            return _PANEL | {"bnp": 0.3 if failing else 0.04, "albumin": 0.12}
        self._had_panel = True
        return dict.fromkeys(("creatinine", "sodium", "haemoglobin"), 1.0) | {
            "potassium": 0.5,
            "leukocytes": 0.5,
            "albumin": 0.65,
            "bnp": 0.95 if failing or "copd" in conditions else 0.25,
            "crp": 0.6 if INFLAMMATION in reason.kicks else 0.1,
            "lactate": 0.8 if self._intensive else 0.0,
        }
