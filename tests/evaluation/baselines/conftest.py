"""Small event frames for the tests of baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import polars as pl
import pytest

from tsfm import event_table

Row = tuple[int, datetime | None, str, float | None, datetime | None]


def build_events(rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """Events from (subject, time, code[, value[, available_time]])."""
    padded = [[*row, None, None][:5] for row in rows]
    names = ["subject_id", "time", "code", "numeric_value", "available_time"]
    frame = pl.DataFrame(
        padded, schema={name: event_table.POLARS_EVENTS[name] for name in names}, orient="row"
    ).with_columns(pl.col("available_time").fill_null(pl.col("time")))
    full = frame.select(
        (pl.col(n) if n in frame.columns else pl.lit(None, dtype=k)).alias(n)
        for n, k in event_table.POLARS_EVENTS.items()
    )
    return event_table.sort_events(full)


@pytest.fixture(scope="session")
def events_of() -> Callable[[Sequence[Sequence[Any]]], pl.DataFrame]:
    """Events from (subject, time, code[, value[, available_time]])."""
    return build_events
