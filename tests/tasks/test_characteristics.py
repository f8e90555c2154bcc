"""Groups of stays: what the record says at the time, and age by the calendar."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm.tasks.characteristics import describe_stays

MARCH_4TH = datetime(2019, 3, 4)


def stays(root: Path, *rows: tuple[int, datetime, datetime]) -> pl.DataFrame:
    """Groups of (subject, start, prediction time)."""
    columns = {"subject_id": pl.Int64, "start_time": pl.Datetime, "prediction_time": pl.Datetime}
    return describe_stays(root, pl.DataFrame(rows, schema=columns, orient="row"))


@pytest.mark.parametrize(
    ("moment", "age"),
    [
        (MARCH_4TH, "18-44"),  # the eighteenth birthday, with four leap days in between
        (MARCH_4TH - timedelta(microseconds=1), "under 18"),
        (datetime(2046, 3, 4), "45-64"),
        (datetime(2086, 3, 3), "75-84"),
        (datetime(2086, 3, 4), "85 and over"),
    ],
)
def test_age_is_counted_in_birthdays(
    data_set_of: Any, tmp_path: Path, moment: datetime, age: str
) -> None:
    root = data_set_of(tmp_path / "set", [(1, datetime(2001, 3, 4), "MEDS_BIRTH", None)])
    assert stays(root, (1, moment, moment))["age"].to_list() == [age]


def test_what_the_record_does_not_say_is_null_and_no_row_is_lost(
    data_set_of: Any, tmp_path: Path
) -> None:
    start, end = datetime(2020, 1, 1), datetime(2020, 1, 5)
    root = data_set_of(
        tmp_path / "set",
        [
            (1, None, "GENDER//F", None),
            (1, start, "HOSPITAL_ADMISSION//URGENT//UNK", 10),
            (2, None, "RACE//UNK", None),
            (2, start, "HOSPITAL_ADMISSION//UNK//UNK", 20),
        ],
    )
    found = stays(root, (1, start, end), (2, start, end)).sort("subject_id")
    assert found["sex"].to_list() == ["F", None]
    assert found["race"].to_list() == [None, None]
    assert found["admission type"].to_list() == ["URGENT", None]
    assert found["age"].to_list() == [None, None]
