"""Moments of a cohort are read as what they are, or not at all."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
import pytest

from tsfm import schema
from tsfm.errors import FormatError
from tsfm.tokens.asked_frame import read_asked

MOMENTS = [datetime(1969, 12, 31, 23, 59, 59, 999_000), datetime(2024, 5, 6, 7, 8, 9, 10_000)]


def frame(**columns: Any) -> pl.DataFrame:
    usual = {schema.SUBJECT_ID: [1, 2], schema.PREDICTION_TIME: MOMENTS, "outcome_days": [1, 2]}
    return pl.DataFrame({**usual, **columns})


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_every_unit_is_the_same_moment(unit: Any) -> None:
    found = read_asked(frame().with_columns(pl.col(schema.PREDICTION_TIME).cast(pl.Datetime(unit))))
    assert found.schema[schema.PREDICTION_TIME] == pl.Datetime("us")
    assert found[schema.PREDICTION_TIME].to_list() == MOMENTS


def test_a_moment_between_two_microseconds_lies_in_the_one_that_it_follows() -> None:
    given = pl.Series([-1, 1_999], dtype=pl.Int64).cast(pl.Datetime("ns"))
    found = read_asked(frame(prediction_time=given))[schema.PREDICTION_TIME]
    assert found.cast(pl.Int64).to_list() == [-1, 1]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (pl.col(schema.PREDICTION_TIME).dt.replace_time_zone("UTC"), "wrong_column_type"),
        (pl.col(schema.PREDICTION_TIME).cast(pl.Date), "wrong_column_type"),
        (pl.col(schema.PREDICTION_TIME).cast(pl.Int64), "wrong_column_type"),
        (pl.col(schema.PREDICTION_TIME).cast(pl.String), "wrong_column_type"),
        (pl.col(schema.PREDICTION_TIME).replace(MOMENTS[0], None), "null_in_required_column"),
        (pl.col(schema.SUBJECT_ID).cast(pl.String), "wrong_column_type"),
        (pl.col(schema.SUBJECT_ID).replace(1, None), "null_in_required_column"),
        (pl.col("outcome_days").cast(pl.String), "wrong_column_type"),
    ],
)
def test_what_is_no_subject_or_no_naive_moment_is_refused(changed: pl.Expr, code: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_asked(frame().with_columns(changed), "outcome_days")
    assert caught.value.code == code


@pytest.mark.parametrize("name", [schema.SUBJECT_ID, schema.PREDICTION_TIME, "outcome_days"])
def test_a_missing_column_is_named(name: str) -> None:
    with pytest.raises(FormatError, match=f"missing_column.*{name}"):
        read_asked(frame().drop(name), "outcome_days")
