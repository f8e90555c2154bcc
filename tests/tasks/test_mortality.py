"""Questions asked 24 hours after admission: death in hospital and a stay past seven days."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest

from tsfm import clock
from tsfm.errors import InputError
from tsfm.tasks.cohorts import AdmissionRules, Followup, label_of
from tsfm.tasks.registry import CLASS_TASKS, TASKS

T0 = datetime(2150, 1, 1, 12)
COMPLETE = Followup("complete")


def after(days: float = 0, hours: float = 0) -> datetime:
    return T0 + timedelta(days=days, hours=hours)


def rows_of(subject, end, to="HOME", start=T0, death=None, id=None):
    rows = [
        (subject, datetime(2100, 1, 1), "MEDS_BIRTH", None),
        (subject, start, "HOSPITAL_ADMISSION//URGENT//UNK", id),
    ]
    if end is not None:
        rows.append((subject, end, f"HOSPITAL_DISCHARGE//{to}", id))
    if death is not None:
        rows.append((subject, death, "MEDS_DEATH", None))
    return rows


def ask(name: str, events: pl.DataFrame, followup: Followup = COMPLETE, rules=None):
    task = TASKS[name]
    cohort = task.find_cohort(events, followup, rules)
    labels = label_of(
        cohort["outcome"], cohort["outcome_days"], task.horizon_days, task.positive
    ).to_list()
    return cohort, labels


def test_death_in_hospital_is_positive_and_discharge_competes(events_of):
    events = events_of(
        rows_of(1, after(5), to="DIED")
        + rows_of(2, after(5))
        + rows_of(3, after(5), death=after(9, 1))
        + rows_of(4, after(5), to="UNK", death=after(4, 1))
        + rows_of(5, None, death=after(4, 1))
    )
    cohort, labels = ask("mortality_in_hospital", events)
    assert labels == [True, False, False, True, True]
    assert cohort["outcome"].to_list() == ["event", "competing", "competing", "event", "event"]
    assert cohort["prediction_time"].to_list() == [after(1)] * 5
    assert cohort["outcome_days"].to_list() == pytest.approx([4, 4, 4, 3 + 1 / 24, 3 + 1 / 24])


def test_a_stay_that_is_over_by_then_is_named(events_of):
    events = events_of(rows_of(1, after(1)) + rows_of(2, after(1, 0.1)))
    cohort, _ = ask("mortality_in_hospital", events)
    assert cohort["reason"].to_list() == ["left_before_prediction_time", None]


@pytest.mark.parametrize(
    ("end", "to", "expected"),
    [
        (after(7), "HOME", False),
        (after(7, 0.01), "HOME", True),
        (after(6.9), "HOME", False),
        (after(6.9), "DIED", False),
        (after(8), "DIED", True),
    ],
)
def test_length_of_stay_is_time_to_the_minute(events_of, end, to, expected):
    _, labels = ask("length_of_stay_7d", events_of(rows_of(1, end, to=to)))
    assert labels == [expected]


def test_an_open_stay_is_known_as_far_as_it_is_watched(events_of):
    events = events_of(rows_of(1, None))

    def watched(days: float) -> list[bool | None]:
        return ask("length_of_stay_7d", events, Followup("until", clock.to_us(after(days))))[1]

    assert watched(7) == [True]
    assert watched(6.5) == [None]
    cohort, _ = ask("length_of_stay_7d", events, Followup("until", clock.to_us(after(0.5))))
    assert cohort["reason"].to_list() == ["follow_up_ended_before_prediction_time"]


def test_an_open_stay_of_a_complete_release_is_watched_until_its_last_event(events_of):
    events = events_of([*rows_of(1, None), (1, after(3), "LAB//50912//mg/dL", None)])
    cohort, labels = ask("length_of_stay_7d", events)
    assert cohort.select("outcome", "outcome_days").row(0) == ("censored", 2.0)
    assert labels == [None]


def test_a_transferred_patient_is_asked_about_once(events_of):
    events = events_of(
        rows_of(1, after(0.3), id=1) + rows_of(1, after(9), start=after(0.4), to="DIED", id=2)
    )
    cohort, labels = ask("mortality_in_hospital", events)
    assert cohort["reason"].to_list() == [None, "merged_into_previous_stay"]
    assert cohort["end_time"].to_list() == [after(9), after(9)]
    assert labels == [True, None]


def test_the_hour_of_the_question_is_a_switch(events_of):
    cohort, _ = ask("mortality_in_hospital", events_of(rows_of(1, after(9))),
                    rules=AdmissionRules(hours=48))  # fmt: skip
    assert cohort["prediction_time"].to_list() == [after(2)]


@pytest.mark.parametrize("hours", [0, 23.5, 48])
def test_a_horizon_from_the_admission_is_asked_about_after_a_day_alone(events_of, hours):
    """Six days from another question are not seven from the admission."""
    events = events_of(rows_of(1, after(6.5)))
    for name in ("length_of_stay_7d", "mortality_30d"):
        with pytest.raises(InputError, match="bad_hours"):
            ask(name, events, rules=AdmissionRules(hours=hours))
        assert ask(name, events, rules=AdmissionRules(min_age=60))[0]["reason"].item() == "minor"
    for task in CLASS_TASKS.values():
        task.find_cohort(events, COMPLETE, AdmissionRules(hours=hours))
