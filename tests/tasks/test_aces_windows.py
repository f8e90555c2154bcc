"""Windows against plain loops, and against the reference implementation where it is installed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm.tasks.aces import find_aces, parse_aces

from .aces_tasks import draw_events, draw_task, loops


def as_they_name_it(task: dict[str, Any]) -> dict[str, Any]:
    """The task for es-aces, which mistakes start and end of a window that starts at `end - 3h`."""
    windows = {}
    for name, window in task["windows"].items():
        side = window.get("index_timestamp")
        if side and str(window["start"]).startswith("end -"):
            window = {**window, "index_timestamp": "start" if side == "end" else "end"}
        windows[name] = window
    return {**task, "windows": windows}


def rows_of(found: pl.DataFrame) -> list[tuple[Any, ...]]:
    return found.select("subject_id", "trigger", "prediction_time", "label").rows()


def test_rows_agree_with_plain_loops() -> None:
    rng, n_rows = random.Random(0), 0
    for _ in range(120):
        events, task = draw_events(rng), draw_task(rng)
        expected = loops(task, events)
        assert rows_of(find_aces(events, parse_aces(task))) == expected, task["windows"]
        n_rows += len(expected)
    assert n_rows > 500


def test_rows_agree_with_the_reference_implementation(tmp_path: Path) -> None:
    pytest.importorskip("aces")
    import yaml
    from aces.config import TaskExtractorConfig  # pyright: ignore[reportMissingImports]
    from aces.predicates import get_predicates_df  # pyright: ignore[reportMissingImports]
    from aces.query import query  # pyright: ignore[reportMissingImports]
    from omegaconf import DictConfig

    rng, n_rows = random.Random(1), 0
    for _ in range(120):
        events, task = draw_events(rng), draw_task(rng)
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(as_they_name_it(task)))
        events.write_parquet(tmp_path / "events.parquet")
        config = TaskExtractorConfig.load(tmp_path / "task.yaml")
        source = {"path": str(tmp_path / "events.parquet"), "standard": "meds", "ts_format": None}
        theirs = query(config, get_predicates_df(config, DictConfig(source)))
        expected: list[tuple[Any, ...]] = []
        if theirs.height:
            # A lone window whose sought moment does not exist leaves a row without a trigger there.
            named = theirs.rename({"index_timestamp": "prediction_time"}).drop_nulls("trigger")
            expected = sorted(rows_of(named))
        assert rows_of(find_aces(events, parse_aces(task))) == expected, task["windows"]
        n_rows += len(expected)
    assert n_rows > 500
