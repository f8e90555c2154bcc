"""What declared tables promise of bare dates, of repetitions and of rows with one identifier."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from tsfm import event_table
from tsfm.event_table import EventWriter
from tsfm.ingest.csv_rows import LINE
from tsfm.ingest.provenance import IngestSummary
from tsfm.ingest.quarantine import Quarantine
from tsfm.ingest.source_table import DATED, EventRule, SourceTable, is_first
from tsfm.ingest.table_events import TableEvents, parse_stored

Run = Callable[..., tuple[pl.DataFrame, IngestSummary, dict[str, int]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function from a table and its rows to (events, summary, rows set aside)."""

    def ingest(
        table: SourceTable, *chunks: list[tuple[str | None, ...]]
    ) -> tuple[pl.DataFrame, IngestSummary, dict[str, int]]:
        summary, quarantine = IngestSummary("test"), Quarantine(tmp_path / "out")
        with EventWriter(tmp_path / "out", n_shards=1) as writer:
            tables = TableEvents(writer, quarantine, summary)
            for rows in chunks:
                schema = dict.fromkeys(table.columns, pl.String)
                frame = pl.DataFrame(rows, schema=schema, orient="row")
                lines = pl.int_range(2, frame.height + 2, dtype=pl.Int64).alias(LINE)
                tables.read(table, "t.csv", frame.with_columns(lines), [])
            writer.finish(dataset={})
        quarantine.close()
        events = pl.concat(event_table.scan_events(tmp_path / "out"))
        return events, summary, dict(quarantine.counts)

    return ingest


def day(text: str) -> datetime:
    return datetime.fromisoformat(text)


END = day("2180-05-07 23:59:59.999999")


@pytest.mark.parametrize(
    ("charted", "dated", "stored", "time", "known"),
    [
        ("2180-05-07 01:00:00", None, None, "2180-05-07 01:00", day("2180-05-07 01:00")),
        ("2180-05-07 01:00:00", None, "2180-05-07", "2180-05-07 01:00", END),
        ("2180-05-07", None, "2180-05-07", "2180-05-07", END),
        ("2180-05-07", None, None, "2180-05-07", END),
        ("2180-05-07", None, "2180-05-09 02:00:00", "2180-05-07", day("2180-05-09 02:00")),
        (None, "2180-05-07", None, "2180-05-07", END),
        ("2180-05-07 01:00:00", "2180-05-07", None, "2180-05-07 01:00", day("2180-05-07 01:00")),
    ],
)
def test_what_a_bare_date_tells_is_known_at_the_end_of_its_day(
    run: Run, charted: str, dated: str, stored: str, time: str, known: datetime
) -> None:
    table = SourceTable(
        "t",
        times=("charttime", "chartdate", "storetime"),
        stored=("storetime",),
        ids=("subject_id",),
        dated_by=("charttime", "chartdate"),
        rules=(EventRule(pl.lit("A"), DATED, pl.max_horizontal(DATED, "storetime")),
               EventRule(pl.lit("B"), DATED)),
    )  # fmt: skip
    events, _, _ = run(table, [("1", charted, dated, stored)])
    ours = [row for row in events.select("code", "time", "available_time").iter_rows()]
    assert ours[0] == ("A", day(time), known)
    assert stored or ours[1] == ("B", day(time), known)


def test_a_stored_date_is_the_end_of_its_day_and_a_stored_time_itself() -> None:
    stored = parse_stored(pl.Series("t", ["2180-05-07", "2180-05-07 00:00:00", None, "x"]))
    assert stored.to_list() == [END, day("2180-05-07"), None, None]


def test_rows_that_lack_a_key_are_no_repetitions_of_each_other(run: Run) -> None:
    table = SourceTable(
        "t",
        times=("time",),
        texts=("specimen",),
        ids=("subject_id",),
        rules=(EventRule(pl.lit("A"), "time", once_per=("subject_id", "specimen")),),
    )
    rows = [("1", "2180-05-07 01:00:00", key) for key in ("x", "x", None, None)]
    events, summary, _ = run(table, rows, rows)
    assert events.height == 5
    assert (summary.rows_used["t"], summary.rows_ignored["t"]) == (5, 3)


def test_the_first_row_that_can_be_used_has_the_id(run: Run) -> None:
    table = SourceTable(
        "t",
        times=("time",),
        texts=("id", "age"),
        ids=("subject_id",),
        dated_by=("time",),
        checks=(("no_age", pl.col("age").is_null()), ("duplicate", ~is_first("id"))),
        rules=(EventRule(pl.col("age"), "time"),),
    )
    time = "2180-05-07 01:00:00"
    rows = [("1", time, "x", None), ("1", None, "x", "1"), ("1", time, "x", "2"),
            ("1", time, "y", "3"), ("1", time, "x", "4")]  # fmt: skip
    events, _, aside = run(table, rows)
    assert events["code"].to_list() == ["2", "3"]
    assert aside == {"no_age": 1, "no_time": 1, "duplicate": 1}
