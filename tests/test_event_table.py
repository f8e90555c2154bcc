"""Events come into a table as they are meant, or not at all."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import event_table, schema
from tsfm.errors import FormatError, InputError
from tsfm.evaluation.given_records import read_records
from tsfm.event_table import EventWriter

NOON = datetime(2020, 7, 1, 12)
EVENTS = pl.DataFrame(
    {"subject_id": [1, 2], "time": [NOON, NOON - timedelta(days=1)], "code": ["A", "B"]},
    schema_overrides={"time": pl.Datetime("us")},
)


def stored(root: Path, events: pl.DataFrame) -> pl.DataFrame:
    with EventWriter(root, n_shards=1) as writer:
        writer.add(events)
        writer.finish(dataset={})
    return pl.concat(event_table.scan_events(root))


def added(root: Path, events: pl.DataFrame) -> pl.DataFrame:
    stored(root, EVENTS)
    event_table.append_events(root, events)
    return pl.concat(event_table.scan_events(root))


ROADS: list[Any] = [stored, added, lambda _, events: read_records(events)]


@pytest.mark.parametrize("road", ROADS, ids=["add", "append", "read_records"])
@pytest.mark.parametrize("column", ["subject_id", "encounter_id"])
@pytest.mark.parametrize(
    "ids",
    [
        [1.5, 1.0],
        [float("nan"), 1.0],
        [1e30, 1.0],
        [Decimal("1.75"), Decimal("1.25")],
        [True, False],
        [NOON, NOON],
        ["Erika", "1"],
    ],
    ids=["fraction", "NaN", "too large", "decimal", "truth", "date-time", "text"],
)
def test_ids_that_are_no_whole_numbers_are_refused(
    tmp_path: Path, road: Callable[..., pl.DataFrame], column: str, ids: list[Any]
) -> None:
    with pytest.raises(InputError, match="bad_column_type") as caught:
        road(tmp_path / "out", EVENTS.with_columns(pl.Series(column, ids)))
    assert column in str(caught.value)
    assert "Erika" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("road", ROADS, ids=["add", "append", "read_records"])
@pytest.mark.parametrize("column", ["time", "available_time"])
@pytest.mark.parametrize("zone", ["Europe/Zurich", "UTC"])
def test_times_with_a_zone_are_refused(
    tmp_path: Path, road: Callable[..., pl.DataFrame], column: str, zone: str
) -> None:
    """Cast, they would be shifted to UTC, whatever the data set's clock."""
    both = EVENTS.with_columns(available_time="time")
    with pytest.raises(InputError, match="bad_time_type"):
        road(tmp_path / "out", both.with_columns(pl.col(column).dt.replace_time_zone(zone)))


@pytest.mark.parametrize("road", ROADS, ids=["add", "append", "read_records"])
@pytest.mark.parametrize("column", ["time", "available_time"])
@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.Date, pl.String], ids=str)
def test_times_that_are_no_moments_are_refused(
    tmp_path: Path, road: Callable[..., pl.DataFrame], column: str, kind: type[pl.DataType]
) -> None:
    """Numbers would count from 1970; a date would be known before its day was over."""
    both = EVENTS.with_columns(available_time="time")
    with pytest.raises(InputError, match="bad_time_type"):
        road(tmp_path / "out", both.with_columns(pl.col(column).cast(kind)))


def test_no_room_is_told_as_the_system_tells_it(tmp_path: Path) -> None:
    """A night's operator must read of space, not of a fault in a file."""
    events = pl.concat([EVENTS] * 5000).with_columns(numeric_value=pl.int_range(10_000) / 7)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventWriter(tmp_path / "out", n_shards=1) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            with pytest.raises(OSError, match="Errno") as caught:
                writer.add(events)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not schema.data_dir(tmp_path / "out").exists()


@pytest.mark.parametrize("column", ["subject_id", "code"])
def test_a_merge_that_is_refused_has_written_nothing(tmp_path: Path, column: str) -> None:
    """Made anew without the bad row, a merge that was half done would double the events."""
    rows = 30
    events = pl.DataFrame({"subject_id": range(rows), "time": NOON, "code": "LAB//a"})
    with EventWriter(tmp_path / "out", n_shards=3) as writer:
        writer.add(events)
        writer.finish(dataset={"dataset_name": "x", "clock": "wall"})
    before = [path.read_bytes() for path in event_table.shard_paths(tmp_path / "out")]
    last = events.tail(1).with_columns(pl.lit(None).cast(events[column].dtype).alias(column))
    with pytest.raises(FormatError, match="null_in_required_column"):
        event_table.append_events(tmp_path / "out", pl.concat([events, last]))
    assert [path.read_bytes() for path in event_table.shard_paths(tmp_path / "out")] == before


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series("subject_id", [1, 2], dtype=pl.Int32),
        pl.Series("subject_id", [1.0, 2.0]),
        pl.Series("subject_id", [Decimal("1.00"), Decimal("2.00")]),
        pl.Series("subject_id", ["1", "2"]),
    ],
    ids=lambda ids: str(ids.dtype),
)
def test_whole_numbers_of_any_type_are_the_ids_that_they_are(
    tmp_path: Path, ids: pl.Series
) -> None:
    expected = stored(tmp_path / "a", EVENTS)
    assert stored(tmp_path / "b", EVENTS.with_columns(ids)).equals(expected)
    assert read_records(EVENTS.with_columns(ids)).equals(read_records(EVENTS))


@pytest.mark.parametrize("column", [schema.PREDICTION_TIME, "start_time"])
def test_a_table_on_another_clock_does_not_come_through_a_wall(column: str) -> None:
    moments = pl.Series([NOON]).dt.replace_time_zone("Europe/Zurich")
    table = pl.DataFrame({schema.SUBJECT_ID: [1], schema.PREDICTION_TIME: [NOON],
                          "start_time": [NOON], "eligible": [True]})  # fmt: skip
    aligned = schema.align(table.to_arrow(), schema.COHORT)
    assert aligned.column(column).to_pylist() == [NOON]
    zoned = table.with_columns(moments.alias(column))
    with pytest.raises(FormatError, match="wrong_column_type"):
        schema.align(zoned.to_arrow(), schema.COHORT)
