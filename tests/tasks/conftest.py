"""Small event frames for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import pytest

from tsfm import event_table

Row = Sequence[Any]


def build_events(rows: Sequence[Row]) -> pl.DataFrame:
    """Events from (subject, time, code[, encounter[, available_time]])."""
    frame = pl.DataFrame(
        {
            "subject_id": [row[0] for row in rows],
            "time": [row[1] for row in rows],
            "code": [row[2] for row in rows],
            "available_time": [row[4] if len(row) > 4 else row[1] for row in rows],
            "encounter_id": [row[3] if len(row) > 3 else None for row in rows],
        },
        schema_overrides={
            name: event_table.POLARS_EVENTS[name]
            for name in ("subject_id", "time", "code", "available_time", "encounter_id")
        },
    )
    full = frame.select(
        (pl.col(n).cast(k) if n in frame.columns else pl.lit(None, dtype=k)).alias(n)
        for n, k in event_table.POLARS_EVENTS.items()
    )
    return event_table.sort_events(full)


@pytest.fixture(scope="session")
def events_of() -> Callable[[Sequence[Row]], pl.DataFrame]:
    """Events from rows; see `build_events`. They are known when they happen."""
    return build_events


@pytest.fixture(scope="session")
def data_set_of() -> Callable[..., Any]:
    """Write (subject, time, code, encounter) rows as a data set below a folder."""

    def write(root: Any, rows: Sequence[Row], **facts: Any) -> Any:
        with event_table.EventWriter(root, n_shards=2) as writer:
            writer.add(build_events(rows))
            writer.finish(dataset={"dataset_name": "test", "clock": "wall", **facts})
        return root

    return write
