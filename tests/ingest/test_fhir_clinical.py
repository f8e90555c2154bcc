"""Diagnoses, procedures, vaccinations, allergies and reports as events."""

from __future__ import annotations

from typing import Any

import pytest

from .fhir_rows import MIMIC, OF_PATIENT, OF_STAY, PATIENT, STAY, category, concept, day, make

BILLING = {"category": category("encounter-diagnosis"), **OF_STAY}
PROBLEM = {"category": category("problem-list-item"), **OF_STAY}


@pytest.mark.parametrize(
    ("fields", "time", "available"),
    [
        (BILLING, "2020-01-05T12:00", "2020-01-10T12:00"),
        ({**BILLING, "onsetDateTime": "2020-01-01T11:00:00Z"}, "2020-01-01T11:00", "2020-01-10T12"),
        ({**BILLING, "recordedDate": "2020-01-06T09:00:00Z"}, "2020-01-05T12:00", "2020-01-06T09"),
        ({**BILLING, "recordedDate": "2020-01-02T09:00:00Z"}, "2020-01-02T09:00", "2020-01-02T09"),
        (
            {
                **BILLING,
                "onsetDateTime": "2020-01-04T08:00:00Z",
                "recordedDate": "2020-01-03T08:00:00Z",
            },
            "2020-01-04T08:00",
            "2020-01-04T08:00",
        ),
        ({**PROBLEM, "onsetDateTime": "2019-01-01T00:00:00Z"}, "2019-01-01", "2020-01-05T12:00"),
        (
            {
                **PROBLEM,
                "onsetDateTime": "2019-01-01T00:00:00Z",
                "recordedDate": "2020-01-02T00:00:00Z",
            },
            "2019-01-01",
            "2020-01-02",
        ),
    ],
)
def test_a_diagnosis_is_not_known_before_it_is_recorded_or_coded(
    ingest_rows, fields: dict[str, Any], time: str, available: str
) -> None:
    code = {
        "coding": [
            {"system": "http://snomed.info/sct", "code": "42343007"},
            {"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I50.23", "display": "HF"},
        ]
    }
    _, events, _ = ingest_rows(PATIENT, STAY, make("Condition", code=code, **fields))
    row = events["DIAGNOSIS//ICD//10//I5023"]
    assert (row["time"], row["available_time"]) == (day(time), day(available))


def test_the_coding_delay_is_the_callers(ingest_rows) -> None:
    row = make("Condition", code=concept("http://hl7.org/fhir/sid/icd-9-cm", "428.0"), **BILLING)
    _, events, _ = ingest_rows(PATIENT, STAY, row, coding_delay_hours=24.0)
    assert events["DIAGNOSIS//ICD//9//4280"]["available_time"] == day("2020-01-06T12:00")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (concept("http://snomed.info/sct", "42343007"), "DIAGNOSIS//SNOMED//42343007"),
        (concept("https://ehr.example/codes/local-dx", "A1"), "DIAGNOSIS//local-dx//A1"),
        ({"text": "Heart failure"}, "DIAGNOSIS//TEXT//Heart failure"),
        (concept(f"{MIMIC}/CodeSystem/mimic-diagnosis-icd9", "V462"), "DIAGNOSIS//ICD//9//V462"),
        (concept("http://fhir.de/CodeSystem/bfarm/icd-10-gm", "E11.9"), "DIAGNOSIS//ICD//10//E119"),
    ],
)
def test_diagnosis_codes(ingest_rows, code: dict[str, Any], expected: str) -> None:
    _, events, _ = ingest_rows(PATIENT, STAY, make("Condition", code=code, **BILLING))
    assert expected in events


@pytest.mark.parametrize("verification", ["refuted", "entered-in-error"])
def test_a_refuted_diagnosis_is_set_aside(ingest_rows, verification: str) -> None:
    code = concept("http://snomed.info/sct", "42343007")
    status = concept("x", verification)
    row = make("Condition", code=code, verificationStatus=status, **BILLING)
    summary, _, _ = ingest_rows(PATIENT, STAY, row)
    assert summary.quarantined == {verification.replace("-", "_"): 1}


def test_a_diagnosis_of_a_stay_that_lasts_has_no_time_of_knowing(ingest_rows) -> None:
    code = concept("http://hl7.org/fhir/sid/icd-10-cm", "I50.9")
    row = make("Condition", code=code, onsetDateTime="2020-01-01T11:00:00Z", **BILLING)
    summary, _, _ = ingest_rows(PATIENT, {**STAY, "status": "in-progress"}, row)
    assert summary.quarantined == {"no_time": 1}


def test_procedures(ingest_rows) -> None:
    done = {"status": "completed", "performedDateTime": "2020-01-02T08:00:00Z", **OF_STAY}
    icd = concept("http://www.cms.gov/Medicare/Coding/ICD10", "0DB60ZZ")
    snomed = concept("http://snomed.info/sct", "24165007")
    icu = {
        **done,
        "meta": {"profile": [f"{MIMIC}/StructureDefinition/mimic-procedure-icu"]},
        "performedPeriod": {"start": "2020-01-02T08:00:00Z", "end": "2020-01-02T10:00:00Z"},
    }
    del icu["performedDateTime"]
    summary, events, _ = ingest_rows(
        PATIENT,
        STAY,
        make("Procedure", id="1", code=icd, **done),
        make("Procedure", id="2", code=snomed, **done),
        make("Procedure", id="3", code=concept(f"{MIMIC}/CodeSystem/mimic-d-items", "7"), **icu),
        make("Procedure", id="4", code=snomed, **{**done, "status": "not-done"}),
        clock="utc",
    )
    billed = events["PROCEDURE//ICD//10//0DB60ZZ"]
    assert (billed["time"], billed["available_time"]) == (
        day("2020-01-02T08"),
        day("2020-01-10T12"),
    )
    assert events["PROCEDURE//SNOMED//24165007"]["available_time"] == day("2020-01-02T08")
    assert events["PROCEDURE//START//7"]["time"] == day("2020-01-02T08")
    assert events["PROCEDURE//END//7"]["time"] == day("2020-01-02T10")
    assert summary.quarantined == {"not_done": 1}


def test_statements_vaccinations_allergies_and_reports(ingest_rows) -> None:
    of_patient = {"patient": {"reference": "Patient/p"}}
    _, events, _ = ingest_rows(
        PATIENT,
        make(
            "MedicationStatement",
            medicationCodeableConcept={"text": "Aspirin"},
            effectiveDateTime="2019-01-01T00:00:00Z",
            dateAsserted="2020-01-01T00:00:00Z",
            **OF_PATIENT,
        ),
        make(
            "Immunization",
            vaccineCode=concept("http://hl7.org/fhir/sid/cvx", "62"),
            occurrenceDateTime="2014-08-19T00:00:00Z",
            **of_patient,
        ),
        make(
            "AllergyIntolerance",
            code=concept("http://snomed.info/sct", "91936005"),
            recordedDate="1996-12-27T00:00:00Z",
            **of_patient,
        ),
        make(
            "DiagnosticReport",
            code=concept("http://loinc.org", "34117-2"),
            effectiveDateTime="2019-01-01T00:00:00Z",
            issued="2019-01-02T00:00:00Z",
            **OF_PATIENT,
        ),
    )
    stated = events["MEDICATION//Aspirin//STATED"]
    assert (stated["time"], stated["available_time"]) == (day("2019-01-01"), day("2020-01-01"))
    assert events["IMMUNIZATION//CVX//62"]["time"] == day("2014-08-19")
    assert events["ALLERGY//SNOMED//91936005"]["time"] == day("1996-12-27")
    assert events["REPORT//LOINC//34117-2"]["available_time"] == day("2019-01-02")


@pytest.mark.parametrize("last", ["2020-01-03", "2020-01-05", "2020-01-28"])
def test_a_diagnosis_recorded_within_a_stay_does_not_tell_when_the_stay_ends(
    ingest_rows, last: str
) -> None:
    code = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I50.23"}]}
    condition = make("Condition", code=code, **BILLING, recordedDate="2020-01-02T09:00:00Z")
    stay = {**STAY, "period": {"start": "2020-01-01T10:00:00Z", "end": f"{last}T12:00:00Z"}}
    _, events, _ = ingest_rows(PATIENT, stay, condition)
    row = events["DIAGNOSIS//ICD//10//I5023"]
    assert (row["time"], row["available_time"]) == (day("2020-01-02T09"), day("2020-01-02T09"))
