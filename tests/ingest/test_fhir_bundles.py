"""What a source says it has deleted: dropped and counted, unless it was made anew."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import event_table
from tsfm.ingest.fhir_fields import stable_id
from tsfm.ingest.fhir_ndjson import ingest_fhir
from tsfm.ingest.provenance import IngestSummary

from .fhir_rows import (
    OF_PATIENT,
    OF_STAY,
    PATIENT,
    STAY,
    concept,
    day,
    is_balanced,
    make,
    observation,
)

EARLY, MIDDLE, LATE = "2020-02-01T00:00:00Z", "2020-03-01T00:00:00Z", "2020-04-01T00:00:00+02:00"
LAB = observation(valueInteger=5)
THE_LAB = "Observation/observation"


def deleted(*urls: str, type: str = "transaction", **fields: Any) -> dict[str, Any]:
    """A Bundle that says that resources are deleted."""
    entries = [{"request": {"method": "DELETE", "url": url}} for url in urls]
    return {"resourceType": "Bundle", "type": type, "entry": entries, **fields}


def manifest(time: str) -> dict[str, Any]:
    """A bulk export's manifest."""
    return {"transactionTime": time, "request": "x", "output": [], "deleted": [{"url": "d"}]}


def at(time: str, row: dict[str, Any]) -> dict[str, Any]:
    """A resource as it was last updated at a time."""
    return {**row, "meta": {"lastUpdated": time}}


def ingest_files(
    tmp_path: Path, files: dict[str, list[dict[str, Any]]]
) -> tuple[IngestSummary, pl.DataFrame]:
    """Ingest files by their names."""
    for name, rows in files.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    summary = ingest_fhir(tmp_path / "src", out, max_quarantined=1.0, n_shards=1, progress=False)
    return summary, pl.concat(list(event_table.scan_events(out)))


def test_a_deletion_of_a_bulk_export_is_applied(tmp_path: Path) -> None:
    second = {**STAY, "id": "f", "period": {"start": "2020-01-10", "end": "2020-01-12"}}
    base: dict[str, list[dict[str, Any]]] = {"base/all.ndjson": [PATIENT, STAY, second, LAB]}
    summary, frame = ingest_files(
        tmp_path,
        base
        | {"more/manifest.json": [manifest(MIDDLE)]}
        | {"more/deleted/Bundle.ndjson": [deleted("Encounter/f")]},
    )
    assert summary.quarantined == {"deleted_in_source": 1}
    assert summary.rows_used == {"Patient": 1, "Encounter": 1, "Observation": 1, "Bundle": 1}
    assert set(frame["encounter_id"].drop_nulls()) == {stable_id("e")}
    assert is_balanced(summary)
    place = json.loads((tmp_path / "out/quarantine/deleted_in_source.ndjson").read_text())
    assert (place["file"], place["line"], place["kind"]) == ("base/all.ndjson", 3, "Encounter")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("type", ["transaction", "batch", "history", "collection"])
@pytest.mark.parametrize("url", [THE_LAB, f"https://x.example/{THE_LAB}"])
def test_it_counts_in_any_bundle_in_any_order(
    ingest_rows, first: bool, type: str, url: str
) -> None:
    wrapped = {"resourceType": "Bundle", "entry": [{"resource": deleted(url, type=type)}]}
    rows = [wrapped, PATIENT, STAY, LAB] if first else [PATIENT, STAY, LAB, wrapped]
    summary, _, frame = ingest_rows(*rows)
    assert summary.quarantined == {"deleted_in_source": 1}
    assert not frame["code"].str.starts_with("LAB").any()
    assert is_balanced(summary)


def test_with_a_patient_goes_all_that_refers_to_them(ingest_rows, tmp_path: Path) -> None:
    other = {**PATIENT, "id": "q"}
    summary, _, frame = ingest_rows(PATIENT, other, STAY, LAB, deleted("Patient/p"))
    assert summary.quarantined == {"deleted_in_source": 1, "deleted_patient": 2}
    assert set(frame["subject_id"]) == {stable_id("q")}
    assert event_table.subject_ids(tmp_path / "out") == {stable_id("q"): "q"}
    assert is_balanced(summary)


@pytest.mark.parametrize("is_deleted", [True, False])
def test_what_refers_to_something_deleted_does_so_in_vain(ingest_rows, is_deleted: bool) -> None:
    pill = make("Medication", id="m", code=concept("http://x", "1", "Aspirin"))
    ward = make("Location", id="w", name="Ward 7")
    of_pill = {"medicationReference": {"reference": "Medication/m"}, **OF_STAY}
    order = make("MedicationRequest", id="r", authoredOn="2020-01-02T10:00:00Z", **of_pill)
    ordered = {"authorizingPrescription": [{"reference": "MedicationRequest/r"}]}
    dispense = make("MedicationDispense", **ordered, **OF_STAY)
    place = {"location": {"reference": "Location/w"}, "period": {"start": "2020-01-02T10:00:00Z"}}
    stay = {**STAY, "location": [place]}
    of_tube = {"specimen": {"reference": "Specimen/s"}, "effectiveDateTime": None}
    taken = {"collection": {"collectedDateTime": "2020-01-02T07:00:00Z"}, **OF_PATIENT}
    tube = make("Specimen", id="s", **taken)
    rows = [PATIENT, stay, pill, ward, order, dispense, tube, {**LAB, **of_tube}]
    gone = ["Medication/m", "Location/w", "MedicationRequest/r", "Specimen/s"]
    summary, _, frame = ingest_rows(*rows, *([deleted(*gone)] if is_deleted else []))
    found = {word: frame["code"].str.contains(word).any() for word in ("Aspirin", "Ward 7", "LAB")}
    assert set(found.values()) == {not is_deleted}
    assert ("deleted_in_source" in summary.quarantined) == is_deleted
    assert is_balanced(summary)


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_deleted_stay_holds_no_part_and_no_death(ingest_rows, is_deleted: bool) -> None:
    period = {"start": "2020-01-01T10:00:00Z", "end": "2020-01-04T12:00:00Z"}
    part = {**STAY, "id": "f", "partOf": {"reference": "Encounter/e"}, "period": period}
    died = {"hospitalization": {"dischargeDisposition": concept("x", "exp")}}
    patient = {**PATIENT, "deceasedDateTime": "2020-01-05"}
    rows = [patient, {**STAY, **died}, part, *([deleted("Encounter/e")] if is_deleted else [])]
    _, events, frame = ingest_rows(*rows)
    admitted = frame.filter(frame["code"].str.starts_with("HOSPITAL_ADMISSION"))
    assert admitted["encounter_id"].to_list() == [stable_id("f" if is_deleted else "e")]
    of_the_stay, end_of_day = day("2020-01-05T12:00:00"), day("2020-01-05T23:59:59.999999")
    assert events["MEDS_DEATH"]["time"] == (end_of_day if is_deleted else of_the_stay)
    assert ("HOSPITAL_DISCHARGE//DIED" in events) != is_deleted


_TIMES: list[tuple[dict[str, Any], str | None]] = [
    ({"meta": {"lastUpdated": MIDDLE}}, None),
    ({"timestamp": MIDDLE}, None),
    ({"meta": {"versionId": "1"}, "timestamp": MIDDLE}, EARLY),
    ({"meta": {"lastUpdated": MIDDLE}, "timestamp": LATE}, LATE),
    ({}, MIDDLE),
]


@pytest.mark.parametrize(("told", "taken"), _TIMES)
@pytest.mark.parametrize("newer", [True, False])
def test_a_copy_that_is_newer_than_the_deletion_is_kept(
    ingest_rows, told: dict[str, Any], taken: str | None, newer: bool
) -> None:
    lab = at(LATE if newer else EARLY, LAB)
    manifests = [manifest(taken)] if taken else []
    summary, _, frame = ingest_rows(PATIENT, STAY, lab, deleted(THE_LAB, **told), *manifests)
    assert summary.quarantined == ({} if newer else {"deleted_in_source": 1})
    assert frame["code"].str.starts_with("LAB").any() == newer
    assert newer == any("1 resources are newer than their deletion" in n for n in summary.notes)
    assert is_balanced(summary)


@pytest.mark.parametrize("row", [LAB, at("soon", LAB), at(MIDDLE, LAB)])
@pytest.mark.parametrize("told", [{}, {"timestamp": MIDDLE}])
def test_where_no_time_tells_the_deletion_counts(ingest_rows, row: Any, told: Any) -> None:
    summary, _, _ = ingest_rows(PATIENT, STAY, row, deleted(THE_LAB, **told))
    assert summary.quarantined == {"deleted_in_source": 1}


def test_a_history_tells_when_each_was_deleted(ingest_rows) -> None:
    history = deleted(THE_LAB, type="history", meta={"lastUpdated": LATE})
    history["entry"][0]["response"] = {"lastModified": EARLY}
    history["entry"].insert(0, {"resource": at(MIDDLE, LAB)})
    summary, _, _ = ingest_rows(PATIENT, STAY, history)
    assert summary.quarantined == {}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_copies_the_newest_decides(ingest_rows, order: tuple[int, ...]) -> None:
    copies = [at(EARLY, LAB), at(MIDDLE, LAB), at(LATE, {**LAB, "valueInteger": 7})]
    gone = deleted(THE_LAB, timestamp=MIDDLE)
    summary, _, frame = ingest_rows(PATIENT, STAY, gone, *(copies[n] for n in order))
    assert summary.quarantined == {"duplicate_resource": 2}
    assert frame["numeric_value"].drop_nulls().to_list() == [7.0]


def test_all_copies_of_what_was_deleted_go(ingest_rows) -> None:
    rows = [PATIENT, STAY, at(EARLY, LAB), LAB, at(MIDDLE, LAB), deleted(THE_LAB)]
    summary, _, _ = ingest_rows(*rows)
    assert summary.quarantined == {"deleted_in_source": 3}


def test_both_versions_of_a_changed_result_go(ingest_rows) -> None:
    first = at(EARLY, {**LAB, "issued": EARLY})
    changed = at(MIDDLE, {**LAB, "issued": EARLY, "status": "amended", "valueInteger": 9})
    summary, _, _ = ingest_rows(PATIENT, STAY, first, changed, deleted(THE_LAB))
    assert summary.quarantined == {"deleted_in_source": 2}


def test_a_bundle_without_a_time_is_as_old_as_the_nearest_manifest(tmp_path: Path) -> None:
    summary, _ = ingest_files(
        tmp_path,
        {
            "base/all.ndjson": [PATIENT, STAY],
            "1/manifest.json": [manifest(EARLY)],
            "1/deleted/Bundle.ndjson": [deleted(THE_LAB)],
            "2/manifest.json": [manifest(LATE)],
            "2/Observation.ndjson": [at(MIDDLE, LAB)],
        },
    )
    assert summary.quarantined == {}
    assert summary.rows_used["Observation"] == 1


@pytest.mark.parametrize(
    "url", ["Observation?status=final", "Observation", "", "Patient/p/_history/2", "urn:uuid:p"]
)
def test_a_deletion_that_names_no_resource_is_told(ingest_rows, url: str) -> None:
    summary, _, _ = ingest_rows(PATIENT, STAY, LAB, deleted(url))
    assert summary.quarantined == {}
    assert any("1 deletions name no resource by its id" in note for note in summary.notes)


def test_deletions_of_what_is_not_there_do_nothing(ingest_rows) -> None:
    summary, _, _ = ingest_rows(PATIENT, STAY, deleted("Patient/z", "Organization/1", "Claim/e"))
    assert summary.quarantined == {}
    assert summary.exit_code == 0


def test_a_deleted_resource_that_can_not_be_read_is_deleted_all_the_same(ingest_rows) -> None:
    broken = {**LAB, "meta": 5}
    summary, _, _ = ingest_rows(PATIENT, STAY, broken, deleted(THE_LAB))
    assert summary.quarantined == {"deleted_in_source": 1}


def test_what_the_source_deleted_is_no_loss(ingest_rows) -> None:
    labs = [{**LAB, "id": str(n)} for n in range(9)]
    gone = deleted(*(f"Observation/{n}" for n in range(9)))
    summary, _, _ = ingest_rows(PATIENT, *labs, gone, max_quarantined=0.5)
    assert summary.quarantined == {"deleted_in_source": 9}


def test_nor_are_the_facts_of_a_patient_whom_it_deleted(ingest_rows) -> None:
    labs = [{**LAB, "id": str(n), "encounter": None} for n in range(9)]
    other = {**PATIENT, "id": "q"}
    summary, _, _ = ingest_rows(other, PATIENT, *labs, deleted("Patient/p"), max_quarantined=0.5)
    assert summary.quarantined == {"deleted_in_source": 1, "deleted_patient": 9}
    assert summary.exit_code == 3
