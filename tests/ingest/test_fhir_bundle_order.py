"""What the place of a deletion in its Bundle says; odd fields around resources cost none."""

from __future__ import annotations

from typing import Any

import pytest

from .fhir_rows import PATIENT, STAY, is_balanced, make, observation

EARLY, MIDDLE, LATE = "2020-02-01T00:00:00Z", "2020-03-01T00:00:00Z", "2020-04-01T00:00:00Z"
QUERIED = "2024-01-01T00:00:00Z"
LAB = observation(valueInteger=5)
GONE = {"request": {"method": "DELETE", "url": "Observation/observation"}}
ODD: list[Any] = [None, 7, True, "soon", [], [7], {}, {"versionId": 7, "lastUpdated": None}]


def bundle(type: str, *entries: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A Bundle."""
    return {"resourceType": "Bundle", "type": type, "entry": list(entries), **fields}


def put(row: dict[str, Any], time: str = "", method: str = "PUT", **fields: Any) -> dict[str, Any]:
    """An entry that holds a resource, written at a time."""
    meta = {"meta": {"lastUpdated": time}} if time else {}
    url = f"{row['resourceType']}/{row['id']}"
    return {"resource": {**row, **meta}, "request": {"method": method, "url": url}, **fields}


@pytest.mark.parametrize("times", [(LATE, EARLY), ("", "")])
@pytest.mark.parametrize("told", [{"timestamp": QUERIED}, {"meta": {"lastUpdated": QUERIED}}, {}])
def test_in_a_history_what_stands_above_a_deletion_was_made_after_it(
    ingest_rows, told: dict[str, Any], times: tuple[str, str]
) -> None:
    newer = {**LAB, "valueInteger": 9, "meta": {"versionId": "3"}}
    older = {**LAB, "meta": {"versionId": "1"}}
    history = bundle("history", put(newer, times[0]), GONE, put(older, times[1]), **told)
    summary, _, frame = ingest_rows(PATIENT, STAY, history)
    assert summary.quarantined == {"duplicate_resource": 1}
    assert frame["numeric_value"].drop_nulls().to_list() == [9.0]
    assert any("1 resources are newer than their deletion" in note for note in summary.notes)
    assert is_balanced(summary)


def test_in_a_history_what_stands_below_a_deletion_is_gone(ingest_rows) -> None:
    history = bundle("history", GONE, put(LAB, LATE), put(LAB, EARLY), timestamp=QUERIED)
    summary, _, _ = ingest_rows(PATIENT, STAY, history)
    assert summary.quarantined == {"deleted_in_source": 2}


def test_a_later_deletion_takes_what_was_made_anew(ingest_rows) -> None:
    history = bundle("history", GONE, put(LAB, LATE), GONE, put(LAB, EARLY), timestamp=QUERIED)
    summary, _, _ = ingest_rows(PATIENT, STAY, history)
    assert summary.quarantined == {"deleted_in_source": 2}


@pytest.mark.parametrize(("copy", "is_kept"), [(LATE, True), (EARLY, False)])
@pytest.mark.parametrize("above", ["resource", "response", "deletion"])
def test_a_deletion_in_a_history_is_no_later_than_what_stands_above_it(
    ingest_rows, copy: str, is_kept: bool, above: str
) -> None:
    other = observation(id="other", valueInteger=1)
    entries = {
        "resource": put(other, MIDDLE),
        "response": put(other, response={"lastModified": MIDDLE}),
        "deletion": {
            "request": {"method": "DELETE", "url": "Observation/z"},
            "response": {"lastModified": MIDDLE},
        },
    }
    history = bundle("history", entries[above], GONE, timestamp=QUERIED)
    summary, _, _ = ingest_rows(PATIENT, STAY, put(LAB, copy)["resource"], history)
    assert summary.quarantined == ({} if is_kept else {"deleted_in_source": 1})


@pytest.mark.parametrize("type", ["transaction", "batch"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_load_script_that_deletes_and_writes_leaves_the_resource(
    ingest_rows, type: str, method: str, swapped: bool
) -> None:
    entries = [GONE, put(LAB, method=method)]
    script = bundle(type, *(reversed(entries) if swapped else entries), timestamp=QUERIED)
    summary, _, frame = ingest_rows(PATIENT, STAY, script)
    assert summary.quarantined == {}
    assert frame["code"].str.starts_with("LAB").any()
    assert is_balanced(summary)


def test_it_does_not_bring_back_what_was_deleted_elsewhere(ingest_rows) -> None:
    script = bundle("transaction", GONE, put(LAB))
    summary, _, _ = ingest_rows(PATIENT, STAY, script, bundle("collection", GONE))
    assert summary.quarantined == {"deleted_in_source": 1}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["timestamp", "meta", "type"])
def test_an_odd_field_of_a_bundle_costs_no_resource(ingest_rows, name: str, odd: Any) -> None:
    wrapped = bundle("collection", {"resource": PATIENT}, {"resource": STAY}, {"resource": LAB})
    summary, _, frame = ingest_rows({**wrapped, name: odd})
    assert summary.quarantined == {}
    assert summary.rows_used == {"Bundle": 1, "Patient": 1, "Encounter": 1, "Observation": 1}
    assert frame["code"].str.starts_with("LAB").any()


@pytest.mark.parametrize("odd", [*ODD, {"method": 7, "url": None}, {"lastModified": 7}])
@pytest.mark.parametrize("name", ["fullUrl", "request", "response"])
def test_an_odd_field_of_an_entry_costs_no_resource(ingest_rows, name: str, odd: Any) -> None:
    rows = [{"resource": row, name: odd} for row in (PATIENT, STAY, LAB)]
    summary, _, _ = ingest_rows(bundle("collection", *rows))
    assert summary.quarantined == {}
    assert summary.rows_used["Observation"] == 1


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("where", ["timestamp", "meta", "response"])
def test_a_deletion_of_which_the_time_is_odd_has_none(ingest_rows, odd: Any, where: str) -> None:
    entry, fields = ({**GONE, where: odd}, {}) if where == "response" else (GONE, {where: odd})
    summary, _, _ = ingest_rows(PATIENT, STAY, LAB, bundle("collection", entry, **fields))
    assert summary.quarantined == {"deleted_in_source": 1}


def test_a_deletion_whose_url_is_odd_is_known_by_its_address(ingest_rows) -> None:
    gone = {"fullUrl": "http://a.example/Observation/observation",
            "request": {"method": "DELETE", "url": None}, "resource": None}  # fmt: skip
    summary, _, _ = ingest_rows(PATIENT, STAY, LAB, bundle("collection", gone))
    assert summary.quarantined == {"deleted_in_source": 1}


def test_a_bundle_without_entries_holds_nothing(ingest_rows) -> None:
    summary, _, _ = ingest_rows(PATIENT, {**bundle("collection"), "entry": None})
    assert summary.quarantined == {}
    assert summary.rows_used == {"Patient": 1, "Bundle": 1}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_meta_costs_no_report(ingest_rows, odd: Any) -> None:
    code = {"coding": [{"system": "http://loinc.org", "code": "18748-4"}]}
    about = {"subject": {"reference": "Patient/p"}, "effectiveDateTime": "2020-01-02"}
    report = make("DiagnosticReport", status="final", code=code, **about)
    summary, _, frame = ingest_rows(PATIENT, {**report, "meta": odd}, report)
    assert summary.quarantined == {"duplicate_resource": 1}
    assert frame["code"].str.contains("18748-4").sum() == 1
