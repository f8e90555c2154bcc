# pyright: strict
"""What an ingest run read and made: the summary a person sees and the facts on disk."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class IngestSummary:
    """Counts of one ingest run.

    Attributes:
        source: Kind of source, such as `fhir`.
        rows_read: Rows or resources read, by source (resource type, table, record).
        rows_used: Of these, the ones that gave at least one event (or a reference target).
        rows_ignored: Known types that hold no patient events, by type and count.
        quarantined: Rows set aside, by reason.
        notes: Facts the reader must know: absent tables, the clock, unresolved references.
        n_subjects: Subjects in the event table.
        n_events: Events written.
        events_by_class: Events by code class.
        seconds: Wall time.
    """

    source: str
    rows_read: dict[str, int] = field(default_factory=dict)
    rows_used: dict[str, int] = field(default_factory=dict)
    rows_ignored: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    n_subjects: int = 0
    n_events: int = 0
    events_by_class: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter, repr=False)

    def stop(self) -> None:
        """Fix the wall time."""
        self.seconds = time.perf_counter() - self.started

    @property
    def n_rows(self) -> int:
        """Rows read in all."""
        return sum(self.rows_read.values())

    @property
    def exit_code(self) -> int:
        """0 when every row was used, 3 when some were set aside."""
        return 3 if sum(self.quarantined.values()) else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "source": self.source,
            "rows_read": self.rows_read,
            "rows_used": self.rows_used,
            "rows_ignored": self.rows_ignored,
            "quarantined": self.quarantined,
            "notes": self.notes,
            "n_subjects": self.n_subjects,
            "n_events": self.n_events,
            "events_by_class": self.events_by_class,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.n_rows / self.seconds) if self.seconds else None,
            "peak_memory_mib": peak_memory_mib(),
        }

    def as_text(self) -> str:
        """The table printed at the end of a run."""
        lines = [f"{'source':<34}{'read':>12}{'used':>12}"]
        lines += [
            f"  {name:<32}{n:>12,}{self.rows_used.get(name, 0):>12,}"
            for name, n in sorted(self.rows_read.items(), key=lambda item: (-item[1], item[0]))
        ]
        lines += _block("not patient events (counted only)", self.rows_ignored)
        lines += _block("events by code class", self.events_by_class)
        lines += _block("quarantined by reason", self.quarantined)
        lines.append("")
        per_second = f"{self.n_rows / self.seconds:,.0f}" if self.seconds else "-"
        lines.append(
            f"{self.n_subjects:,} subjects, {self.n_events:,} events in {self.seconds:.1f} s "
            f"({per_second} rows/s), peak memory {peak_memory_mib():,} MiB"
        )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _block(title: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    return ["", title] + [
        f"  {name:<32}{n:>12,}" for name, n in sorted(counts.items(), key=lambda item: -item[1])
    ]


def peak_memory_mib() -> int:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def dataset_facts(name: str, *, clock: str, **more: Any) -> dict[str, Any]:
    """Fields of `metadata/dataset.json` that every source writes."""
    from tsfm import __version__

    return {
        "dataset_name": name,
        "etl_name": f"tsfm.ingest.{more.pop('module', name)}",
        "etl_version": __version__,
        "clock": clock,
        **more,
    }


def source_name(src: str | Path) -> str:
    """Name of a source folder, for the data set's facts."""
    return Path(src).resolve().name
