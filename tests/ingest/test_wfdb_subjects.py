"""Each record finds its patient, its stay and its time, or is set aside."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tsfm import event_table
from tsfm.errors import FormatError, InputError
from tsfm.ingest.fhir_fields import stable_id
from tsfm.ingest.provenance import dataset_facts
from tsfm.ingest.wfdb_records import ingest_wfdb
from tsfm.signals.store import SignalStore


def write_raw(folder: Path, name: str = "r") -> None:
    """A good record of one signal, 0.4 s long."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.dat").write_bytes(np.arange(100, dtype="<i2").tobytes())
    (folder / f"{name}.hea").write_text(f"{name} 1 250 100\n{name}.dat 16 200 16 0 0 0 0 II\n")


def existing_table(out: Path, *, clock: str = "wall", data_as_of: str | None = None) -> None:
    when = datetime(2030, 1, 1)
    events = pl.DataFrame(
        {
            "subject_id": [stable_id("pat-1"), stable_id("pat-2")],
            "time": [when, when],
            "code": ["HOSPITAL_ADMISSION//URGENT", "HOSPITAL_ADMISSION//URGENT"],
            "encounter_id": [stable_id("enc-1"), 22],
        },
        schema_overrides={"time": pl.Datetime("us")},
    )
    with event_table.EventWriter(out) as writer:
        writer.add(events)
        writer.finish(
            dataset=dataset_facts("x", clock=clock, data_as_of=data_as_of),
            subject_ids={stable_id("pat-1"): "pat-1", stable_id("pat-2"): "pat-2"},
        )


def write_subjects(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["record,subject,start_time,encounter", *rows]) + "\n")
    return path


def test_records_join_the_patients_of_an_event_table(tmp_path: Path) -> None:
    existing_table(tmp_path / "out")
    for name in ("a", "b", "c", "d", "e"):
        write_raw(tmp_path / "in" / "sub", name)
    table = write_subjects(
        tmp_path / "subjects.csv",
        "sub/a,pat-1,2030-01-02T03:04:05,enc-1",
        f"sub/b,{stable_id('pat-2')},2030-01-02,22",
        "sub/c,pat-3,2030-01-02T03:04:05,",
        "sub/d,pat-1,,",
    )
    before = event_table.subject_splits(tmp_path / "out")
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=table, max_quarantined=0.6)
    assert summary.quarantined == {"unknown_patient": 1, "no_start_time": 1, "no_subject": 1}
    assert summary.rows_used == {"record": 2}
    assert summary.n_subjects == 2
    assert event_table.subject_splits(tmp_path / "out") == before
    events = pl.concat(event_table.scan_events(tmp_path / "out")).filter(
        pl.col("signal_id").is_not_null()
    )
    by_subject = {row["subject_id"]: row for row in events.iter_rows(named=True)}
    first, second = by_subject[stable_id("pat-1")], by_subject[stable_id("pat-2")]
    assert (first["code"], first["encounter_id"]) == ("ECG//1", stable_id("enc-1"))
    assert first["time"] == datetime(2030, 1, 2, 3, 4, 5)
    assert first["available_time"] == datetime(2030, 1, 2, 3, 4, 5, 400_000)
    # Of a bare date nothing is known before the day is over.
    assert second["encounter_id"] == 22
    assert second["available_time"] > datetime(2030, 1, 3)
    codes = event_table.read_table(tmp_path / "out" / "metadata" / "codes.parquet").to_pylist()
    assert {row["code"]: row["description"] for row in codes}["ECG//1"]


def test_a_utc_table_takes_only_stamps_with_an_offset(tmp_path: Path) -> None:
    existing_table(tmp_path / "out", clock="utc")
    write_raw(tmp_path / "in", "a")
    write_raw(tmp_path / "in", "b")
    table = write_subjects(
        tmp_path / "s.csv",
        "a,pat-1,2030-01-02T03:04:05+02:00,",
        "b,pat-1,2030-01-02T03:04:05,",
    )
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=table)
    assert summary.quarantined == {"no_time_zone": 1}
    assert SignalStore(tmp_path / "out").index["start_time"].to_list() == [
        datetime(2030, 1, 2, 1, 4, 5)
    ]


def test_a_new_table_takes_ids_as_they_are_or_hashes_them(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_raw(tmp_path / "in", name)
    table = tmp_path / "s.csv"
    table.write_text("record,subject\na,17\nb,x-9\nc.hea,x-9\nz,1\n")
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=table)
    assert event_table.subject_ids(tmp_path / "out") == {17: "17", stable_id("x-9"): "x-9"}
    assert summary.n_subjects == 2
    assert any("1 rows of the table of subjects" in note for note in summary.notes)
    facts = event_table.dataset_facts(tmp_path / "out")
    assert (facts["clock"], facts["dates_shifted"]) == ("wall", False)
    assert facts["data_as_of"] is None


def test_a_stay_of_another_patient_is_not_tied_to_a_record(tmp_path: Path) -> None:
    existing_table(tmp_path / "out")
    write_raw(tmp_path / "in", "a")
    table = write_subjects(tmp_path / "s.csv", "a,pat-2,2030-01-02T03:04:05,enc-1")
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=table)
    assert any("1 records name an encounter that is no stay of" in n for n in summary.notes)
    events = pl.concat(event_table.scan_events(tmp_path / "out"))
    assert events.filter(pl.col("signal_id").is_not_null())["encounter_id"].to_list() == [None]


def test_records_after_the_end_of_the_data_are_counted(tmp_path: Path) -> None:
    existing_table(tmp_path / "out", data_as_of="2030-06-01T00:00:00")
    for name in ("a", "b"):
        write_raw(tmp_path / "in", name)
    table = write_subjects(
        tmp_path / "s.csv", "a,pat-1,2030-05-31T23:00:00,", "b,pat-1,2031-01-01,"
    )
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=table)
    assert "1 records begin after the data set's end (data_as_of)" in summary.notes


def test_an_offset_is_dropped_in_words_and_never_against_the_header(tmp_path: Path) -> None:
    existing_table(tmp_path / "out")
    for name in ("local", "utc", "alone"):
        write_raw(tmp_path / "in", name)
        header = tmp_path / "in" / f"{name}.hea"
        if name != "alone":
            header.write_text(header.read_text().replace(" 100\n", " 100 13:26:46 14/07/2030\n", 1))
    table = write_subjects(
        tmp_path / "s.csv",
        "local,pat-1,2030-07-14T13:26:46-04:00,",
        "utc,pat-1,2030-07-14T17:26:46Z,",
        "alone,pat-1,2030-07-14T10:00:00+05:00,",
    )
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=table)
    assert summary.quarantined == {"offset_contradicts_header": 1}
    assert "2 start times have an offset, which the wall clock drops" in summary.notes
    index = SignalStore(tmp_path / "out").index
    assert dict(index.select("record", "start_time").iter_rows()) == {
        "alone": datetime(2030, 7, 14, 10),
        "local": datetime(2030, 7, 14, 13, 26, 46),
    }


def test_blank_rows_of_a_spreadsheet_are_passed_over(tmp_path: Path) -> None:
    write_raw(tmp_path / "in", "a")
    table = write_subjects(tmp_path / "s.csv", "a,1,,", ",,,", " ,,,")
    assert ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=table).rows_used == {"record": 1}


def test_an_event_table_needs_the_subjects(tmp_path: Path) -> None:
    existing_table(tmp_path / "out")
    write_raw(tmp_path / "in")
    with pytest.raises(InputError, match="subjects_needed"):
        ingest_wfdb(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("missing_column", "name,subject\nr,1\n"),
        ("duplicate_record", "record,subject\nr,1\n./r,2\n"),
        ("no_record_name", "record,subject\nr,1\n,2\n"),
        ("bad_subjects_table", 'record,subject\nr,"1\n'),
        ("missing_column", ""),
    ],
)
def test_a_bad_table_of_subjects_is_refused(tmp_path: Path, code: str, text: str) -> None:
    write_raw(tmp_path / "in")
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(FormatError) as caught:
        ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=tmp_path / "s.csv")
    assert caught.value.code == code
