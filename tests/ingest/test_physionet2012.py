"""Challenge 2012 stays become events: true times since admission, outcomes when they can be known.

The tests write small folders in the source's layout: one value a row, descriptors as rows of minute
0, one outcome a stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from meds import DataSchema

from tsfm import event_table
from tsfm.errors import FormatError, InputError
from tsfm.ingest.physionet2012 import ingest_physionet2012
from tsfm.ingest.physionet2012_tables import DESCRIPTIONS, PARAMETERS
from tsfm.ingest.provenance import IngestSummary

START = datetime(2000, 1, 1)
DAY, MOMENT = timedelta(days=1), timedelta(microseconds=1)
Row = tuple[int | None, int | None, str | None, float | None]
Result = tuple[pl.DataFrame, IngestSummary]

DESCRIPTORS: list[Row] = [
    (7, 0, "Age", 54.0),
    (7, 0, "Gender", 0.0),
    (7, 0, "Height", -1.0),
    (7, 0, "ICUType", 4.0),
    (7, 0, "Weight", 80.5),
]
ALIVE = (7, 6, 1, 5, -1, 0)


def write_observations(folder: Path, rows: Sequence[Row], name: str = "observations-a") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ids, minutes, names, values = (list(column) for column in zip(*rows, strict=True))
    table = pa.table(
        {
            "record_id": pa.array(ids, pa.int64()),
            "minute": pa.array(minutes, pa.int32()),
            "parameter": pa.array(names, pa.string()).dictionary_encode(),
            "value": pa.array(values, pa.float32()),
        }
    )
    pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def write_outcomes(
    folder: Path, rows: Sequence[tuple[int | None, ...]], name: str = "outcomes-a"
) -> None:
    names = ("SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death")
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = {"record_id": pa.array(columns[0], pa.int64())}
    table |= {n: pa.array(c, pa.int32()) for n, c in zip(names, columns[1:], strict=True)}
    table["set"] = pa.array(["a"] * len(rows), pa.string())
    pq.write_table(pa.table(table), folder / f"{name}.parquet")


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., Result]:
    """Return a function from rows of stay 7 and outcomes to (events, summary)."""

    def run(
        *rows: Row, outcomes: Sequence[tuple[int | None, ...]] = (ALIVE,), **options: Any
    ) -> Result:
        write_observations(tmp_path / "src", [*DESCRIPTORS, *rows])
        if outcomes:
            write_outcomes(tmp_path / "src", outcomes)
        options = {"max_quarantined": 1.0, **options}
        summary = ingest_physionet2012(tmp_path / "src", tmp_path / "out", **options)
        accounted = (summary.rows_used, summary.rows_ignored, summary.quarantined)
        assert summary.n_rows == sum(sum(counts.values()) for counts in accounted)
        return pl.concat(event_table.scan_events(tmp_path / "out")), summary

    return run


def rows_of(events: pl.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return events.select("code", *columns).rows()


def test_a_stay_is_its_descriptors_its_series_by_the_minute_and_its_end(
    ingest: Callable[..., Result],
) -> None:
    events, summary = ingest((7, 67, "HR", 73.0), (7, 2880, "Temp", 35.1), (7, 67, "FiO2", 0.4))
    at, left = START + timedelta(minutes=67), START + 6 * DAY - MOMENT
    assert rows_of(events, "time", "available_time", "numeric_value") == [
        ("GENDER//F", None, None, None),
        ("MEDS_BIRTH", datetime(1946, 1, 1), datetime(1946, 1, 1), None),
        ("HOSPITAL_ADMISSION//UNK//UNK", START, START, None),
        ("ICU_ADMISSION//Surgical ICU", START, START, None),
        ("VITAL//LOINC//29463-7//kg", START, START, 80.5),
        ("VITAL//LOINC//8867-4///min", at, at, 73.0),
        ("VITAL//LOINC//3150-6//%", at, at, pytest.approx(40.0)),
        ("VITAL//LOINC//8310-5//Cel", START + 2 * DAY, START + 2 * DAY, pytest.approx(35.1)),
        ("HOSPITAL_DISCHARGE//UNK", left, left, None),
    ]  # fmt: skip
    assert set(events["encounter_id"]) == set(events["subject_id"]) == {7}
    assert summary.rows_ignored == {"observations": 1}  # the unknown height
    assert summary.quarantined == {}


def test_saps_and_sofa_leave_no_trace(ingest: Callable[..., Result], tmp_path: Path) -> None:
    events, _ = ingest()
    write_observations(tmp_path / "other", DESCRIPTORS)
    write_outcomes(tmp_path / "other", [(7, 31, 19, 5, -1, 0)])
    ingest_physionet2012(tmp_path / "other", tmp_path / "out2")
    assert events.equals(pl.concat(event_table.scan_events(tmp_path / "out2")))
    assert not [code for code in events["code"] if "SAPS" in code or "SOFA" in code]


@pytest.mark.parametrize(
    ("outcome", "left_days", "died_days", "to"),
    [
        ((7, 6, 1, 5, -1, 0), 6, None, "UNK"),  # left alive; no death on record
        ((7, 6, 1, 5, 9, 0), 6, 11, "UNK"),  # left alive, died later
        ((7, 6, 1, 9, 8, 1), 10, 10, "DIED"),
        ((7, 6, 1, 31, 8, 1), 10, 10, "DIED"),  # the stay ends with the death
        ((7, 6, 1, 8, 8, 1), 9, 9, "DIED"),
        ((7, 6, 1, -1, 8, 1), 10, 10, "DIED"),
        ((7, 6, 1, 5, -1, 1), 6, 6, "DIED"),
    ],
)
def test_an_outcome_is_an_event_at_the_last_moment_that_its_days_can_mean(
    ingest: Callable[..., Result],
    outcome: tuple[int, ...],
    left_days: int,
    died_days: int | None,
    to: str,
) -> None:
    events, summary = ingest(outcomes=[outcome])
    late = events.filter(pl.col("time") > START)
    expected = [(f"HOSPITAL_DISCHARGE//{to}", left_days)]
    expected += [("MEDS_DEATH", died_days)] if died_days else []
    stamps = [(code, START + days * DAY - MOMENT) for code, days in expected]
    assert rows_of(late, "time") == stamps
    assert rows_of(late, "available_time") == stamps
    assert summary.rows_used["outcomes"] == 1


def test_a_stay_of_unknown_length_that_was_survived_stays_open(
    ingest: Callable[..., Result],
) -> None:
    events, summary = ingest(outcomes=[(7, -1, -1, -1, -1, 0)])
    assert not events["code"].str.starts_with("HOSPITAL_DISCHARGE").any()
    assert summary.rows_ignored["outcomes"] == 1
    assert "1 stays have no discharge: none is known" in summary.notes


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ((7, 6, 1, 10, 0, 0), "contradictory_outcome"),  # dead on day 0, alive on day 10
        ((7, 6, 1, 4, 9, 1), "contradictory_outcome"),  # died in hospital, after it
        ((7, 6, 1, -1, -1, 1), "contradictory_outcome"),
        ((7, 6, 1, 4, -23, 0), "bad_outcome"),
        ((7, 6, 1, 4, -1, 2), "bad_outcome"),
        ((7, 6, 1, 4, -1, None), "bad_outcome"),  # an unreadable flag is no 0
        ((7, 6, 1, None, -1, 0), "bad_outcome"),
        ((7, 6, 1, -1, 575, 0), "no_discharge_time"),  # else it would count as died in hospital
        ((8, 6, 1, 4, -1, 0), "unknown_patient"),
    ],
)
def test_an_outcome_that_cannot_be_so_is_set_aside_whole(
    ingest: Callable[..., Result], outcome: tuple[int | None, ...], reason: str
) -> None:
    events, summary = ingest(outcomes=[outcome])
    assert summary.quarantined == {reason: 1}
    assert events.filter(pl.col("time") > START).height == 0


def test_a_second_outcome_of_a_stay_is_set_aside(ingest: Callable[..., Result]) -> None:
    events, summary = ingest(outcomes=[ALIVE, (7, 6, 1, 2, -1, 0)])
    assert summary.quarantined == {"duplicate_stay": 1}
    assert events.filter(pl.col("code").str.contains("DISCHARGE")).height == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((7, 5, "", 73.0), "no_code"),
        ((7, 5, None, 73.0), "no_code"),
        ((7, 5, "Mood", 73.0), "unknown_parameter"),
        ((None, 5, "HR", 73.0), "unknown_patient"),
        ((7, None, "HR", 73.0), "bad_time"),
        ((7, -5, "HR", 73.0), "time_out_of_range"),
        ((7, 2881, "HR", 73.0), "time_out_of_range"),
        ((7, 5, "HR", None), "bad_value"),
        ((7, 5, "HR", float("nan")), "bad_value"),
        ((7, 5, "HR", 351.0), "implausible_value"),
        ((7, 5, "Temp", -17.8), "implausible_value"),  # 0 taken for Fahrenheit
        ((7, 5, "Temp", 2.3), "implausible_value"),
        ((7, 5, "SysABP", 0.0), "implausible_value"),
        ((7, 5, "pH", 735.0), "implausible_value"),
        ((7, 0, "Height", 13.0), "implausible_value"),
        ((7, 0, "Age", 202.0), "implausible_value"),
        ((7, 0, "Gender", 0.5), "bad_value"),
        ((7, 0, "ICUType", 5.0), "implausible_value"),
        ((7, 0, "RecordID", 8.0), "wrong_record"),
    ],
)
def test_a_row_that_cannot_be_used_is_set_aside_with_its_reason(
    ingest: Callable[..., Result], tmp_path: Path, row: Row, reason: str
) -> None:
    _, summary = ingest(row)
    assert summary.quarantined == {reason: 1}
    text = (tmp_path / "out" / "quarantine" / f"{reason}.ndjson").read_text()
    assert text.startswith('{"file": "observations-a.parquet", "line": 6, "kind": "observations"')
    assert str(row[3]) not in text.partition('"blake2b"')[0]


@pytest.mark.parametrize("name", ["Height", "Weight", "Gender", "NIDiasABP", "Temp"])
def test_minus_one_is_unknown_and_says_nothing(ingest: Callable[..., Result], name: str) -> None:
    events, summary = ingest((7, 0, name, -1.0))
    assert summary.rows_ignored == {"observations": 2}
    assert summary.quarantined == {}
    assert not (events["numeric_value"] == -1).any()


def test_bounds_are_inclusive_and_zero_is_a_value_where_it_can_be(
    ingest: Callable[..., Result],
) -> None:
    rows: list[Row] = [(7, 5, name, p.low) for name, p in PARAMETERS.items()]
    rows += [(7, 6, name, p.high) for name, p in PARAMETERS.items()]
    rows += [(7, 7, "Urine", 0.0), (7, 8, "HR", 0.0)]
    events, summary = ingest(*rows)
    assert summary.quarantined == {}
    measured = events.filter(pl.col("numeric_value").is_not_null())
    assert measured.height == len(rows) + 1  # and the descriptor weight
    assert set(measured["code"]) == set(DESCRIPTIONS)


def test_two_values_of_one_minute_are_two_events(ingest: Callable[..., Result]) -> None:
    events, _ = ingest((7, 5, "MAP", 70.0), (7, 5, "MAP", 72.0))
    mean = events.filter(pl.col("code").str.contains("76214-6"))
    assert mean["numeric_value"].to_list() == [70.0, 72.0]


def test_the_first_descriptor_of_a_kind_counts(ingest: Callable[..., Result]) -> None:
    events, summary = ingest((7, 0, "Age", 60.0), (7, 0, "ICUType", 1.0), (7, 0, "RecordID", 7.0))
    assert events.filter(pl.col("code") == "MEDS_BIRTH")["time"].to_list() == [datetime(1946, 1, 1)]
    assert [c for c in events["code"] if c.startswith("ICU_")] == ["ICU_ADMISSION//Surgical ICU"]
    assert summary.rows_ignored == {"observations": 4}


def test_a_stay_without_an_outcome_file_is_open_and_counted(ingest: Callable[..., Result]) -> None:
    events, summary = ingest(outcomes=())
    assert not events["code"].str.starts_with("HOSPITAL_DISCHARGE").any()
    assert "1 stays have no discharge: none is known" in summary.notes


def test_several_folders_make_one_data_set_of_meds_on_a_clock_marked_synthetic(
    tmp_path: Path,
) -> None:
    for record, name in ((7, "a"), (8, "b")):
        stay: list[Row] = [(record, *row[1:]) for row in DESCRIPTORS]
        write_observations(tmp_path / name, stay, f"observations-{name}")
        write_outcomes(tmp_path / name, [(record, *ALIVE[1:])], f"outcomes-{name}")
    folders = [tmp_path / "a", tmp_path / "b"]
    summary = ingest_physionet2012(folders, tmp_path / "out", n_shards=1)
    assert (summary.n_subjects, summary.rows_read) == (2, {"observations": 10, "outcomes": 2})
    DataSchema.validate(event_table.read_table(tmp_path / "out" / "data" / "0.parquet"))
    facts = event_table.dataset_facts(tmp_path / "out")
    assert facts["dataset_name"] == "physionet-challenge-2012"
    assert "dates and hours of the day are not" in facts["synthetic_clock"]
    assert any("synthetic" in note or "times since it are true" in note for note in summary.notes)
    assert event_table.subject_ids(tmp_path / "out") == {7: "7", 8: "8"}


def test_events_do_not_depend_on_the_size_of_batches(tmp_path: Path) -> None:
    stay: list[Row] = [*DESCRIPTORS, *((7, i, "HR", 60.0 + i % 9) for i in range(300))]
    write_observations(tmp_path / "src", stay)
    write_outcomes(tmp_path / "src", [ALIVE])
    ingest_physionet2012(tmp_path / "src", tmp_path / "whole")
    ingest_physionet2012(tmp_path / "src", tmp_path / "cut", batch_rows=7)
    whole, cut = (pl.concat(event_table.scan_events(tmp_path / n)) for n in ("whole", "cut"))
    assert cut.equals(whole)


def test_text_files_as_published_give_the_events_of_the_parquet(tmp_path: Path) -> None:
    rows: list[Row] = [*DESCRIPTORS, (7, 67, "HR", 73.0), (7, 2880, "Temp", 35.1)]
    write_observations(tmp_path / "parquet", rows)
    write_outcomes(tmp_path / "parquet", [ALIVE])
    lines = [
        f"{m // 60:02}:{m % 60:02},{name},{value}" for _, m, name, value in rows if m is not None
    ]
    folder = tmp_path / "set-a"
    folder.mkdir()
    text = "\n".join(["Time,Parameter,Value", "00:00,RecordID,7", *lines, ""])
    (folder / "7.txt").write_text(text)
    header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    (tmp_path / "Outcomes-a.txt").write_text(f"{header}\n{','.join(map(str, ALIVE))}\n")
    ingest_physionet2012(tmp_path / "parquet", tmp_path / "out")
    for beside in (True, False):
        if not beside:
            (tmp_path / "Outcomes-a.txt").rename(folder / "Outcomes-a.txt")
        summary = ingest_physionet2012(folder, tmp_path / f"out-{beside}")
        assert summary.rows_read == {"observations": len(rows) + 1, "outcomes": 1}
        tables = [tmp_path / "out", tmp_path / f"out-{beside}"]
        expected, found = (pl.concat(event_table.scan_events(table)) for table in tables)
        assert found.equals(expected)


def test_broken_rows_of_a_text_file_are_set_aside_with_file_and_line(tmp_path: Path) -> None:
    good = "\n".join(["Time,Parameter,Value", "00:00,Age,54", *["01:07,HR,73"] * 9, ""])
    (tmp_path / "7.txt").write_text(good)
    bad = ["00:05,,73", "00:75,HR,73", "soon,HR,73", "00:05,HR", "49:00,HR,73", "00:05,HR,7"]
    (tmp_path / "8.txt").write_text(good + "\n".join(bad))
    summary = ingest_physionet2012(tmp_path, tmp_path / "out")
    assert summary.quarantined == {
        "no_code": 1, "bad_time": 2, "ragged_row": 1, "time_out_of_range": 1, "unfinished_row": 1,
    }  # fmt: skip
    accounted = (summary.rows_used, summary.quarantined)
    assert summary.n_rows == 26 == sum(sum(counts.values()) for counts in accounted)
    place = (tmp_path / "out" / "quarantine" / "no_code.ndjson").read_text()
    assert place.startswith('{"file": "8.txt", "line": 12, "kind": "observations"')


def test_what_is_no_source_is_refused_with_its_place(tmp_path: Path) -> None:
    write_observations(tmp_path / "a", DESCRIPTORS)
    write_observations(tmp_path / "b", DESCRIPTORS)
    pq.write_table(pa.table({"record_id": [7], "minute": [0]}), _file(tmp_path / "no_columns"))
    _file(tmp_path / "text").write_text("Time,Parameter,Value\n")
    (tmp_path / "empty").mkdir()
    for folders, code, place in (
        ([tmp_path / "absent"], "missing_source", "absent"),
        ([tmp_path / "empty"], "empty_source", "empty"),
        ([tmp_path / "a", tmp_path / "b"], "repeated_stay", "observations-a.parquet"),
        ([tmp_path / "no_columns"], "missing_column", "parameter"),
        ([tmp_path / "text"], "bad_parquet", "observations-a.parquet"),
    ):
        with pytest.raises(InputError) as caught:
            ingest_physionet2012(folders, tmp_path / "out")
        assert caught.value.code == code
        assert place in str(caught.value)
        assert not list((tmp_path / "out").glob("data/*"))


def test_a_source_of_mostly_unusable_rows_fails(tmp_path: Path) -> None:
    write_observations(tmp_path / "src", [*DESCRIPTORS, *[(7, 5, "", 1.0)] * 20])
    with pytest.raises(FormatError, match="too_many_quarantined"):
        ingest_physionet2012(tmp_path / "src", tmp_path / "out")


def _file(folder: Path) -> Path:
    folder.mkdir()
    return folder / "observations-a.parquet"
