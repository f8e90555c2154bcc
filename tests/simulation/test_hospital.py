"""The simulated hospital: a valid export, a truth that agrees with it, nothing from later."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tsfm.errors import InputError
from tsfm.simulation import hazards
from tsfm.simulation.chart import DAY, HOUR, YEAR, Chart, Encounter, Measurement
from tsfm.simulation.fhir_export import FhirWriter
from tsfm.simulation.hospital import (
    EXPORT_TIME,
    ZONE,
    HospitalSummary,
    simulate_hospital,
)
from tsfm.simulation.truth_tables import STAY_TRUTH, TRUTH

EXPORT = int(EXPORT_TIME.timestamp())


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> HospitalSummary:
    return simulate_hospital(
        tmp_path_factory.mktemp("hospital"), n_patients=150, waveform_fraction=0.02
    )


@pytest.fixture(scope="module")
def export(hospital: HospitalSummary) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(hospital.fhir_dir.glob("*.ndjson")):
        for line in path.read_bytes().splitlines():
            resource = json.loads(line)
            found[resource["resourceType"]].append(resource)
    return found


@pytest.fixture(scope="module")
def truth(hospital: HospitalSummary) -> list[dict[str, Any]]:
    table = pq.read_table(hospital.truth_path)
    assert table.schema.equals(TRUTH)
    return table.to_pylist()


def test_outcomes_are_what_the_export_shows(
    export: dict[str, list[dict[str, Any]]], truth: list[dict[str, Any]]
) -> None:
    deaths = {p["id"]: seconds(p["deceasedDateTime"]) for p in export["Patient"]
              if "deceasedDateTime" in p}  # fmt: skip
    admissions: dict[str, list[int]] = defaultdict(list)
    for encounter in export["Encounter"]:
        if encounter["class"]["code"] == "IMP":
            admissions[encounter["subject"]["reference"][8:]].append(
                seconds(encounter["period"]["start"])
            )
    assert {row["outcome"] for row in truth} >= {"readmission", "none"}
    for row in truth:
        patient, left = row["patient_id"], utc_seconds(row["discharge_time"])
        next_stay = min((t for t in admissions[patient] if t > left), default=math.inf)
        died = deaths.get(patient, math.inf)
        horizon = left + 30 * DAY
        if next_stay <= horizon:
            expected, at = "readmission", next_stay
        elif died <= horizon:
            expected, at = "death", died
        elif horizon <= EXPORT:
            expected, at = "none", horizon
        else:
            expected, at = "censored", EXPORT
        assert row["outcome"] == expected
        assert row["outcome_days"] == pytest.approx((at - left) / DAY)


def test_truth_holds_exactly_the_index_discharges(
    export: dict[str, list[dict[str, Any]]], truth: list[dict[str, Any]]
) -> None:
    expected = {}
    for encounter in export["Encounter"]:
        if encounter["class"]["code"] == "IMP" and "end" in encounter["period"]:
            left_to = encounter["hospitalization"]["dischargeDisposition"]["coding"][0]["code"]
            if left_to not in ("exp", "hosp", "aadvice", "ACUTE HOSPITAL"):
                expected[encounter["id"]] = seconds(encounter["period"]["end"])
    assert {row["encounter_id"]: utc_seconds(row["discharge_time"]) for row in truth} == expected


def test_stay_truth_holds_exactly_the_stays_of_a_day_and_what_became_of_them(
    export: dict[str, list[dict[str, Any]]], hospital: HospitalSummary
) -> None:
    table = pq.read_table(hospital.stay_truth_path)
    assert table.schema.equals(STAY_TRUTH)
    expected = {}
    for encounter in export["Encounter"]:
        asked = seconds(encounter["period"]["start"]) + DAY
        end = encounter["period"].get("end")
        if encounter["class"]["code"] != "IMP" or asked > EXPORT:
            continue
        if end is None:
            expected[encounter["id"]] = asked, "censored", (EXPORT - asked) / DAY
        elif seconds(end) > asked:
            left_to = encounter["hospitalization"]["dischargeDisposition"]["coding"][0]["code"]
            outcome = "death" if left_to == "exp" else "discharge"
            expected[encounter["id"]] = asked, outcome, (seconds(end) - asked) / DAY
    found = {
        row["encounter_id"]: (
            utc_seconds(row["prediction_time"]), row["outcome"], row["outcome_days"]
        )
        for row in table.to_pylist()
    }  # fmt: skip
    assert found == expected
    assert {outcome for _, outcome, _ in found.values()} >= {"death", "discharge"}


def test_terms_sum_to_the_score_behind_the_probability(
    hospital: HospitalSummary, truth: list[dict[str, Any]]
) -> None:
    terms = pq.read_table(hospital.terms_path).to_pylist()
    for row, parts in zip(truth[:50], terms[:50], strict=True):
        assert parts.pop("encounter_id") == row["encounter_id"]
        score = sum(v for v in parts.values() if isinstance(v, float))
        alone = hazards.cumulative_incidence(*hazards.hazards_per_day(score, -50.0))[0]
        # Without competing deaths a readmission is likelier, by at most the chance of a death.
        assert 0.0 <= alone - row["p_readmission_30d"] <= row["p_death_30d"]


def test_manifest_counts_every_line(hospital: HospitalSummary) -> None:
    manifest = json.loads((hospital.fhir_dir / "manifest.json").read_text())
    counts: Counter[str] = Counter()
    for entry in manifest["output"]:
        path = hospital.fhir_dir / entry["url"].rpartition("/")[2]
        lines = path.read_bytes().splitlines()
        assert len(lines) == entry["count"]
        assert {json.loads(line)["resourceType"] for line in lines} == {entry["type"]}
        counts[entry["type"]] += entry["count"]
    assert counts == hospital.n_resources
    assert len(manifest["output"]) == len(list(hospital.fhir_dir.glob("*.ndjson")))
    assert seconds(manifest["transactionTime"]) == EXPORT
    assert manifest["error"] == []


def test_a_sample_of_every_type_is_valid_r4(export: dict[str, list[dict[str, Any]]]) -> None:
    from fhir.resources.R4B import get_fhir_model_class

    assert len(export) == 9
    for kind, resources in export.items():
        model = get_fhir_model_class(kind)
        shapes: dict[Any, dict[str, Any]] = {}
        for resource in resources:  # one of every shape and code, not the same thing many times
            shapes.setdefault((*resource, str(resource.get("code")), str(resource.get("class"))),
                              resource)  # fmt: skip
        for resource in [*shapes.values(), *resources[:: max(1, len(resources) // 50)]]:
            model.model_validate(resource)


def test_ids_are_unique_and_references_resolve(export: dict[str, list[dict[str, Any]]]) -> None:
    known = set()
    for kind, resources in export.items():
        ids = {r["id"] for r in resources}
        assert len(ids) == len(resources)
        known |= {f"{kind}/{i}" for i in ids}
    for resources in export.values():
        for resource in resources:
            for name in ("subject", "encounter", "context", "serviceProvider"):
                if name in resource:
                    assert resource[name]["reference"] in known


def test_nothing_later_than_the_export_and_every_offset_is_the_zones(
    export: dict[str, list[dict[str, Any]]],
) -> None:
    offsets = set()
    for resources in export.values():
        for text in stamps_of(resources):
            moment = datetime.fromisoformat(text)
            assert moment.timestamp() <= EXPORT
            assert moment.astimezone(ZONE).utcoffset() == moment.utcoffset()
            offsets.add(text[-6:])
    assert offsets == {"-04:00", "-05:00"}


def test_the_hour_that_repeats_in_autumn_keeps_its_two_offsets(tmp_path: Path) -> None:
    first = int(datetime(2024, 11, 3, 5, 30, tzinfo=UTC).timestamp())
    chart = Chart("sim-x", True, first - int(70 * YEAR), 0, False)
    chart.encounters.append(Encounter(0, "AMB", first - HOUR, first + 2 * HOUR))
    chart.measurements["heart_rate"] = [
        Measurement("heart_rate", first + k * HOUR, first + k * HOUR, 70.0, 0.0, 0)
        for k in range(2)
    ]
    with FhirWriter(tmp_path, export=EXPORT, zone=ZONE) as writer:
        writer.add(chart)
        writer.finish()
    lines = (tmp_path / "Observation.000.ndjson").read_text().splitlines()
    assert [json.loads(line)["effectiveDateTime"] for line in lines] == [
        "2024-11-03T01:30:00-04:00",
        "2024-11-03T01:30:00-05:00",
    ]


def test_results_are_released_later_and_billing_codes_have_no_date(
    export: dict[str, list[dict[str, Any]]],
) -> None:
    for resource in export["Observation"]:
        if resource["category"][0]["coding"][0]["code"] == "laboratory":
            lag = seconds(resource["issued"]) - seconds(resource["effectiveDateTime"])
            assert 30 * 60 <= lag <= 120 * 60
        else:
            assert "issued" not in resource
    kinds = Counter()
    ends = {e["id"]: e["period"].get("end") for e in export["Encounter"]}
    for resource in export["Condition"]:
        kind = resource["category"][0]["coding"][0]["code"]
        kinds[kind] += 1
        assert ("recordedDate" in resource) == (kind == "problem-list-item")
        if kind == "encounter-diagnosis":
            left = ends[resource["encounter"]["reference"][10:]]
            assert left is not None
            assert seconds(left) + 5 * DAY <= EXPORT
    assert min(kinds["problem-list-item"], kinds["encounter-diagnosis"]) > 100


def test_encounters_of_a_patient_follow_one_another(
    export: dict[str, list[dict[str, Any]]],
) -> None:
    visits = defaultdict(list)
    for encounter in export["Encounter"]:
        visits[encounter["subject"]["reference"]].append(encounter)
    assert {e["class"]["code"] for e in export["Encounter"]} == {"IMP", "EMER", "AMB"}
    for encounters in visits.values():
        assert [e["status"] for e in encounters[:-1]] == ["finished"] * (len(encounters) - 1)
        times = [
            seconds(e["period"][edge])
            for e in encounters
            for edge in ("start", "end")
            if edge in e["period"]
        ]
        assert times == sorted(times)


def test_records_lie_within_their_stay_at_their_own_rates(
    hospital: HospitalSummary, export: dict[str, list[dict[str, Any]]]
) -> None:
    import wfdb

    stays = {e["id"]: e for e in export["Encounter"]}

    assert hospital.records_path is not None
    with hospital.records_path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == hospital.n_records > 0
    for row in rows[:3]:
        stay = stays[row["encounter"]]
        start = seconds(row["start_time"])
        assert stay["class"]["code"] == "IMP"
        assert stay["subject"]["reference"] == f"Patient/{row['subject']}"
        assert seconds(stay["period"]["start"]) <= start
        assert start + 30 <= (seconds(stay["period"]["end"]) if "end" in stay["period"] else EXPORT)
        record = wfdb.rdrecord(
            str(hospital.records_path.parent / row["record"]), smooth_frames=False
        )
        assert isinstance(record, wfdb.Record)
        assert record.e_p_signal is not None
        assert record.base_datetime is not None
        assert record.sig_name == ["II", "V5", "PLETH"]
        assert [len(s) for s in record.e_p_signal] == [7500, 7500, 3750]
        assert record.base_datetime.replace(tzinfo=ZONE) == datetime.fromtimestamp(start, ZONE)
        # Right on a clock that drops offsets, too.
        assert datetime.fromisoformat(row["start_time"]).replace(tzinfo=None) == (
            record.base_datetime
        )


def test_a_patient_depends_on_neither_the_others_nor_the_records(
    hospital: HospitalSummary, tmp_path: Path
) -> None:
    other = simulate_hospital(tmp_path, n_patients=20, waveform_fraction=0.0)
    assert other.records_path is None
    few = (other.fhir_dir / "Observation.000.ndjson").read_bytes()
    many = (hospital.fhir_dir / "Observation.000.ndjson").read_bytes()
    assert few == many[: len(few)]


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_where_wanted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], shown: bool
) -> None:
    simulate_hospital(tmp_path, n_patients=2, progress=shown)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("2/2" in err) == shown


def test_an_export_is_not_written_over(tmp_path: Path) -> None:
    simulate_hospital(tmp_path, n_patients=1)
    with pytest.raises(InputError, match="output_exists"):
        simulate_hospital(tmp_path, n_patients=1)


@pytest.mark.parametrize("part", ["wfdb/records.csv", "truth.parquet", "truth_claims.parquet"])
def test_no_hospital_is_mixed_into_another(tmp_path: Path, part: str) -> None:
    (tmp_path / part).parent.mkdir(exist_ok=True)
    (tmp_path / part).touch()
    with pytest.raises(InputError, match="output_exists"):
        simulate_hospital(tmp_path, n_patients=1)
    assert not (tmp_path / "fhir").exists()


@pytest.mark.parametrize(
    "bad", [{"n_patients": 0}, {"seed": -1}, {"waveform_fraction": 1.5}], ids=str
)
def test_bad_arguments_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="bad_simulation"):
        simulate_hospital(tmp_path, **{"n_patients": 1, **bad})


def stamps_of(value: Any) -> list[str]:
    """Every string with an hour, wherever it stands."""
    if isinstance(value, dict):
        return [s for v in value.values() for s in stamps_of(v)]
    if isinstance(value, list):
        return [s for v in value for s in stamps_of(v)]
    is_stamp = isinstance(value, str) and len(value) > 18 and value[4:5] == "-" and value[10] == "T"
    return [value] if is_stamp else []


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def utc_seconds(naive: datetime) -> int:
    return int(naive.replace(tzinfo=UTC).timestamp())
