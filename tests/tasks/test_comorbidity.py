"""Charlson classes of a stay's codes: which codes are its own, and which stays have none."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from tsfm import clock
from tsfm.tasks.class_tasks import class_labels_of
from tsfm.tasks.cohorts import Followup
from tsfm.tasks.comorbidity import CLASSES, COMORBIDITY, hide_history

T0 = datetime(2150, 1, 1, 12)
COMPLETE = Followup("complete")
HEART_FAILURE, DIABETES = "DIAGNOSIS//ICD//10//I5023", "DIAGNOSIS//ICD//10//E119"
METASTASIS, KIDNEY, HEALTHY = (f"DIAGNOSIS//ICD//10//{code}" for code in ("C787", "N184", "Z000"))


def after(days: float) -> datetime:
    return T0 + timedelta(days=days)


def stay(start: float, end: float | None, id: int | None, subject: int = 1) -> list[Any]:
    rows = [
        (subject, datetime(2100, 1, 1), "MEDS_BIRTH", None),
        (subject, after(start), "HOSPITAL_ADMISSION//URGENT//UNK", id),
    ]
    if end is not None:
        rows.append((subject, after(end), "HOSPITAL_DISCHARGE//HOME", id))
    return rows


def answers(events: pl.DataFrame, followup: Followup = COMPLETE) -> list[str | None]:
    cohort = COMORBIDITY.find_cohort(events, followup, None)
    return cohort.select(pl.coalesce("outcome", "reason"))["outcome"].to_list()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([HEALTHY], "0"),
        ([HEART_FAILURE], "1-2"),
        ([HEART_FAILURE, DIABETES], "1-2"),
        ([HEART_FAILURE, KIDNEY], "3-4"),
        ([METASTASIS], "5-7"),
        ([METASTASIS, HEART_FAILURE], "5-7"),
        ([METASTASIS, KIDNEY], "above 7"),
        ([HEART_FAILURE, HEART_FAILURE], "1-2"),
    ],
)
def test_the_class_is_the_index_of_the_stays_codes(
    events_of: Any, found: list[str], expected: str
) -> None:
    events = events_of(stay(0, 4, 1) + [(1, after(4), code, 1) for code in found])
    assert answers(events) == [expected]


def test_codes_count_for_the_stay_that_they_name(events_of: Any) -> None:
    codes = [(1, after(4), METASTASIS, 1), (1, after(24), HEART_FAILURE, 2)]
    assert answers(events_of(stay(0, 4, 1) + stay(20, 24, 2) + codes)) == ["5-7", "1-2"]
    # Onset long before the stay: the encounter says whose code it is.
    early = [(1, after(-400), METASTASIS, 1)]
    assert answers(events_of(stay(0, 4, 1) + early)) == ["5-7"]


def test_codes_without_an_encounter_count_where_their_time_falls(events_of: Any) -> None:
    codes = [(1, after(4), METASTASIS, None), (1, after(12), HEART_FAILURE, None),
             (1, after(24), DIABETES, None)]  # fmt: skip
    events = events_of(stay(0, 4, None) + stay(20, 24, None) + codes)
    assert answers(events) == ["5-7", "1-2"]


def test_codes_that_become_known_later_are_the_answer_all_the_same(events_of: Any) -> None:
    events = events_of([*stay(0, 4, 1), (1, after(4), METASTASIS, 1)])
    late = events.with_columns(
        available_time=pl.when(pl.col("code") == METASTASIS)
        .then(pl.lit(after(9)).cast(pl.Datetime("us")))
        .otherwise("available_time")
    )
    assert answers(late) == ["5-7"]


def test_a_transfers_codes_are_one_answer(events_of: Any) -> None:
    codes = [(1, after(2), METASTASIS, 1), (1, after(5), KIDNEY, 2)]
    events = events_of(stay(0, 2, 1) + stay(2.1, 5, 2) + codes)
    assert answers(events) == ["above 7", "merged_into_previous_stay"]


def test_a_stay_without_icd_codes_has_no_index_of_zero(events_of: Any) -> None:
    snomed = [(1, after(4), "DIAGNOSIS//SNOMED//84114007", 1)]
    for codes in ([], snomed):
        cohort = COMORBIDITY.find_cohort(events_of(stay(0, 4, 1) + codes), COMPLETE, None)
        row = cohort.select("eligible", "reason", "outcome", "outcome_days").row(0)
        assert row == (False, "no_coded_diagnoses", None, None)


def test_a_stay_that_lasts_has_no_label_yet(events_of: Any) -> None:
    events = events_of([*stay(0, None, 1), (1, after(0.5), HEART_FAILURE, 1)])
    followup = Followup("until", clock.to_us(after(3)))
    cohort = COMORBIDITY.find_cohort(events, followup, None)
    assert cohort.select("eligible", "outcome").row(0) == (True, "censored")
    assert class_labels_of(cohort, COMORBIDITY).height == 0


def test_labels_are_places_of_the_classes_and_subjects_do_not_mix(events_of: Any) -> None:
    rows = [
        row
        for subject, code in enumerate([HEALTHY, HEART_FAILURE, METASTASIS], 1)
        for row in [*stay(0, 4, 7, subject), (subject, after(4), code, 7)]
    ]
    cohort = COMORBIDITY.find_cohort(events_of(rows), COMPLETE, None)
    labels = class_labels_of(cohort, COMORBIDITY)
    assert [CLASSES[n] for n in labels["integer_value"]] == ["0", "1-2", "5-7"]
    assert labels["prediction_time"].to_list() == [after(1)] * 3


def test_hiding_takes_diagnoses_and_nothing_else(events_of: Any) -> None:
    kept = ["LAB//1//g", "MEDICATION//x", "PROCEDURE//ICD//10//0", "DIAGNOSTIC//x", "DRGX"]
    gone = [HEART_FAILURE, "DIAGNOSIS", "DIAGNOSIS//SNOMED//1", "DRG//HCFA//1"]
    events = events_of([(1, T0, code, None) for code in kept + gone])
    assert sorted(hide_history(events)["code"]) == sorted(kept)
