"""Labels of readmission: exact hours, competing death, censoring, and every stay accounted for."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm import clock
from tsfm.tasks.cohorts import Followup, label_of
from tsfm.tasks.readmission import READMISSION_30D, ReadmissionRules, find_readmission_cohort

T0 = datetime(2150, 1, 1, 12)
COMPLETE = Followup("complete")


def after(days: float = 0, hours: float = 0) -> datetime:
    return T0 + timedelta(days=days, hours=hours)


def until(moment: datetime) -> Followup:
    return Followup("until", clock.to_us(moment))


def stay(subject, start, end, *, id=None, kind="EW EMER.", to="HOME"):
    rows = [(subject, start, f"HOSPITAL_ADMISSION//{kind}//EMERGENCY ROOM", id)]
    if end is not None:
        rows.append((subject, end, f"HOSPITAL_DISCHARGE//{to}", id))
    return rows


def birth(subject, years=60):
    return [(subject, datetime(T0.year - years, 1, 1), "MEDS_BIRTH", None)]


def label(cohort: pl.DataFrame) -> list[bool | None]:
    task = READMISSION_30D
    return label_of(
        cohort["outcome"], cohort["outcome_days"], task.horizon_days, task.positive
    ).to_list()


@pytest.mark.parametrize(
    ("days", "hours", "expected"),
    [(28.5, 0, True), (29.99, 0, True), (30, 0, True), (30, 1, False), (45, 0, False)],
)
def test_the_horizon_is_thirty_days_to_the_hour(events_of, days, hours, expected):
    events = events_of(
        birth(1) + stay(1, after(-3), T0, id=1) + stay(1, after(days, hours), after(60), id=2)
    )
    cohort = find_readmission_cohort(events, COMPLETE)
    assert cohort["prediction_time"].to_list()[0] == T0
    assert cohort["outcome"].to_list()[0] == "event"
    assert cohort["outcome_days"].to_list()[0] == pytest.approx(days + hours / 24, abs=1e-9)
    assert label(cohort)[0] is expected


def test_a_subject_with_one_stay_is_a_negative_not_an_absentee(events_of):
    cohort = find_readmission_cohort(events_of(birth(1) + stay(1, after(-3), T0, id=1)), COMPLETE)
    assert cohort["eligible"].to_list() == [True]
    assert label(cohort) == [False]


def test_death_before_readmission_competes(events_of):
    events = events_of(
        birth(1) + stay(1, after(-3), T0, id=1) + [(1, after(10), "MEDS_DEATH", None)]
    )
    cohort = find_readmission_cohort(events, until(after(11)))
    assert cohort.select("outcome", "outcome_days").row(0) == ("competing", 10.0)
    assert label(cohort) == [False]


def test_a_readmission_that_ends_in_death_is_a_readmission(events_of):
    events = events_of(
        birth(1)
        + stay(1, after(-3), T0, id=1)
        + stay(1, after(10), after(12), id=2, to="DIED")
        + [(1, after(12), "MEDS_DEATH", None)]
    )
    cohort = find_readmission_cohort(events, COMPLETE)
    assert cohort["outcome"].to_list() == ["event", None]
    assert cohort["reason"].to_list() == [None, "died_in_hospital"]


def test_a_date_of_death_on_the_day_of_return_comes_after_the_return(events_of):
    midnight = datetime(2150, 1, 11)
    events = events_of(
        birth(1)
        + stay(1, after(-3), T0, id=1)
        + stay(1, midnight + timedelta(hours=9), midnight + timedelta(hours=20), id=2, to="DIED")
        + [(1, midnight, "MEDS_DEATH", None)]
    )
    assert find_readmission_cohort(events, COMPLETE)["outcome"].to_list()[0] == "event"


def test_a_follow_up_that_is_too_short_gives_no_label(events_of):
    events = events_of(birth(1) + stay(1, after(-3), T0, id=1))
    cohort = find_readmission_cohort(events, until(after(12)))
    assert cohort.select("outcome", "outcome_days").row(0) == ("censored", 12.0)
    assert label(cohort) == [None]
    assert label(find_readmission_cohort(events, until(after(30)))) == [False]


def test_a_same_day_transfer_is_no_readmission(events_of):
    events = events_of(
        birth(1)
        + stay(1, after(-3), T0, id=1)
        + stay(1, after(hours=5), after(4), id=2)
        + stay(1, after(20), after(22), id=3)
    )
    cohort = find_readmission_cohort(events, COMPLETE)
    assert cohort["reason"].to_list() == ["merged_into_next_stay", None, None]
    assert cohort["encounter_id"].to_list() == [1, 2, 3]
    assert cohort["start_time"].to_list()[1] == after(-3)
    assert cohort["prediction_time"].to_list()[1] == after(4)
    assert cohort["outcome_days"].to_list()[1] == 16.0
    unmerged = find_readmission_cohort(events, COMPLETE, ReadmissionRules(merge_same_day=False))
    assert unmerged["outcome_days"].to_list()[:2] == [pytest.approx(5 / 24), 16.0]


def test_every_exclusion_is_named_and_can_be_switched_off(events_of):
    events = events_of(
        birth(1, 13) + stay(1, after(-3), T0)
        + stay(2, after(-3), T0)
        + birth(3) + stay(3, after(-3), T0, to="DIED")
        + birth(4) + stay(4, after(-3), T0, to="HOSPICE")
        + birth(5) + stay(5, after(-3), T0, to="AGAINST ADVICE")
        + birth(6) + stay(6, after(-3), T0, to="ACUTE HOSPITAL")
        + birth(7) + stay(7, after(-3), None)
        + birth(8) + stay(8, after(-9), None) + stay(8, after(-3), T0)
    )  # fmt: skip
    cohort = find_readmission_cohort(events, COMPLETE)
    assert cohort["reason"].to_list() == [
        "minor",
        "unknown_age",
        "died_in_hospital",
        "hospice",
        "against_advice",
        "transferred_to_acute_hospital",
        "still_in_hospital",
        "discharge_unknown",
        None,
    ]
    rules = ReadmissionRules(
        exclude_against_advice=False, exclude_hospice=False, exclude_transfers=False, min_age=12
    )
    eligible = find_readmission_cohort(events, COMPLETE, rules).filter("eligible")
    assert eligible["subject_id"].to_list() == [1, 4, 5, 6, 8]


def test_unplanned_only_looks_behind_planned_admissions(events_of):
    events = events_of(
        birth(1)
        + stay(1, after(-3), T0, id=1)
        + stay(1, after(10), after(11), id=2, kind="ELECTIVE")
        + stay(1, after(25), after(26), id=3, kind="URGENT")
    )
    rules = ReadmissionRules(unplanned_only=True)
    assert find_readmission_cohort(events, COMPLETE, rules)["outcome_days"].to_list() == [
        25.0,
        14.0,
        365.0,
    ]
    assert find_readmission_cohort(events, COMPLETE)["outcome_days"].to_list()[0] == 10.0


def test_an_admission_after_death_is_neither_index_nor_event(events_of):
    events = events_of(
        birth(1)
        + stay(1, after(-3), T0, id=1)
        + [(1, after(5, 1), "MEDS_DEATH", None)]
        + stay(1, after(8), after(9), id=2)
    )
    cohort = find_readmission_cohort(events, COMPLETE)
    assert cohort["outcome"].to_list() == ["competing", None]
    assert cohort["reason"].to_list() == [None, "admitted_after_death"]


# Whole hours on a coarse grid, so that ties, same-day gaps and exact horizons come up often.
hours = st.integers(0, 24 * 50)


@st.composite
def timelines(draw):
    """Disjoint stays of one subject with ids, then perhaps a death after the last one began."""
    marks = sorted(draw(st.lists(hours, min_size=2, max_size=12, unique=True)))
    pairs = list(zip(marks[::2], marks[1::2], strict=False))
    to = draw(
        st.lists(st.sampled_from(["HOME", "UNK", "HOSPICE"]), min_size=len(pairs),
                 max_size=len(pairs))
    )  # fmt: skip
    death = draw(st.none() | st.integers(0, 24 * 40))
    watched = draw(st.none() | st.integers(0, 24 * 80))
    return pairs, to, death, watched


def oracle(pairs, to, death_hour, watched_hour, base):
    """Merge, exclude and label with plain loops over hours; deaths are at half past.

    What comes after the end of follow-up is not known, though it is there.
    """
    groups: list[list[int]] = []
    for index, (start, _) in enumerate(pairs):
        if groups:
            previous_end = pairs[groups[-1][-1]][1]
            if (base + timedelta(hours=previous_end)).date() == (
                base + timedelta(hours=start)
            ).date():
                groups[-1].append(index)
                continue
        groups.append([index])
    answers = {}
    for number, group in enumerate(groups):
        last = group[-1]
        if death_hour is not None and any(pairs[i][0] <= death_hour <= pairs[i][1] for i in group):
            continue
        if death_hour is not None and death_hour < pairs[group[0]][0]:
            continue
        if to[last] == "HOSPICE":
            continue
        out = pairs[last][1]
        back = pairs[groups[number + 1][0]][0] if number + 1 < len(groups) else None
        died = death_hour
        if watched_hour is not None:
            back = None if back is None or back > watched_hour else back
            died = None if died is None or died > watched_hour else died
        if back is not None and (died is None or back <= died):
            answers[last] = back - out <= 720
        elif died is not None or watched_hour is None:
            answers[last] = False
        else:
            answers[last] = False if watched_hour - out >= 720 else None
    return answers


@settings(max_examples=150, deadline=None)
@given(timelines(), st.booleans())
def test_labels_agree_with_plain_loops(events_of, timeline, with_ids):
    pairs, to, death, watched = timeline
    base = datetime(2150, 1, 1)
    rows = birth(1)
    for number, (start, end) in enumerate(pairs):
        rows += stay(
            1,
            base + timedelta(hours=start),
            base + timedelta(hours=end),
            id=number if with_ids else None,
            to=to[number],
        )
    death_hour = None
    if death is not None:
        death_hour = pairs[-1][0] + death + 0.5
        rows.append((1, base + timedelta(hours=death_hour), "MEDS_DEATH", None))
    followup = COMPLETE if watched is None else until(base + timedelta(hours=watched))
    cohort = find_readmission_cohort(events_of(rows), followup)
    assert cohort.height == len(pairs)
    assert cohort["end_time"].n_unique() == len(pairs)
    assert (cohort["eligible"] == cohort["reason"].is_null()).all()
    found = {
        next(i for i, (_, end) in enumerate(pairs) if base + timedelta(hours=end) == out): answer
        for out, eligible, answer in zip(
            cohort["end_time"], cohort["eligible"], label(cohort), strict=True
        )
        if eligible
    }
    assert found == oracle(pairs, to, death_hour, watched, base)
