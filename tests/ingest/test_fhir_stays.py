"""Patients and encounters as events."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tsfm.ingest.fhir_fields import stable_id

from .fhir_rows import PATIENT, STAY, concept, day, make, observation


def test_a_patient_becomes_birth_and_static_facts(ingest_rows) -> None:
    race = {
        "url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race",
        "extension": [{"url": "ombCategory", "valueCoding": {"code": "1", "display": "Asian"}}],
    }
    other = make("Patient", id="q", gender="other")
    _, events, frame = ingest_rows({**PATIENT, "extension": [race]}, other)
    assert events["MEDS_BIRTH"]["time"] == day("1950-03-04")
    assert events["GENDER//F"]["time"] is None
    assert events["RACE//Asian"]["time"] is None
    assert events["GENDER//OTHER"]["subject_id"] == stable_id("q")
    assert frame["subject_id"].n_unique() == 2


def test_a_death_by_date_comes_after_everything_of_its_day(ingest_rows) -> None:
    patient = {**PATIENT, "deceasedDateTime": "2020-01-05"}
    late = observation(effectiveDateTime="2020-01-05T23:00:00Z", valueInteger=1)
    home = {**STAY, "hospitalization": {"dischargeDisposition": concept("x", "home")}}
    _, events, frame = ingest_rows(patient, home, late)
    assert frame["code"].to_list()[-1] == "MEDS_DEATH"
    assert events["MEDS_DEATH"]["time"].date() == day("2020-01-05").date()


@pytest.mark.parametrize("disposition", ["exp", None])
def test_a_death_in_hospital_is_at_the_discharge(ingest_rows, disposition: str | None) -> None:
    how = {"dischargeDisposition": concept("x", disposition)} if disposition else {}
    patient = {**PATIENT, "deceasedDateTime": "2020-01-05"}
    _, events, _ = ingest_rows(patient, {**STAY, "hospitalization": how})
    assert events["MEDS_DEATH"]["time"] == day("2020-01-05T12:00:00")
    assert "HOSPITAL_DISCHARGE//DIED" in events


def test_a_death_without_a_date_is_noted_not_dated(ingest_rows) -> None:
    summary, events, _ = ingest_rows({**PATIENT, "deceasedBoolean": True})
    assert "MEDS_DEATH" not in events
    assert any("deaths without a date" in note for note in summary.notes)


def test_a_hospital_stay_becomes_admission_service_ward_and_discharge(ingest_rows) -> None:
    stay = {
        **STAY,
        "priority": concept("http://terminology.hl7.org/CodeSystem/v3-ActPriority", "EM"),
        "serviceType": concept("x", "MED"),
        "hospitalization": {
            "admitSource": concept("x", "emd"),
            "dischargeDisposition": concept("x", "snf"),
        },
        "location": [
            {
                "location": {"reference": "Location/w"},
                "period": {"start": "2020-01-02T00:00:00Z"},
            }
        ],
    }
    _, events, frame = ingest_rows(stay, PATIENT, make("Location", id="w", name="Ward 7"))
    assert events["HOSPITAL_ADMISSION//EMERGENCY//emd"]["time"] == day("2020-01-01T10:00:00")
    assert events["HOSPITAL_DISCHARGE//SKILLED NURSING FACILITY"]["time"] == day("2020-01-05T12:00")
    assert events["TRANSFER_TO//Ward 7"]["time"] == day("2020-01-02")
    assert events["SERVICE//MED"]["time"] == day("2020-01-01T10:00:00")
    assert set(frame.drop_nulls("encounter_id")["encounter_id"]) == {stable_id("e")}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"class": {"code": "EMER"}}, {"ED_REGISTRATION", "ED_OUT"}),
        ({"class": {"code": "AMB"}}, {"OUTPATIENT_VISIT//AMB"}),
        ({"status": "in-progress"}, {"HOSPITAL_ADMISSION//IMP//UNK"}),
        ({"status": "planned"}, set()),
        ({"class": {"code": "PRENC"}}, set()),
        (
            {
                "class": {"code": "ACUTE"},
                "partOf": {"reference": "Encounter/whole"},
                "location": [{"location": {"reference": "Location/w"}}],
            },
            {"ICU_ADMISSION//Medical ICU", "ICU_DISCHARGE//Medical ICU"},
        ),
        (
            {
                "partOf": {"reference": "Encounter/whole"},
                "location": [{"location": {"display": "Ward 7"}}],
            },
            {"TRANSFER_TO//Ward 7"},
        ),
    ],
)
def test_the_class_of_an_encounter_decides_its_events(
    ingest_rows, changes: dict[str, Any], expected: set[str]
) -> None:
    whole = {**STAY, "id": "whole", "class": {"code": "IMP"}}
    ward = make("Location", id="w", name="Medical ICU")
    _, _, frame = ingest_rows({**STAY, **changes}, PATIENT, whole, ward)
    own = frame.filter(pl.col("encounter_id") == stable_id("e"))
    assert set(own["code"]) == expected


def test_a_stay_that_ends_on_a_bare_date_lasts_through_that_day(ingest_rows) -> None:
    period = {"start": "2020-01-05T10:00:00Z", "end": "2020-01-05"}
    summary, events, _ = ingest_rows(PATIENT, {**STAY, "period": period})
    assert events["HOSPITAL_DISCHARGE//UNK"]["time"] == day("2020-01-05T23:59:59.999999")
    assert summary.quarantined == {}


def _stay(id: str, start: str, end: str, **more: Any) -> dict[str, Any]:
    return {**STAY, "id": id, "period": {"start": start, "end": end}, **more}


@pytest.mark.parametrize("died", ["2020", "2020-05"])
def test_a_death_known_by_month_or_year_ends_no_stay(ingest_rows, died: str) -> None:
    stays = [_stay(f"e{m}", f"2020-0{m}-03T10:00:00Z", f"2020-0{m}-09T10:00:00Z") for m in (1, 5)]
    summary, events, frame = ingest_rows({**PATIENT, "deceasedDateTime": died}, *stays)
    assert frame.filter(pl.col("code") == "HOSPITAL_DISCHARGE//UNK").height == 2
    assert events["MEDS_DEATH"]["time"] > day("2020-05-31T23:00")
    assert any("known by month or year" in note for note in summary.notes)
    assert any("data as of 2020-05-09T10:00:00" in note for note in summary.notes)


def test_of_two_stays_on_the_day_of_death_the_last_one_ends_in_it(ingest_rows) -> None:
    stays = (
        _stay("a", "2020-01-03T10:00:00Z", "2020-01-05T08:00:00Z"),
        _stay("b", "2020-01-05T15:00:00Z", "2020-01-05T20:00:00Z"),
    )
    _, events, frame = ingest_rows({**PATIENT, "deceasedDateTime": "2020-01-05"}, *stays)
    ends = frame.filter(pl.col("code").str.starts_with("HOSPITAL_DISCHARGE")).sort("time")["code"]
    assert ends.to_list() == ["HOSPITAL_DISCHARGE//UNK", "HOSPITAL_DISCHARGE//DIED"]
    assert events["MEDS_DEATH"]["time"] == day("2020-01-05T20:00")


@pytest.mark.parametrize("case", ["void", "of another patient", "in a circle", "without a period"])
def test_an_admission_is_not_lost_with_a_stay_that_cannot_hold_it(ingest_rows, case: str) -> None:
    whole: dict[str, Any] = {**STAY, "id": "whole"}
    if case == "void":
        whole["status"] = "entered-in-error"
    elif case == "of another patient":
        whole["subject"] = {"reference": "Patient/other"}
    elif case == "in a circle":
        whole["partOf"] = {"reference": "Encounter/e"}
    else:
        del whole["period"]
    other = {**PATIENT, "id": "other"}
    part = {**STAY, "partOf": {"reference": "Encounter/whole"}}
    summary, _, frame = ingest_rows(part, PATIENT, other, whole)
    own = frame.filter(pl.col("encounter_id") == stable_id("e"))["code"]
    assert any(code.startswith("HOSPITAL_ADMISSION") for code in own)
    assert any("stays of their own" in note for note in summary.notes)


def test_a_bare_date_is_over_when_it_is_over_where_the_stays_are(ingest_rows) -> None:
    stay = _stay("e", "2022-06-12T20:00:00-05:00", "2022-06-12T23:30:00-05:00")
    _, events, _ = ingest_rows({**PATIENT, "deceasedDateTime": "2022-06-12"}, stay)
    assert events["MEDS_DEATH"]["time"] == day("2022-06-13T04:30")
    assert "HOSPITAL_DISCHARGE//DIED" in events


def test_a_stay_with_an_icu_is_not_lost_either(ingest_rows) -> None:
    whole = {**STAY, "id": "whole", "status": "cancelled"}
    part = {
        **STAY,
        "partOf": {"reference": "Encounter/whole"},
        "location": [{"location": {"display": "Medical ICU"}}],
    }
    _, _, frame = ingest_rows(part, PATIENT, whole)
    assert any(code.startswith("HOSPITAL_ADMISSION") for code in frame["code"])


def test_what_an_earlier_stay_says_of_its_end_does_not_change_the_last_one(ingest_rows) -> None:
    expired = {"dischargeDisposition": concept("x", "exp")}
    stays = (
        _stay("a", "2010-01-02T10:00:00Z", "2010-01-05T08:00:00Z", hospitalization=expired),
        _stay("b", "2020-01-02T10:00:00Z", "2020-01-05T12:00:00Z"),
    )
    _, events, frame = ingest_rows({**PATIENT, "deceasedDateTime": "2020-01-05"}, *stays)
    assert frame.filter(pl.col("code") == "HOSPITAL_DISCHARGE//DIED").height == 2
    assert events["MEDS_DEATH"]["time"] == day("2020-01-05T12:00")
