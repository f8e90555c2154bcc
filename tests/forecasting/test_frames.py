"""Any frame becomes sorted points on one clock, and every row that does not is counted."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tsfm.errors import InputError
from tsfm.forecasting.frame_questions import ask_ahead, pack, series_of
from tsfm.forecasting.frames import Layout, read_frame, read_history
from tsfm.forecasting.packed_series import batches
from tsfm.forecasting.time_axis import TimeAxis

BERLIN = ZoneInfo("Europe/Berlin")


def wide(**columns: Any) -> Layout:
    return Layout.of(columns.pop("target", "y"), None, id="id", timestamp="t", **columns)


def frame(times: Any, values: Any = None, ids: Any = None) -> pl.DataFrame:
    n = len(times)
    given = {"id": ["a"] * n if ids is None else ids, "t": times,
             "y": [float(i) for i in range(n)] if values is None else values}  # fmt: skip
    return pl.DataFrame(given)


def next_stamps(times: Any, n: int = 3, freq: Any = None, **options: Any) -> list[Any]:
    layout = wide(**options)
    asked, _ = ask_ahead(read_history(frame(times), layout), layout, n, freq)
    return asked["stamp"].to_list()


def code_of(caught: pytest.ExceptionInfo[InputError]) -> str:
    return caught.value.code


def test_every_row_is_a_point_or_counted() -> None:
    times = [5.0, 1.0, 1.0, 2.0, 3.0, 4.0, 9.0]
    values = [1.0, 2.0, 4.0, float("inf"), None, float("nan"), 7.0]
    history = read_history(frame(times, values), wide(time_unit="h"), now=6.0)
    assert history.points["seconds"].to_list() == [3600.0, 5 * 3600.0]
    assert history.points["value"].to_list() == [3.0, 1.0]
    counts = history.counts
    n = {k: counts[k] for k in ("n_missing", "n_not_finite", "n_duplicates", "n_after_now")}
    assert n == {"n_missing": 2, "n_not_finite": 1, "n_duplicates": 1, "n_after_now": 1}
    assert history.points.height + sum(n.values()) == counts["n_rows"]


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    times = [datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)]
    column = pl.Series(times)
    first, second = TimeAxis.of(column, None, "t").seconds(column)
    assert second - first == 3600.0
    assert first == datetime(2024, 10, 27, 0, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_seconds_are_those_of_python(unit: Any) -> None:
    moments = [
        datetime(1969, 7, 20, 20, 17, 40, 123_000, tzinfo=UTC),
        datetime(2024, 2, 29, tzinfo=UTC),
    ]
    column = pl.Series(moments, dtype=pl.Datetime(unit, "UTC"))
    found = TimeAxis.of(column, None, "t").seconds(column)
    np.testing.assert_allclose(found, [m.timestamp() for m in moments], rtol=0, atol=1e-6)


def test_daily_stamps_keep_their_hour_over_a_change_of_the_clock() -> None:
    days = [datetime(2024, 3, day, 8, tzinfo=BERLIN) for day in (27, 28, 29)]
    found = next_stamps(days)
    assert [(t.day, t.hour) for t in found] == [(30, 8), (31, 8), (1, 8)]
    assert found[1].timestamp() - found[0].timestamp() == 23 * 3600


def test_hourly_stamps_count_real_hours_over_a_change_of_the_clock() -> None:
    start = datetime(2024, 10, 26, 22, 0, tzinfo=UTC)
    hours = [(start + timedelta(hours=k)).astimezone(BERLIN) for k in range(4)]
    found = next_stamps(hours, 2)
    assert [t.timestamp() - hours[-1].timestamp() for t in found] == [3600.0, 7200.0]


def test_a_stamp_that_the_clock_skips_is_an_hour_later() -> None:
    days = [datetime(2024, 3, day, 2, 30, tzinfo=BERLIN) for day in (28, 29, 30)]
    assert [(t.day, t.hour, t.minute) for t in next_stamps(days, 2)] == [(31, 3, 30), (1, 2, 30)]


@pytest.mark.parametrize(
    ("past", "after"),
    [
        ("2024-01-15 2024-02-15 2024-03-15", "2024-04-15 2024-05-15"),
        ("2023-12-31 2024-01-31 2024-02-29", "2024-03-31 2024-04-30"),
        ("2024-01-01 2024-04-01 2024-07-01", "2024-10-01 2025-01-01"),
        ("2024-01-01 2024-01-08 2024-01-22", "2024-01-29 2024-02-05"),
    ],
)  # fmt: skip
def test_months_and_weeks_go_on_by_the_calendar(past: str, after: str) -> None:
    found = next_stamps([date.fromisoformat(day) for day in past.split()], 2)
    assert [str(day) for day in found] == after.split()


@pytest.mark.parametrize("freq", ["15min", "15m", timedelta(minutes=15)])
def test_a_given_step_is_taken(freq: Any) -> None:
    start = datetime(2024, 1, 1)
    assert next_stamps([start], 2, freq) == [start + timedelta(minutes=15 * k) for k in (1, 2)]


def test_numeric_times_stay_what_they_are() -> None:
    assert next_stamps([0, 2, 4], 2, time_unit="h") == [6, 8]
    assert next_stamps([0, 2, 4], 2, 0.5, time_unit="h") == [4.5, 5.0]


def test_a_series_of_one_row_takes_the_step_of_the_others() -> None:
    given = frame([0.0, 3.0, 10.0], ids=["a", "a", "b"])
    layout = wide(time_unit="min")
    asked, borrowed = ask_ahead(read_history(given, layout), layout, 1, None)
    assert (asked["stamp"].to_list(), borrowed) == ([6.0, 13.0], 1)


@pytest.mark.parametrize(
    ("given", "options", "code"),
    [
        (frame([]), {"time_unit": "h"}, "empty_frame"),
        (frame([1.0, None]), {"time_unit": "h"}, "null_timestamp"),
        (frame([1.0, float("nan")]), {"time_unit": "h"}, "bad_time_column"),
        (frame([1.0]), {}, "no_time_unit"),
        (frame(["2024-01-01"]), {}, "bad_time_column"),
        (frame([1.0, 2.0], ids=["a", None]), {"time_unit": "h"}, "null_id"),
        (frame([1.0], values=["high"]), {"time_unit": "h"}, "not_numeric"),
        (frame([1.0]), {"time_unit": "h", "known": ("HR",)}, "unknown_variable"),
    ],
)  # fmt: skip
def test_what_can_not_be_meant_is_refused(given: pl.DataFrame, options: Any, code: str) -> None:
    with pytest.raises(InputError) as caught:
        read_history(given, wide(**options))
    assert code_of(caught) == code
    assert caught.value.place
    assert caught.value.remedy


@pytest.mark.parametrize("freq", ["1 fortnight", "M", "", 3, "0h", timedelta(0)])
def test_a_step_that_can_not_be_read_is_refused(freq: Any) -> None:
    with pytest.raises(InputError) as caught:
        next_stamps([datetime(2024, 1, 1)], 2, freq)
    assert code_of(caught) == "bad_freq"


@pytest.mark.parametrize("kind", [datetime, date, pd.Timestamp])
@pytest.mark.parametrize("freq", ["9000y", "99999999999d", "9" * 30 + "h", "150y", timedelta.max])
def test_a_step_beyond_what_a_time_can_hold_is_refused(freq: Any, kind: Any) -> None:
    start = kind(2024, 1, 1)
    times = pd.date_range(start, periods=2, unit="ns") if kind is pd.Timestamp else [start]
    if freq == "150y" and kind is not pd.Timestamp:
        assert [stamp.year for stamp in next_stamps(times, 2, freq)] == [2174, 2324]
        return
    with pytest.raises(InputError) as caught:
        next_stamps(times, 2, freq)
    assert code_of(caught) == "bad_freq"


@pytest.mark.parametrize("freq", [float("nan"), float("inf"), -1.0, 10**400, 2**62])
def test_a_numeric_step_is_a_positive_number(freq: float) -> None:
    with pytest.raises(InputError) as caught:
        next_stamps([1.0, 2.0], 2, freq, time_unit="h")
    assert code_of(caught) == "bad_freq"


def test_without_two_times_a_step_is_asked_for() -> None:
    with pytest.raises(InputError) as caught:
        next_stamps([datetime(2024, 1, 1)])
    assert code_of(caught) == "no_step"


def test_a_moment_with_a_zone_is_no_moment_without_one() -> None:
    with pytest.raises(InputError) as caught:
        read_history(frame([datetime(2024, 1, 1)]), wide(), now=datetime(2024, 1, 1, tzinfo=UTC))
    assert code_of(caught) == "other_clock"


def test_other_objects_than_frames_are_refused() -> None:
    for given in ({"id": [1]}, pl.LazyFrame({"id": [1]}), [1, 2]):
        with pytest.raises(InputError) as caught:
            read_frame(given, ["id"], "df")
        assert code_of(caught) == "unknown_frame"
    with pytest.raises(InputError) as caught:
        read_frame(pl.DataFrame({"id": [1]}), ["id", "t"], "df")
    assert code_of(caught) == "missing_column"


def test_every_known_variable_of_an_item_is_a_series() -> None:
    layout = Layout.of("y", "v", id="id", timestamp="t", time_unit="h", known=("HR", "K", "Na"))
    given = pl.DataFrame(
        {"id": [7, 7, 3], "t": [2.0, 1.0, 1.0], "v": ["Na", "HR", "HR"], "y": [1.0, 2.0, 3.0]}
    )
    history = read_history(given, layout)
    packed, series = pack(history, layout, series_of(history, layout))
    assert packed.cu_series.tolist() == [0, 3, 6]
    assert packed.variable.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.diff(packed.cu_points).tolist() == [1, 0, 1, 1, 0, 0]
    assert packed.values.tolist() == [2.0, 1.0, 3.0]
    assert series.to_list() == [0, 2, 3]


def test_taking_and_cutting_keep_every_point_in_its_series() -> None:
    rng = np.random.default_rng(0)
    given = frame(rng.uniform(0, 9, 60), rng.normal(size=60), rng.integers(0, 5, 60))
    layout = wide(time_unit="h")
    history = read_history(given, layout)
    packed, _ = pack(history, layout, series_of(history, layout))
    order = np.array([3, 0, 3])
    taken = packed.take(order)
    for place, entity in enumerate(order):
        ours = slice(*taken.cu_points[place : place + 2])
        theirs = slice(*packed.cu_points[entity : entity + 2])
        assert (taken.values[ours] == packed.values[theirs]).all()
    now = np.full(3, 4 * 3600.0)
    context, questions = taken.cut(now, 2)
    assert (context.seconds <= now[0]).all()
    assert (questions.seconds > now[0]).all()
    assert np.bincount(questions.series).max() == 2
    later = packed.seconds[packed.cu_points[3] : packed.cu_points[4]]
    expected = later[later > now[0]][:2].tolist()
    assert questions.seconds[questions.series == 0].tolist() == expected


def test_batches_are_all_entities_once_in_order() -> None:
    given = frame(np.arange(20.0), ids=np.repeat(np.arange(10), 2))
    layout = wide(time_unit="h")
    history = read_history(given, layout)
    packed, _ = pack(history, layout, series_of(history, layout))
    found = batches(packed, np.arange(10), 3)
    assert [len(part) for part in found] == [3, 3, 3, 1]
    assert np.concatenate(found).tolist() == list(range(10))
