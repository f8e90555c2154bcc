"""Diabetes 130-US stays become events on a made-up clock, and the label only when it is answered.

The tests write small files with the publisher's 50 columns and its file of meanings.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from meds import DataSchema

from tsfm import event_table
from tsfm.errors import FormatError, InputError
from tsfm.ingest.diabetes130 import ingest_diabetes130, read_mapping
from tsfm.ingest.diabetes130_tables import DRUGS
from tsfm.ingest.provenance import IngestSummary
from tsfm.tasks.registry import find_cohort, labels_of, task_named

START = datetime(2000, 1, 1, 12)
DAY, MOMENT, CODED = timedelta(days=1), timedelta(microseconds=1), timedelta(hours=120)
Stay = dict[str, object]
Result = tuple[pl.DataFrame, IngestSummary]

MAPPING = """admission_type_id,description
1,Emergency
3,Elective
6,NULL
,
discharge_disposition_id,description
1,Discharged to home
2,Discharged/transferred to another short term hospital
7,Left AMA
11,Expired
13,Hospice / home
18,NULL
20,"Expired in a medical facility. Medicaid only, hospice."
27,Discharged/transferred to a federal health care facility.
,
admission_source_id,description
1, Physician Referral
7, Emergency Room
20, Not Mapped
"""
PLAIN: Stay = {
    "encounter_id": 100, "patient_nbr": 7, "race": "Caucasian", "gender": "Female",
    "age": "[70-80)", "weight": "?", "admission_type_id": 1, "discharge_disposition_id": 1,
    "admission_source_id": 7, "time_in_hospital": 3, "payer_code": "?", "medical_specialty": "?",
    "num_lab_procedures": 41, "num_procedures": 0, "num_medications": 18, "number_outpatient": 0,
    "number_emergency": 0, "number_inpatient": 2, "diag_1": "250.83", "diag_2": "?", "diag_3": "?",
    "number_diagnoses": 9, "max_glu_serum": "None", "A1Cresult": "None",
    **dict.fromkeys(DRUGS, "No"), "change": "No", "diabetesMed": "No", "readmitted": "NO",
}  # fmt: skip


def write_stays(path: Path, *stays: Stay) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [",".join(str(value) for value in {**PLAIN, **stay}.values()) for stay in stays]
    text = "\n".join([",".join(PLAIN), *rows, ""])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    (path.parent / "IDs_mapping.csv").write_text(MAPPING)
    return path


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., Result]:
    """Return a function from stays (what differs from `PLAIN`) to (events, summary)."""

    def run(*stays: Stay, **options: Any) -> Result:
        src = write_stays(tmp_path / "src" / "diabetic_data.csv", *stays)
        options = {"max_quarantined": 1.0, **options}
        summary = ingest_diabetes130(src, tmp_path / "out", **options)
        accounted = (summary.rows_used, summary.rows_ignored, summary.quarantined)
        assert summary.n_rows == len(stays)
        assert summary.n_rows == sum(sum(counts.values()) for counts in accounted)
        return pl.concat(event_table.scan_events(tmp_path / "out")), summary

    return run


def of_class(events: pl.DataFrame, *names: str) -> pl.DataFrame:
    return events.filter(pl.col("code").str.split("//").list.first().is_in(names))


def codes_of(events: pl.DataFrame, *names: str) -> list[str]:
    return of_class(events, *names)["code"].to_list()


def test_a_stay_says_what_was_known_at_the_door_at_its_end_and_after_coding(
    ingest: Callable[..., Result],
) -> None:
    events, _ = ingest({
        "payer_code": "MC", "medical_specialty": "Cardiology", "weight": "[75-100)",
        "A1Cresult": ">8", "max_glu_serum": "Norm", "insulin": "Up", "metformin": "Steady",
        "change": "Ch", "diabetesMed": "Yes", "diag_2": "V57", "diag_3": "38",
    })  # fmt: skip
    left = START + 3 * DAY
    over = left + 30 * DAY + MOMENT
    columns = ("code", "time", "available_time", "numeric_value", "text_value")
    assert events.select(columns).rows() == [
        ("GENDER//F", None, START, None, None),
        ("RACE//Caucasian", None, START, None, None),
        ("MEDS_BIRTH", datetime(1925, 1, 1), datetime(1925, 1, 1), None, None),
        ("HOSPITAL_ADMISSION//EMERGENCY//EMERGENCY ROOM", START, START, None, None),
        ("AGE_BAND//[70-80)", START, START, None, None),
        ("INSURANCE//MC", START, START, None, None),
        ("SERVICE//Cardiology", START, START, None, None),
        ("PRIOR_YEAR//OUTPATIENT_VISITS", START, START, 0.0, None),
        ("PRIOR_YEAR//EMERGENCY_VISITS", START, START, 0.0, None),
        ("PRIOR_YEAR//INPATIENT_VISITS", START, START, 2.0, None),
        ("WEIGHT_BAND//[75-100)", left, left, None, None),
        ("LAB//LOINC//4548-4//%", left, left, 8.0, ">8"),
        ("LAB//LOINC//2345-7//mg/dL", left, left, None, "Norm"),
        ("MEDICATION//metformin//STEADY", left, left, None, None),
        ("MEDICATION//insulin//UP", left, left, None, None),
        ("DIABETES_MEDICATION//PRESCRIBED", left, left, None, None),
        ("DIABETES_MEDICATION//CHANGED", left, left, None, None),
        ("COUNT//LAB_PROCEDURES", left, left, 41.0, None),
        ("COUNT//PROCEDURES", left, left, 0.0, None),
        ("COUNT//MEDICATIONS", left, left, 18.0, None),
        ("COUNT//DIAGNOSES", left, left + CODED, 9.0, None),
        ("DIAGNOSIS//ICD//9//25083", left, left + CODED, None, None),
        ("DIAGNOSIS//ICD//9//V57", left, left + CODED, None, None),
        ("DIAGNOSIS//ICD//9//038", left, left + CODED, None, None),
        ("HOSPITAL_DISCHARGE//HOME", left, left, None, None),
        ("READMISSION_30D//NO", over, over, None, None),
    ]  # fmt: skip
    assert set(events["encounter_id"]) == {100}


def test_missing_and_not_done_give_no_event(ingest: Callable[..., Result]) -> None:
    events, _ = ingest({"race": "?", "gender": "Unknown/Invalid", "age": "?", "diag_1": "?"})
    absent = ("RACE", "GENDER", "MEDS_BIRTH", "AGE_BAND", "INSURANCE", "SERVICE", "WEIGHT_BAND",
              "LAB", "MEDICATION", "DIABETES_MEDICATION", "DIAGNOSIS")  # fmt: skip
    assert codes_of(events, *absent) == []


@pytest.mark.parametrize(
    ("written", "code"),
    [("8", "008"), ("38", "038"), ("41.9", "0419"), ("250.83", "25083"), ("V45", "V45"),
     ("E849", "E849"), ("v10.1", "V101")],
)  # fmt: skip
def test_an_icd9_code_has_its_leading_zeros_back(
    ingest: Callable[..., Result], written: str, code: str
) -> None:
    events, _ = ingest({"diag_1": written})
    assert codes_of(events, "DIAGNOSIS") == [f"DIAGNOSIS//ICD//9//{code}"]


def test_stays_follow_each_other_by_encounter_id_with_lengths_true_and_gaps_made_up(
    ingest: Callable[..., Result],
) -> None:
    events, _ = ingest(
        {"encounter_id": 30, "time_in_hospital": 2, "readmitted": "NO"},
        {"encounter_id": 9, "time_in_hospital": 1, "readmitted": "<30"},
        {"encounter_id": 20, "time_in_hospital": 4, "readmitted": ">30"},
        {"encounter_id": 10, "patient_nbr": 8},
    )
    mine = events.filter(pl.col("subject_id") == 7)
    moves = of_class(mine, "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE")
    days = moves.select("encounter_id", (pl.col("time") - START).dt.total_days()).rows()
    assert days == [(9, 0), (9, 1), (20, 31), (20, 35), (30, 125), (30, 127)]
    other = events.filter((pl.col("subject_id") == 8) & pl.col("code").str.starts_with("HOSPITAL"))
    assert other["time"].to_list() == [START, START + 3 * DAY]


@pytest.mark.parametrize(
    ("label", "answers"), [("<30", ["YES", "NO"]), (">30", ["NO", "NO"]), ("NO", ["NO", "NO"])]
)
def test_the_label_is_an_event_after_30_days_and_tells_nothing_of_later_years(
    ingest: Callable[..., Result], label: str, answers: list[str]
) -> None:
    events, _ = ingest(
        {"encounter_id": 1, "readmitted": label}, {"encounter_id": 2, "readmitted": ">30"}
    )
    answered = of_class(events, "READMISSION_30D")
    assert answered["code"].to_list() == [f"READMISSION_30D//{answer}" for answer in answers]
    left = of_class(events, "HOSPITAL_DISCHARGE")["time"]
    assert ((answered["available_time"] - left) > 30 * DAY).all()


@pytest.mark.parametrize("change", ["<30", ">30", "NO"])
def test_nothing_that_is_known_within_30_days_of_a_discharge_depends_on_its_label(
    tmp_path: Path, change: str
) -> None:
    known: list[pl.DataFrame] = []
    for name, label in (("a", "NO"), ("b", change)):
        src = write_stays(
            tmp_path / name / "stays.csv",
            {"encounter_id": 1, "readmitted": label},
            {"encounter_id": 2, "readmitted": label},
        )
        ingest_diabetes130(src, tmp_path / f"{name}-out")
        events = pl.concat(event_table.scan_events(tmp_path / f"{name}-out"))
        until = START + 3 * DAY + 30 * DAY
        known.append(events.filter(pl.col("available_time") < until))
    assert known[0].height > 10
    assert known[0].equals(known[1])


def test_a_return_to_a_stay_outside_the_file_is_an_admission_and_no_more(
    ingest: Callable[..., Result],
) -> None:
    events, summary = ingest({"readmitted": "<30"})
    back = events.filter(pl.col("encounter_id").is_null())
    day = START + 33 * DAY
    assert back.select("code", "time", "available_time").rows() == [
        ("HOSPITAL_ADMISSION//UNK//UNK", day, day)
    ]
    assert any(note.startswith("1 patients were back") for note in summary.notes)


def test_the_readmission_task_finds_the_labels_of_the_source(
    ingest: Callable[..., Result], tmp_path: Path
) -> None:
    labels = {1: "<30", 2: ">30", 3: "<30", 4: "NO", 5: "<30", 6: ">30", 7: "NO"}
    patients = {1: 7, 2: 7, 3: 7, 4: 8, 5: 9, 6: 10, 7: 10}
    ingest(
        *(
            {"encounter_id": stay, "patient_nbr": patients[stay], "readmitted": label}
            for stay, label in labels.items()
        )
    )
    task = task_named("readmission_30d")
    cohort = find_cohort(tmp_path / "out", task)
    found = labels_of(cohort, task).join(
        cohort.select("subject_id", "prediction_time", "encounter_id"),
        on=["subject_id", "prediction_time"],
    )
    pairs = zip(found["encounter_id"], found["boolean_value"], strict=True)
    assert dict(pairs) == {stay: label == "<30" for stay, label in labels.items()}


@pytest.mark.parametrize(
    ("disposition", "word", "dies"),
    [
        (1, "HOME", False),
        (2, "ACUTE HOSPITAL", False),
        (7, "AGAINST ADVICE", False),
        (13, "HOSPICE", False),
        (11, "DIED", True),
        (20, "DIED", True),
        (18, "UNK", False),
        (27, "DISCHARGED/TRANSFERRED TO A FEDERAL HEALTH CARE FACILITY.", False),
        ("?", "UNK", False),
    ],
)
def test_a_disposition_has_the_words_that_the_tasks_know(
    ingest: Callable[..., Result], disposition: object, word: str, dies: bool
) -> None:
    events, _ = ingest({"discharge_disposition_id": disposition})
    assert codes_of(events, "HOSPITAL_DISCHARGE") == [f"HOSPITAL_DISCHARGE//{word}"]
    deaths = of_class(events, "MEDS_DEATH")["time"].to_list()
    assert deaths == ([START + 3 * DAY] if dies else [])
    assert len(codes_of(events, "READMISSION_30D")) == (0 if dies else 1)


def test_ids_that_mean_nothing_are_unknown(ingest: Callable[..., Result]) -> None:
    events, _ = ingest({"admission_type_id": 6, "admission_source_id": 20})
    assert codes_of(events, "HOSPITAL_ADMISSION") == ["HOSPITAL_ADMISSION//UNK//UNK"]


def test_race_and_gender_are_those_said_first_and_known_since_then(
    ingest: Callable[..., Result],
) -> None:
    events, _ = ingest(
        {"encounter_id": 1, "race": "?"}, {"encounter_id": 2}, {"encounter_id": 3, "race": "Asian"}
    )
    (race,) = of_class(events, "RACE").rows(named=True)
    assert (race["code"], race["available_time"]) == ("RACE//Caucasian", START + 93 * DAY)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"patient_nbr": "x"}, "unknown_patient"),
        ({"encounter_id": "?"}, "bad_encounter"),
        ({"encounter_id": 100}, "duplicate_stay"),
        ({"time_in_hospital": "?"}, "bad_length_of_stay"),
        ({"time_in_hospital": -1}, "bad_length_of_stay"),
        ({"readmitted": "?"}, "unknown_outcome"),
        ({"readmitted": "<60"}, "unknown_outcome"),
        ({"discharge_disposition_id": 99}, "unknown_id"),
        ({"insulin": "Sometimes"}, "unknown_word"),
        ({"A1Cresult": ">9"}, "unknown_word"),
        ({"number_inpatient": "many"}, "bad_number"),
        ({"age": "75"}, "bad_birth"),
    ],
)
def test_a_row_that_cannot_be_used_is_set_aside_with_its_reason(
    ingest: Callable[..., Result], tmp_path: Path, change: Stay, reason: str
) -> None:
    _, summary = ingest({}, {"encounter_id": 101, "patient_nbr": 8, **change})
    assert summary.quarantined == {reason: 1}
    text = (tmp_path / "out" / "quarantine" / f"{reason}.ndjson").read_text()
    assert text.startswith('{"file": "diabetic_data.csv", "line": 3, "kind": "encounters"')


def test_stays_after_a_death_are_set_aside(ingest: Callable[..., Result]) -> None:
    events, summary = ingest(
        {"encounter_id": 3},
        {"encounter_id": 2, "discharge_disposition_id": 11},
        {"encounter_id": 1},
    )
    assert summary.quarantined == {"admitted_after_death": 1}
    assert events["code"][-1] == "MEDS_DEATH"
    assert of_class(events, "HOSPITAL_DISCHARGE")["encounter_id"].to_list() == [1, 2]


def test_a_coding_delay_of_nothing_shows_the_diagnoses_at_the_discharge(
    ingest: Callable[..., Result],
) -> None:
    events, _ = ingest({}, coding_delay_hours=0)
    assert of_class(events, "DIAGNOSIS")["available_time"].to_list() == [START + 3 * DAY]


def test_the_written_table_is_meds_and_its_clock_is_marked(tmp_path: Path) -> None:
    src = write_stays(tmp_path / "diabetic_data.csv.gz", {})
    summary = ingest_diabetes130(src, tmp_path / "out", n_shards=1)
    DataSchema.validate(event_table.read_table(tmp_path / "out" / "data" / "0.parquet"))
    facts = event_table.dataset_facts(tmp_path / "out")
    assert (facts["dates_shifted"], facts["license"]) == (True, "CC BY 4.0")
    assert "their dates are not" in facts["synthetic_clock"]
    assert f"clock: {facts['synthetic_clock']}" in summary.notes
    assert event_table.subject_ids(tmp_path / "out") == {7: "7"}


def test_what_is_no_source_is_refused_with_its_place(tmp_path: Path) -> None:
    src = write_stays(tmp_path / "src" / "stays.csv", {})
    for change, code, place in (
        (lambda: None, "missing_source", "absent.csv"),
        (lambda: (src.parent / "IDs_mapping.csv").write_text("a,b\n1,2\n"), "bad_mapping", "IDs_"),
        (lambda: (src.parent / "IDs_mapping.csv").unlink(), "missing_mapping", "IDs_mapping.csv"),
    ):
        change()
        path = src.with_name("absent.csv") if code == "missing_source" else src
        with pytest.raises(InputError, match=place) as caught:
            ingest_diabetes130(path, tmp_path / "out")
        assert caught.value.code == code
        assert not list((tmp_path / "out").glob("data/*"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    src = write_stays(tmp_path / "src" / "stays.csv", {})
    src.write_text(src.read_text().replace("readmitted", "label"))
    with pytest.raises(FormatError, match="readmitted"):
        ingest_diabetes130(src, tmp_path / "out")


def test_the_mapping_may_lie_elsewhere(tmp_path: Path) -> None:
    src = write_stays(tmp_path / "src" / "stays.csv", {})
    (src.parent / "IDs_mapping.csv").rename(tmp_path / "meanings.csv")
    ingest_diabetes130(src, tmp_path / "out", mapping=tmp_path / "meanings.csv")
    assert (
        read_mapping(tmp_path / "meanings.csv")["admission_source_id"]["1"] == "Physician Referral"
    )


@pytest.mark.slow
def test_the_release_is_read_whole_and_its_labels_come_back(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    src = data_dir("diabetes130") / "diabetic_data_train.csv.gz"
    raw = pl.read_csv(src, infer_schema=False).cast({"encounter_id": pl.Int64})
    summary = ingest_diabetes130(src, tmp_path / "out")
    assert summary.n_subjects == raw["patient_nbr"].n_unique() == 57_234
    n_lost = summary.quarantined["admitted_after_death"]
    assert summary.quarantined == {"admitted_after_death": n_lost}
    assert (n_lost, summary.rows_read) == (10, {"encounters": raw.height})
    assert summary.rows_used == {"encounters": raw.height - n_lost}
    assert summary.events_by_class["HOSPITAL_DISCHARGE"] == raw.height - n_lost
    drugs = sum(int((raw[name] != "No").sum()) for name in DRUGS)
    assert drugs - 50 < summary.events_by_class["MEDICATION"] <= drugs
    tests = [raw[name] != "None" for name in ("A1Cresult", "max_glu_serum")]
    n_tests = sum(int(test.sum()) for test in tests)
    assert n_tests - 10 < summary.events_by_class["LAB"] <= n_tests
    task = task_named("readmission_30d")
    cohort = find_cohort(tmp_path / "out", task).filter("eligible")
    labels = labels_of(cohort, task)
    told = cohort.join(labels, on=["subject_id", "prediction_time"]).join(raw, on="encounter_id")
    assert told.height == labels.height == cohort.height > 76_000
    assert (told["boolean_value"] == (told["readmitted"] == "<30")).all()
