"""Bounds of encounters: known by month or year, or said to come after the export."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tsfm import event_table
from tsfm.clock import Clock, to_us
from tsfm.ingest.fhir_encounters import Bounds, ExportTime, read_bounds
from tsfm.ingest.fhir_fields import stable_id
from tsfm.tasks.cohorts import Followup, follow_up_of
from tsfm.tasks.readmission import find_readmission_cohort

from .fhir_rows import OF_STAY, PATIENT, STAY, concept, day, is_balanced, make

MANIFEST = {"transactionTime": "2020-02-01T00:00:00Z", "request": "x", "output": []}
UTC, WALL = Clock.create("utc"), Clock.create("wall")
FEBRUARY = to_us(day("2020-02-01"))


def stay(id: str, start: str | None, end: str | None, **more: Any) -> dict[str, Any]:
    """A stay of its own."""
    bounds = {"start": start, "end": end}
    return {**STAY, "id": id, "period": {k: v for k, v in bounds.items() if v}, **more}


def codes_of(frame: pl.DataFrame, id: str) -> list[str]:
    """Codes of an encounter's events."""
    return frame.filter(pl.col("encounter_id") == stable_id(id))["code"].to_list()


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2020-01", "2020-01"),
        ("2020", "2020"),
        ("2020", None),
        ("2020-01-03T10:00:00Z", "2020"),
        ("2019", "2020-01-20T10:00:00Z"),
    ],
)
@pytest.mark.parametrize("kind", ["IMP", "EMER"])
def test_a_stay_known_by_month_or_year_is_a_contact_and_no_stay(
    ingest_rows, start: str, end: str | None, kind: str
) -> None:
    vague = stay("v", start, end, **{"class": {"code": kind}})
    summary, _, frame = ingest_rows(PATIENT, STAY, vague)
    assert codes_of(frame, "v") == [f"ENCOUNTER//{kind}"]
    assert codes_of(frame, "e") == ["HOSPITAL_ADMISSION//IMP//UNK", "HOSPITAL_DISCHARGE//UNK"]
    assert any("1 stays are known by month or year only" in note for note in summary.notes)
    assert summary.quarantined == {}
    assert is_balanced(summary)


def test_it_is_known_when_its_month_is_over(ingest_rows) -> None:
    _, events, _ = ingest_rows(PATIENT, stay("v", "2020-01", "2020-01"))
    assert events["ENCOUNTER//IMP"]["available_time"] == day("2020-01-31T23:59:59.999999")


@pytest.mark.parametrize("vague", ["2020-01", "2020"])
def test_it_takes_no_exact_stay_with_it(ingest_rows, vague: str) -> None:
    _, _, frame = ingest_rows(MANIFEST, PATIENT, STAY, stay("v", vague, vague))
    cohort = find_readmission_cohort(frame, Followup("until", FEBRUARY))
    assert cohort["prediction_time"].to_list() == [day("2020-01-05T12:00")]
    assert cohort["eligible"].to_list() == [True]


WARDS = [
    ("2020-01-02T10:00:00Z", "2020-01-04T10:00:00Z"),
    ("2020-01-06T10:00:00Z", "2020-01-09T10:00:00Z"),
    ("2020-01-10", "2020-01-11"),
]


def parts_of(whole: str) -> list[dict[str, Any]]:
    """Wards of one stay, with gaps between them."""
    part_of = {"partOf": {"reference": f"Encounter/{whole}"}}
    return [
        stay(f"w{n}", *bounds, **part_of, location=[{"location": {"display": f"Ward {n}"}}])
        for n, bounds in enumerate(WARDS)
    ]


@pytest.mark.parametrize("vague", ["2020-01", "2020"])
def test_the_exact_parts_of_a_vague_stay_are_its_wards(ingest_rows, vague: str) -> None:
    ward = {"location": {"display": "Ward 7"}, "period": {"start": "2020-01-02T10:00:00Z"}}
    whole = stay("v", vague, vague, location=[ward])
    summary, _, frame = ingest_rows(MANIFEST, PATIENT, STAY, whole, *parts_of("v"))
    assert [codes_of(frame, f"w{n}") for n in range(3)] == [
        [f"TRANSFER_TO//Ward {n}"] for n in range(3)
    ]
    assert sorted(codes_of(frame, "v")) == ["ENCOUNTER//IMP", "TRANSFER_TO//Ward 7"]
    cohort = find_readmission_cohort(frame, Followup("until", FEBRUARY))
    assert cohort["prediction_time"].to_list() == [day("2020-01-05T12:00")]
    assert any("3 parts of stays known by month or year" in note for note in summary.notes)
    assert is_balanced(summary)


def test_a_part_of_a_vague_part_is_a_ward_too(ingest_rows) -> None:
    middle = stay("m", "2020-01", "2020-01", partOf={"reference": "Encounter/e"})
    summary, _, frame = ingest_rows(PATIENT, STAY, middle, *parts_of("m"))
    assert codes_of(frame, "w1") == ["TRANSFER_TO//Ward 1"]
    assert codes_of(frame, "m") == ["ENCOUNTER//IMP"]
    assert codes_of(frame, "e") == ["HOSPITAL_ADMISSION//IMP//UNK", "HOSPITAL_DISCHARGE//UNK"]
    assert any("1 stays are known by month" in note for note in summary.notes)


def test_a_vague_stay_that_can_hold_no_part_holds_none(ingest_rows) -> None:
    other = {"subject": {"reference": "Patient/q"}}
    vague = stay("v", "2020-01", "2020-01", **other, partOf={"reference": "Encounter/nobody"})
    summary, _, frame = ingest_rows(PATIENT, {**PATIENT, "id": "q"}, vague, *parts_of("v"))
    assert codes_of(frame, "w0")[0].startswith("HOSPITAL_ADMISSION")
    assert any("3 encounters are said to be part of one that can" in n for n in summary.notes)
    assert not any("parts of stays known by" in note for note in summary.notes)


def test_a_vague_stay_that_ended_in_death_dates_no_death(ingest_rows) -> None:
    expired = {"dischargeDisposition": concept("x", "exp")}
    vague = stay("v", "2020", "2020", hospitalization=expired)
    _, events, _ = ingest_rows({**PATIENT, "deceasedDateTime": "2020-01-05"}, STAY, vague)
    assert events["MEDS_DEATH"]["time"] == day("2020-01-05T12:00")


def test_a_stay_dated_by_day_goes_on_as_a_stay(ingest_rows) -> None:
    _, _, frame = ingest_rows(PATIENT, stay("d", "2020-01-02", "2020-01-04"))
    times = frame.drop_nulls("encounter_id").select("time", "available_time").rows()
    ends = day("2020-01-04T23:59:59.999999")
    assert times == [(day("2020-01-02"), day("2020-01-02T23:59:59.999999")), (ends, ends)]


@pytest.mark.parametrize("start", ["2020-01-20T10:00:00Z", "2020-01-20", "2020-02-01"])
def test_a_stay_that_ends_after_the_export_still_lasts(ingest_rows, tmp_path, start: str) -> None:
    code = concept("http://hl7.org/fhir/sid/icd-10-cm", "I50.9")
    unknown = make("Condition", code=code, **OF_STAY)
    future = stay("e", start, "2030-01-01T10:00:00Z")
    summary, _, frame = ingest_rows(MANIFEST, PATIENT, future, unknown)
    assert codes_of(frame, "e") == ["HOSPITAL_ADMISSION//IMP//UNK"]
    assert any("1 encounters are said to end after the export" in note for note in summary.notes)
    assert summary.quarantined == {"no_time": 1}  # as of any stay that lasts
    assert event_table.dataset_facts(tmp_path / "out")["data_as_of"] == "2020-02-01T00:00:00"


def test_a_stay_that_ends_on_the_day_of_the_export_is_over(ingest_rows) -> None:
    for end in ("2020-02-01", "2020-02-01T00:00:00Z"):
        assert _end(UTC, end, ExportTime(FEBRUARY))
    assert not _end(UTC, "2020-02-01T00:00:01Z", ExportTime(FEBRUARY))


def _end(clock: Clock, end: str, export: ExportTime | None, start: str = "2020-01-20") -> bool:
    return read_bounds(start, end, clock, export).end is not None


def test_without_a_manifest_no_stay_has_ended_in_the_future(ingest_rows) -> None:
    summary, _, frame = ingest_rows(PATIENT, stay("e", "2020-01-20", "2290-01-01"))
    assert codes_of(frame, "e") == ["HOSPITAL_ADMISSION//IMP//UNK"]
    assert any("said to end after the export" in note for note in summary.notes)


def test_without_a_manifest_dates_shifted_ahead_are_left(ingest_rows) -> None:
    shifted = stay("e", "2290-01-01T10:00:00Z", "2290-01-05T10:00:00Z")
    summary, _, frame = ingest_rows(PATIENT, shifted)
    assert "HOSPITAL_DISCHARGE//UNK" in codes_of(frame, "e")
    assert not any("said to end after" in note for note in summary.notes)


SHIFTED = [
    stay("a", "2150-01-01T10:00:00Z", "2150-01-05T10:00:00Z"),
    stay("b", "2150-01-08T10:00:00Z", "2150-01-10T10:00:00Z"),
    stay("c", "2019-12-01T10:00:00Z", "2021-01-01T10:00:00Z"),
]


@pytest.mark.parametrize("told", [True, False])
def test_where_most_stays_begin_after_the_export_dates_are_shifted(
    ingest_rows, tmp_path, told: bool
) -> None:
    export = [MANIFEST] if told else []
    summary, _, frame = ingest_rows(*export, PATIENT, *SHIFTED)
    assert all("HOSPITAL_DISCHARGE//UNK" in codes_of(frame, id) for id in "abc")
    assert any("dates are shifted" in note for note in summary.notes)
    assert not any("said to end after" in note for note in summary.notes)
    facts = event_table.dataset_facts(tmp_path / "out")
    assert (facts["data_as_of"], facts["dates_shifted"]) == (None, False)
    follow_up = follow_up_of(tmp_path / "out")
    cohort = find_readmission_cohort(frame.sort("subject_id", "time"), follow_up)
    first = cohort.filter(pl.col("prediction_time") == day("2150-01-05T10:00"))
    assert first["outcome"].to_list() == ["event"]


def test_a_stay_that_begins_after_the_export_does_not_last(ingest_rows, tmp_path) -> None:
    ahead = stay("a", "2029-12-30T10:00:00Z", "2030-01-01T10:00:00Z")
    summary, _, frame = ingest_rows(MANIFEST, PATIENT, STAY, ahead)
    assert codes_of(frame, "a") == ["HOSPITAL_ADMISSION//IMP//UNK", "HOSPITAL_DISCHARGE//UNK"]
    assert any("1 encounters begin after the export was taken" in n for n in summary.notes)
    assert not any("dates are shifted" in note for note in summary.notes)
    assert event_table.dataset_facts(tmp_path / "out")["data_as_of"] == "2020-02-01T00:00:00"


def test_on_the_wall_clock_the_zone_of_the_export_is_not_that_of_the_stay() -> None:
    export = ExportTime(FEBRUARY)
    assert _end(WALL, "2020-02-01T09:00:00", export)
    assert not _end(WALL, "2020-02-04T09:00:00", export)
    assert _end(UTC, "2030-01-01T00:00:00Z", None)


def test_an_end_in_a_year_to_come_leaves_an_exact_admission() -> None:
    bounds = read_bounds("2020-01-20T10:00:00Z", "2031", UTC, ExportTime(FEBRUARY))
    assert (bounds.is_vague, bounds.lasts) == (False, True)
    assert bounds.start is not None
    assert read_bounds("2020-05", "2020-01", UTC, None) == Bounds(
        problem="discharge_before_admission"
    )
