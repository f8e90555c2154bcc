"""Drug orders of MIMIC-IV are known when they were entered, not from when they count."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from tsfm import event_table
from tsfm.ingest.mimic4 import ingest_mimic4

Read = Callable[..., tuple[dict[str, datetime], list[str], pl.DataFrame]]
PATIENTS = "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n7,F,52,2180,,\n"
ADMISSIONS = (
    "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admission_location,"
    "discharge_location,race,edregtime,edouttime,hospital_expire_flag\n"
    "7,21,2180-05-06 22:00:00,2180-05-10 10:00:00,,URGENT,TRANSFER,HOME,,,,0\n"
)
PHARMACY = "subject_id,hadm_id,pharmacy_id,starttime,stoptime,medication,entertime\n"
PRESCRIPTIONS = "subject_id,hadm_id,pharmacy_id,starttime,drug,dose_val_rx,dose_unit_rx\n"
START, STOP, ENTERED = "2180-05-06 22:00:00", "2180-05-07 08:00:00", "2180-05-07 09:30:00"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function from tables to (when each code was known, notes, events)."""

    def run(**tables: str) -> tuple[dict[str, datetime], list[str], pl.DataFrame]:
        (tmp_path / "src" / "hosp").mkdir(parents=True)
        for name, text in {"patients": PATIENTS, "admissions": ADMISSIONS, **tables}.items():
            (tmp_path / "src" / "hosp" / f"{name}.csv").write_text(text)
        summary = ingest_mimic4(tmp_path / "src", tmp_path / "out", block_bytes=256)
        events = pl.concat(event_table.scan_events(tmp_path / "out"))
        drugs = events.filter(pl.col("code").str.starts_with("MEDICATION"))
        return dict(drugs.select("code", "available_time").iter_rows()), summary.notes, events

    return run


def day(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_an_order_entered_late_is_known_late_and_one_entered_early_when_it_begins(
    read: Read,
) -> None:
    known, notes, events = read(
        pharmacy=f"{PHARMACY}7,21,1,{START},{STOP},A,{ENTERED}\n"
        "7,21,2,2180-05-08 08:00:00,2180-05-09 08:00:00,B,2180-05-07\n"
        f"7,21,3,{START},{STOP},C,\n",
        prescriptions=f"{PRESCRIPTIONS}7,21,1,{START},A,5,mg\n"
        "7,21,2,2180-05-07 08:00:00,B,5,mg\n"
        f"7,21,3,{START},C,5,mg\n7,21,9,{START},D,5,mg\n7,21,,{START},E,5,mg\n",
    )
    assert known == {
        "MEDICATION//START//A": day(ENTERED),
        "MEDICATION//STOP//A": day(ENTERED),
        "MEDICATION//A//ORDERED": day(ENTERED),
        "MEDICATION//START//B": day("2180-05-08 08:00:00"),
        "MEDICATION//STOP//B": day("2180-05-09 08:00:00"),
        "MEDICATION//B//ORDERED": day("2180-05-07 23:59:59.999999"),  # a date without an hour
        "MEDICATION//START//C": day(START),
        "MEDICATION//STOP//C": day(STOP),
        **{f"MEDICATION//{name}//ORDERED": day(START) for name in "CDE"},
    }
    assert "1 rows of hosp/pharmacy have no entertime: available at starttime and stoptime" in notes
    assert (
        "3 rows of hosp/prescriptions have no entertime: not in hosp/pharmacy, available at "
        "starttime"
    ) in notes
    begun = events.filter(pl.col("code") == "MEDICATION//A//ORDERED")
    assert begun["time"].to_list() == [day(START)]


def test_an_order_of_another_patient_tells_nothing(read: Read) -> None:
    known, _, _ = read(
        patients=PATIENTS + "8,F,52,2180,,\n",
        pharmacy=f"{PHARMACY}8,,1,{START},{STOP},A,{ENTERED}\n",
        prescriptions=f"{PRESCRIPTIONS}7,21,1,{START},A,5,mg\n",
    )
    assert known["MEDICATION//A//ORDERED"] == day(START)


def test_without_the_pharmacy_the_summary_says_that_orders_are_known_when_they_begin(
    read: Read,
) -> None:
    known, notes, _ = read(prescriptions=f"{PRESCRIPTIONS}7,21,1,{START},A,5,mg\n")
    assert known == {"MEDICATION//A//ORDERED": day(START)}
    assert any(note.startswith("1 rows of hosp/prescriptions have no entertime") for note in notes)


def test_a_dose_may_have_commas_between_its_thousands(read: Read) -> None:
    doses = ['"25,000"', '"1,250.5"', "5", "1-2", '"2,5"', ""]
    rows = [
        f"7,21,,{START},{name},{dose},UNIT\n" for name, dose in zip("ABCDEF", doses, strict=True)
    ]
    _, _, events = read(prescriptions=PRESCRIPTIONS + "".join(rows))
    found = events.filter(pl.col("code").str.starts_with("MEDICATION"))
    assert found.select("numeric_value", "text_value").rows() == [
        (25000.0, "UNIT"),
        (1250.5, "UNIT"),
        (5.0, "UNIT"),
        (None, "1-2 UNIT"),
        (None, "2,5 UNIT"),
        (None, "UNIT"),
    ]


def test_no_order_of_the_demo_is_known_before_it_was_entered(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    src = data_dir("mimic-iv-demo")
    ingest_mimic4(src, tmp_path / "out")
    events = pl.concat(event_table.scan_events(tmp_path / "out"))
    late = events.filter(pl.col("available_time") > pl.col("time"))
    n_late = {
        name: late.filter(pl.col("code").str.contains(pattern)).height
        for name, pattern in (("start", "^MEDICATION//START//"), ("order", "//ORDERED$"))
    }
    assert n_late == {"start": 1274, "order": 1404}
