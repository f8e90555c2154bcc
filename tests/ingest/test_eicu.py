"""eICU's stays become timelines on which nothing is claimed that the source does not tell."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from meds import DataSchema

from tsfm import event_table
from tsfm.errors import TsfmError
from tsfm.ingest.eicu import ingest_eicu
from tsfm.ingest.provenance import IngestSummary
from tsfm.tasks.cohorts import follow_up_of
from tsfm.tasks.length_of_stay import LENGTH_OF_STAY_7D
from tsfm.tasks.mortality import MORTALITY_IN_HOSPITAL
from tsfm.tasks.readmission import find_readmission_cohort

from .eicu_files import read_eicu, unit_stay, write_eicu

Read = Callable[..., tuple[pl.DataFrame, IngestSummary]]
MIDNIGHT = datetime(2015, 6, 27)  # admission to the unit of the made-up stay


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return partial(read_eicu, tmp_path)


def times_of(events: pl.DataFrame, prefix: str) -> list[tuple[str, datetime]]:
    return events.filter(pl.col("code").str.starts_with(prefix)).select("code", "time").rows()


def test_a_stay_ends_on_the_nominal_day_of_its_year_at_its_true_hour(read: Read) -> None:
    events, _ = read()
    admitted = MIDNIGHT - timedelta(minutes=24)
    assert events.select("code", "time", "available_time").rows() == [
        ("GENDER//F", None, None),
        ("RACE//WHITE", None, admitted),
        ("HOSPITAL_SITE//59", None, admitted),
        ("MEDS_BIRTH", datetime(1951, 1, 1), datetime(1951, 1, 1)),
        ("HOSPITAL_ADMISSION//UNK//Emergency Department", admitted, admitted),
        ("ICU_ADMISSION//MICU//Floor", MIDNIGHT, MIDNIGHT),
        ("ICU_DISCHARGE//MICU//Floor", *[MIDNIGHT + timedelta(minutes=2160)] * 2),
        ("HOSPITAL_DISCHARGE//HOME", *[datetime(2015, 7, 1, 18)] * 2),
    ]
    assert set(events["subject_id"]) == {7}
    assert set(events["encounter_id"]) == {7}


def test_units_of_one_hospital_stay_keep_their_exact_distance(read: Read) -> None:
    later = unit_stay(
        patientunitstayid=12,
        hospitaladmitoffset=-2184,
        hospitaldischargeoffset=4680,
        unitdischargeoffset=600,
        unitstaytype="stepdown/other",
        unitadmitsource="ICU to SDU",
        unitdischargelocation="Home",
    )
    events, summary = read([later, unit_stay()])
    assert summary.n_subjects == 1
    assert len(times_of(events, "HOSPITAL_")) == 3  # site, admission, discharge: each once
    assert times_of(events, "ICU_DISCHARGE")[0][1] == MIDNIGHT + timedelta(hours=36)
    # A step-down unit is not intensive care.
    assert times_of(events, "TRANSFER_") == [
        ("TRANSFER_TO//stepdown/other//MICU", MIDNIGHT + timedelta(hours=36)),
        ("TRANSFER_FROM//stepdown/other//Home", MIDNIGHT + timedelta(hours=46)),
    ]


def test_stays_of_one_patient_are_subjects_without_order_in_one_split(
    read: Read, tmp_path: Path
) -> None:
    stays = [
        unit_stay(patientunitstayid=100 + i, patienthealthsystemstayid=i, uniquepid=f"002-{i % 20}")
        for i in range(1, 61)
    ]
    _, summary = read(stays)
    assert summary.n_subjects == 60
    people = event_table.subject_ids(tmp_path / "out")
    split = event_table.subject_splits(tmp_path / "out")
    assert people[1] == people[21] == people[41] == "002-1"
    by_person: dict[str, set[str]] = {}
    for subject, person in people.items():
        by_person.setdefault(person, set()).add(split[subject])
    assert all(len(sides) == 1 for sides in by_person.values())
    assert len({*split.values()}) > 1
    assert any("neither order nor gaps" in note for note in summary.notes)


def test_nobody_is_watched_after_the_discharge(read: Read, tmp_path: Path) -> None:
    other = unit_stay(patientunitstayid=12, patienthealthsystemstayid=8, hospitaldischargeyear=2014)
    events, _ = read([unit_stay(), other])
    followup = follow_up_of(tmp_path / "out")
    cohort = find_readmission_cohort(events, followup)
    assert cohort["outcome"].to_list() == ["censored", "censored"]
    assert cohort["outcome_days"].to_list() == [0.0, 0.0]


def test_mortality_and_length_of_stay_find_the_stays(read: Read, tmp_path: Path) -> None:
    died = {"hospitaldischargelocation": "Death", "hospitaldischargestatus": "Expired"}
    other = unit_stay(patientunitstayid=12, patienthealthsystemstayid=8, **died)
    events, _ = read([unit_stay(), other])
    followup = follow_up_of(tmp_path / "out")
    dead = MORTALITY_IN_HOSPITAL.find_cohort(events, followup, MORTALITY_IN_HOSPITAL.rules)
    assert dead["outcome"].to_list() == ["competing", "event"]
    long = LENGTH_OF_STAY_7D.find_cohort(events, followup, LENGTH_OF_STAY_7D.rules)
    assert long["eligible"].all()


def test_a_death_in_the_unit_has_its_hour_and_the_discharge_says_died(read: Read) -> None:
    events, _ = read(
        [
            unit_stay(
                hospitaldischargelocation="Death",
                hospitaldischargestatus="Expired",
                unitdischargelocation="Death",
                unitdischargestatus="Expired",
            )
        ]
    )
    assert times_of(events, "MEDS_DEATH") == [("MEDS_DEATH", MIDNIGHT + timedelta(hours=36))]
    assert times_of(events, "HOSPITAL_D")[0][0] == "HOSPITAL_DISCHARGE//DIED"


def test_an_unknown_end_is_no_discharge_and_so_never_a_survivor(read: Read, tmp_path: Path) -> None:
    unknown = {"hospitaldischargelocation": "", "hospitaldischargestatus": ""}
    events, summary = read([unit_stay(**unknown)])
    assert times_of(events, "HOSPITAL_DISCHARGE") == []
    cohort = MORTALITY_IN_HOSPITAL.find_cohort(
        events, follow_up_of(tmp_path / "out"), MORTALITY_IN_HOSPITAL.rules
    )
    assert cohort["outcome"].to_list() == ["censored"]
    assert any("unknown way" in note for note in summary.notes)


def test_a_unit_that_says_died_where_the_hospital_says_alive_is_counted_not_believed(
    read: Read,
) -> None:
    events, summary = read([unit_stay(unitdischargestatus="Expired")])
    assert times_of(events, "MEDS_DEATH") == []
    assert any(note.startswith("1 unit stays end in death") for note in summary.notes)


@pytest.mark.parametrize(("age", "born"), [("> 89", 1925), ("0", 2015), ("", None)])
def test_ages_above_89_and_absent_ages(read: Read, age: str, born: int | None) -> None:
    events, summary = read([unit_stay(age=age)])
    found = [time.year for _, time in times_of(events, "MEDS_BIRTH")]
    assert found == ([] if born is None else [born])
    assert any("above 89" in note for note in summary.notes) == (age == "> 89")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patientunitstayid": ""}, "no_encounter"),
        ({"patientunitstayid": "x"}, "bad_encounter"),
        ({"patienthealthsystemstayid": ""}, "unknown_patient"),
        ({"uniquepid": ""}, "no_subject"),
        ({"patientunitstayid": 11}, "duplicate_stay"),
        ({"hospitaldischargeyear": ""}, "bad_time"),
        ({"hospitaldischargeyear": 1015}, "time_out_of_range"),
        ({"hospitaldischargetime24": "25:00:00"}, "bad_time"),
        ({"hospitaldischargeoffset": "soon"}, "bad_time"),
        ({"hospitaladmitoffset": 10**17}, "bad_time"),
        ({"unitdischargeoffset": -1}, "discharge_before_admission"),
        ({"hospitaladmitoffset": 9000}, "discharge_before_admission"),
        ({"age": "old"}, "bad_birth"),
        ({"hospitaldischargeyear": 2014, "patienthealthsystemstayid": 7}, "contradicts_its_stay"),
        ({"uniquepid": "002-1", "patienthealthsystemstayid": 7}, "contradicts_its_stay"),
    ],
)
def test_an_unusable_stay_is_set_aside_with_its_reason_and_place(
    read: Read, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    row = unit_stay(patientunitstayid=12, patienthealthsystemstayid=8)
    _, summary = read([unit_stay(), {**row, **changes}])
    assert summary.quarantined == {reason: 1}
    assert summary.n_subjects == 1
    (entry,) = (tmp_path / "out" / "quarantine" / f"{reason}.ndjson").read_text().splitlines()
    found = json.loads(entry)
    assert (found["file"], found["kind"], found["line"]) == ("patient.csv", "patient", 3)
    assert found.keys() == {"file", "kind", "line", "blake2b"}  # a place and a hash: no value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hospitaldischargeyear": 2014}, "contradicts_its_stay"),
        ({"uniquepid": "002-1"}, "contradicts_its_stay"),
        ({"hospitaldischargeoffset": "soon"}, "bad_time"),
        ({"patientunitstayid": 12, "unitdischargeoffset": -1}, "discharge_before_admission"),
    ],
)
def test_one_wrong_row_does_not_set_aside_the_right_ones_behind_it(
    read: Read, changes: dict[str, object], reason: str
) -> None:
    right = [unit_stay(patientunitstayid=unit) for unit in (12, 13, 14)]
    events, summary = read([unit_stay(**changes), *right])
    assert summary.quarantined == {reason: 1}
    assert len(times_of(events, "ICU_ADMISSION")) == 3
    assert times_of(events, "HOSPITAL_DISCHARGE")[0][1].year == 2015


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patientunitstayid": 99}, "unknown_encounter"),
        ({"patientunitstayid": ""}, "unknown_encounter"),
        ({"patientunitstayid": "x"}, "bad_encounter"),
        ({"labresultoffset": ""}, "no_time"),
        ({"labresultoffset": "5.5"}, "bad_time"),
        ({"labresultoffset": 10**17}, "bad_time"),
        ({"labresultrevisedoffset": "late"}, "bad_time"),
        ({"labresultoffset": 200_000_000}, "time_out_of_range"),
        ({"labname": ""}, "no_code"),
    ],
)
def test_an_unusable_row_is_set_aside_with_its_reason(
    read: Read, changes: dict[str, object], reason: str
) -> None:
    row = {"labresultoffset": 5, "labname": "BUN", "labresult": 20}
    _, summary = read(lab=[row, {**row, **changes}])
    assert summary.quarantined == {reason: 1}
    assert summary.rows_used["lab"] == 1


def error_of(src: Path, out: Path, **options: Any) -> TsfmError:
    with pytest.raises(TsfmError) as caught:
        ingest_eicu(src, out, **options)
    assert not list(out.glob("data/*"))  # nothing half-written looks like a data set
    return caught.value


def test_folders_that_are_no_source_are_errors_with_a_remedy(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert error_of(tmp_path / "absent", out).code == "missing_source"
    (tmp_path / "empty").mkdir()
    assert error_of(tmp_path / "empty", out).code == "empty_source"
    src = write_eicu(tmp_path / "src", hospital=[])
    (src / "patient.csv").rename(src / "patients.csv")
    assert error_of(src, out).code == "missing_table"
    src = write_eicu(tmp_path / "src")
    (src / "Patient.csv.gz").write_bytes(gzip.compress((src / "patient.csv").read_bytes()))
    assert error_of(src, out).code == "ambiguous_table"


def test_a_missing_column_is_named_as_the_source_names_it(tmp_path: Path) -> None:
    src = write_eicu(tmp_path / "src")
    path = src / "patient.csv"
    path.write_text(path.read_text().replace("patienthealthsystemstayid", "stay"))
    error = error_of(src, tmp_path / "out")
    assert error.code == "missing_column"
    assert "patienthealthsystemstayid" in str(error)


def test_a_delay_must_make_sense_and_most_rows_must_be_usable(tmp_path: Path) -> None:
    src = write_eicu(tmp_path / "src", lab=[{"patientunitstayid": 99, "labresultoffset": 1}] * 3)
    for hours in (-1.0, float("nan"), float("inf")):
        error = error_of(src, tmp_path / "out", culture_delay_hours=hours)
        assert error.code == "bad_culture_delay"
    assert error_of(src, tmp_path / "out").code == "too_many_quarantined"


def test_unread_tables_are_counted_with_the_reason_and_unknown_files_named(
    read: Read, tmp_path: Path
) -> None:
    write_eicu(tmp_path / "src")
    (tmp_path / "src" / "extra.csv").write_text("a\n1\n")
    _, summary = read(hospital=[{"hospitalid": 59}], careplangeneral=[{"cplitemoffset": 5}] * 2)
    assert summary.rows_ignored == {"hospital": 1, "careplangeneral": 2}
    assert "hospital is counted and not read: facts of hospitals, not of patients" in summary.notes
    assert "unknown files, not read: extra" in summary.notes
    assert any(note.startswith("absent: ") and "lab" in note for note in summary.notes)


def test_the_written_table_is_meds_and_says_how_its_clock_was_made(
    read: Read, tmp_path: Path
) -> None:
    read(lab=[{"labresultoffset": 5, "labname": "BUN", "labresult": 20}])
    DataSchema.validate(event_table.read_table(tmp_path / "out" / "data" / "0.parquet"))
    facts = event_table.dataset_facts(tmp_path / "out")
    expected = {
        "dataset_name": "eicu-crd",
        "clock": "wall",
        "dates_shifted": False,
        "data_as_of": "2015-07-01T00:00:00",
        "nominal_discharge_day": "07-01",
        "subject_is": "hospital stay",
    }
    assert expected.items() <= facts.items()
