"""MIMIC-IV's tables become the events of the official conversion, each known when it could be.

`tests/fixtures/mimic4` holds two made-up patients: 7 came through the emergency department, was in
intensive care and died at home; 8 died in hospital.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meds import DataSchema

from tsfm import codes, event_table
from tsfm.ingest.mimic4 import ingest_mimic4
from tsfm.ingest.provenance import IngestSummary
from tsfm.ingest.source_table import code_of
from tsfm.ingest.table_events import parse_times

DISCHARGE = datetime(2180, 5, 9, 17, 15)
BILLED = DISCHARGE + timedelta(hours=120)
NIGHT = timedelta(days=1, microseconds=-1)
Result = tuple[pl.DataFrame, IngestSummary]


def ingest(src: Path, out: Path, **options: float) -> Result:
    summary = ingest_mimic4(src, out, **options)  # type: ignore[arg-type]
    return pl.concat(event_table.scan_events(out)), summary


def rows_of(events: pl.DataFrame, prefix: str) -> list[tuple[object, ...]]:
    found = events.filter(pl.col("code").str.starts_with(prefix))
    return found.select(
        "code", "time", "available_time", "encounter_id", "numeric_value", "text_value"
    ).rows()


def day(text: str) -> datetime:
    return datetime.fromisoformat(text)


def at(time: str, available: str | None = None) -> tuple[datetime, datetime]:
    return day(time), day(available or time)


@pytest.fixture(scope="module")
def source(repository: Path) -> Path:
    return repository / "tests" / "fixtures" / "mimic4"


@pytest.fixture(scope="module")
def hospital(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("hospital")
    shutil.copytree(source, folder / "src", ignore=shutil.ignore_patterns("ed"))
    return ingest(folder / "src", folder / "out")


M, FILED, NO_VRE = "2180-05-07 ", "2180-05-09 11:00", "No VRE isolated."
EXPECTED: dict[str, list[tuple[object, ...]]] = {
    "GENDER": [("GENDER//F", None, None)],
    "RACE": [("RACE//WHITE", None, day("2180-05-06 22:23"))],
    "MEDS_BIRTH": [("MEDS_BIRTH", day("2128-01-01"), day("2128-01-01"))],
    "MEDS_DEATH": [("MEDS_DEATH", day("2180-09-09") + NIGHT, day("2180-09-09") + NIGHT)],
    "HOSPITAL_": [
        ("HOSPITAL_ADMISSION//URGENT//TRANSFER FROM HOSPITAL", *at("2180-05-06 22:23"), 21),
        ("HOSPITAL_DISCHARGE//HOME", DISCHARGE, DISCHARGE, 21),
    ],
    "ED_": [
        ("ED_REGISTRATION", *at("2180-05-06 19:17"), 21),
        ("ED_OUT", *at("2180-05-06 23:30"), 21),
    ],
    "TRANSFER_TO": [
        ("TRANSFER_TO//admit//Medicine/Cardiology", *at("2180-05-06 23:30"), 21),
        ("TRANSFER_TO//discharge//UNK", *at("2180-05-09 17:15:01"), 21),
    ],
    "SERVICE": [("SERVICE//MED", *at("2180-05-06 23:30"), 21)],
    "DIAGNOSIS": [
        ("DIAGNOSIS//ICD//10//I5023", DISCHARGE, BILLED, 21),
        ("DIAGNOSIS//ICD//9//0389", DISCHARGE, BILLED, 21),
    ],
    "PROCEDURE//ICD": [("PROCEDURE//ICD//9//5491", day("2180-05-07"), BILLED, 21)],
    "DRG": [("DRG//HCFA//86//STUPOR, COMA <1 HR W CC", DISCHARGE, BILLED, 21)],
    "HCPCS": [("HCPCS//Hospital observation per hr", day("2180-05-07"), BILLED, 21)],
    "LAB": [
        ("LAB//50912//mg/dL", *at(M + "06:00", M + "07:30"), 21, pytest.approx(1.4)),
        ("LAB//51087//UNK", *at(M + "06:00", M + "08:00"), None, 5.0, "<5"),
        ("LAB//51463//UNK", *at(M + "06:05"), 21, None, "NEG"),
        ("LAB//220045//bpm", *at(M + "13:00", M + "13:20"), 21, 88.0),
    ],
    "MICROBIOLOGY": [
        ("MICROBIOLOGY_TEST//90039", *at(M + "09:00", FILED), 21),
        ("MICROBIOLOGY_ORGANISM//80004", *at(M + "09:00", FILED), 21),
        ("MICROBIOLOGY_SUSCEPTIBILITY//90004//R", *at(M + "09:00", FILED), 21, 32.0, ">=32"),
        ("MICROBIOLOGY_SUSCEPTIBILITY//90008//S", *at(M + "09:00", FILED), 21, 2.0),
        ("MICROBIOLOGY_TEST//90115", *at("2180-05-08", "2180-05-13"), None, None, NO_VRE),
    ],
    "MEDICATION": [
        ("MEDICATION//Sodium Chloride//ORDERED", *at(M + "10:00"), 21, 2.5, "mg"),
        ("MEDICATION//Oxycodone//ORDERED", *at(M + "10:00"), 21, None, "1-2 TAB"),
        ("MEDICATION//START//UNK", *at(M + "10:00"), 21),
        ("MEDICATION//Insulin//Administered", *at(M + "11:00", M + "11:05"), 21),
        ("MEDICATION//STOP//UNK", *at("2180-05-08 10:00"), 21),
    ],
    "Blood Pressure": [
        ("Blood Pressure//systolic", day("2180-04-01"), day("2180-04-01") + NIGHT, None, 120.0),
        ("Blood Pressure//diastolic", day("2180-04-01"), day("2180-04-01") + NIGHT, None, 80.0),
    ],
    "Weight": [("Weight (Lbs)", day("2180-04-01"), day("2180-04-01") + NIGHT, None, 127.5)],
    "ICU_": [
        ("ICU_ADMISSION//MICU", *at(M + "12:00"), 21),
        ("ICU_DISCHARGE//SICU", *at("2180-05-08 12:00"), 21),
    ],
    "SUBJECT_FLUID": [
        ("SUBJECT_FLUID_OUTPUT//226560//ml", *at(M + "18:00", M + "18:10"), 21, 175.0)
    ],
    "SUBJECT_WEIGHT": [  # two infusions at one time: weighed once
        ("SUBJECT_WEIGHT_AT_INFUSION//KG", *at(M + "14:00", M + "15:00"), 21, pytest.approx(39.4))
    ],
    "INFUSION": [  # a start is known by its end at the latest, an end never before it comes
        ("INFUSION_START//220862", *at(M + "14:00", M + "15:00"), 21, 100.0, "mL/hour"),
        ("INFUSION_START//226452", *at(M + "14:00"), 21),
        ("INFUSION_END//226452", *at(M + "14:01"), 21, 200.0, "ml"),
        ("INFUSION_END//220862", *at(M + "15:00", M + "16:00"), 21, 50.0, "ml"),
    ],
    "PROCEDURE//S": [("PROCEDURE//START//224275", *at(M + "14:24", M + "23:50"), 21)],
    "PROCEDURE//E": [("PROCEDURE//END//224275", *at(M + "23:50", M + "23:55"), 21)],
    "CHART_DATE": [
        ("CHART_DATE//225755", *at(M + "14:00", M + "14:02"), 21, None, "2180-05-06 00:00:00")
    ],
}


@pytest.mark.parametrize("prefix", EXPECTED)
def test_each_table_says_what_and_when_and_since_when_known(hospital: Result, prefix: str) -> None:
    events = hospital[0].filter(pl.col("subject_id") == 7)
    full = [row + (None,) * (6 - len(row)) for row in EXPECTED[prefix]]
    assert rows_of(events, prefix) == full


def test_no_event_of_the_patient_is_left_unexplained(
    hospital: Result,
) -> None:
    events = hospital[0].filter(pl.col("subject_id") == 7)
    assert events.height == sum(len(rows) for rows in EXPECTED.values())


def test_a_death_in_hospital_has_the_hour_of_the_stay_and_its_discharge_says_died(
    hospital: Result,
) -> None:
    events = hospital[0].filter(pl.col("subject_id") == 8)
    assert [row[:2] for row in events.select("code", "time").rows()][-2:] == [
        ("HOSPITAL_DISCHARGE//DIED", datetime(2150, 1, 4, 12)),
        ("MEDS_DEATH", datetime(2150, 1, 4, 12)),
    ]


@pytest.mark.parametrize(
    ("deathtime", "expire_flag", "time"),
    [
        ("2150-01-04", "1", "2150-01-04 12:00:00"),  # the hour of the discharge of that day
        ("2150-01-03", "1", "2150-01-03 23:59:59.999999"),
        ("2150-01-04", "0", "2150-01-04 23:59:59.999999"),
        ("2150-01-04 11:30:00", "1", "2150-01-04 11:30:00"),
        ("", "1", "2150-01-04 12:00:00"),
    ],
)
def test_a_death_without_an_hour_is_never_at_the_start_of_its_day(
    source: Path, tmp_path: Path, deathtime: str, expire_flag: str, time: str
) -> None:
    shutil.copytree(source, tmp_path / "src")
    path = tmp_path / "src" / "hosp" / "admissions.csv"
    end = "2150-01-04 12:00:00,2150-01-04 12:00:00"
    text = path.read_text().replace(end, f"2150-01-04 12:00:00,{deathtime}")
    path.write_text(text[:-2] + f"{expire_flag}\n")
    events, _ = ingest(tmp_path / "src", tmp_path / "out")
    died = events.filter((pl.col("code") == codes.DEATH) & (pl.col("subject_id") == 8))
    assert died.select("time", "available_time").rows() == [at(time)]


def test_a_discharge_of_a_bare_date_is_at_the_end_of_its_day(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "src")
    path = tmp_path / "src" / "hosp" / "admissions.csv"
    text = path.read_text().replace("2180-05-09 17:15:00", "2180-05-09")
    # A stay of one day ends after it began.
    text += "7,24,2181-05-06 22:23:00,2181-05-06,,URGENT,P1,,HOME,,?,,WHITE,,,0\n"
    path.write_text(text)
    events, summary = ingest(tmp_path / "src", tmp_path / "out", coding_delay_hours=0)
    assert "discharge_before_admission" not in summary.quarantined
    billed = events.filter(pl.col("code").str.starts_with("DIAGNOSIS//ICD//9"))
    assert billed.filter(pl.col("encounter_id") == 21).height
    known = billed.filter(pl.col("encounter_id") == 21)["available_time"].unique().to_list()
    assert known == [day("2180-05-09") + NIGHT]


def test_a_race_is_known_from_the_admission_that_told_it(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "src")
    path = tmp_path / "src" / "hosp" / "admissions.csv"
    later = "7,23,2181-05-06 22:23:00,2181-05-09 17:15:00,,URGENT,P1,,HOME,,?,,ASIAN,,,0\n"
    path.write_text(path.read_text().replace("WHITE", "") + later)
    events, _ = ingest(tmp_path / "src", tmp_path / "out")
    race = events.filter(pl.col("code").str.starts_with("RACE") & (pl.col("subject_id") == 7))
    assert race.select("code", "available_time").rows() == [
        ("RACE//ASIAN", day("2181-05-06 22:23"))
    ]


def test_what_does_not_say_when_it_was_stored_is_known_at_its_time(
    source: Path, tmp_path: Path
) -> None:
    shutil.copytree(source, tmp_path / "src")
    for name in ("inputevents", "procedureevents"):
        path = tmp_path / "src" / "icu" / f"{name}.csv"
        frame = pl.read_csv(path, infer_schema_length=0)
        frame.with_columns(storetime=pl.lit("")).write_csv(path, quote_style="never")
    events, _ = ingest(tmp_path / "src", tmp_path / "out")
    ours = events.filter(pl.col("code").str.contains("^(INFUSION_|PROCEDURE//(START|END))"))
    assert ours.height == 6
    assert (ours["available_time"] == ours["time"]).all()


def test_cultures_without_a_specimen_are_each_their_own(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "src")
    path = tmp_path / "src" / "hosp" / "microbiologyevents.csv"
    rows = pl.read_csv(path, infer_schema_length=0).filter(pl.col("comments").is_not_null())
    other = rows.with_columns(subject_id=pl.lit("8"), hadm_id=pl.lit("22"))
    pl.concat([rows, rows, other]).with_columns(micro_specimen_id=pl.lit(None)).write_csv(path)
    events, summary = ingest(tmp_path / "src", tmp_path / "out")
    tests = events.filter(pl.col("code").str.starts_with("MICROBIOLOGY_TEST"))
    assert tests["subject_id"].to_list() == [7, 7, 8]
    assert "hosp/microbiologyevents" not in summary.rows_ignored
    # One specimen number in two patients is two specimens.
    pl.concat([rows, rows, other]).write_csv(path)
    events, _ = ingest(tmp_path / "src", tmp_path / "again")
    tests = events.filter(pl.col("code").str.starts_with("MICROBIOLOGY_TEST"))
    assert tests["subject_id"].to_list() == [7, 8]


def test_rows_are_read_used_ignored_or_quarantined_and_nothing_else(
    hospital: Result, source: Path
) -> None:
    summary = hospital[1]
    for name, n in summary.rows_read.items():
        with (source / f"{name}.csv").open(newline="") as stream:
            assert n == len(list(csv.reader(stream))) - 1
    assert len(summary.rows_read) == len(list(source.glob("[hi]*/*.csv")))
    assert summary.rows_ignored == {"hosp/emar_detail": 2}
    assert sum(summary.rows_used.values()) + 2 == summary.n_rows
    assert summary.quarantined == {}


def test_absent_tables_are_named(hospital: Result) -> None:
    (absent,) = [note for note in hospital[1].notes if note.startswith("absent: ")]
    assert "hosp/poe" in absent
    assert "ed/edstays" in absent
    assert "hosp/labevents" not in absent


def test_results_without_a_store_time_are_noted(
    hospital: Result,
) -> None:
    assert "1 rows of hosp/labevents have no storetime: available at charttime" in hospital[1].notes


def test_the_written_table_is_meds(source: Path, tmp_path: Path) -> None:
    ingest_mimic4(source, tmp_path / "out", n_shards=1)
    DataSchema.validate(event_table.read_table(tmp_path / "out" / "data" / "0.parquet"))
    facts = event_table.dataset_facts(tmp_path / "out")
    assert (facts["dataset_name"], facts["clock"], facts["dates_shifted"]) == (
        "mimic-iv",
        "wall",
        True,
    )
    assert event_table.subject_ids(tmp_path / "out") == {7: "7", 8: "8"}


def test_codes_are_described_where_the_source_has_names(source: Path, tmp_path: Path) -> None:
    ingest_mimic4(source, tmp_path / "out")
    rows = event_table.read_table(tmp_path / "out" / "metadata" / "codes.parquet").to_pylist()
    texts = {row["code"]: row["description"] for row in rows}
    assert texts["LAB//50912//mg/dL"] == "Creatinine"
    assert texts["LAB//220045//bpm"] == "Heart Rate"
    assert texts["PROCEDURE//START//224275"] == "20 Gauge"
    assert texts["MEDICATION//START//UNK"] is None


def test_ed_visits_are_encounters_of_their_own_with_loinc_codes(
    source: Path, tmp_path: Path
) -> None:
    events, summary = ingest(source, tmp_path / "out")
    visit = events.filter(pl.col("encounter_id") == 33)
    arrival, later = day("2180-05-06 19:17"), day("2180-05-06 21:00")
    assert rows_of(events, "ED_") == [
        ("ED_REGISTRATION", arrival, arrival, 33, None, None),
        ("ED_OUT", *at("2180-05-06 23:30"), 33, None, None),
    ]
    measured = visit.filter(pl.col("code").str.contains("LOINC"))
    assert measured.select("code", "time", "numeric_value", "text_value").rows() == [
        ("VITAL//LOINC//8310-5//Cel", arrival, 37.0, None),
        ("VITAL//LOINC//8867-4///min", arrival, 70.0, None),
        ("VITAL//LOINC//9279-1///min", arrival, 16.0, None),
        ("VITAL//LOINC//2708-6//%", arrival, 97.0, None),
        ("VITAL//LOINC//8480-6//mm[Hg]", arrival, 106.0, None),
        ("VITAL//LOINC//8462-4//mm[Hg]", arrival, 63.0, None),
        ("OBSERVATION//LOINC//98137-3", arrival, None, "crying"),
        ("OBSERVATION//LOINC//56839-4//UNK", arrival, 3.0, None),
        ("OBSERVATION//LOINC//8661-1", arrival, None, "Abd pain"),
        ("VITAL//LOINC//8867-4///min", later, 77.0, None),
        ("OBSERVATION//LOINC//98137-3//UNK", later, 2.0, None),
    ]
    left = day("2180-05-06 23:30")
    assert rows_of(visit, "DIAGNOSIS") == [
        ("DIAGNOSIS//ICD//10//R109", left, left + timedelta(hours=120), 33, None, None)
    ]
    assert [row[0] for row in rows_of(visit, "MEDICATION")] == [
        "MEDICATION//furosemide//STATED",
        "MEDICATION//Morphine//DISPENSED",
    ]
    assert summary.rows_ignored["ed/vitalsign"] == 1  # nothing was measured


def test_nothing_coded_is_known_before_the_coding_delay(source: Path, tmp_path: Path) -> None:
    events, _ = ingest(source, tmp_path / "out", coding_delay_hours=48)
    coded = events.filter(pl.col("code").str.contains("^(DIAGNOSIS|DRG|HCPCS|PROCEDURE//ICD)"))
    known = set(coded.filter(pl.col("encounter_id") == 21)["available_time"])
    assert known == {DISCHARGE + timedelta(hours=48)}


def test_events_do_not_depend_on_where_chunks_are_cut(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    src = data_dir("mimic-iv-demo")
    whole, summary = ingest(src, tmp_path / "whole")
    cut, cut_summary = ingest(src, tmp_path / "cut", block_bytes=1 << 18)
    assert cut.equals(whole)
    for counts in ("rows_read", "rows_used", "rows_ignored", "quarantined"):
        assert getattr(cut_summary, counts) == getattr(summary, counts)


def test_the_demo_is_read_whole(data_dir: Callable[[str], Path], tmp_path: Path) -> None:
    events, summary = ingest(data_dir("mimic-iv-demo"), tmp_path / "out")
    assert summary.n_subjects == 100
    assert summary.n_events == events.height == sum(summary.events_by_class.values())
    for name, n in {
        codes.ADMISSION: 275,
        codes.DISCHARGE: 275,
        codes.ICU_ADMISSION: 140,
        codes.DIAGNOSIS: 4506,
        codes.DEATH: 31,
        "DRG": 454,
        "MICROBIOLOGY_TEST": 1893,  # as many as MIMIC-IV on FHIR has of each
        "MICROBIOLOGY_ORGANISM": 338,
        "MICROBIOLOGY_SUSCEPTIBILITY": 1036,
        "SUBJECT_FLUID_OUTPUT": 9362,
        "CHART_DATE": 15280,
    }.items():
        assert summary.events_by_class[name] == n
    accounted = (summary.rows_used, summary.rows_ignored, summary.quarantined)
    assert summary.n_rows == sum(sum(counts.values()) for counts in accounted)
    # The copy's icu/procedureevents was retyped by a spreadsheet, which broke these storetimes.
    assert summary.quarantined == {"bad_time": 242}
    assert events.filter(pl.col("time").is_not_null())["available_time"].null_count() == 0


@given(st.lists(st.text(max_size=130), min_size=1, max_size=3))
def test_codes_of_columns_equal_codes_of_words(parts: list[str]) -> None:
    # U+001C to U+001F are blanks to Python and not to Unicode: no source has them in a name.
    parts = ["".join(" " if "\x1c" <= c <= "\x1f" else c for c in part) for part in parts]
    frame = pl.DataFrame([parts], schema=[f"c{i}" for i in range(len(parts))], orient="row")
    code = frame.select(code_of("LAB", *map(pl.col, frame.columns))).item()
    assert code == codes.join("LAB", *parts)


def test_times_are_read_in_their_usual_forms_only() -> None:
    good = ["2180-05-06 22:23:00", "2180-05-06T22:23:00", "2180-05-06 22:23", "2180-05-06"]
    bad = ["0000-00-00", "2180-02-30", "2180-05-06 24:00:00", "06:00.1", "05/06/2180", "x"]
    times = parse_times(pl.Series("t", [*good, *bad, None])).to_list()
    moment = datetime(2180, 5, 6, 22, 23)
    assert times[:4] == [moment, moment, moment, datetime(2180, 5, 6)]
    assert times[4:] == [None] * 7
