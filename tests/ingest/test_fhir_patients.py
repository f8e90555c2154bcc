"""Patients who were replaced by another: one person, told by the survivor."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tsfm import event_table
from tsfm.ingest.fhir_fields import stable_id

from .fhir_rows import MIMIC, PATIENT, STAY, day, is_balanced, observation


def patient(id: str, *links: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """A patient with links, each by its type and the other's id."""
    told = [{"type": type, "other": {"reference": f"Patient/{other}"}} for type, other in links]
    return {**PATIENT, "id": id, **({"link": told} if told else {}), **fields}


def lab(id: str) -> dict[str, Any]:
    """A measurement of a patient."""
    return observation(
        id=f"of-{id}", subject={"reference": f"Patient/{id}"}, encounter=None, valueInteger=1
    )


def people(ingest_rows: Any, *rows: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Who each patient's measurement belongs to, by ids; and the summary's notes."""
    ids = [row["id"] for row in rows]
    labs = [lab(id) for id in ids]
    summary, _, frame = ingest_rows(*rows, *labs)
    assert summary.quarantined == {}
    assert summary.rows_used["Patient"] == len(rows)
    assert is_balanced(summary)
    names = {stable_id(id): id for id in ids}
    subjects = set(frame["subject_id"])
    assert summary.n_subjects == len(subjects)
    owners: dict[str, str] = {}
    for subject in subjects:
        values = frame.filter(frame["subject_id"] == subject)["code"].to_list()
        owners[names[subject]] = str(sum(code.startswith("LAB") for code in values))
    return owners, summary.notes


REPLACED = ("replaced-by", "new")
REPLACES = ("replaces", "old")


@pytest.mark.parametrize(
    ("old", "new"), [([REPLACED], [REPLACES]), ([REPLACED], []), ([], [REPLACES])]
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_replaced_patient_is_the_one_who_is_left(
    ingest_rows, tmp_path: Path, old: Any, new: Any, swapped: bool
) -> None:
    old_one = patient("old", *old, active=False, birthDate="1940-01-01", gender="male")
    new_one = patient("new", *new)
    stay = {**STAY, "subject": {"reference": "Patient/old"}}
    again = {
        **STAY,
        "id": "f",
        "subject": {"reference": "Patient/new"},
        "period": {"start": "2020-01-10T10:00:00Z", "end": "2020-01-12T10:00:00Z"},
    }
    rows = [old_one, new_one, stay, again]
    summary, events, frame = ingest_rows(*(reversed(rows) if swapped else rows))
    assert set(frame["subject_id"]) == {stable_id("new")}
    assert set(frame["encounter_id"].drop_nulls()) == {stable_id("e"), stable_id("f")}
    assert frame["code"].to_list().count("MEDS_BIRTH") == 1
    assert events["MEDS_BIRTH"]["time"] == day("1950-03-04")
    assert "GENDER//M" not in events
    assert event_table.subject_ids(tmp_path / "out") == {stable_id("new"): "new"}
    assert summary.rows_used == {"Patient": 2, "Encounter": 2}
    assert summary.n_subjects == 1
    assert any("1 patients were replaced by another" in note for note in summary.notes)
    assert is_balanced(summary)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(
    "links",
    [
        {"a": [("replaced-by", "b")], "b": [("replaced-by", "c")]},
        {"a": [("replaced-by", "b")], "c": [("replaces", "b")]},
        {"b": [("replaces", "a")], "c": [("replaces", "b")]},
        {"a": [("replaced-by", "c"), ("replaced-by", "b")], "b": [("replaced-by", "c")]},
        {"b": [("replaces", "a"), ("replaced-by", "c")], "c": [("replaces", "a")]},
    ],
)
def test_chains_are_followed_to_their_end(
    ingest_rows, links: dict[str, Any], order: tuple[int, ...]
) -> None:
    rows = [patient(id, *links.get(id, [])) for id in "abc"]
    owners, notes = people(ingest_rows, *(rows[n] for n in order))
    assert owners == {"c": "3"}
    assert any("2 patients were replaced" in note for note in notes)
    assert not any("merged with nobody" in note for note in notes)


@pytest.mark.parametrize(
    ("links", "owners", "n_left"),
    [
        ({"a": [("replaced-by", "a")]}, {"a": "1", "b": "1", "c": "1"}, 1),
        ({"a": [("replaced-by", "b")], "b": [("replaced-by", "a")]}, dict.fromkeys("abc", "1"), 2),
        ({"a": [("replaced-by", "b")], "b": [("replaced-by", "z")]}, {"b": "2", "c": "1"}, 1),
        ({"a": [("replaced-by", "b"), ("replaced-by", "c")]}, dict.fromkeys("abc", "1"), 1),
        ({"b": [("replaces", "a")], "c": [("replaces", "a")]}, dict.fromkeys("abc", "1"), 1),
        ({"a": [("replaced-by", "z"), ("replaced-by", "b")]}, {"b": "2", "c": "1"}, 0),
    ],
)
def test_links_that_lead_to_nobody_merge_nobody(
    ingest_rows, links: dict[str, Any], owners: dict[str, str], n_left: int
) -> None:
    found, notes = people(ingest_rows, *(patient(id, *links.get(id, [])) for id in "abc"))
    assert found == owners
    told = [note for note in notes if "merged with nobody" in note]
    assert [note.split()[0] for note in told] == ([str(n_left)] if n_left else [])


@pytest.mark.parametrize(
    "link",
    [
        {"type": "refer", "other": {"reference": "Patient/b"}},
        {"type": "seealso", "other": {"reference": "Patient/b"}},
        {"type": "seealso", "other": {"reference": "RelatedPerson/b"}},
    ],
)
def test_other_links_merge_nobody(ingest_rows, link: dict[str, Any]) -> None:
    owners, notes = people(ingest_rows, patient("a", link=[link]), patient("b"))
    assert owners == {"a": "1", "b": "1"}
    assert not any("replace" in note for note in notes)


@pytest.mark.parametrize(
    "other", [None, {"identifier": {"value": "1"}}, {"reference": "RelatedPerson/b"}]
)
@pytest.mark.parametrize("type", ["replaced-by", "replaces"])
def test_a_link_without_a_patient_is_told(ingest_rows, type: str, other: Any) -> None:
    link = {"type": type, **({"other": other} if other else {})}
    owners, notes = people(ingest_rows, patient("a", link=[link]), patient("b"))
    assert owners == {"a": "1", "b": "1"}
    assert any("merged with nobody" in note for note in notes)


OURS, OLD = "https://x.example/fhir", "https://old.example/fhir"


def link_to(reference: str, type: str = "replaced-by") -> list[dict[str, Any]]:
    """A link by its reference as written."""
    return [{"type": type, "other": {"reference": reference}}]


def at_ours(*rows: dict[str, Any]) -> dict[str, Any]:
    """A Bundle that says that resources are on this server."""
    entries = [
        {"fullUrl": f"{OURS}/{row['resourceType']}/{row['id']}", "resource": row} for row in rows
    ]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}


@pytest.mark.parametrize("reference", ["Patient/b", "Patient/b/_history/2", "urn:uuid:b"])
def test_the_other_is_found_by_every_spelling(ingest_rows, reference: str) -> None:
    owners, _ = people(ingest_rows, patient("a", link=link_to(reference)), patient("b"))
    assert owners == {"b": "2"}


@pytest.mark.parametrize(
    ("told", "is_merged"), [(["b"], True), (["c"], True), ([], False), (["stay"], True)]
)
def test_an_absolute_link_counts_where_the_export_says_that_the_server_is_its_own(
    ingest_rows, told: list[str], is_merged: bool
) -> None:
    rows = {id: patient(id) for id in "bc"} | {"stay": {**STAY, "subject": None}}
    rows["a"] = patient("a", link=link_to(f"{OURS}/Patient/b"))
    wrapped = [at_ours(row) if id in told else row for id, row in rows.items()]
    summary, _, _ = ingest_rows(*wrapped)
    assert summary.n_subjects == (2 if is_merged else 3)
    assert is_merged != any("merged with nobody" in note for note in summary.notes)


@pytest.mark.parametrize("type", ["replaced-by", "replaces"])
@pytest.mark.parametrize("told", [[], ["7"], ["9"], ["7", "9"]])
@pytest.mark.parametrize(
    "reference", [f"{OLD}/Patient/7", "old.example/fhir/Patient/7", "ftp://x/Patient/7"]
)
def test_a_link_to_another_server_merges_no_stranger(
    ingest_rows, type: str, told: list[str], reference: str
) -> None:
    rows = [patient("7", gender="male"), patient("9", link=link_to(reference, type))]
    summary, _, frame = ingest_rows(*(at_ours(r) if r["id"] in told else r for r in rows))
    assert set(frame["subject_id"]) == {stable_id("7"), stable_id("9")}
    assert frame["code"].to_list().count("MEDS_BIRTH") == 2
    assert any("1 patients have links" in note for note in summary.notes)
    assert not any("were replaced" in note for note in summary.notes)


def test_who_is_absent_and_of_another_server_is_nobody_here(ingest_rows) -> None:
    survivor = patient("9", link=link_to(f"{OLD}/Patient/7", "replaces"))
    summary, _, _ = ingest_rows(survivor, lab("9"), lab("7"))
    assert summary.quarantined == {"unknown_patient": 1}


@pytest.mark.parametrize(
    ("link", "n_told"),
    [
        (None, 0),
        ([], 0),
        (5, 1),
        ("Patient/b", 1),
        ({"type": "replaced-by", "other": {"reference": "Patient/b"}}, 1),
        ([None], 1),
        ([7, []], 1),
        ([{"type": 7, "other": {"reference": "Patient/b"}}], 1),
        ([{"type": "replaced-by", "other": 7}], 1),
        ([{"type": "replaced-by", "other": {"reference": 7}}], 1),
        ([{"type": "seealso", "other": 7}], 0),
    ],
)
def test_an_odd_link_is_none_and_costs_no_patient(ingest_rows, link: Any, n_told: int) -> None:
    owners, notes = people(ingest_rows, patient("a", link=link), patient("b"))
    assert owners == {"a": "1", "b": "1"}
    assert sum("1 patients have links that can't be read" in note for note in notes) == n_told


def test_beside_an_odd_link_the_others_count(ingest_rows) -> None:
    links = [None, *link_to("Patient/b")]
    owners, notes = people(ingest_rows, patient("a", link=links), patient("b"))
    assert owners == {"b": "2"}
    assert not any("merged with nobody" in note for note in notes)


@pytest.mark.parametrize("is_deleted", [True, False])
def test_who_is_no_longer_in_the_source_is_found_by_the_survivor(
    ingest_rows, is_deleted: bool
) -> None:
    gone = {"request": {"method": "DELETE", "url": "Patient/old"}}
    rows = [patient("old"), {"resourceType": "Bundle", "entry": [gone]}] if is_deleted else []
    summary, _, frame = ingest_rows(*rows, patient("new", REPLACES), lab("old"))
    assert summary.quarantined == ({"deleted_in_source": 1} if is_deleted else {})
    assert set(frame["subject_id"]) == {stable_id("new")}
    assert not any("replaced" in note for note in summary.notes)


def test_who_is_replaced_by_someone_deleted_is_left(ingest_rows) -> None:
    gone = {"request": {"method": "DELETE", "url": "Patient/new"}}
    bundle = {"resourceType": "Bundle", "entry": [gone]}
    summary, _, frame = ingest_rows(patient("old", REPLACED), patient("new"), bundle, lab("old"))
    assert set(frame["subject_id"]) == {stable_id("old")}
    assert any("merged with nobody" in note for note in summary.notes)


@pytest.mark.parametrize("survivors", [None, "2020-05-01"])
def test_the_survivor_says_who_died(ingest_rows, survivors: str | None) -> None:
    old = patient("old", REPLACED, deceasedDateTime="2020-03-01")
    new = patient("new", **({"deceasedDateTime": survivors} if survivors else {}))
    summary, events, _ = ingest_rows(old, new, lab("old"))
    died = events.get("MEDS_DEATH", {}).get("time")
    assert (str(died.date()) if died else None) == survivors
    told = any("1 replaced patients have a date of death" in note for note in summary.notes)
    assert told == (survivors is None)
    assert is_balanced(summary)


def test_the_stays_of_a_replaced_patient_end_in_the_survivors_death(ingest_rows) -> None:
    stay = {**STAY, "subject": {"reference": "Patient/old"}}
    _, events, _ = ingest_rows(
        patient("old", REPLACED), patient("new", deceasedDateTime="2020-01-05"), stay
    )
    assert events["MEDS_DEATH"]["time"] == day("2020-01-05T12:00:00")
    assert "HOSPITAL_DISCHARGE//DIED" in events


@pytest.mark.parametrize("is_newer", [True, False])
def test_the_newest_copy_says_whether_a_patient_was_replaced(ingest_rows, is_newer: bool) -> None:
    first, second = {"meta": {"versionId": "1"}}, {"meta": {"versionId": "2"}}
    plain = patient("old", **(first if is_newer else second))
    linked = patient("old", REPLACED, **(second if is_newer else first))
    summary, _, _ = ingest_rows(linked, plain, patient("new"), lab("old"))
    assert summary.n_subjects == (1 if is_newer else 2)


def test_a_mimic_key_that_survivor_and_replaced_share_is_the_survivors(ingest_rows) -> None:
    key = {"identifier": [{"system": f"{MIMIC}/identifier/patient", "value": "7"}]}
    rows = [patient("old", REPLACED, **key), patient("new", **key), lab("old")]
    summary, _, frame = ingest_rows(*rows)
    assert set(frame["subject_id"]) == {7}
    assert not any("share a MIMIC key" in note for note in summary.notes)
