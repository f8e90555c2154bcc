"""The true risk depends only on what stands in the export and is known at the discharge."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tsfm.simulation import hazards, stay_hazards, stays
from tsfm.simulation.chart import DAY, HOUR, YEAR, Chart
from tsfm.simulation.course import Course, simulate_course
from tsfm.simulation.hospital import EXPORT_TIME, WINDOW_START, simulate_hospital
from tsfm.simulation.patient import draw_patient

N_PATIENTS = 120
INTENSIVE = (2, 67, 113, 137, 142)  # patients whose stay goes through intensive care
START = int(WINDOW_START.timestamp())


def test_risk_can_be_read_off_the_export_alone(tmp_path: Path) -> None:
    """A second reader, of the files and not of the chart, finds the same covariates and risk."""
    hospital = simulate_hospital(tmp_path, n_patients=N_PATIENTS, waveform_fraction=0.0)
    reader = ExportReader(hospital.fhir_dir)
    wanted = {
        (course.chart.patient, discharge.encounter): discharge.covariates
        for course in map(course_of, range(N_PATIENTS))
        for discharge in course.discharges
    }
    truth = pq.read_table(hospital.truth_path).to_pylist()
    assert len(truth) == len(wanted) > 200
    for row in truth:
        facts = wanted[row["patient_id"], int(row["encounter_id"].rpartition("-e")[2])]
        read = reader.covariates(row["encounter_id"])
        for name, value in read.items():
            if value is None:  # never measured
                assert getattr(facts, name) is None
            else:
                assert getattr(facts, name) == pytest.approx(value, rel=1e-6, abs=1e-6), name
        a, b = hazards.hazards_per_day(
            sum(hazards.readmission_terms(hazards.Covariates(**read)).values()),
            sum(hazards.death_terms(hazards.Covariates(**read)).values()),
        )
        p = hazards.cumulative_incidence(a, b)
        assert (row["p_readmission_30d"], row["p_death_30d"]) == pytest.approx(p, rel=1e-5)


def test_a_stays_risk_can_be_read_off_the_export_alone(tmp_path: Path) -> None:
    """The same of the risk a day after admission, from what is known by then."""
    hospital = simulate_hospital(tmp_path, n_patients=N_PATIENTS, waveform_fraction=0.0)
    reader = ExportReader(hospital.fhir_dir)
    truth = pq.read_table(hospital.stay_truth_path).to_pylist()
    assert len(truth) > 200
    for row in truth:
        read = reader.stay_facts(row["encounter_id"])
        facts = stay_hazards.StayFacts(**read)
        alive, dead = stay_hazards.stay_hazards_per_day(facts)
        width = np.diff(np.append(stay_hazards.STAY_EDGES_DAYS[:-1], 400.0))
        steps = np.linspace(0.0, 1.0, 2001)[1:] - 0.00025  # midpoints within every bin
        gone = np.concatenate([[0.0], np.cumsum((alive + dead) * width)])
        survival = np.exp(-(gone[:-1, None] + ((alive + dead) * width)[:, None] * steps))
        p_death = float((survival.mean(1) * width * dead).sum())
        p_long = math.exp(-float(np.interp(6.0, np.append(0.0, np.cumsum(width)), gone)))
        assert (row["p_death_in_stay"], row["p_stay_7d"]) == pytest.approx(
            (p_death, p_long), rel=1e-4
        )


@pytest.mark.parametrize("i", [0, 1, 3, 4, 5, 6, *INTENSIVE])
def test_the_first_day_of_a_stay_does_not_know_how_it_ends(
    monkeypatch: pytest.MonkeyPatch, i: int
) -> None:
    seen = []
    for home, days in ((True, 0.3), (True, 20.0), (False, 0.01)):
        monkeypatch.setattr(stays, "draw_first_event", lambda *_, h=home, d=days: (h, d, 0))
        patient = draw_patient(np.random.default_rng([7, i]), "p", START)
        stay, risk = stays.simulate_stay(
            patient, START + DAY, START + 90 * DAY, elective=i % 3 == 0, through_ed=i % 2 == 0
        )
        assert risk is not None, "these patients' stays last for a day"
        assert stay.end == risk.end == risk.time + round(days * DAY)
        seen.append(known_by(patient.chart, risk.time))
    assert any(place == "icu" for place, _ in seen[0]["places"]) is (i in INTENSIVE)
    assert seen[0] == seen[1] == seen[2]


def known_by(chart: Chart, now: int) -> dict[str, Any]:
    entries = {
        kind: sorted(e for e in getattr(chart, kind) if e.time <= now)
        for kind in ("orders", "administrations", "procedures")
    }
    return entries | {
        "measured": sorted(m for ms in chart.measurements.values() for m in ms if m.issued <= now),
        "listed": {k: t for k, t in chart.problems.items() if t <= now},
        "places": [(p.location, p.start) for p in chart.encounters[0].places if p.start <= now],
    }


def course_of(i: int) -> Course:
    return simulate_course(
        np.random.default_rng([0, i]),
        f"sim-{i:06d}",
        start=int(WINDOW_START.timestamp()),
        end=int(EXPORT_TIME.timestamp()),
    )


class ExportReader:
    """Covariates at a discharge from resources, by other means than the chart's reader."""

    conditions = {  # noqa: RUF012
        "heart_failure": "I50.9", "copd": "J44.9", "cancer": "C34.90", "dementia": "F03.90",
        "atrial_fibrillation": "I48.91", "diabetes": "E11.9",
    }  # fmt: skip
    last = {  # noqa: RUF012
        "haemoglobin": "718-7", "sodium": "2951-2", "creatinine": "2160-0", "bnp": "33762-6",
        "albumin": "1751-7",
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        export: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for path in folder.glob("*.ndjson"):
            for line in path.read_bytes().splitlines():
                resource = json.loads(line)
                export[resource["resourceType"]].append(resource)
        self.stays = {e["id"]: e for e in export["Encounter"]}
        self.births = {
            p["id"]: utc_seconds(datetime.fromisoformat(p["birthDate"])) + DAY // 2
            for p in export["Patient"]
        }
        self.by_patient: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for kind, resources in export.items():
            for resource in resources:
                if "subject" in resource:
                    self.by_patient[resource["subject"]["reference"][8:]][kind].append(resource)
        self.wards = {r["id"]: r["type"][0]["coding"][0]["code"] for r in export["Location"]}

    def covariates(self, encounter_id: str) -> dict[str, Any]:
        stay = self.stays[encounter_id]
        patient = stay["subject"]["reference"][8:]
        mine = self.by_patient[patient]
        admitted, now = seconds(stay["period"]["start"]), seconds(stay["period"]["end"])
        listed = {
            c["code"]["coding"][0]["code"]
            for c in mine["Condition"]
            if "recordedDate" in c and seconds(c["recordedDate"]) <= now
        }
        results = defaultdict(list)
        for o in mine["Observation"]:
            known = seconds(o.get("issued", o["effectiveDateTime"]))
            if known <= now and "valueQuantity" in o:
                code = o["code"]["coding"][0]["code"]
                hours_ago = (now - seconds(o["effectiveDateTime"])) / HOUR
                results[code].append((known, hours_ago, o["valueQuantity"]["value"]))
        given = defaultdict(list)
        for a in mine["MedicationAdministration"]:
            hours_ago = (now - seconds(a["effectiveDateTime"])) / HOUR
            if hours_ago >= 0:
                code = a["medicationCodeableConcept"]["coding"][0]["code"]
                given[code].append(hours_ago)
        before = [e for e in mine["Encounter"] if seconds(e["period"]["start"]) < now]
        left_icu = [
            (now - seconds(place["period"]["end"])) / HOUR
            for e in before
            for place in e["location"]
            if self.wards[place["location"]["reference"][9:]] == "ICU"
        ]
        facts: dict[str, Any] = {
            name: float(code in listed) for name, code in self.conditions.items()
        }
        facts |= {
            name: max(results[code])[2] if results[code] else None
            for name, code in self.last.items()
        }
        ended = [
            (now - seconds(e["period"]["end"])) / DAY
            for e in before
            if e["class"]["code"] == "IMP" and e["id"] != encounter_id
        ]
        arrived = [
            (now - seconds(e["period"]["start"])) / DAY
            for e in before
            if e["class"]["code"] == "EMER"
        ]
        return facts | {
            "age_years": (now - self.births[patient]) / YEAR,
            "ckd_grade": max(
                [g for g, c in ((1, "N18.30"), (2, "N18.4"), (3, "N18.5")) if c in listed],
                default=0,
            ),
            "prior_stays": float(np.exp(-np.array(ended) / 90.0).sum()),
            "ed_visits": float(np.exp(-np.array(arrived) / 30.0).sum()),
            "creatinine_slope": ridge_slope(results["2160-0"]),
            "weight_slope": ridge_slope(results["29463-7"]),
            "furosemide": float(np.exp(-np.array(given["4603"]) / 36.0).sum()),
            "opioids": float(np.exp(-np.array(given["7052"] + given["7804"]) / 24.0).sum()),
            "antibiotics": float(np.exp(-np.array(given["2193"] + given["11124"]) / 24.0).sum()),
            "intensive_care": math.exp(-min(left_icu) / 72.0) if left_icu else 0.0,
            "elective": float(stay["priority"]["coding"][0]["code"] == "EL"),
            "stay_hours": (now - admitted) / HOUR,
        }

    def stay_facts(self, encounter_id: str) -> dict[str, Any]:
        """Facts 24 hours after the admission."""
        stay = self.stays[encounter_id]
        patient = stay["subject"]["reference"][8:]
        mine = self.by_patient[patient]
        now = seconds(stay["period"]["start"]) + DAY
        listed = {
            c["code"]["coding"][0]["code"]
            for c in mine["Condition"]
            if "recordedDate" in c and seconds(c["recordedDate"]) <= now
        }
        results = defaultdict(list)
        for o in mine["Observation"]:
            known = seconds(o.get("issued", o["effectiveDateTime"]))
            here = o["encounter"]["reference"] == f"Encounter/{encounter_id}"
            if known <= now and here and "valueQuantity" in o:
                results[o["code"]["coding"][0]["code"]].append(
                    (known, seconds(o["effectiveDateTime"]), o["valueQuantity"]["value"])
                )
        exposure: dict[str, float] = defaultdict(float)
        for a in mine["MedicationAdministration"]:
            hours_ago = (now - seconds(a["effectiveDateTime"])) / HOUR
            code = a["medicationCodeableConcept"]["coding"][0]["code"]
            if hours_ago >= 0:
                exposure[code] += math.exp(-hours_ago / (36.0 if code == "4603" else 24.0))
        measured = self.last | {
            "crp": "1988-5", "lactate": "2524-7", "heart_rate": "8867-4",
            "respiratory_rate": "9279-1", "oxygen_saturation": "59408-5",
        }  # fmt: skip
        del measured["bnp"]
        return {
            "age_years": (now - self.births[patient]) / YEAR,
            "elective": float(stay["priority"]["coding"][0]["code"] == "EL"),
            "intensive_care": float(
                any(
                    seconds(place["period"]["start"]) <= now < seconds(place["period"]["end"])
                    if "end" in place["period"]
                    else seconds(place["period"]["start"]) <= now
                    for place in stay["location"]
                    if self.wards[place["location"]["reference"][9:]] == "ICU"
                )
            ),
            "furosemide": exposure["4603"],
            "opioids": exposure["7052"] + exposure["7804"],
            "antibiotics": exposure["2193"] + exposure["11124"],
            **{
                name: float(self.conditions[name] in listed)
                for name in ("heart_failure", "copd", "cancer", "dementia")
            },
            **{
                name: max(results[code])[2] if results[code] else None
                for name, code in measured.items()
            },
        }


def ridge_slope(results: list[tuple[int, float, float]]) -> float:
    """Weighted straight line with a ridge of a quarter day squared, by the normal equations."""
    if not results:
        return 0.0
    _, hours_ago, value = np.array(results, float).T
    weight = np.exp(-hours_ago / 60.0)
    if weight.sum() < 1e-12:
        return 0.0
    weight /= weight.sum()
    design = np.stack([np.ones_like(value), -hours_ago / 24.0], axis=1)
    design[:, 1] -= weight @ design[:, 1]
    normal = design.T @ (weight[:, None] * design) + np.diag([0.0, 0.25])
    return float(np.linalg.solve(normal, design.T @ (weight * value))[1])


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def utc_seconds(naive: datetime) -> int:
    return int(naive.replace(tzinfo=UTC).timestamp())
