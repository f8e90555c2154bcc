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


def existing_table(out: Path, *, clock: str = "wall") -> None:
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
            dataset=dataset_facts("x", clock=clock),
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
