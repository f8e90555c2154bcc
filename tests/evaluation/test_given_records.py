"""A record comes in as any road to a score takes it, or is refused without a patient's value."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import polars as pl
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.given_records import check_max_tokens, moment_us, read_records
from tsfm.event_table import POLARS_EVENTS

from .model_patients import make_events


def test_what_fits_stays_as_it_is() -> None:
    events = make_events(1, 9)
    assert read_records(events).equals(events)
    mixed = events.select(reversed(events.columns)).with_columns(more=1)
    assert read_records(mixed).equals(events)


def test_a_frame_of_pandas_or_of_few_columns_is_brought_to_the_types_of_events() -> None:
    events = make_events(1, 9)
    assert read_records(events.to_pandas()).equals(events)
    least = read_records(events.select("subject_id", "code", "time"))
    assert dict(least.schema) == POLARS_EVENTS
    assert least["available_time"].equals(least["time"].alias("available_time"))
    assert least["numeric_value"].null_count() == least.height


@pytest.mark.parametrize("name", ["subject_id", "time", "code"])
def test_a_frame_without_what_a_record_is_made_of_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="missing_column"):
        read_records(make_events(1, 9).drop(name))


def test_columns_of_another_type_are_refused_and_their_values_kept_quiet() -> None:
    events = make_events(1, 9)
    for bad, code in (
        (events.with_columns(subject_id=pl.lit("Erika")), "bad_column_type"),
        (events.with_columns(numeric_value=pl.lit("Erika")), "bad_column_type"),
        (events.with_columns(subject_id=1.5), "bad_column_type"),
        (events.to_pandas().assign(code=[*["A"] * (events.height - 1), 5]), "bad_column_type"),
        (pd.concat([events.to_pandas()] * 2, axis=1), "bad_column_type"),
        (events.with_columns(time=pl.lit("Erika")), "bad_time_type"),
        (events.with_columns(pl.col("time").dt.replace_time_zone("UTC")), "bad_time_type"),
        (events.with_columns(code=pl.lit(None, pl.String)), "null_in_required_column"),
        ("demo/events", "unknown_frame"),
        (events["code"], "unknown_frame"),
        (None, "unknown_frame"),
    ):
        with pytest.raises(InputError, match=code) as caught:
            read_records(bad)
        assert "Erika" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_moment_is_a_naive_time_of_day() -> None:
    moment = datetime(2150, 3, 1, 8, 0, 0, 250)
    expected = (moment - datetime(1970, 1, 1)).total_seconds() * 1e6
    assert moment_us(moment) == moment_us(pd.Timestamp(moment)) == expected


@pytest.mark.parametrize(
    "moment",
    [datetime(2150, 3, 1, tzinfo=UTC), date(2150, 3, 1), "2150-03-01", None, 5.0, pd.NaT],
    ids=str,
)
def test_what_is_no_moment_on_the_clock_is_refused(moment: Any) -> None:
    with pytest.raises(InputError, match="bad_prediction_time"):
        moment_us(moment)


def test_a_limit_is_a_whole_number_from_one() -> None:
    check_max_tokens(1)
    for bad in (0, -5, 2.5, "9", None):
        with pytest.raises(InputError, match="bad_max_tokens"):
            check_max_tokens(bad)
