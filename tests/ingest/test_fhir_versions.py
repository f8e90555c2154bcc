"""Versions of a result: a changed value is known since it was changed, the first until then."""

from __future__ import annotations

import itertools
from datetime import datetime
from typing import Any

import polars as pl
import pytest

from tsfm.ingest.fhir_versions import versions_to_keep

from .fhir_rows import OF_STAY, PATIENT, STAY, concept, day, is_balanced, make, observation

TAKEN, ISSUED, CHANGED = "2020-01-02T10:00:00Z", "2020-01-02T12:00:00Z", "2020-01-05T12:00:00Z"
UNTIL_ISSUED, UNTIL_CHANGED = day("2020-01-02T12:00"), day("2020-01-05T12:00")


def result(value: int, updated: str = ISSUED, status: str = "final", **more: Any) -> dict[str, Any]:
    """One version of one result."""
    fields = {"status": status, "issued": ISSUED, "meta": {"lastUpdated": updated}, **more}
    return observation(valueInteger=value, effectiveDateTime=TAKEN, **fields)


FIRST = result(100)
AMENDED = result(200, CHANGED, "amended")


def known(frame: pl.DataFrame) -> list[tuple[datetime, float]]:
    """When which value could be known."""
    rows = frame.drop_nulls("numeric_value").sort("available_time")
    return list(zip(rows["available_time"], rows["numeric_value"], strict=True))


@pytest.mark.parametrize("status", ["amended", "corrected"])
@pytest.mark.parametrize("issued", [ISSUED, None])
def test_a_changed_value_is_known_since_it_was_changed(
    ingest_rows, status: str, issued: str | None
) -> None:
    row = {k: v for k, v in {**AMENDED, "status": status, "issued": issued}.items() if v}
    summary, events, frame = ingest_rows(PATIENT, STAY, row)
    assert known(frame) == [(UNTIL_CHANGED, 200.0)]
    assert events["LAB//LOINC//2345-7//UNK"]["time"] == day("2020-01-02T10:00")
    assert any("1 results were changed after" in note for note in summary.notes)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_both_values_are_told_each_since_it_was_known(ingest_rows, order: tuple[int, ...]) -> None:
    again = result(300, "2020-01-07T12:00:00Z", "corrected")
    rows = [FIRST, AMENDED, again]
    summary, _, frame = ingest_rows(PATIENT, STAY, *(rows[n] for n in order))
    assert known(frame) == [
        (UNTIL_ISSUED, 100.0),
        (UNTIL_CHANGED, 200.0),
        (day("2020-01-07T12:00"), 300.0),
    ]
    assert summary.quarantined == {}
    assert is_balanced(summary)


def test_copies_of_a_version_are_told_once(ingest_rows) -> None:
    summary, _, frame = ingest_rows(PATIENT, FIRST, AMENDED, STAY, AMENDED, FIRST, FIRST)
    assert known(frame) == [(UNTIL_ISSUED, 100.0), (UNTIL_CHANGED, 200.0)]
    assert summary.quarantined == {"duplicate_resource": 3}


def test_a_result_that_was_never_changed_is_known_when_issued(ingest_rows) -> None:
    loaded = result(100, "2023-01-01T00:00:00Z")  # when a warehouse was filled
    summary, _, frame = ingest_rows(PATIENT, STAY, loaded)
    assert known(frame) == [(UNTIL_ISSUED, 100.0)]
    assert not any("changed after" in note for note in summary.notes)


def test_a_preliminary_value_goes_with_the_final_one(ingest_rows) -> None:
    draft = result(50, "2020-01-02T11:00:00Z", "preliminary")
    _, _, frame = ingest_rows(PATIENT, STAY, draft, FIRST, AMENDED)
    assert known(frame) == [(UNTIL_ISSUED, 100.0), (UNTIL_CHANGED, 200.0)]


def test_what_is_taken_back_after_all_leaves_no_value(ingest_rows) -> None:
    void = result(200, "2020-01-06T12:00:00Z", "entered-in-error")
    summary, _, frame = ingest_rows(PATIENT, STAY, FIRST, AMENDED, void)
    assert known(frame) == []
    assert summary.quarantined == {"duplicate_resource": 2, "entered_in_error": 1}


@pytest.mark.parametrize("updated", ["", "0001-01-01T00:00:00Z", "soon"])
def test_a_change_without_a_time_is_told(ingest_rows, updated: str) -> None:
    summary, _, frame = ingest_rows(PATIENT, STAY, result(200, updated, "amended"))
    assert known(frame) == [(UNTIL_ISSUED, 200.0)]
    assert any("do not say when they were changed" in note for note in summary.notes)


def test_the_time_of_a_change_is_no_moment_at_which_anybody_was_watched(ingest_rows) -> None:
    summary, _, _ = ingest_rows(PATIENT, STAY, result(200, "2023-01-01T00:00:00Z", "amended"))
    assert any("data as of 2020-01-05T12:00:00" in note for note in summary.notes)


@pytest.mark.parametrize("status", ["amended", "corrected", "appended"])
def test_a_changed_report_is_known_since_it_was_changed(ingest_rows, status: str) -> None:
    code = concept("http://loinc.org", "24323-8")
    report = {"code": code, "effectiveDateTime": TAKEN, "issued": ISSUED, **OF_STAY}
    first = make("DiagnosticReport", status="final", meta={"lastUpdated": ISSUED}, **report)
    later = make("DiagnosticReport", status=status, meta={"lastUpdated": CHANGED}, **report)
    _, _, frame = ingest_rows(PATIENT, STAY, later, first)
    reports = frame.filter(pl.col("code").str.starts_with("REPORT"))
    assert sorted(reports["available_time"]) == [UNTIL_ISSUED, UNTIL_CHANGED]


def test_the_newest_version_is_kept_and_what_it_changes() -> None:
    def kept(*versions: tuple[float, bool]) -> set[int]:
        return versions_to_keep(
            [((when, -1, b""), n, changed) for n, (when, changed) in enumerate(versions)]
        )

    assert kept((1, False), (2, False)) == {1}
    assert kept((1, False), (2, True)) == {0, 1}
    assert kept((0, False), (2, True)) == {0, 1}  # a first version that says nothing of its age
    assert kept((1, True), (2, False)) == {1}  # the later one is no change of another
    assert kept((1, True), (2, True)) == {0, 1}
    assert kept((0, True), (2, True)) == {1}  # nobody knows since when
