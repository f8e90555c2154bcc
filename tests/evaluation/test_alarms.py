"""Alarms: raised as a nurse with a clock would, no more of them than a ward can answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.errors import InputError
from tsfm.evaluation.alarms import (
    AlarmPolicy,
    alarms_per_100_days,
    choose_threshold,
    raise_alarms,
    report_alarms,
)

T0 = datetime(2150, 1, 1)
HOUR = timedelta(hours=1)


def make_stays(rows: Sequence[tuple[int, float, float | None]]) -> pl.DataFrame:
    """Stays from (subject, hours, hour of the event)."""
    return pl.DataFrame(
        [(s, T0, T0 + h * HOUR, None if e is None else T0 + e * HOUR) for s, h, e in rows],
        schema={
            "subject_id": pl.Int64,
            "start_time": pl.Datetime("us"),
            "end_time": pl.Datetime("us"),
            "event_time": pl.Datetime("us"),
        },
        orient="row",
    )


def make_course(rows: Sequence[tuple[int, float, float | None]]) -> pl.DataFrame:
    """Risk from (subject, hour, probability)."""
    return pl.DataFrame(
        [(s, T0, T0 + h * HOUR, p) for s, h, p in rows],
        schema={
            "subject_id": pl.Int64,
            "start_time": pl.Datetime("us"),
            "time": pl.Datetime("us"),
            "probability": pl.Float64,
        },
        orient="row",
    )


def hours_of(alarms: pl.DataFrame) -> list[tuple[int, float]]:
    hours = (alarms["time"] - T0).dt.total_seconds() / 3600
    return list(zip(alarms["subject_id"], hours, strict=True))


def drawn(n_stays: int = 60, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Stays whose risk rises before an event, irregularly observed."""
    rng = np.random.default_rng(seed)
    stays, course = [], []
    for subject in range(n_stays):
        length = rng.uniform(24, 200)
        event = rng.uniform(24, length) if rng.random() < 0.3 else None
        stays.append((subject, length, event))
        for hour in np.sort(rng.uniform(0, length, rng.integers(5, 40))):
            near = event is not None and 0 < event - hour < 24
            course.append((subject, hour, float(np.round(rng.beta(2, 12) + 0.3 * near, 2))))
    return make_course(course), make_stays(stays)


def test_an_alarm_is_followed_by_silence_and_may_then_be_raised_again() -> None:
    course = make_course([(1, h, 0.5) for h in (1, 2, 6.9, 7, 8, 20)] + [(2, 3, 0.1), (2, 4, 0.9)])
    stays = make_stays([(1, 48, None), (2, 48, None)])
    policy = AlarmPolicy(0.5, silence=6 * HOUR)
    assert hours_of(raise_alarms(course, stays, policy)) == [(1, 1), (1, 7), (1, 20), (2, 4)]
    always = AlarmPolicy(0.5, silence=0 * HOUR)
    assert raise_alarms(course, stays, always).height == 7


def test_no_alarm_is_raised_at_or_after_the_event_or_the_end() -> None:
    course = make_course([(1, h, 0.9) for h in (1, 10, 11)] + [(2, h, 0.9) for h in (5, 24, 25)])
    stays = make_stays([(1, 48, 10.0), (2, 24, None)])
    alarms = raise_alarms(course, stays, AlarmPolicy(0.5, silence=0 * HOUR))
    assert hours_of(alarms) == [(1, 1), (2, 5)]


def test_what_is_not_scored_or_not_settled_raises_nothing() -> None:
    course = make_course([(1, 1, None), (1, 2, 0.9), (1, 2, 0.2), (1, 9, 0.9)]).with_columns(
        settled=pl.Series([True, False, True, True])
    )
    stays = make_stays([(1, 24, None)])
    assert hours_of(raise_alarms(course, stays, AlarmPolicy(0.5))) == [(1, 9)]


@settings(max_examples=60, deadline=None)
@given(
    hours=st.lists(st.integers(0, 60), min_size=1, max_size=25),
    risks=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=25, max_size=25),
    silence=st.integers(0, 20),
)
def test_a_lower_threshold_never_raises_fewer_alarms(
    hours: list[int], risks: list[float], silence: int
) -> None:
    rows = [(1, float(h), p) for h, p in zip(sorted(hours), risks, strict=False)]
    course, stays = make_course(rows), make_stays([(1, 72, None)])
    counts = []
    for threshold in (0.1, 0.2, 0.3, 0.4):
        alarms = raise_alarms(course, stays, AlarmPolicy(threshold, silence * HOUR))
        counts.append(alarms.height)
        # What a clock and a list would raise.
        last, expected = -1e9, []
        for _, hour, p in rows:
            if p >= threshold and hour - last >= silence:
                expected.append((1, hour))
                last = hour
        assert hours_of(alarms) == expected
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("budget", [1.0, 5.0, 20.0, 1e4])
@pytest.mark.parametrize("silence", [0, 12])
def test_the_threshold_is_the_lowest_within_the_budget(budget: float, silence: int) -> None:
    course, stays = drawn()
    policy = choose_threshold(course, stays, budget, silence=silence * HOUR)
    days = report_alarms(course, stays, policy, n=2).patient_days
    assert raise_alarms(course, stays, policy).height <= budget * days / 100
    lower = [p for p in course["probability"].unique().sort() if p < policy.threshold]
    if lower:
        looser = AlarmPolicy(lower[-1], policy.silence)
        assert raise_alarms(course, stays, looser).height > budget * days / 100
    else:
        assert budget == 1e4


def test_where_even_one_alarm_is_too_many_nobody_is_alarmed() -> None:
    course, stays = drawn()
    policy = choose_threshold(course, stays, 1e-3)
    assert raise_alarms(course, stays, policy).height == 0


def test_the_figures_of_a_report_by_hand() -> None:
    stays = make_stays([(1, 96, 48.0), (2, 96, 60.0), (3, 96, 90.0), (4, 96, None)])
    course = make_course(
        [(1, 10, 0.9), (1, 40, 0.9), (2, 50, 0.9), (3, 5, 0.9), (4, 20, 0.9), (4, 21, 0.1)]
    )
    policy = AlarmPolicy(0.5, 12 * HOUR)
    found = report_alarms(course, stays, policy, horizon=24 * HOUR, n=50)
    assert (found.n_stays, found.n_events, found.n_alarms) == (4, 3, 5)
    assert found.patient_days == pytest.approx((48 + 60 + 90 + 96) / 24)
    # True: 8 hours before the first event, 10 before the second; the others are too early or none.
    assert found.sensitivity.value == pytest.approx(2 / 3)
    assert found.ppv.value == pytest.approx(2 / 5)
    assert found.per_100_days.value == pytest.approx(100 * 5 / (294 / 24))
    assert found.lead_hours[0.5].value == pytest.approx(9)
    assert found.lead_hours[0.25].value == pytest.approx(8.5)
    ever = report_alarms(course, stays, policy, n=2)
    assert ever.ppv.value == pytest.approx(4 / 5)
    assert ever.sensitivity.value == 1
    assert ever.lead_hours[0.75].value == pytest.approx((38 + 85) / 2)  # of 10, 38 and 85 hours


def test_a_report_says_its_figures_in_aligned_lines() -> None:
    four = [(48.0, (10, 40)), (60.0, (50,)), (90.0, (5,)), (None, (20,))]
    rows = [(4 * i + k, *one) for i in range(11) for k, one in enumerate(four)]
    stays = make_stays([(subject, 96, event) for subject, event, _ in rows])
    course = make_course([(subject, h, 0.9) for subject, _, hours in rows for h in hours])
    found = report_alarms(course, stays, AlarmPolicy(0.5), horizon=24 * HOUR, n=50)
    first, *lines = found.as_text().splitlines()
    assert first == (
        "alarms from 50.0%: 55 in 135 patient-days; 33 of 44 stays (44 subjects) with the event"
    )
    names = ("sensitivity", "positive predictive value", "alarms per 100 patient-days")
    assert [line.split("  ")[1] for line in lines[:3]] == list(names)
    assert len(lines) == 6
    assert len({line.index(" [") for line in lines}) == 1
    assert "  66.7% [" in lines[0]
    assert "66.7%" in found._repr_html_()


def test_a_report_shows_nothing_of_few_subjects() -> None:
    cases = ((10, 5, ""), (40, 8, "per 100"), (40, 33, "per 100"), (40, 20, "sen"))
    for n, n_events, shown in cases:
        stays = make_stays([(k, 48.0, 24.0 if k < n_events else None) for k in range(n)])
        course = make_course([(k, 10, 0.9) for k in range(n)])
        found = report_alarms(course, stays, AlarmPolicy(0.3), n=5)
        for text in (found.as_text(), found._repr_html_()):
            assert ("fewer than 11 subjects" in text) == (shown != "sen")
            assert (f"{n_events} of {n}" in text) == (shown == "sen")
            assert ("per 100" in text) == bool(shown)
            # All have an alarm, so the share of true ones is that of the event.
            assert (f"{n_events / n:.1%}" in text) == (shown == "sen")


@pytest.mark.parametrize(
    ("alarmed", "lines"),
    [
        ((3, 30), ("alarms of few", [])),  # one found, one false
        ((*range(12), 30), ("13 in", ["alarms per", "lead"])),  # one false, eight missed
        ((*range(12), *range(30, 42)), ("24 in", ["alarms per", "lead"])),  # eight missed
        ((*range(20), 30), ("21 in", ["alarms per", "lead"])),  # one false
        (
            (*range(20), *range(30, 50)),
            ("40 in", ["sensitivity", "positive", "alarms per", "lead"]),
        ),
        ((30,), ("alarms of few", ["lead"])),  # none found
    ],
)
def test_a_report_shows_nothing_of_the_few_with_an_alarm(
    alarmed: tuple[int, ...], lines: tuple[str, list[str]]
) -> None:
    stays = make_stays([(k, 48.0, 40.7 if k < 20 else None) for k in range(60)])
    course = make_course([(k, 13.4, 0.9 if k in alarmed else 0.1) for k in range(60)])
    found = report_alarms(course, stays, AlarmPolicy(0.5), n=5)
    first, *rows = found.as_text().splitlines()
    begin, names = lines
    assert begin in first
    told = list(dict.fromkeys(row.split()[0] for row in rows if row.startswith("  ")))
    assert told == [name.split()[0] for name in names]
    shown = "lead" in names and len(alarmed) > 1
    assert ("27.3" in found.as_text()) == shown
    assert ("what rests on them is not shown" in found.as_text()) == (len(names) < 4)
    assert ("27.3" in found._repr_html_()) == shown


def test_a_report_names_what_is_not_defined() -> None:
    course, stays = drawn(40)
    stays = stays.with_columns(event_time=pl.lit(None, pl.Datetime("us")))
    for threshold, n_lines in ((0.05, 4), (1.0, 5)):
        found = report_alarms(course, stays, AlarmPolicy(threshold), n=5)
        for text in (found.as_text(), found._repr_html_()):
            assert "nan" not in text
            assert text.count("not defined") == n_lines


def test_intervals_hold_the_truth_they_were_drawn_around() -> None:
    course, stays = drawn(400)
    policy = choose_threshold(course, stays, 10.0)
    found = report_alarms(course, stays, policy, n=200)
    for interval in (found.sensitivity, found.ppv, found.per_100_days, *found.lead_hours.values()):
        assert interval.low < interval.value < interval.high
    other = report_alarms(*drawn(3000, seed=1), policy, n=2)
    assert found.ppv.low < other.ppv.value < found.ppv.high
    assert found.per_100_days.low < other.per_100_days.value < found.per_100_days.high


def test_no_alarms_and_no_events_leave_shares_undefined() -> None:
    course, stays = make_course([(1, 3, 0.2)]), make_stays([(1, 24, None)])
    found = report_alarms(course, stays, AlarmPolicy(0.9), n=5)
    assert np.isnan(found.ppv.value)
    assert np.isnan(found.sensitivity.value)
    assert found.per_100_days.value == 0


def test_alarms_a_day_of_a_ward_are_alarms_per_100_patient_days() -> None:
    assert alarms_per_100_days(3, n_beds=24) == 12.5
    with pytest.raises(InputError, match="bad_budget"):
        alarms_per_100_days(3, n_beds=0)


def test_frames_that_do_not_fit_are_refused() -> None:
    course, stays = drawn(5)
    for bad_course, bad_stays, code in (
        (course.drop("probability"), stays, "missing_column"),
        (course, stays.drop("event_time"), "missing_column"),
        (course, pl.concat([stays, stays]), "bad_stay"),
        (course, stays.with_columns(end_time=pl.col("start_time") - HOUR), "bad_stay"),
        (course, stays.with_columns(end_time=pl.lit(None, pl.Datetime("us"))), "bad_stay"),
        (course.head(0), stays, "no_scores"),
    ):
        with pytest.raises(InputError, match=code):
            choose_threshold(bad_course, bad_stays, 5.0)
    for budget in (0.0, math.inf, math.nan):
        with pytest.raises(InputError, match="bad_budget"):
            choose_threshold(course, stays, budget)


@pytest.mark.parametrize("unit", ["ms", "ns"])
def test_course_and_stays_may_count_time_in_units_of_their_own(unit: str) -> None:
    course, stays = drawn(20)
    whole = pl.col("^.*_time|time$").dt.truncate("1s")
    course, stays = course.with_columns(whole), stays.with_columns(whole)
    expected = choose_threshold(course, stays, 10.0)
    kind = pl.Datetime("ms" if unit == "ms" else "ns")
    others = [frame.with_columns(pl.col("^.*_time|time$").cast(kind)) for frame in (course, stays)]
    for one, other in ((others[0], stays), (course, others[1]), tuple(others)):
        one = one.with_columns(pl.col("subject_id").cast(pl.Int32))
        policy = choose_threshold(one, other, 10.0)
        assert policy == expected
        assert raise_alarms(one, other, policy).equals(raise_alarms(course, stays, policy))
        mine, theirs = (
            report_alarms(c, s, policy, horizon=24 * HOUR, n=5)
            for c, s in ((one, other), (course, stays))
        )
        assert mine == theirs


def test_columns_of_another_type_are_refused() -> None:
    course, stays = drawn(5)
    zoned = pl.col("start_time").dt.replace_time_zone("UTC")
    for bad_course, bad_stays, code in (
        (course.with_columns(zoned), stays, "bad_column_type"),
        (course, stays.with_columns(zoned), "bad_column_type"),
        (course, stays.with_columns(pl.col("end_time").dt.date()), "bad_column_type"),
        (course.with_columns(pl.col("probability").cast(pl.String)), stays, "bad_column_type"),
        (course.with_columns(pl.col("subject_id").cast(pl.String)), stays, "bad_column_type"),
        (course.to_pandas(), stays, "unknown_frame"),
    ):
        for ask in (
            lambda c, s: choose_threshold(c, s, 5.0),
            lambda c, s: raise_alarms(c, s, AlarmPolicy(0.5)),
            lambda c, s: report_alarms(c, s, AlarmPolicy(0.5)),
        ):
            with pytest.raises(InputError, match=code):
                ask(bad_course, bad_stays)


def test_a_policy_of_no_threshold_or_silence_is_refused() -> None:
    course, stays = drawn(5)
    for threshold, silence in (
        (math.nan, HOUR), ("0.5", HOUR), (None, HOUR), (0.5, -HOUR), (0.5, 12), (0.5, None),
    ):  # fmt: skip
        with pytest.raises(InputError, match="bad_policy"):
            AlarmPolicy(threshold, silence)  # type: ignore[arg-type]
    for silence in (-HOUR, 12, None):
        with pytest.raises(InputError, match="bad_budget"):
            choose_threshold(course, stays, 5.0, silence=silence)  # type: ignore[arg-type]


def test_a_silence_beyond_the_calendar_is_one_alarm_a_stay() -> None:
    course, stays = drawn(40)
    long = AlarmPolicy(0.1, timedelta(days=10_000))
    ever = AlarmPolicy(0.1, timedelta.max)
    found = raise_alarms(course, stays, ever)
    assert found.equals(raise_alarms(course, stays, long))
    assert found["subject_id"].is_unique().all()
    assert choose_threshold(course, stays, 10.0, silence=timedelta.max).silence == timedelta.max


def test_a_horizon_that_is_no_time_ahead_is_refused() -> None:
    course, stays = drawn(5)
    for horizon in (2, timedelta(0), -HOUR, "2 days"):
        with pytest.raises(InputError, match="bad_horizon"):
            report_alarms(course, stays, AlarmPolicy(0.5), horizon=horizon)  # type: ignore[arg-type]


def test_a_risk_that_is_no_number_alarms_nobody() -> None:
    course, stays = make_course([(1, 1, float("nan")), (1, 2, 0.1)]), make_stays([(1, 48, None)])
    assert raise_alarms(course, stays, AlarmPolicy(0.9)).height == 0
    assert choose_threshold(course, stays, 1.0).threshold == pytest.approx(0.1)


def test_an_event_after_the_end_of_its_stay_is_refused() -> None:
    course, stays = make_course([(1, 2, 0.9)]), make_stays([(1, 48, 72.0)])
    with pytest.raises(InputError, match="bad_stay"):
        report_alarms(course, stays, AlarmPolicy(0.5))
