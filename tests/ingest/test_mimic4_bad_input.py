"""Broken MIMIC-IV tables: a clear error or a counted row in the quarantine; nothing is lost."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tsfm import event_table
from tsfm.errors import FormatError, InputError, TsfmError
from tsfm.ingest.mimic4 import ingest_mimic4
from tsfm.ingest.provenance import IngestSummary

Run = Callable[..., tuple[pl.DataFrame, IngestSummary]]


@pytest.fixture(scope="module")
def n_events(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Events of the fixture as it is."""
    src = repository / "tests" / "fixtures" / "mimic4"
    return ingest_mimic4(src, tmp_path_factory.mktemp("untouched")).n_events


@pytest.fixture
def src(repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    shutil.copytree(repository / "tests" / "fixtures" / "mimic4", folder)
    return folder


@pytest.fixture
def run(src: Path, tmp_path: Path) -> Run:
    def ingest(**options: float) -> tuple[pl.DataFrame, IngestSummary]:
        summary = ingest_mimic4(src, tmp_path / "out", **options)  # type: ignore[arg-type]
        accounted = (summary.rows_used, summary.rows_ignored, summary.quarantined)
        assert summary.n_rows == sum(sum(counts.values()) for counts in accounted)
        return pl.concat(event_table.scan_events(tmp_path / "out")), summary

    return ingest


def append(path: Path, *rows: str) -> None:
    with path.open("a") as stream:
        stream.writelines(row + "\n" for row in rows)


def classes(events: pl.DataFrame) -> set[str]:
    return set(events["code"].str.split("//").list.first())


def error_of(src: Path, out: Path, **options: float) -> TsfmError:
    with pytest.raises(TsfmError) as caught:
        ingest_mimic4(src, out, **options)  # type: ignore[arg-type]
    assert not list(out.glob("data/*"))  # nothing half-written looks like a data set
    assert not list(out.glob(".spill*"))
    return caught.value


def test_an_empty_or_absent_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty" / "hosp").mkdir(parents=True)
    assert error_of(tmp_path / "empty", tmp_path / "out").code == "empty_source"
    assert error_of(tmp_path / "absent", tmp_path / "out").code == "missing_source"


@pytest.mark.parametrize("name", ["hosp/patients", "hosp/admissions", "ed/edstays"])
def test_a_table_that_others_depend_on_must_be_there(src: Path, tmp_path: Path, name: str) -> None:
    (src / f"{name}.csv").unlink()
    error = error_of(src, tmp_path / "out")
    assert isinstance(error, InputError)
    assert error.code == "missing_table"
    assert name in str(error)


@pytest.mark.parametrize("name", ["triage", "diagnosis", "vitalsign", "medrecon", "pyxis"])
def test_a_table_of_ed_needs_its_visits(src: Path, tmp_path: Path, name: str) -> None:
    for path in list((src / "ed").glob("*.csv")):
        if path.stem != name:
            path.unlink()
    error = error_of(src, tmp_path / "out")
    assert error.code == "missing_table"
    assert "ed/edstays" in str(error)


def test_a_missing_column_is_named_with_its_table(src: Path, tmp_path: Path) -> None:
    path = src / "hosp" / "labevents.csv"
    path.write_text(path.read_text().replace("storetime", "stored"))
    error = error_of(src, tmp_path / "out")
    assert isinstance(error, FormatError)
    assert error.code == "missing_column"
    assert "labevents" in str(error)
    assert "storetime" in str(error)


def test_a_truncated_gzip_is_an_error(src: Path, tmp_path: Path) -> None:
    path = src / "icu" / "chartevents.csv"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_suffix(".csv.gz").write_bytes(packed[:-20])
    error = error_of(src, tmp_path / "out")
    assert error.code == "truncated_gzip"
    assert "chartevents.csv.gz" in str(error)


def test_a_table_there_twice_is_an_error(src: Path, tmp_path: Path) -> None:
    path = src / "hosp" / "omr.csv"
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert error_of(src, tmp_path / "out").code == "ambiguous_table"


def test_names_and_suffixes_are_read_in_any_case(src: Path, run: Run, tmp_path: Path) -> None:
    for path in list(src.rglob("*.csv")):
        header, newline, rows = path.read_bytes().partition(b"\n")
        packed = gzip.compress(header.upper() + newline + rows)
        path.with_name(path.name.upper() + ".GZ").write_bytes(packed)
        path.unlink()
    (src / "hosp").rename(src / "HOSP")
    events, summary = run()
    assert summary.rows_read["hosp/labevents"] == 3
    assert {"LAB", "Blood Pressure", "VITAL"} <= classes(events)


def test_unknown_files_are_named_and_other_columns_do_no_harm(src: Path, run: Run) -> None:
    (src / "hosp" / "notes.csv").write_text("a\n1\n")
    path = src / "hosp" / "services.csv"
    header, row = path.read_text().splitlines()
    path.write_text(f"new,{header},newer\n1,{row},2\n")
    events, summary = run()
    assert "SERVICE" in classes(events)
    assert any("hosp/notes" in note for note in summary.notes)


def test_a_table_that_is_no_csv_file_is_named(src: Path, run: Run) -> None:
    (src / "hosp" / "labevents.csv").rename(src / "hosp" / "labevents.parquet")
    (src / "hosp" / "README.txt").write_text("notes")
    _, summary = run()
    assert "unknown files, not read: hosp/labevents.parquet" in summary.notes
    (absent,) = [note for note in summary.notes if note.startswith("absent: ")]
    assert "hosp/labevents" in absent


@pytest.mark.parametrize(
    ("table", "row", "reason"),
    [
        ("hosp/labevents", "9,99,,1,50912,,2180-05-07 06:00:00,,1,1,mg/dL,,,,,", "unknown_patient"),
        ("hosp/labevents", "9,x,,1,50912,,2180-05-07 06:00:00,,1,1,mg/dL,,,,,", "unknown_patient"),
        ("hosp/labevents", "9,7,x,1,50912,,2180-05-07 06:00:00,,1,1,mg/dL,,,,,", "bad_encounter"),
        ("hosp/labevents", "9,7,21,1,50912,,0000-00-00 00:00:00,,1,1,mg/dL,,,,,", "bad_time"),
        ("hosp/labevents", "9,7,21,1,50912,,2180-02-30 06:00:00,,1,1,mg/dL,,,,,", "bad_time"),
        ("hosp/labevents", "9,7,21,1,50912,,9180-05-07 06:00:00,,1,1,,,,,,", "time_out_of_range"),
        ("hosp/labevents", "9,7,21,1,50912,,,2180-05-07 06:00:00,1,1,mg/dL,,,,,", "no_time"),
        ("hosp/labevents", "9,7,21,1,,,2180-05-07 06:00:00,,1,1,mg/dL,,,,,", "no_code"),
        ("hosp/labevents", "9,7,21,1,50912,,2180-05-07 06:00", "ragged_row"),
        ("hosp/diagnoses_icd", "7,77,1,4019,9", "unknown_encounter"),
        ("hosp/diagnoses_icd", "8,21,1,4019,9", "unknown_encounter"),
        ("hosp/diagnoses_icd", "7,21,1,,9", "no_code"),
        ("hosp/patients", "9,F,old,2180,2014 - 2016,", "bad_birth"),
        ("hosp/patients", "7,M,30,2180,2014 - 2016,", "duplicate_patient"),
        ("hosp/patients", "9,F,30,2180,2014 - 2016,0000-00-00", "bad_time"),
        ("ed/triage", "7,34,98.6,70,16,97,106,63,0,3,pain", "unknown_encounter"),
        ("icu/icustays", "7,21,32,A,A,2180-05-08 12:00:00,2180-05-07 12:00:00,-1",
         "discharge_before_admission"),
    ],
)  # fmt: skip
def test_an_unusable_row_is_set_aside_with_its_reason_and_place(
    src: Path, run: Run, tmp_path: Path, n_events: int, table: str, row: str, reason: str
) -> None:
    path = src / f"{table}.csv"
    append(path, row)
    _, summary = run()
    assert summary.quarantined == {reason: 1}
    assert summary.exit_code == 3
    assert summary.n_events == n_events
    (entry,) = (tmp_path / "out" / "quarantine" / f"{reason}.ndjson").read_text().splitlines()
    found = json.loads(entry)
    line = len(path.read_text().splitlines())
    assert (found["file"], found["kind"], found["line"]) == (path.name, table, line)
    assert found.keys() == {"file", "kind", "line", "blake2b"}  # a place and a hash: no value


def test_the_recipe_of_the_how_to_shows_the_row_behind_an_entry(
    src: Path, run: Run, tmp_path: Path, repository: Path
) -> None:
    path = src / "hosp" / "labevents.csv"
    text = '9,7,21,1,50912,,2180-05-07 06:00:00,,1,1,mg/dL,,,,,"one\n\ntwo"'
    bad = "9,7,21,1,50912,,2180-02-30 06:00:00, 1,1,1,mg/dL,,,,,"
    append(path, text, "", bad, text)
    run()
    (entry,) = (tmp_path / "out" / "quarantine" / "bad_time.ndjson").read_text().splitlines()
    found = json.loads(entry)
    page = (repository / "docs" / "how-to" / "bring-your-data.md").read_text()
    (recipe,) = re.findall(r'zcat \S+ \| python -c "(.*?)"', page, re.DOTALL)
    code = recipe.replace("1234", str(found["line"]))
    with path.open() as stream:
        shown = subprocess.run(
            [sys.executable, "-c", code], stdin=stream, capture_output=True, text=True, check=True
        )
    assert shown.stdout == f"{bad.split(',')}\n"
    read = "7,21,2180-02-30 06:00:00, 1,50912,1,1,mg/dL"  # the columns that are read, as they are
    assert found["blake2b"] == hashlib.blake2b(read.encode(), digest_size=16).hexdigest()


def test_a_last_row_cut_short_is_set_aside(src: Path, run: Run) -> None:
    path = src / "icu" / "chartevents.csv"
    path.write_bytes(path.read_bytes()[:-4])
    events, summary = run()
    assert summary.quarantined == {"unfinished_row": 1}
    assert "LAB//220045//bpm" not in set(events["code"])


def test_a_stay_that_ends_before_it_begins_is_not_a_stay(src: Path, run: Run) -> None:
    path = src / "hosp" / "admissions.csv"
    path.write_text(path.read_text().replace("2180-05-09 17:15:00", "2180-05-05 17:15:00"))
    events, summary = run()
    # Its codes are known by its end; what has a time of its own stays.
    assert summary.quarantined == {"discharge_before_admission": 1, "unknown_encounter": 5}
    left = events.filter((pl.col("subject_id") == 7) & (pl.col("encounter_id") != 33))
    assert not classes(left) & {"HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "DIAGNOSIS", "DRG"}
    assert {"LAB", "ICU_ADMISSION", "TRANSFER_TO"} <= classes(left)
    assert left.filter(pl.col("code").str.contains("^(PROCEDURE//ICD|HCPCS)")).is_empty()


def test_nothing_is_billed_of_a_stay_that_is_unknown_or_not_over(src: Path, run: Run) -> None:
    path = src / "hosp" / "admissions.csv"
    open_stay = "8,23,2150-02-01 08:00:00,,,URGENT,P1,CLINIC,,Other,?,,,,,0"
    append(path, open_stay)
    for name in ("diagnoses_icd", "procedures_icd"):
        date = "2150-02-02," if name == "procedures_icd" else ""
        append(src / "hosp" / f"{name}.csv", *(f"8,{stay},1,{date}4019,9" for stay in (23, 99)))
    append(src / "hosp" / "hcpcsevents.csv", "8,23,2150-02-02,G0378,1,Hospital observation per hr")
    events, summary = run()
    assert summary.quarantined == {"no_time": 3, "unknown_encounter": 2}
    coded = events.filter(pl.col("code").str.contains("^(DIAGNOSIS|PROCEDURE//ICD|HCPCS)"))
    assert not coded.filter(pl.col("encounter_id") == 23).height


def test_a_sound_row_stays_where_an_unsound_one_has_its_id(
    src: Path, run: Run, n_events: int
) -> None:
    twins = {
        "hosp/admissions": [
            "77,21,2180-05-06 22:23:00,2180-05-09 17:15:00,,URGENT,P1,A,HOME,Other,?,,WHITE,,,0",
            "7,21,2180-05-06 22:23:00,2180-05-01 17:15:00,,URGENT,P1,A,HOME,Other,?,,WHITE,,,0",
            "7,21,,2180-05-09 17:15:00,,URGENT,P1,A,HOME,Other,?,,WHITE,,,0",
        ],
        "hosp/patients": ["7,F,,2180,2014 - 2016,"],
        "ed/edstays": ["7,21,33,2180-05-06 19:17:00,2180-05-05 23:30:00,F,WHITE,WALK IN,HOME"],
    }
    for name, rows in twins.items():
        path = src / f"{name}.csv"
        header, *own = path.read_text().splitlines()
        assert all(len(row.split(",")) == len(header.split(",")) for row in rows)
        path.write_text("\n".join([header, *rows, *own]) + "\n")
    _, summary = run()
    assert summary.quarantined == {
        "unknown_patient": 1, "discharge_before_admission": 2, "no_time": 1, "bad_birth": 1,
    }  # fmt: skip
    assert summary.n_events == n_events


def test_a_source_of_mostly_unusable_rows_fails(src: Path, tmp_path: Path) -> None:
    append(src / "hosp" / "diagnoses_icd.csv", *["99,21,1,4019,9"] * 500)
    error = error_of(src, tmp_path / "out")
    assert error.code == "too_many_quarantined"
    summary = ingest_mimic4(src, tmp_path / "out2", max_quarantined=1.0)
    assert summary.quarantined == {"unknown_patient": 500}


def test_a_flood_of_unusable_rows_is_counted_in_a_short_list(src: Path, run: Run) -> None:
    append(src / "hosp" / "diagnoses_icd.csv", *["99,21,1,4019,9"] * 1500)
    _, summary = run(max_quarantined=1.0)
    assert summary.quarantined == {"unknown_patient": 1500}
    lines = (src.parent / "out" / "quarantine" / "unknown_patient.ndjson").read_text().splitlines()
    assert len(lines) == 1001
    assert json.loads(lines[-1])["rows"] == 500


def test_a_coding_delay_must_make_sense(src: Path, tmp_path: Path) -> None:
    for hours in (-1.0, float("nan"), float("inf")):
        assert error_of(src, tmp_path / "out", coding_delay_hours=hours).code == "bad_coding_delay"


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "-1e39", "1\0", "٣"])
def test_a_number_that_is_none_stays_text(src: Path, run: Run, value: str) -> None:
    append(
        src / "hosp" / "labevents.csv",
        f"9,7,21,1,50999,,2180-05-07 06:00:00,,{value},{value},mg/dL,,,,,",
    )
    events, _ = run()
    (row,) = events.filter(pl.col("code") == "LAB//50999//mg/dL").iter_rows(named=True)
    assert row["numeric_value"] is None
    assert row["text_value"] == value
