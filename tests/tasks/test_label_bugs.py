"""Errors in labels of earlier systems: each test fails if ours come to have one of them."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from tsfm.tasks.class_tasks import class_labels_of
from tsfm.tasks.cohorts import Followup, label_of
from tsfm.tasks.comorbidity import COMORBIDITY, hide_history
from tsfm.tasks.registry import CLASS_TASKS, TASKS

T0 = datetime(2150, 1, 1, 12)
COMPLETE = Followup("complete")


def after(days: float = 0, hours: float = 0) -> datetime:
    return T0 + timedelta(days=days, hours=hours)


def stay(subject: int, start: datetime, end: datetime, id: int, to: str = "HOME") -> list[Any]:
    return [
        (subject, datetime(2100, 1, 1), "MEDS_BIRTH", None),
        (subject, start, "HOSPITAL_ADMISSION//URGENT//UNK", id),
        (subject, end, f"HOSPITAL_DISCHARGE//{to}", id),
    ]


def labels(name: str, events: pl.DataFrame) -> list[bool | None]:
    task = TASKS[name]
    cohort = task.find_cohort(events, COMPLETE, None)
    return label_of(
        cohort["outcome"], cohort["outcome_days"], task.horizon_days, task.positive
    ).to_list()


@pytest.mark.parametrize("days", [*range(26, 36), 45, 58, 59, 60])
def test_a_return_on_any_day_is_on_the_right_side_of_thirty(events_of: Any, days: int) -> None:
    # Interval tokens took days 28 and 29 for "one month" (no) and days 30 to 59 for a yes.
    events = events_of(stay(1, after(-3), T0, 1) + stay(1, after(days, 0.5), after(days + 2), 2))
    assert labels("readmission_30d", events)[0] is (days < 30)


def test_subjects_with_one_stay_are_in_the_readmission_cohort(events_of: Any) -> None:
    # A cohort of subjects with two stays or more selects on the future.
    one = [row for s in range(1, 9) for row in stay(s, after(-3), T0, s)]
    events = events_of(one + stay(9, after(-3), T0, 9) + stay(9, after(10), after(12), 10))
    cohort = TASKS["readmission_30d"].find_cohort(events, COMPLETE, None)
    assert cohort["eligible"].all()
    assert set(cohort["subject_id"]) == set(range(1, 10))
    assert labels("readmission_30d", events).count(True) == 1


@pytest.mark.parametrize("n_events", [0, 24 * 8, 2000])
def test_length_of_stay_is_hours_not_tokens(events_of: Any, n_events: int) -> None:
    # A count of tokens divided by 24 is no number of days.
    def measured(subject: int, days: float) -> list[Any]:
        gaps = [(subject, after(days * (i + 1) / (n_events + 1)), "LAB//1//g", subject)
                for i in range(n_events)]  # fmt: skip
        return stay(subject, T0, after(days), subject) + gaps

    events = events_of(measured(1, 2.5) + measured(2, 3.5) + measured(3, 8))
    assert labels("length_of_stay_7d", events) == [False, False, True]
    bins = CLASS_TASKS["length_of_stay_bins"]
    found = class_labels_of(bins.find_cohort(events, COMPLETE, None), bins)
    assert found["integer_value"].to_list() == [0, 1, 3]


@pytest.mark.parametrize(
    "name", ["mortality_in_hospital", "mortality_30d", "length_of_stay_7d", "length_of_stay_bins"]
)
def test_questions_about_a_stay_are_asked_before_it_ends(events_of: Any, name: str) -> None:
    # Mortality asked with the whole last stay in view is told its answer.
    rng = random.Random(0)
    rows = [
        row
        for s in range(1, 80)
        for row in stay(s, T0, after(hours=rng.choice([3, 23, 24, 25, 30, 90])), s,
                        rng.choice(["HOME", "DIED"]))
    ]  # fmt: skip
    task = {**TASKS, **CLASS_TASKS}[name]
    asked = task.find_cohort(events_of(rows), COMPLETE, None).filter("eligible")
    assert asked.height > 20
    assert (asked["prediction_time"] < asked["end_time"]).all()
    assert (asked["prediction_time"] == asked["start_time"] + timedelta(hours=24)).all()
    assert (asked["outcome_days"] > 0).all()


def test_a_readmission_on_the_day_of_discharge_is_neither_lost_nor_a_label(events_of: Any) -> None:
    # Comparing the day of discharge with earlier admissions only lets such returns through.
    morning = datetime(2150, 1, 4, 9)
    events = events_of(
        stay(1, after(-1), morning, 1)
        + stay(1, morning + timedelta(hours=6), morning + timedelta(days=3), 2)
        + stay(1, morning + timedelta(days=20), morning + timedelta(days=22), 3)
    )
    cohort = TASKS["readmission_30d"].find_cohort(events, COMPLETE, None)
    assert cohort["reason"].to_list() == ["merged_into_next_stay", None, None]
    assert labels("readmission_30d", events) == [None, True, False]
    assert cohort["prediction_time"].to_list()[1] == morning + timedelta(days=3)


def test_the_input_of_the_comorbidity_task_never_holds_its_answer(events_of: Any) -> None:
    # Whatever codes a stay and its past were given, what a model may read is the same.
    rng = random.Random(1)
    pool = ["DIAGNOSIS//ICD//10//I5023", "DIAGNOSIS//ICD//10//C787", "DIAGNOSIS//ICD//9//25000",
            "DIAGNOSIS//SNOMED//84114007", "DRG//HCFA//291//HEART FAILURE"]  # fmt: skip
    rest = stay(1, after(-90), after(-80), 1) + stay(1, T0, after(4), 2)
    rest += [
        (1, after(hours=3), "LAB//50912//mg/dL", 2),
        (1, after(hours=5), "PROCEDURE//ICD//10//X", 2),
    ]
    seen: list[pl.DataFrame] = []
    classes = set()
    for _ in range(20):
        times, ids = [after(-80), after(hours=1), after(4)], [1, 2, None]
        coded = [(1, rng.choice(times), code, rng.choice(ids))
                 for code in rng.sample(pool, rng.randrange(1, 5))]  # fmt: skip
        events = events_of([*rest, *coded, (1, after(4), "DIAGNOSIS//ICD//10//Z000", 2)])
        seen.append(hide_history(events))
        cohort = COMORBIDITY.find_cohort(events, COMPLETE, None)
        classes.add(cohort.filter(pl.col("start_time") == T0)["outcome"].item())
    assert len(classes) > 2
    assert all(frame.equals(seen[0]) for frame in seen)
    assert set(seen[0]["code"]) >= {"LAB//50912//mg/dL", "PROCEDURE//ICD//10//X"}
