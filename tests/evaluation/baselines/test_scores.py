"""LACE and HOSPITAL by hand, and blind to what is known later."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest

from tsfm.evaluation.baselines.hospital_score import hospital_scores
from tsfm.evaluation.baselines.lace import lace_scores

IN = datetime(2020, 5, 1, 15)
OUT = datetime(2020, 5, 8, 11)
HOME = "HOSPITAL_DISCHARGE//HOME"
EMERGENCY = "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM"


def ago(days: float) -> datetime:
    return IN - timedelta(days=days)


def test_lace_of_a_sick_patient_by_hand(events_of, cohort_of):
    events = events_of(
        [
            (1, IN, EMERGENCY),
            (1, OUT, "HOSPITAL_DISCHARGE//HOME"),
            (1, ago(300), "DIAGNOSIS//ICD//10//I509"),  # 2 of LACE's points
            (1, ago(300), "DIAGNOSIS//ICD//10//F03"),  # 3
            (1, ago(0.2), "ED_REGISTRATION"),  # the way in
            (1, ago(20), "ED_REGISTRATION"),
            (1, ago(150), "ED_REGISTRATION"),
            (1, ago(200), "ED_REGISTRATION"),  # longer ago than six months
        ]
    )
    row = lace_scores(events, cohort_of([(1, IN, OUT)])).to_dicts()[0]
    assert (row["lace_l"], row["lace_a"], row["lace_c"], row["lace_e"]) == (5, 3, 5, 2)
    assert row["lace"] == 15


@pytest.mark.parametrize(
    ("nights", "points"),
    [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (6, 4), (7, 5), (13, 5), (14, 7), (90, 7)],
)
def test_the_steps_of_length_of_stay(events_of, cohort_of, nights, points):
    events = events_of([(1, IN, "HOSPITAL_ADMISSION//ELECTIVE//PHYSICIAN REFERRAL")])
    out = IN + timedelta(days=nights, hours=1)
    assert lace_scores(events, cohort_of([(1, IN, out)]))["lace"].item() == points


@pytest.mark.parametrize(
    ("code", "acute"),
    [
        ("HOSPITAL_ADMISSION//URGENT//TRANSFER FROM HOSPITAL", True),
        ("HOSPITAL_ADMISSION//DIRECT EMER.//UNK", True),
        ("HOSPITAL_ADMISSION//EMERGENCY//emd", True),
        ("HOSPITAL_ADMISSION//OBSERVATION ADMIT//EMERGENCY ROOM", True),
        ("HOSPITAL_ADMISSION//IMP//emd", True),
        ("HOSPITAL_ADMISSION//OBSERVATION ADMIT//PHYSICIAN REFERRAL", False),
        ("HOSPITAL_ADMISSION//UNK//UNK", False),
        ("HOSPITAL_ADMISSION", False),
    ],
)
def test_what_makes_an_admission_acute(events_of, cohort_of, code, acute):
    found = lace_scores(events_of([(1, IN, code)]), cohort_of([(1, IN, OUT)]))
    assert (found["lace_a"].item() == 3) is acute


def test_hospital_score_of_a_sick_patient_by_hand(events_of, cohort_of):
    stays = [(1, ago(days), EMERGENCY) for days in (20, 60, 100, 140, 180, 220, 500)]
    events = events_of(
        [
            *stays,
            (1, IN, EMERGENCY),
            (1, ago(300), "DIAGNOSIS//ICD//10//C509"),
            (1, IN, "LAB//51222//g/dL", 13.0),
            (1, IN + timedelta(days=2), "LAB//51222//g/dL", 11.9),
            (1, IN + timedelta(days=1), "LAB//50983//mEq/L", 130.0),
            (1, IN + timedelta(days=3), "LAB//50983//mEq/L", 136.0),
            (1, IN + timedelta(days=3), "PROCEDURE//ICD//10//0DTJ4ZZ"),
        ]
    )
    row = hospital_scores(events, cohort_of([(1, IN, OUT)])).to_dicts()[0]
    parts = {
        "hemoglobin": 1,
        "oncology": 2,
        "sodium": 0,
        "procedure": 1,
        "urgent": 1,
        "admissions": 5,
        "stay": 2,
    }
    assert {name: row[f"hospital_{name}"] for name in parts} == parts
    assert row["hospital"] == 12
    assert row["n_missing_labs"] == 0


@pytest.mark.parametrize("known_late", [False, True])
@pytest.mark.parametrize(
    ("moves", "points"),
    [
        # Hours from the first admission, code, encounter.
        ([(0, EMERGENCY, 1), (30, HOME, 1)], 0),
        ([(0, EMERGENCY, 1), (2, EMERGENCY, 1), (30, HOME, 1)], 0),
        ([(0, EMERGENCY, 1), (5, HOME, 1), (6, EMERGENCY, 3), (30, HOME, 3)], 0),
        ([(0, EMERGENCY, None), (5, HOME, None), (6, EMERGENCY, None), (30, HOME, None)], 0),
        ([(0, EMERGENCY, 1), (99, HOME, 1), (50, EMERGENCY, 3), (60, HOME, 3)], 0),
        ([(0, EMERGENCY, 1), (5, HOME, 1), (48, EMERGENCY, 3), (60, HOME, 3)], 2),
        ([(0, EMERGENCY, 1), (48, EMERGENCY, 3)], 2),
    ],
)
def test_hospital_score_counts_stays_and_not_rows(events_of, cohort_of, moves, points, known_late):
    """Transfers and repeated rows are no admissions more, as far as that is known."""
    began = datetime(2020, 3, 1, 1)
    rows = [(1, began + timedelta(hours=hour), code) for hour, code, _ in moves]
    rows += [(1, IN, EMERGENCY), (1, OUT, HOME)]
    late = OUT + timedelta(microseconds=1)
    events = events_of([(*row, None, late if known_late and row[2] == HOME else None)
                        for row in rows])  # fmt: skip
    ids = {row[1]: stay for row, (_, _, stay) in zip(rows, moves, strict=False)}
    events = events.with_columns(
        encounter_id=pl.col("time").replace_strict(ids, default=9, return_dtype=pl.Int64)
    )
    found = hospital_scores(events, cohort_of([(1, IN, OUT)]))["hospital_admissions"].item()
    if not known_late:
        assert found == points
    else:  # what was not known by then has no part in it
        known = events.filter(pl.col("available_time") <= OUT)
        blind = hospital_scores(known, cohort_of([(1, IN, OUT)]))["hospital_admissions"].item()
        assert found == blind


def test_hospital_score_of_a_well_patient_is_nothing(events_of, cohort_of):
    events = events_of(
        [
            (1, IN, "HOSPITAL_ADMISSION//ELECTIVE//UNK"),
            (1, ago(400), "LAB//LOINC//718-7//g/dL", 7.0),  # not of this stay
            (1, IN, "LAB//LOINC//2951-2//mmol/L", 141.0),
        ]
    )
    row = hospital_scores(events, cohort_of([(1, IN, IN + timedelta(days=2))])).to_dicts()[0]
    assert row["hospital"] == 0
    assert row["n_missing_labs"] == 1


def test_haemoglobin_in_grams_per_litre_is_converted(events_of, cohort_of):
    events = events_of([(1, IN, "LAB//LOINC//718-7//g/L", 119.0), (2, IN,
                        "LAB//LOINC//718-7//g/L", 121.0)])  # fmt: skip
    found = hospital_scores(events, cohort_of([(1, IN, OUT), (2, IN, OUT)]))
    assert found["hospital_hemoglobin"].to_list() == [1, 0]


def test_an_oncology_ward_of_the_stay_counts_as_oncology(events_of, cohort_of):
    events = events_of([(1, IN, "TRANSFER_TO//admit//Hematology/Oncology"), (2, ago(9),
                        "TRANSFER_TO//admit//Hematology/Oncology")])  # fmt: skip
    found = hospital_scores(events, cohort_of([(1, IN, OUT), (2, IN, OUT)]))
    assert found["hospital_oncology"].to_list() == [2, 0]


def test_scores_ignore_what_is_known_later(events_of, cohort_of):
    now = [
        (1, IN, EMERGENCY),
        (1, IN, "LAB//51222//g/dL", 13.0),
        (1, ago(5), "DIAGNOSIS//ICD//10//I509"),
    ]
    late = OUT + timedelta(microseconds=1)
    future = [
        (1, OUT, "LAB//51222//g/dL", 6.0, late),
        (1, IN, "DIAGNOSIS//ICD//10//C787", None, late),
        (1, IN, "PROCEDURE//ICD//10//0DTJ4ZZ", None, late),
        (1, ago(9), "ED_REGISTRATION", None, late),
        (1, ago(30), EMERGENCY, None, late),
        (1, ago(31), EMERGENCY, None, late),
    ]
    cohort = cohort_of([(1, IN, OUT)])
    for score in (lace_scores, hospital_scores):
        blind = score(events_of(now), cohort)
        assert score(events_of(now + future), cohort).equals(blind)
        # At the same stay's later moment they are seen.
        seen = score(events_of(now + future), cohort_of([(1, IN, late)]))
        assert not seen.drop("prediction_time").equals(blind.drop("prediction_time"))


def test_one_row_for_each_prediction_time_in_the_order_asked(events_of, cohort_of):
    cohort = cohort_of([(2, IN, OUT), (1, IN, OUT), (1, ago(50), ago(40)), (9, IN, OUT)])
    events = events_of([(1, IN, EMERGENCY), (2, IN, EMERGENCY)])
    for score in (lace_scores, hospital_scores):
        found = score(events, cohort)
        assert found["subject_id"].to_list() == [2, 1, 1, 9]
        assert found.null_count().sum_horizontal().item() == 0


def test_values_of_other_units_are_converted_or_missing(events_of, cohort_of):
    rows = [(1, IN, "LAB//LOINC//718-7//mmol/L", 8.7), (2, IN, "LAB//LOINC//718-7//g/l", 90.0),
            (3, IN, "LAB//LOINC//718-7//%", 9.0), (4, IN, "LAB//LOINC//718-7", 9.0),
            (5, IN, "LAB//LOINC//718-7//g/dL", 9.0),
            (5, IN + timedelta(hours=1), "LAB//LOINC//718-7//g/dL", float("nan"))]  # fmt: skip
    found = hospital_scores(events_of(rows), cohort_of([(s, IN, OUT) for s in range(1, 6)]))
    assert found["hospital_hemoglobin"].to_list() == [0, 1, 0, 1, 1]
    assert found["n_missing_labs"].to_list() == [1, 1, 2, 1, 1]
