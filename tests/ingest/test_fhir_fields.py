"""What is common to all resources: ids, references, descriptions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tsfm import event_table
from tsfm.ingest.fhir_fields import reference_key, stable_id

from .fhir_rows import MIMIC, PATIENT, STAY, day, observation


def test_stable_id_is_positive_63_bit_and_fixed() -> None:
    digest = hashlib.blake2b(b"p", digest_size=8).hexdigest()
    assert stable_id("p") == int(digest, 16) // 2
    assert all(0 <= stable_id(str(n)) < 2**63 for n in range(100))


@pytest.mark.parametrize(
    "reference",
    ["Patient/p", "https://x.example/fhir/Patient/p", "Patient/p/_history/3", "urn:uuid:p"],
)
def test_every_spelling_of_a_reference_means_the_same_patient(ingest_rows, reference: str) -> None:
    row = observation(subject={"reference": reference}, valueInteger=3)
    summary, events, _ = ingest_rows(row, STAY, PATIENT)
    assert events["LAB//LOINC//2345-7//UNK"]["subject_id"] == stable_id("p")
    assert summary.quarantined == {}


@pytest.mark.parametrize(
    "reference", ["Patient/../../x", "Group/p", "#p", "p", "Patient?identifier=a|b", ""]
)
def test_references_of_another_kind_or_shape_mean_no_patient(reference: str) -> None:
    assert reference_key(reference, "Patient") == ""


def test_mimic_identifiers_give_the_tables_keys_and_the_wall_clock(ingest_rows) -> None:
    patient = {
        **PATIENT,
        "identifier": [{"system": f"{MIMIC}/identifier/patient", "value": "10000032"}],
    }
    stay = {
        **STAY,
        "class": {"code": "AMB"},
        "identifier": [{"system": f"{MIMIC}/identifier/encounter-hosp", "value": "22595853"}],
        "period": {"start": "2180-05-06T22:23:00-04:00", "end": "2180-05-07T17:15:00-04:00"},
    }
    _, events, _ = ingest_rows(patient, stay)
    row = events["HOSPITAL_ADMISSION//AMB//UNK"]
    assert (row["subject_id"], row["encounter_id"]) == (10000032, 22595853)
    assert row["time"] == day("2180-05-06T22:23:00")


def test_two_patients_with_one_mimic_key_are_never_merged(ingest_rows) -> None:
    key = {"identifier": [{"system": f"{MIMIC}/identifier/patient", "value": "1"}]}
    summary, _, frame = ingest_rows({**PATIENT, **key}, {**PATIENT, **key, "id": "q"})
    assert set(frame["subject_id"]) == {stable_id("p"), stable_id("q")}
    assert any("share a MIMIC key" in note for note in summary.notes)


def test_codes_carry_their_description(ingest_rows, tmp_path: Path) -> None:
    ingest_rows(PATIENT, STAY, observation(valueQuantity={"value": 5, "unit": "mg/dL"}))
    table = event_table.read_table(tmp_path / "out" / "metadata" / "codes.parquet").to_pylist()
    texts = {row["code"]: row["description"] for row in table}
    assert texts["LAB//LOINC//2345-7//mg/dL"] == "Glucose"
