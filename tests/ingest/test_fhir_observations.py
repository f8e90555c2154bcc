"""Observations as events: values, units, times, MIMIC."""

from __future__ import annotations

from typing import Any

import pytest

from .fhir_rows import MIMIC, OF_PATIENT, PATIENT, STAY, category, concept, day, make, observation


@pytest.mark.parametrize(
    ("fields", "code", "value", "text"),
    [
        ({"valueQuantity": {"value": 5.5, "unit": "mg/dl"}}, "//mg/dL", 5.5, None),
        ({"valueQuantity": {"value": 5, "code": "g/L", "unit": "?"}}, "//g/dL", 0.5, None),
        ({"valueQuantity": {"value": 5, "comparator": "<", "code": "U/L"}}, "//U/L", 5.0, "<5"),
        ({"valueQuantity": {"value": 7}}, "//UNK", 7.0, None),
        ({"valueInteger": 4}, "//UNK", 4.0, None),
        ({"valueString": " 4.5 "}, "//UNK", 4.5, "4.5"),
        ({"valueString": "cloudy"}, "", None, "cloudy"),
        ({"valueBoolean": True}, "//true", None, "true"),
        ({"valueDateTime": "2020-01-01"}, "", None, "2020-01-01"),
        ({"valueCodeableConcept": concept("x", "POS", "Positive")}, "//POS", None, "Positive"),
        ({"valueCodeableConcept": {"text": "Positive"}}, "", None, "Positive"),
    ],
)
def test_every_kind_of_value(
    ingest_rows, fields: dict[str, Any], code: str, value: float | None, text: str | None
) -> None:
    _, events, _ = ingest_rows(PATIENT, STAY, observation(**fields))
    row = events[f"LAB//LOINC//2345-7{code}"]
    assert row["numeric_value"] == (None if value is None else pytest.approx(value))
    assert row["text_value"] == text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no_value"),
        ({"dataAbsentReason": {"text": "unknown"}}, "no_value"),
        ({"valueRatio": {"numerator": {"value": 1}}}, "unsupported_value"),
        ({"valueQuantity": {"value": 1e300}}, "value_out_of_range"),
        ({"valueQuantity": {"value": "5"}}, "bad_field"),
        ({"valueInteger": 1, "code": {}}, "no_code"),
        ({"valueInteger": 1, "effectiveDateTime": "0000-00-00"}, "bad_time"),
        ({"valueInteger": 1, "effectiveDateTime": "2020-01-02T24:00:00Z"}, "bad_time"),
        ({"valueInteger": 1, "effectiveDateTime": "2020-01-02T08:00:00"}, "no_time_zone"),
        ({"valueInteger": 1, "effectiveDateTime": None}, "no_time"),
        ({"valueInteger": 1, "status": "entered-in-error"}, "entered_in_error"),
        ({"valueInteger": 1, "subject": None}, "no_subject"),
        ({"valueInteger": 1, "subject": {"reference": "Patient/x"}}, "unknown_patient"),
    ],
)
def test_observations_that_cannot_be_used(ingest_rows, fields: dict[str, Any], reason: str) -> None:
    row = {k: v for k, v in observation(**fields).items() if v is not None}
    summary, _, _ = ingest_rows(PATIENT, STAY, row)
    assert summary.quarantined == {reason: 1}


@pytest.mark.parametrize(
    ("fields", "time", "available"),
    [
        ({"issued": "2020-01-02T09:30:00Z"}, "2020-01-02T07:00", "2020-01-02T09:30"),
        ({"issued": "2020-01-01T00:00:00Z"}, "2020-01-02T07:00", "2020-01-02T07:00"),
        ({}, "2020-01-02T07:00", "2020-01-02T07:00"),
        ({"effectiveDateTime": "2020-01-02"}, "2020-01-02", "2020-01-02T23:59:59.999999"),
        (
            {
                "effectiveDateTime": None,
                "effectivePeriod": {"start": "2020-01-02T00:00:00Z", "end": "2020-01-03T00:00:00Z"},
            },
            "2020-01-02",
            "2020-01-03",
        ),
        (
            {"effectiveDateTime": None, "specimen": {"reference": "Specimen/s"}},
            "2020-01-02T06:00",
            "2020-01-02T06:00",
        ),
        (
            {"effectiveDateTime": None, "issued": "2020-01-02T09:30:00.5Z"},
            "2020-01-02T09:30:00.500",
            "2020-01-02T09:30:00.500",
        ),
    ],
)
def test_a_result_is_available_when_issued(
    ingest_rows, fields: dict[str, Any], time: str, available: str
) -> None:
    row = {k: v for k, v in observation(valueInteger=1, **fields).items() if v is not None}
    taken = {"collectedDateTime": "2020-01-02T06:00:00Z"}
    specimen = make("Specimen", id="s", collection=taken, type=concept("x", "BLD"), **OF_PATIENT)
    _, events, _ = ingest_rows(row, specimen, PATIENT, STAY)
    got = events["LAB//LOINC//2345-7//UNK"]
    assert (got["time"], got["available_time"]) == (day(time), day(available))
    assert events["SPECIMEN//x//BLD"]["time"] == day("2020-01-02T06:00")


def test_a_panel_is_its_components(ingest_rows) -> None:
    pressure = [
        {
            "code": concept("http://loinc.org", code),
            "valueQuantity": {"value": value, "unit": "mmHg", "code": "mm[Hg]"},
        }
        for code, value in (("8480-6", 120), ("8462-4", 80))
    ]
    absent = {"code": concept("http://loinc.org", "8478-0"), "dataAbsentReason": {"text": "?"}}
    row = observation(category=category("vital-signs"), component=[*pressure, absent])
    summary, events, frame = ingest_rows(PATIENT, STAY, row)
    assert events["VITAL//LOINC//8480-6//mm[Hg]"]["numeric_value"] == 120
    assert events["VITAL//LOINC//8462-4//mm[Hg]"]["numeric_value"] == 80
    assert frame["code"].str.starts_with("VITAL").sum() == 2
    assert summary.rows_used["Observation"] == 1


def mimic_observation(profile: str, system: str, code: str, **fields: Any) -> dict[str, Any]:
    return observation(
        meta={"profile": [f"{MIMIC}/StructureDefinition/mimic-observation-{profile}"]},
        code=concept(f"{MIMIC}/CodeSystem/{system}", code),
        **fields,
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            mimic_observation(
                "labevents",
                "mimic-d-labitems",
                "50912",
                valueQuantity={"value": 1, "unit": "mg/dL"},
            ),
            "LAB//50912//mg/dL",
        ),
        (
            mimic_observation(
                "chartevents", "mimic-d-items", "220045", valueQuantity={"value": 80, "unit": "bpm"}
            ),
            "LAB//220045//bpm",
        ),
        (
            mimic_observation("chartevents", "mimic-d-items", "227969", valueString="Done"),
            "LAB//227969//UNK",
        ),
        (
            mimic_observation(
                "outputevents", "mimic-d-items", "226559", valueQuantity={"value": 5, "unit": "ml"}
            ),
            "SUBJECT_FLUID_OUTPUT//226559//ml",
        ),
        (
            mimic_observation(
                "datetimeevents", "mimic-d-items", "225755", valueDateTime="2020-01-01"
            ),
            "CHART_DATE//225755",
        ),
        (
            mimic_observation("micro-org", "mimic-microbiology-organism", "80053"),
            "MICROBIOLOGY_ORGANISM//80053",
        ),
        (
            mimic_observation(
                "micro-susc",
                "mimic-microbiology-antibiotic",
                "90011",
                valueCodeableConcept=concept("x", "R", "Resistant"),
            ),
            "MICROBIOLOGY_SUSCEPTIBILITY//90011//R",
        ),
    ],
)
def test_mimic_codes_are_those_of_its_meds_conversion(
    ingest_rows, row: dict[str, Any], expected: str
) -> None:
    _, events, _ = ingest_rows(PATIENT, STAY, row)
    assert expected in events


def test_a_bad_component_costs_no_other_component(ingest_rows) -> None:
    def part(code: str, value: float) -> dict[str, Any]:
        return {"code": {"coding": [{"system": "http://loinc.org", "code": code}]},
                "valueQuantity": {"value": value, "code": "mg/dL"}}  # fmt: skip

    panel = {**observation(), "component": [part("1-1", 1e200), part("1-2", 2.0)]}
    summary, events, _ = ingest_rows(PATIENT, panel)
    assert events["LAB//LOINC//1-2//mg/dL"]["numeric_value"] == 2.0
    assert not any("1-1" in code for code in events)
    assert summary.quarantined == {"value_out_of_range": 1}


@pytest.mark.parametrize(
    ("status", "reason"), [("cancelled", "not_done"), ("entered-in-error", "entered_in_error")]
)
def test_what_was_not_measured_is_no_fact(ingest_rows, status: str, reason: str) -> None:
    summary, events, _ = ingest_rows(PATIENT, observation(status=status))
    assert summary.quarantined == {reason: 1}
    assert not any(code.startswith("LAB") for code in events)
