"""A token store ends where the labels of its data set end."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import clock
from tsfm.data_end import DataEnd
from tsfm.errors import FormatError
from tsfm.event_table import EventWriter
from tsfm.tasks.cohorts import follow_up_of
from tsfm.tokens.token_store import build_token_store

LAST, LAST_KNOWN = datetime(2024, 3, 1, 12), datetime(2024, 3, 9)


def data_set(root: Path, **facts: Any) -> Path:
    rows = [
        {"subject_id": s, "time": time, "available_time": known, "code": "LAB//1"}
        for s in range(1, 9)
        for time, known in (
            (datetime(2024, 1, s), datetime(2024, 1, s)),
            (datetime(2024, 2, s), LAST_KNOWN),
            (LAST if s == 5 else datetime(2024, 2, s), datetime(2024, 2, s)),
        )
    ]
    with EventWriter(root, n_shards=3) as writer:
        writer.add(pl.DataFrame(rows))
        writer.finish(dataset={"dataset_name": "made", **facts})
    return root


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"data_as_of": "2024-06-01"},
        {"data_as_of": "2024-06-01T10:00:00-05:00"},
        {"data_as_of": "2024-06-01T10:00:00-05:00", "clock": "wall"},
        {"data_as_of": "2024-06-01T10:00:00.123457+02:00", "clock": "utc"},
        {"dates_shifted": True, "data_as_of": "nonsense"},
        {"data_as_of": None, "dates_shifted": False},
    ],
)
def test_the_end_is_that_of_the_labels(tmp_path: Path, facts: dict[str, Any]) -> None:
    root = data_set(tmp_path / "events", **facts)
    store = build_token_store(root, tmp_path / "tokens")
    assert store.config["watched_until_us"] == follow_up_of(root).until_us
    if not facts:
        assert store.config["watched_until_us"] == clock.to_us(LAST)


def test_a_moment_that_is_none_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = data_set(tmp_path / "events", data_as_of="June")
    with pytest.raises(FormatError, match="bad_data_as_of"):
        build_token_store(root, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"dates_shifted": "false"}, "bad_dates_shifted"),
        ({"dates_shifted": 1}, "bad_dates_shifted"),
        ({"data_as_of": 20240531}, "bad_data_as_of"),
        ({"data_as_of": 0}, "bad_data_as_of"),
        ({"data_as_of": True}, "bad_data_as_of"),
        ({"data_as_of": ["2024-05-31"], "dates_shifted": False}, "bad_data_as_of"),
    ],
)
def test_facts_of_another_type_are_refused(facts: dict[str, Any], code: str) -> None:
    """Read for what they look like, they would make every subject watched, or on a wrong day."""
    with pytest.raises(FormatError, match=code):
        DataEnd(facts)


def test_facts_that_say_nothing_leave_the_end_to_the_events() -> None:
    for facts in ({}, {"data_as_of": None, "dates_shifted": None}, {"data_as_of": ""}):
        assert not DataEnd(facts).is_told
