"""Times of any unit and zone, and ids of any width, mean what they say or are named."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tsfm import event_table

from .meds_sources import IN, OUT, STAY, error_of, ingest, shard, write

FAR = 2**62
ZONE = "America/New_York"


@pytest.mark.parametrize(
    ("kind", "far"),
    [
        (pa.timestamp("ms"), FAR),
        (pa.timestamp("ms"), -FAR),
        (pa.timestamp("us"), 2**63 - 1),
        (pa.timestamp("us"), -(2**63)),
        (pa.timestamp("us", ZONE), 2**63 - 1),
        (pa.timestamp("ms", "+05:30"), -FAR),
        (pa.date32(), 2**31 - 1),
        (pa.date64(), 86_400_000 * 10**10),
    ],
)
def test_a_time_beyond_any_calendar_is_set_aside_and_no_static_fact(
    tmp_path: Path, kind: pa.DataType, far: int
) -> None:
    bits = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    times = pa.array([far, 0, None], bits).cast(kind)
    table = pa.table({"subject_id": [1] * 3, "time": times, "code": ["FAR", "NEAR", "STATIC"]})
    events, summary, _ = ingest(write(tmp_path / "a", {"data/0": table}))
    assert summary.quarantined == {"time_out_of_range": 1}
    assert events["code", "time"].rows() == [("STATIC", None), ("NEAR", datetime(1970, 1, 1))]


@pytest.mark.parametrize("year", [-90_000_000, 1849, 2301, 37_648])
def test_when_an_event_was_known_must_be_in_a_year_of_records(tmp_path: Path, year: int) -> None:
    known = int((year - 1970) * 365.2425 * 86_400_000)
    kinds = {"available_time": pa.timestamp("ms")}
    rows = [(*STAY[4], known), (*STAY[5], None)]
    events, summary, _ = ingest(write(tmp_path / "a", {"data/0": shard(rows, **kinds)}))
    assert summary.quarantined == {"time_out_of_range": 1}
    assert events["available_time"].to_list() == [OUT]


def test_times_of_every_unit_and_zone_are_the_same_moment(tmp_path: Path) -> None:
    for number, kind in enumerate(
        [*(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")), pa.timestamp("ns", ZONE)]
    ):
        before = datetime(1960, 1, 2, 3, 4, 5)
        times = [moment.replace(tzinfo=UTC) if kind.tz else moment for moment in (before, IN)]
        rows = [(1, None, "A", None), (1, times[0], "B", None), (1, times[1], "C", None)]
        events, *_ = ingest(write(tmp_path / f"{number}", {"data/0": shard(rows, time=kind)}))
        assert events["time"].to_list() == [None, before, IN]
    days = shard([(1, date(1960, 1, 2), "A", None)], time=pa.date32())
    events, *_ = ingest(write(tmp_path / "days", {"data/0": days}))
    assert events["time"].to_list() == [datetime(1960, 1, 2)]


def test_shards_with_and_without_a_zone_are_not_mixed(tmp_path: Path) -> None:
    aware = shard([(1, IN.replace(tzinfo=UTC), "A", None)], time=pa.timestamp("us", ZONE))
    naive = shard([(2, IN, "A", None)])
    error = error_of(write(tmp_path / "a", {"data/0": aware, "data/1": naive}))
    assert (error.code, error.place) == ("ambiguous_times", "1.parquet")
    columns: dict[str, Any] = {"available_time": pa.array([IN], pa.timestamp("us"))}
    mixed = pa.table({**{name: aware[name] for name in aware.column_names}, **columns})
    assert error_of(write(tmp_path / "b", {"data/0": mixed})).code == "ambiguous_times"


def test_facts_without_a_time_are_on_any_clock(tmp_path: Path) -> None:
    aware = shard([(1, IN.replace(tzinfo=UTC), "A", None)], time=pa.timestamp("us", ZONE))
    static = shard([(1, None, "GENDER//F", None)])
    events, _, out = ingest(write(tmp_path / "a", {"data/0": static, "data/1": aware}))
    assert events["time"].to_list() == [None, IN]
    assert event_table.dataset_facts(out)["clock"] == "utc"
    static = shard([(1, None, "GENDER//F", None)], time=pa.timestamp("us", ZONE))
    naive = shard([(1, IN, "A", None)])
    *_, out = ingest(write(tmp_path / "b", {"data/0": static, "data/1": naive}))
    assert event_table.dataset_facts(out)["clock"] == "wall"


@pytest.mark.parametrize("column", ["subject_id", "encounter_id"])
def test_ids_beyond_64_bits_with_a_sign_are_named(tmp_path: Path, column: str) -> None:
    for number, (last, code) in enumerate(((2**63 - 1, None), (2**63, "wrong_column_type"))):
        ids = {"subject_id": [1], "encounter_id": [1]} | {column: pa.array([last], pa.uint64())}
        table = pa.table({**ids, "time": [IN], "code": ["A"]})
        src = write(tmp_path / f"{number}", {"data/0": table})
        if code is None:
            events, *_ = ingest(src)
            assert events[column].to_list() == [last]
        else:
            error = error_of(src)
            assert error.code == code
            assert column in error.message
            assert str(last) not in str(error)


def test_stays_are_paired_without_what_is_set_aside(tmp_path: Path) -> None:
    kinds = {"available_time": pa.timestamp("ms")}
    rows = [(*row, FAR if "DISCHARGE" in row[2] else None) for row in STAY]
    events, summary, _ = ingest(write(tmp_path / "a", {"data/0": shard(rows, **kinds)}))
    assert summary.quarantined == {"time_out_of_range": 1}
    coded = events.filter(pl.col("code") == "DIAGNOSIS//ICD//10//I10")["available_time"].item()
    assert coded > OUT
