"""Versions of a result: a changed value is known since it was changed, the first until then."""

from __future__ import annotations

import itertools
import random
from datetime import datetime
from typing import Any

import polars as pl
import pytest

from tsfm.ingest.fhir_versions import ResultVersions, Version, content_digest, versions_to_keep

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


def test_a_version_that_was_only_loaded_again_is_no_second_change(ingest_rows) -> None:
    nights = [(result(200, f"2020-01-0{n}T12:00:00Z", "amended")) for n in range(5, 10)]
    for n, row in enumerate(nights):
        row["meta"] |= {"versionId": str(n), "security": [{"code": str(n)}]}
    first = [result(100, f"2020-01-0{n}T12:00:00Z") for n in (2, 3)]
    summary, _, frame = ingest_rows(PATIENT, STAY, *nights[::-1], *first)
    assert known(frame) == [(UNTIL_ISSUED, 100.0), (UNTIL_CHANGED, 200.0)]
    assert summary.quarantined == {"duplicate_resource": 5}
    assert any("1 results were changed after" in note for note in summary.notes)


def test_a_result_that_was_changed_and_changed_back_is_counted_once(ingest_rows) -> None:
    rows = [
        result(value, f"2020-01-0{n}T12:00:00Z", "amended")
        for n, value in [(5, 200), (6, 300), (7, 300), (8, 200)]
    ]
    summary, _, frame = ingest_rows(PATIENT, STAY, *rows)
    assert known(frame) == [
        (UNTIL_CHANGED, 200.0),
        (day("2020-01-06T12:00"), 300.0),
        (day("2020-01-08T12:00"), 200.0),
    ]
    assert any("1 results were changed after" in note for note in summary.notes)


def test_the_content_of_a_version_is_its_json_but_for_meta() -> None:
    first = b'{"id": "x", "meta": {"versionId": "1"}, "valueQuantity": {"value": 1, "unit": "g"}}'
    again = b'{"valueQuantity":{"unit":"g","value":1},"id":"x","meta":{"versionId":"2"}}'
    other = b'{"valueQuantity":{"unit":"g","value":2},"id":"x","meta":{"versionId":"2"}}'
    assert content_digest(first) == content_digest(again) != content_digest(other)
    deep = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"  # too deep to be decoded: told as written
    assert content_digest(deep) != content_digest(deep + b" ")


ON_THE_WALL = [
    # issued, changed, known: noon in Tokyo is 3 o'clock in UTC
    ("2020-01-02T09:00:00+09:00", "2020-01-02T03:00:00Z", "2020-01-02T12:00"),
    ("2020-01-02T09:00:00-05:00", "2020-01-05T03:00:00Z", "2020-01-04T22:00"),
    ("2020-01-02T09:00:00+09:00", "2020-01-05T03:00:00-01:00", "2020-01-05T13:00"),
    ("2020-01-02T09:00:00Z", "2020-01-05T03:00:00Z", "2020-01-05T03:00"),
    ("2020-01-02T09:00:00", "2020-01-05T03:00:00Z", "2020-01-05T17:00"),  # up to 14 hours east
    ("2020-01-02T09:00:00", "2020-01-05T03:00:00", "2020-01-06T05:00"),  # any two zones
    ("2020-01-02", "2020-01-05T03:00:00Z", "2020-01-05T17:00"),
    ("2020-01-02T09:00:00", "2020-01", "2020-02-02T01:59:59.999999"),
]


@pytest.mark.parametrize(("issued", "changed", "expected"), ON_THE_WALL)
@pytest.mark.parametrize(
    "field", ["issued", "effectiveDateTime", "effectiveInstant", "effectivePeriod"]
)
def test_on_the_wall_clock_a_change_is_brought_to_the_zone_of_its_result(
    ingest_rows, issued: str, changed: str, expected: str, field: str
) -> None:
    row = result(200, changed, "amended")
    del row["issued"], row["effectiveDateTime"]
    row[field] = {"start": issued} if field == "effectivePeriod" else issued
    _, _, frame = ingest_rows(PATIENT, STAY, row, clock="wall")
    assert known(frame) == [(day(expected), 200.0)]


def test_a_changed_report_is_brought_there_too(ingest_rows) -> None:
    code = concept("http://loinc.org", "24323-8")
    report = make("DiagnosticReport", status="amended", code=code, **OF_STAY)
    report |= {"meta": {"lastUpdated": "2020-01-02T03:00:00Z"}}
    _, events, _ = ingest_rows(
        PATIENT, STAY, {**report, "issued": "2020-01-02T09:00:00+09:00"}, clock="wall"
    )
    assert events["REPORT//LOINC//24323-8"]["available_time"] == day("2020-01-02T12:00")


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
    def kept(*versions: tuple[float, bytes]) -> tuple[set[int], set[int]]:
        return versions_to_keep(
            [((when, -1, b""), n, change) for n, (when, change) in enumerate(versions)]
        )

    assert kept((1, b""), (2, b"")) == ({1}, set())
    assert kept((1, b""), (2, b"x")) == ({0, 1}, set())
    assert kept((0, b""), (2, b"x")) == ({0, 1}, set())  # a first that says nothing of its age
    assert kept((1, b"x"), (2, b"")) == ({1}, set())  # the later one is no change of another
    assert kept((1, b"x"), (2, b"y")) == ({0, 1}, {1})
    assert kept((0, b"x"), (2, b"y")) == ({1}, set())  # nobody knows since when
    assert kept((1, b"x"), (2, b"x"), (3, b"x")) == ({0}, set())  # written again, not changed
    assert kept((3, b"x"), (2, b"y"), (1, b"x")) == ({0, 1, 2}, {0, 1})


def test_what_was_changed_is_told_though_both_were_loaded_at_one_time() -> None:
    first, change = ((2.0, 1, b""), 0, b""), ((2.0, 2, b""), 1, b"said")
    assert versions_to_keep([first, change]) == ({0, 1}, set())


@pytest.mark.parametrize("seed", range(30))
def test_what_is_forgotten_on_the_way_would_not_have_counted(seed: int) -> None:
    """Of versions that change nothing one is kept at a time, in whatever order they are met."""
    draw = random.Random(seed)
    whole: list[Version] = []
    met, replaced = ResultVersions(), set[int]()
    for place in range(draw.randint(1, 9)):
        is_change, content = draw.random() < 0.5, draw.choice(["a", "b"])
        raw = f'{{"status": "{content}", "meta": {{"versionId": "{place}"}}}}'.encode()
        age = (float(draw.randint(0, 4)), -1, content.encode())
        gone = met.add((0, "r"), age, place, "amended" if is_change else "final", raw)
        replaced |= set() if gone is None else {gone}
        whole.append((age, place, content_digest(raw) if is_change else b""))
    others, again = met.settle()
    kept, expected_again = versions_to_keep(whole)
    assert set(range(len(whole))) - replaced - set(others) == kept
    assert again == expected_again
