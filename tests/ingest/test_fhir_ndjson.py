"""A whole export: files in any order and state, and counts that add up."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsfm import event_table
from tsfm.errors import FormatError, InputError
from tsfm.ingest.fhir_fields import stable_id
from tsfm.ingest.fhir_ndjson import ingest_fhir
from tsfm.ingest.provenance import IngestSummary

from .fhir_rows import OF_STAY, PATIENT, STAY, is_balanced, make, observation

LAB = {
    "resourceType": "Observation",
    "id": "o",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "2345-7"}]},
    **OF_STAY,
    "effectiveDateTime": "2020-01-02T08:00:00Z",
    "valueInteger": 5,
}
GLUCOSE = "OBSERVATION//LOINC//2345-7//UNK"


def ndjson(*rows: Any) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


def run(tmp_path: Path, files: dict[str, bytes], **options: Any) -> IngestSummary:
    src = tmp_path / "src"
    for name, content in files.items():
        path = src / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    src.mkdir(exist_ok=True)
    options = {"max_quarantined": 1.0, "n_shards": 1, "progress": False, **options}
    return ingest_fhir(src, tmp_path / "out", **options)


def events(tmp_path: Path) -> pl.DataFrame:
    return pl.concat(list(event_table.scan_events(tmp_path / "out")))


def test_the_order_and_the_names_of_files_do_not_matter(tmp_path: Path) -> None:
    tables = []
    for n, order in enumerate(([PATIENT, STAY, LAB], [LAB, STAY, PATIENT])):
        files = {f"{'abc'[i]}/{i}.x.ndjson": ndjson(row) for i, row in enumerate(order)}
        run(tmp_path / str(n), files)
        tables.append(events(tmp_path / str(n)))
    assert tables[0].equals(tables[1])
    lab = tables[0].filter(pl.col("code") == GLUCOSE)
    assert lab["encounter_id"].to_list() == [stable_id("e")]


@pytest.mark.parametrize("bundle_type", ["transaction", "searchset", "batch"])
def test_bundles_are_unpacked_and_their_addresses_resolved(
    tmp_path: Path, bundle_type: str
) -> None:
    nested = {"resourceType": "Bundle", "entry": [{"resource": {**LAB, "id": "o2"}}]}
    without_id = {k: v for k, v in LAB.items() if k != "id"}
    without_id["subject"] = {"reference": "urn:uuid:aaa"}
    bundle = {
        "resourceType": "Bundle",
        "type": bundle_type,
        "entry": [
            {"fullUrl": "urn:uuid:bbb", "resource": without_id},
            {"resource": nested},
            {"request": {"method": "DELETE", "url": "Patient/z"}},
            {"fullUrl": "urn:uuid:aaa", "resource": PATIENT},
            {"fullUrl": "urn:uuid:ccc", "resource": STAY},
        ],
    }
    summary = run(tmp_path, {"b.json": json.dumps(bundle, indent=2).encode()})
    assert summary.rows_read == {"Bundle": 2, "Observation": 2, "Patient": 1, "Encounter": 1}
    assert summary.quarantined == {}
    assert events(tmp_path)["code"].to_list().count(GLUCOSE) == 2
    assert is_balanced(summary)


def test_a_manifest_is_no_resource_but_dates_the_export(tmp_path: Path) -> None:
    manifest = {"transactionTime": "2020-02-01T00:00:00Z", "request": "x", "output": []}
    summary = run(tmp_path, {"m.json": json.dumps(manifest).encode(), "p.json": ndjson(PATIENT)})
    assert summary.rows_read == {"Patient": 1}
    assert event_table.dataset_facts(tmp_path / "out")["data_as_of"] == "2020-02-01T00:00:00"


def test_without_a_manifest_the_latest_known_event_dates_the_export(tmp_path: Path) -> None:
    ahead = {**LAB, "id": "f", "effectiveDateTime": "2299-01-01T00:00:00Z"}
    run(tmp_path, {"a.ndjson": ndjson(PATIENT, STAY, LAB, ahead)})
    facts = event_table.dataset_facts(tmp_path / "out")
    assert facts["data_as_of"] == "2020-01-05T12:00:00"
    assert (facts["clock"], facts["dates_shifted"]) == ("utc", False)
    assert event_table.subject_ids(tmp_path / "out") == {stable_id("p"): "p"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"resourceType":"Observation","id":', "bad_json"),
        (b'{"resourceType":"Observation","id":"\xff"}', "bad_json"),
        (b'{"resourceType":"Observation","id":"x","valueQuantity":{"value":NaN}}', "bad_json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
        (b"[1, 2]", "not_a_resource"),
        (b'{"id":"x"}', "no_resource_type"),
        (b'{"resourceType":"Observation"}', "no_id"),
        (b'{"resourceType":"<script>","id":"x"}', "bad_resource_type"),
        (b'{"resourceType":"Bundle","entry":5}', "bad_field"),
        (b'{"resourceType":"Observation","id":"x","subject":7}', "bad_field"),
    ],
)
def test_a_line_that_is_no_resource_is_set_aside_with_its_place(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    content = b"\xef\xbb\xbf" + ndjson(PATIENT, line) + b"\n" + ndjson(LAB)
    summary = run(tmp_path, {"sub/a.ndjson": content})
    assert summary.quarantined == {reason: 1}
    assert summary.exit_code == 3
    assert is_balanced(summary)
    assert GLUCOSE in events(tmp_path)["code"].to_list()
    text = (tmp_path / "out" / "quarantine" / f"{reason}.ndjson").read_text()
    entry = json.loads(text)
    assert (entry["file"], entry["line"]) == ("sub/a.ndjson", 2)
    assert content[entry["offset"] :].startswith(line[:1000])


def test_an_unfinished_last_line_counts_only_if_it_is_whole(tmp_path: Path) -> None:
    whole = run(tmp_path / "1", {"a.ndjson": ndjson(PATIENT, LAB)[:-1]})
    assert whole.quarantined == {}
    cut = run(tmp_path / "2", {"a.ndjson": ndjson(PATIENT, LAB)[:-9]})
    assert cut.quarantined == {"bad_json": 1}


def test_an_overlong_line_is_set_aside(tmp_path: Path) -> None:
    content = ndjson(PATIENT) + b'{"x":"' + b"a" * (17 << 20) + b'"}\n' + ndjson(LAB)
    summary = run(tmp_path, {"a.ndjson.gz": gzip.compress(content, 1)})
    assert summary.quarantined == {"line_too_long": 1}
    assert is_balanced(summary)


def test_a_truncated_gzip_fails_the_run_and_leaves_no_table(tmp_path: Path) -> None:
    good = gzip.compress(ndjson(PATIENT))
    bad = gzip.compress(ndjson(*[{**LAB, "id": str(n)} for n in range(500)]))[:-30]
    with pytest.raises(FormatError) as caught:
        run(tmp_path, {"a.ndjson.gz": good, "b.ndjson.gz": bad})
    assert (caught.value.code, caught.value.place) == ("truncated_gzip", "b.ndjson.gz")
    assert not (tmp_path / "out" / "data").exists()
    assert not (tmp_path / "out" / "metadata").exists()
    assert list((tmp_path / "out").glob(".spill*")) == []


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"a.csv": b"x", "b.xml": b"<Patient/>"},
        {"a.ndjson": b"\n"},
        {"a.ndjson": ndjson({"resourceType": "Organization", "id": "x"})},
    ],
)
def test_a_source_without_patients_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, files)
    assert caught.value.code == "empty_source"


def test_too_many_set_aside_fails_the_run(tmp_path: Path) -> None:
    rows = [PATIENT] + [{**LAB, "id": str(n), "subject": {"reference": "Patient/x"}} for n in "ab"]
    with pytest.raises(FormatError) as caught:
        run(tmp_path, {"a.ndjson": ndjson(*rows)}, max_quarantined=0.5)
    assert caught.value.code == "too_many_quarantined"
    assert not (tmp_path / "out" / "data").exists()
    run(tmp_path, {}, max_quarantined=0.7)
    assert events(tmp_path)["subject_id"].n_unique() == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"clock": "moon"}, "unknown_clock"),
        ({"time_zone": "Nowhere/Town"}, "unknown_time_zone"),
        ({"coding_delay_hours": float("nan")}, "bad_coding_delay"),
        ({"max_quarantined": 2}, "bad_max_quarantined"),
        ({"n_shards": 0}, "bad_n_shards"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, options: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, {"a.ndjson": ndjson(PATIENT)}, **options)
    assert caught.value.code == code


def test_the_output_may_not_lie_in_the_source_nor_be_overwritten(tmp_path: Path) -> None:
    run(tmp_path, {"a.ndjson": ndjson(PATIENT)})
    for out, code in ((tmp_path / "out", "output_exists"), (tmp_path / "src/out", "output_inside")):
        with pytest.raises(InputError) as caught:
            ingest_fhir(tmp_path / "src", out, progress=False)
        assert caught.value.code.startswith(code)
    with pytest.raises(InputError) as caught:
        ingest_fhir(tmp_path / "nothing", tmp_path / "out2", progress=False)
    assert caught.value.code == "missing_source"


def test_a_discharge_before_its_admission_takes_only_the_stay(tmp_path: Path) -> None:
    period = {"start": "2020-01-05T12:00:00Z", "end": "2020-01-01T10:00:00Z"}
    summary = run(tmp_path, {"a.ndjson": ndjson(PATIENT, {**STAY, "period": period}, LAB)})
    assert summary.quarantined == {"discharge_before_admission": 1}
    assert set(events(tmp_path)["code"]) == {"GENDER//F", "MEDS_BIRTH", GLUCOSE}


def test_an_unreadable_birth_date_costs_only_itself(tmp_path: Path) -> None:
    patient = {**PATIENT, "birthDate": "0000-00-00"}
    summary = run(tmp_path, {"a.ndjson": ndjson(patient, LAB)})
    assert summary.quarantined == {"bad_time": 1}
    assert set(events(tmp_path)["code"]) == {"GENDER//F", GLUCOSE}
    assert is_balanced(summary)


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("by", ["lastUpdated", "versionId"])
def test_the_newest_copy_of_a_resource_is_kept(tmp_path: Path, newest_first: bool, by: str) -> None:
    stamps = {"lastUpdated": ("2020-01-01T00:00:00Z", "2020-01-01T00:30:00-01:00")}
    older, newer = stamps.get(by, ("9", "10"))
    rows = [
        {**PATIENT, "gender": "male", "meta": {by: older}},
        {**PATIENT, "gender": "female", "meta": {by: newer}},
    ]
    labs = [
        {**LAB, "valueInteger": 1, "meta": {by: older}},
        {**LAB, "valueInteger": 2, "meta": {by: newer}},
    ]
    if newest_first:
        rows, labs = rows[::-1], labs[::-1]
    summary = run(tmp_path, {"a.ndjson": ndjson(*labs, *rows), "b.ndjson": ndjson(*labs)})
    table = events(tmp_path)
    assert summary.quarantined == {"duplicate_resource": 4}
    assert is_balanced(summary)
    assert "GENDER//F" in table["code"].to_list()
    assert table.filter(pl.col("code") == GLUCOSE)["numeric_value"].to_list() == [2.0]


def test_a_newer_copy_of_a_stay_moves_what_depends_on_it(tmp_path: Path) -> None:
    code = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I50.9"}]}
    of_stay = {"subject": LAB["subject"], "encounter": LAB["encounter"]}
    condition = {"resourceType": "Condition", "id": "c", "code": code, **of_stay}
    later = {
        **STAY,
        "meta": {"versionId": "2"},
        "period": {"start": "2020-01-01T10:00:00Z", "end": "2020-01-07T12:00:00Z"},
    }
    run(tmp_path, {"a.ndjson": ndjson(PATIENT, later, condition, STAY)})
    row = events(tmp_path).filter(pl.col("code") == "DIAGNOSIS//ICD//10//I509")
    assert row["time"].to_list() == [datetime(2020, 1, 7, 12)]


def test_a_file_that_changes_between_the_passes_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsfm.ingest.fhir_references import ReferenceIndex

    settle = ReferenceIndex.settle

    def meddle(self: ReferenceIndex, clock: Any) -> None:
        with (tmp_path / "src" / "a.ndjson").open("ab") as file:
            file.write(ndjson(LAB))
        settle(self, clock)

    monkeypatch.setattr(ReferenceIndex, "settle", meddle)
    with pytest.raises(FormatError) as caught:
        run(tmp_path, {"a.ndjson": ndjson(PATIENT)})
    assert caught.value.code == "file_changed"


def test_the_hour_that_repeats_in_autumn_keeps_its_order(tmp_path: Path) -> None:
    first = {**LAB, "effectiveDateTime": "2020-10-25T02:30:00+02:00", "valueInteger": 1}
    again = {**first, "id": "o2", "effectiveDateTime": "2020-10-25T02:30:00+01:00"}
    run(tmp_path, {"a.ndjson": ndjson(PATIENT, {**again, "valueInteger": 2}, first)})
    table = events(tmp_path).filter(pl.col("code") == GLUCOSE)
    assert table["numeric_value"].to_list() == [1.0, 2.0]
    assert table["time"].diff()[1] == timedelta(hours=1)


def test_stamps_without_an_offset_are_on_the_zone_that_is_given(tmp_path: Path) -> None:
    stamps = ("2020-10-25T01:30:00", "2020-10-25T04:30:00", "2020-07-01T00:00:00")
    rows = [{**LAB, "id": str(n), "effectiveDateTime": text} for n, text in enumerate(stamps)]
    run(tmp_path, {"a.ndjson": ndjson(PATIENT, *rows)}, time_zone="Europe/Berlin")
    table = events(tmp_path).filter(pl.col("code") == GLUCOSE)
    assert [str(time) for time in table["time"]] == [
        "2020-06-30 22:00:00",
        "2020-10-24 23:30:00",
        "2020-10-25 03:30:00",
    ]


_GOOD = {
    "patient": PATIENT,
    "encounter": STAY,
    "lab": LAB,
    "no_value": {k: v for k, v in LAB.items() if k != "valueInteger"},
    "bad_time": {**LAB, "effectiveDateTime": "0000-00-00"},
    "stranger": {**LAB, "subject": {"reference": "Patient/x"}},
    "cancelled": {**STAY, "status": "cancelled"},
    "backwards": {**STAY, "period": {"start": "2020-01-05", "end": "2020-01-01"}},
    "unknown": {"resourceType": "Claim", "id": "1"},
    "location": {"resourceType": "Location", "id": "1", "name": "Ward"},
    "medication": {"resourceType": "Medication", "id": "1"},
    "untyped": {"id": "1"},
    "broken": b"{",
    "blank": b"  ",
    "bundle": {"resourceType": "Bundle", "entry": [{"resource": LAB}, {"resource": {"id": "9"}}]},
}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from(sorted(_GOOD)), st.integers(0, 3)), max_size=25))
def test_every_row_of_any_mix_is_used_ignored_or_set_aside(
    tmp_path_factory: pytest.TempPathFactory, mix: list[tuple[str, int]]
) -> None:
    rows: list[Any] = [PATIENT]
    expected = 1
    for name, n in mix:
        row = _GOOD[name]
        if isinstance(row, dict) and "id" in row and name != "patient":
            row = {**row, "id": f"{row['id']}{n}"}
        rows.append(row)
        expected += {"blank": 0, "bundle": 3}.get(name, 1)
    summary = run(tmp_path_factory.mktemp("mix"), {"a.ndjson": ndjson(*rows)})
    assert summary.n_rows == expected
    assert is_balanced(summary)


def test_patients_are_watched_until_the_last_thing_that_was_recorded(ingest_rows) -> None:
    code = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I50.23"}]}
    late = make("Condition", code=code, **OF_STAY, onsetDateTime="2005", recordedDate="2021-06-01")
    summary, _, _ = ingest_rows(PATIENT, STAY, late)
    assert any("data as of 2021-06-01T23:59:59" in note for note in summary.notes)


def test_a_stay_whose_end_is_a_year_tells_of_no_day_of_it(ingest_rows) -> None:
    stay = {**STAY, "id": "b", "period": {"start": "2020-03-01T10:00:00Z", "end": "2020"}}
    summary, _, _ = ingest_rows(PATIENT, STAY, stay)
    assert any("data as of 2020-03-01T10:00:00" in note for note in summary.notes)


@pytest.mark.parametrize("what", ["a year", "a coding delay"])
def test_nobody_is_watched_beyond_the_last_moment_that_was_recorded(ingest_rows, what: str) -> None:
    code = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "I50.23"}]}
    vague, billed = observation(effectiveDateTime="2020"), make("Condition", code=code, **OF_STAY)
    summary, _, _ = ingest_rows(PATIENT, STAY, vague if what == "a year" else billed)
    assert any("data as of 2020-01-05T12:00:00" in note for note in summary.notes)


def test_of_copies_without_a_version_the_content_decides_which_is_kept(
    ingest_rows, tmp_path: Path
) -> None:
    one, other = (observation(valueQuantity={"value": v, "code": "mg/dL"}) for v in (5, 9))
    kept = []
    for rows in ((one, other), (other, one)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        summary, _, frame = ingest_rows(PATIENT, *rows)
        assert summary.quarantined == {"duplicate_resource": 1}
        kept += frame["numeric_value"].drop_nulls().to_list()
    assert len(kept) == 2
    assert kept[0] == kept[1]
