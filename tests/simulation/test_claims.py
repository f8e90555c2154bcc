"""Simulated claims: valid resources, nothing else changed, and a truth that agrees with them."""

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

from tsfm.simulation.chart import DAY, HOUR, STAY, YEAR, Chart, Encounter, Entry
from tsfm.simulation.claims import (
    CLAIM_TRUTH,
    PAYERS,
    Claim,
    claim_resources,
    claim_truth,
    denial_terms,
    simulate_claims,
)
from tsfm.simulation.hospital import EXPORT_TIME, HospitalSummary, simulate_hospital

EXPORT = int(EXPORT_TIME.timestamp())
T0 = int(datetime(2022, 5, 1, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> HospitalSummary:
    folder = tmp_path_factory.mktemp("hospital")
    return simulate_hospital(folder, n_patients=120, waveform_fraction=0.0, claims=True)


@pytest.fixture(scope="module")
def export(hospital: HospitalSummary) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(hospital.fhir_dir.glob("*.ndjson")):
        found[path.name.partition(".")[0]] += map(json.loads, path.read_bytes().splitlines())
    return found


@pytest.fixture(scope="module")
def truth(hospital: HospitalSummary) -> list[dict[str, Any]]:
    assert hospital.claims_path is not None
    table = pq.read_table(hospital.claims_path)
    assert table.schema.equals(CLAIM_TRUTH)
    return table.to_pylist()


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def chart_of(stay_hours: float, *, elective: bool = False, operated: bool = True) -> Chart:
    chart = Chart("sim-x", True, T0 - int(70 * YEAR), 0, False)
    end = T0 + int(stay_hours * HOUR)
    chart.encounters.append(Encounter(0, STAY, T0, end, elective=elective, disposition="home"))
    if operated:
        chart.procedures.append(Entry("cholecystectomy", T0 + HOUR, 0))
    return chart


def test_all_that_is_no_claim_is_the_same_with_and_without(
    hospital: HospitalSummary, tmp_path: Path
) -> None:
    plain = simulate_hospital(tmp_path, n_patients=120, waveform_fraction=0.0)
    assert plain.claims_path is None
    names = {p.name for p in plain.fhir_dir.glob("*.ndjson")}
    assert {p.name for p in hospital.fhir_dir.glob("*.ndjson")} - names == {
        "Claim.000.ndjson",
        "ClaimResponse.000.ndjson",
    }
    for name in names:
        assert (plain.fhir_dir / name).read_bytes() == (hospital.fhir_dir / name).read_bytes()
    assert plain.truth_path.read_bytes() == hospital.truth_path.read_bytes()


def test_claims_and_answers_are_valid_r4(export: dict[str, list[dict[str, Any]]]) -> None:
    from fhir.resources.R4B import get_fhir_model_class

    for kind in ("Claim", "ClaimResponse"):
        assert len(export[kind]) > 100
        for resource in export[kind][:150]:
            get_fhir_model_class(kind).model_validate(resource)


def test_references_resolve_and_nothing_is_later_than_the_export(
    export: dict[str, list[dict[str, Any]]],
) -> None:
    stays = {e["id"]: e for e in export["Encounter"]}
    claims = {c["id"]: c for c in export["Claim"]}
    assert len(claims) == len(export["Claim"])
    for row in claims.values():
        stay = stays[row["item"][0]["encounter"][0]["reference"][10:]]
        assert stay["subject"] == row["patient"]
        assert seconds(stay["period"]["end"]) + 5 * DAY <= seconds(row["created"]) <= EXPORT
    for row in export["ClaimResponse"]:
        asked = claims[row["request"]["reference"][6:]]
        assert seconds(asked["created"]) < seconds(row["created"]) <= EXPORT


def test_the_truth_is_what_the_answers_say(
    export: dict[str, list[dict[str, Any]]], truth: list[dict[str, Any]]
) -> None:
    answers = defaultdict(list)
    for row in export["ClaimResponse"]:
        answers[row["request"]["reference"][6:]].append((seconds(row["created"]), row))
    assert {row["claim_id"] for row in truth} == {row["id"] for row in export["Claim"]}
    for row in truth:
        told = [r["disposition"] for _, r in sorted(answers[row["claim_id"]], key=lambda x: x[0])]
        if told:
            assert (told[0] == "Claim denied") == row["denied_first"]
        if row["answered"]:
            assert (told[-1] == "Claim denied") == row["denied"]
    assert {row["answered"] for row in truth} == {True, False}
    assert any(row["denied_first"] and not row["denied"] for row in truth)


def test_the_true_probability_follows_from_what_stands_on_the_claim(
    export: dict[str, list[dict[str, Any]]], truth: list[dict[str, Any]]
) -> None:
    stays = {e["id"]: e for e in export["Encounter"]}
    operated = {p["encounter"]["reference"][10:] for p in export["Procedure"]}
    probability = {row["claim_id"]: row["p_denied_first"] for row in truth}
    for row in export["Claim"]:
        name = row["item"][0]["encounter"][0]["reference"][10:]
        stay = stays[name]
        kinds = {i["category"]["coding"][0]["code"] for i in row.get("supportingInfo", ())}
        hours = (seconds(stay["period"]["end"]) - seconds(stay["period"]["start"])) / HOUR
        planned = stay["priority"]["coding"][0]["code"] == "EL"
        terms = denial_terms(
            row["insurer"]["display"],
            hours,
            no_summary="discharge" not in kinds,
            no_note=name in operated and "attachment" not in kinds,
            no_preauthorization=planned and "preAuthRef" not in row["insurance"][0],
        )
        expected = 1 / (1 + math.exp(-sum(terms.values())))
        assert probability[row["id"]] == pytest.approx(expected)


def test_denials_come_as_often_as_they_are_likely() -> None:
    claims: list[Claim] = []
    for n in range(4000):
        chart = chart_of(12 + n % 300, elective=n % 2 == 0, operated=n % 3 == 0)
        claims += simulate_claims(np.random.default_rng([5, n]), chart)
    p = np.array([c.p_denied_first for c in claims])
    denied = np.array([c.denied_first for c in claims])
    assert p.max() / p.min() > 5
    for group in (p < np.median(p), p >= np.median(p)):
        sd = math.sqrt((p[group] * (1 - p[group])).sum()) / group.sum()
        assert abs(denied[group].mean() - p[group].mean()) < 4 * sd
    rows = claim_truth(claims[:1], chart_of(50), export=EXPORT)
    assert rows[0]["p_denied"] == pytest.approx(0.7 * rows[0]["p_denied_first"])
    overturned = [c.overturned for c in claims if c.denied_first]
    assert abs(np.mean(overturned) - 0.3) < 4 * math.sqrt(0.21 / len(overturned))


def test_what_is_missing_and_who_pays_raise_the_odds() -> None:
    complete = dict.fromkeys(("no_summary", "no_note", "no_preauthorization"), False)

    def score(payer: str = "Medicare", hours: float = 96.0) -> float:
        return sum(denial_terms(payer, hours, **complete).values())

    plain = score()
    for name in complete:
        assert sum(denial_terms("Medicare", 96.0, **{**complete, name: True}).values()) > plain
    assert score(hours=20) > plain
    assert score(hours=400) > plain
    assert len({score(payer) for payer in PAYERS}) == len(PAYERS)


def test_a_stay_that_lasts_is_not_billed_and_a_late_claim_not_exported() -> None:
    chart = chart_of(50)
    claims = simulate_claims(np.random.default_rng(0), chart)
    assert len(claims) == 1
    before = {"export": claims[0].submitted - 1}
    assert claim_resources(claims, chart, stamp=str, **before) == {"Claim": [], "ClaimResponse": []}
    assert claim_truth(claims, chart, **before) == []
    waiting = claim_resources(claims, chart, export=claims[0].submitted, stamp=str)
    assert (len(waiting["Claim"]), len(waiting["ClaimResponse"])) == (1, 0)
    chart.encounters[0].end = None
    assert simulate_claims(np.random.default_rng(0), chart) == []
