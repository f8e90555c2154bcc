"""MEDS data sets of any make come in whole, each event known when it could be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from meds import DataSchema

from tsfm import event_table
from tsfm.errors import FormatError, InputError, IntegrityError
from tsfm.ingest.meds_dataset import ingest_meds
from tsfm.ingest.meds_stays import stay_key

from .meds_sources import DELAY, IN, OUT, STAY, T, error_of, ingest, shard, write


def test_billing_codes_are_known_a_delay_after_their_stay_and_the_rest_at_its_time(
    tmp_path: Path,
) -> None:
    events, summary, _ = ingest(write(tmp_path / "a", {"data/0": shard(STAY)}))
    known = {(code, time): at for code, time, at in events["code", "time", "available_time"].rows()}
    assert known == {
        ("GENDER//F", None): None,
        ("LAB//1", T("2019-01-01")): T("2019-01-01"),
        ("PROCEDURE//ICD//9//5491", T("2020-03-02")): OUT + DELAY,
        ("HOSPITAL_ADMISSION//URGENT", IN): IN,
        ("LAB//1", T("2020-03-03 08:00")): T("2020-03-03 08:00"),
        ("HOSPITAL_DISCHARGE//HOME", OUT): OUT,
        ("DIAGNOSIS//ICD//10//I10", OUT): OUT + DELAY,
        ("DRG//APR//1//X", OUT): OUT + DELAY,
        ("PROCEDURE//START//2", OUT): OUT,
        ("DIAGNOSIS//ICD//10//E11", T("2020-04-01")): T("2020-04-01") + DELAY,
    }
    assert any(note.startswith("4 billing codes") and "(1 of" in note for note in summary.notes)
    assert any(note.startswith("6 other events: available at") for note in summary.notes)


def test_events_of_a_stay_get_its_key_and_others_none(tmp_path: Path) -> None:
    events, _, _ = ingest(write(tmp_path / "a", {"data/0": shard(STAY)}))
    key = stay_key(1, int((IN - datetime(1970, 1, 1)) / timedelta(microseconds=1)))
    keyed = events.filter(pl.col("encounter_id") == key)["code"].to_list()
    assert sorted(keyed) == sorted(row[2] for row in STAY[2:9])
    assert events["encounter_id"].null_count() == len(STAY) - len(keyed)


def test_a_code_at_the_moment_two_stays_meet_belongs_to_the_one_that_ends(tmp_path: Path) -> None:
    second = OUT + timedelta(days=2)
    rows = [
        (1, IN, "HOSPITAL_ADMISSION//A", None),
        (1, OUT, "HOSPITAL_DISCHARGE//B", None),
        (1, OUT, "HOSPITAL_ADMISSION//A", None),
        (1, OUT, "DIAGNOSIS//ICD//10//I10", None),
        (1, second, "HOSPITAL_DISCHARGE//B", None),
        (1, second, "DIAGNOSIS//ICD//10//I11", None),
    ]
    events, _, _ = ingest(write(tmp_path / "a", {"data/0": shard(rows)}))
    stays = dict(events.filter(pl.col("code").str.contains("DIAG"))["code", "encounter_id"].rows())
    ends = events.filter(pl.col("code").str.contains("DISCHARGE"))["encounter_id"].to_list()
    assert list(stays.values()) == ends
    assert len(set(ends)) == 2


def test_an_admission_that_lasts_does_not_take_the_next_ones_discharge(tmp_path: Path) -> None:
    later = OUT + timedelta(days=30)
    rows = [
        (1, IN, "HOSPITAL_ADMISSION//A", None),
        (1, later, "HOSPITAL_ADMISSION//A", None),
        (1, later + timedelta(days=1), "HOSPITAL_DISCHARGE//B", None),
    ]
    events, _, _ = ingest(write(tmp_path / "a", {"data/0": shard(rows)}))
    first, second, third = events["encounter_id"].to_list()
    assert first != second == third


def test_what_the_source_says_of_knowing_and_encounters_is_kept(tmp_path: Path) -> None:
    kinds = {"available_time": pa.timestamp("us"), "hadm_id": pa.int32()}
    rows = [
        (1, IN, "HOSPITAL_ADMISSION//A", None, IN, 5),
        (1, IN, "DIAGNOSIS//ICD//10//I10", None, IN, None),
        (1, OUT, "DIAGNOSIS//ICD//10//I11", None, None, 5),
        (1, OUT + timedelta(hours=1), "HOSPITAL_DISCHARGE//B", None, None, 5),
    ]
    events, summary, _ = ingest(write(tmp_path / "a", {"data/0": shard(rows, **kinds)}))
    end = OUT + timedelta(hours=1)
    assert events["available_time"].to_list() == [IN, IN, end + DELAY, end]
    assert events["encounter_id"].to_list() == [5, None, 5, 5]
    assert any("other column names" in note for note in summary.notes)


def test_older_and_looser_types_are_converted_and_noted(tmp_path: Path) -> None:
    table = pa.table(
        {
            "patient_id": pa.array([-4, -4, 3], pa.int32()),
            "time": pa.array([None, T("2020-01-01 12:00").replace(tzinfo=UTC)] * 1
                             + [T("2020-06-01 12:00").replace(tzinfo=UTC)],
                             pa.timestamp("ms", tz="America/New_York")),
            "code": pa.array(["A", "B", "B"]).dictionary_encode(),
            "numeric_value": pa.array([0.1, float("inf"), 1e300], pa.float64()),
            "text_value": pa.array(["x", None, None], pa.large_string()),
            "table": pa.array(["t"] * 3),
        }
    )  # fmt: skip
    events, summary, out = ingest(write(tmp_path / "a", {"data/x/y/0": table}), n_shards=1)
    assert events["subject_id"].to_list() == [-4, -4, 3]
    assert events["time"].to_list() == [None, T("2020-01-01 12:00"), T("2020-06-01 12:00")]
    assert events["code"].to_list() == ["A", "B", "B"]
    assert events["numeric_value"].to_list() == [pytest.approx(0.1), None, None]
    assert events["text_value"].to_list() == ["x", None, None]
    notes = " ".join(summary.notes)
    for words in ("2 values were infinite", "brought to UTC", "64-bit values", "not read: table"):
        assert words in notes
    assert event_table.dataset_facts(out)["clock"] == "utc"
    DataSchema.validate(event_table.read_table(out / "data" / "0.parquet"))


def test_scattered_and_unordered_subjects_are_merged_sorted_and_noted(tmp_path: Path) -> None:
    rows = [(s, T(f"2020-01-{d:02}"), f"C{d}", None) for d in (3, 1, 2) for s in (2, 1)]
    src = write(tmp_path / "a", {"data/0": shard(rows[:4]), "data/1": shard(rows[4:])})
    events, summary, _ = ingest(src, n_shards=1)
    assert events["subject_id", "code"].rows() == [(s, f"C{d}") for s in (1, 2) for d in (1, 2, 3)]
    notes = " ".join(summary.notes)
    assert "2 subjects were in more than one shard: merged" in notes
    assert "1 shards had scattered subjects and 0 rows out of order" in notes


def test_unusable_events_are_set_aside(tmp_path: Path) -> None:
    rows = [
        (1, IN, "A", 1.0),
        (None, IN, "A", 1.0),
        (1, IN, None, 1.0),
        (1, IN, "", 1.0),
        (1, T("1677-09-21"), "A", 1.0),
        *[(1, IN, "A", 1.0)] * 5,
    ]
    src = write(tmp_path / "a", {"data/0": shard(rows)})
    events, summary, out = ingest(src)
    assert summary.quarantined == {"no_subject": 1, "no_code": 2, "time_out_of_range": 1}
    assert events.height == 6
    lines = (out / "quarantine" / "no_code.ndjson").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "0.parquet", "kind": "events", "line": n} for n in (3, 4)
    ]
    assert error_of(src, max_quarantined=0.3).code == "too_many_quarantined"


def test_a_source_is_never_written_into(tmp_path: Path) -> None:
    src = write(tmp_path / "a", {"data/train/0": shard(STAY)})
    files = {"metadata/dataset.json": b"{}", "metadata/codes.parquet": b"theirs"}
    for name, held in files.items():
        (src / name).parent.mkdir(exist_ok=True)
        (src / name).write_bytes(held)
    (tmp_path / "link").symlink_to(src)
    before = sorted(p for p in tmp_path.rglob("*"))
    for out in (src, src / "data" / "own", tmp_path, tmp_path / "link"):
        with pytest.raises(InputError, match="output_inside_source"):
            ingest_meds(src, out)
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert all((src / name).read_bytes() == held for name, held in files.items())


def test_a_folder_that_holds_anything_is_refused_before_it_is_touched(tmp_path: Path) -> None:
    src = write(tmp_path / "a", {"data/0": shard(STAY)})
    out = tmp_path / "out"
    for name in ("metadata/dataset.json", "quarantine/notes.ndjson"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text('{"mine": 1}')
        assert error_of(src).code == "output_exists"
        assert [p.read_text() for p in out.rglob("*.*")] == ['{"mine": 1}']
        shutil.rmtree(out)


def test_a_run_after_one_that_failed_clears_its_quarantine(tmp_path: Path) -> None:
    src = write(tmp_path / "a", {"data/0": shard([(None, IN, "A", 1.0), *STAY])})
    assert error_of(src, max_quarantined=0.0).code == "too_many_quarantined"
    assert (tmp_path / "out" / "quarantine" / "no_subject.ndjson").is_file()
    write(src, {"data/0": shard(STAY)})
    ingest_meds(src, tmp_path / "out")
    assert list((tmp_path / "out" / "quarantine").iterdir()) == []


def test_batches_make_no_difference(data_dir: Callable[[str], Path], tmp_path: Path) -> None:
    src = data_dir("meds-sample") / "aces-synthetic"
    ingest_meds(src, tmp_path / "whole")
    ingest_meds(src, tmp_path / "cut", batch_rows=997)
    pairs = zip(
        event_table.scan_events(tmp_path / "whole"),
        event_table.scan_events(tmp_path / "cut"),
        strict=True,
    )
    assert all(whole.equals(cut) for whole, cut in pairs)


@pytest.mark.parametrize(
    ("table", "code"),
    [
        (pa.table({"subject_id": [1], "patient_id": [1], "time": [IN], "code": ["A"]}),
         "ambiguous_column"),
        (pa.table({"subject_id": [1], "code": ["A"]}), "missing_column"),
        (pa.table({"subject_id": [1], "time": ["2020"], "code": ["A"]}), "wrong_column_type"),
        (pa.table({"subject_id": ["1"], "time": [IN], "code": ["A"]}), "wrong_column_type"),
        (pa.table({"subject_id": [1.0], "time": [IN], "code": ["A"]}), "wrong_column_type"),
        (pa.table({"subject_id": [1], "time": [IN], "code": [7]}), "wrong_column_type"),
        (shard([]), "empty_source"),
    ],
)  # fmt: skip
def test_tables_that_are_not_meds_are_refused(tmp_path: Path, table: pa.Table, code: str) -> None:
    assert error_of(write(tmp_path / "a", {"data/0": table})).code == code


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"data/0": shard([])}) / "data" / "0.parquet"
    rows = [(n, IN, f"CODE//{n * 7919 % 1009}", float(n)) for n in range(20_000)]
    pq.write_table(shard(rows), path, write_page_checksum=True)
    whole = path.read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        error = error_of(tmp_path / "a")
        assert isinstance(error, FormatError)
        assert error.code == "bad_parquet"
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert isinstance(error_of(tmp_path / "a"), IntegrityError)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"A", b"\xff\xfe"], pa.binary())
    code = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    table = pa.table({"subject_id": [1, 1], "time": [IN, IN], "code": code})
    assert error_of(write(tmp_path / "a", {"data/0": table})).code == "bad_parquet"


def test_an_empty_or_absent_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "data").mkdir(parents=True)
    for name, code in (("a", "empty_source"), ("b", "missing_source")):
        error = error_of(tmp_path / name)
        assert isinstance(error, InputError)
        assert error.code == code


def test_the_demo_is_read_whole(data_dir: Callable[[str], Path], tmp_path: Path) -> None:
    summary = ingest_meds(data_dir("mimic-iv-demo-meds"), tmp_path / "out")
    assert (summary.n_subjects, summary.n_events) == (100, 916_166)
    assert summary.quarantined == {}
    assert summary.events_by_class["DIAGNOSIS"] == 4506
    for events in event_table.scan_events(tmp_path / "out"):
        coded = events.filter(pl.col("code").str.contains("^(DIAGNOSIS|DRG)//"))
        assert (coded["available_time"] - coded["time"] >= DELAY).all()
        assert coded["encounter_id"].null_count() == 0
        timed = events.filter(pl.col("time").is_not_null())
        assert timed["available_time"].null_count() == 0
