# pyright: strict
"""What every ingest of declared tables does around its own reading.

with table_run("mimic4", out, n_shards=1, max_quarantined=0.05) as run:
    with run.reading():
        ...                     events through run.events
    run.finish(dataset=...)
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsfm.errors import FormatError
from tsfm.event_table import EventWriter
from tsfm.ingest.provenance import IngestSummary
from tsfm.ingest.quarantine import Quarantine, check_largest_share
from tsfm.ingest.table_events import TableEvents


@dataclass
class TableRun:
    """One run; made by `table_run`.

    Attributes:
        writer: Where events go.
        quarantine: Where rows go that can't be used.
        summary: Counts.
        events: From rows to events.
        max_quarantined: Share of rows set aside above which the run fails.
    """

    writer: EventWriter
    quarantine: Quarantine
    summary: IngestSummary
    events: TableEvents
    max_quarantined: float

    @contextmanager
    def reading(self) -> Generator[None, None, None]:
        """Around all reading: closes the quarantine, and counts it.

        Raises:
            FormatError: `too_many_quarantined`.
        """
        try:
            yield
        finally:
            self.quarantine.close()
        summary = self.summary
        summary.quarantined = dict(self.quarantine.counts)
        if self.quarantine.total > self.max_quarantined * max(1, summary.n_rows):
            raise FormatError(
                f"{self.quarantine.total:,} of {summary.n_rows:,} rows can't be used",
                code="too_many_quarantined",
                place=str(self.quarantine.folder),
                remedy="See the reasons there, or raise --max-quarantined.",
            )

    def finish(self, **facts: Any) -> None:
        """Write the event table and count it; `facts` as for `EventWriter.finish`."""
        info = self.writer.finish(**facts)
        self.summary.n_subjects, self.summary.n_events = info.n_subjects, info.n_events
        self.summary.events_by_class = info.events_by_class


@contextmanager
def table_run(
    source: str, out: str | Path, *, n_shards: int, max_quarantined: float
) -> Generator[TableRun, None, None]:
    """Begin a run, and clear what a failed one left.

    Args:
        source: Kind of source, as in the summary.
        out: Root of the data set to write.
        n_shards: Event files to spread the subjects over.
        max_quarantined: Share of rows set aside above which the run fails.

    Raises:
        InputError: `bad_max_quarantined`, `output_exists` or `output_in_use`.
    """
    check_largest_share(max_quarantined)
    summary = IngestSummary(source)
    with EventWriter(out, n_shards=n_shards, with_signals=False) as writer:
        for stale in (Path(out) / "quarantine").glob("*.ndjson"):
            stale.unlink()  # of a run that failed
        quarantine = Quarantine(out)
        events = TableEvents(writer, quarantine, summary)
        yield TableRun(writer, quarantine, summary, events, max_quarantined)
    summary.stop()
