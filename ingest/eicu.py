# pyright: strict
"""eICU's CSV tables to the event table.

`patient` is small and read whole, because the times of all other rows count from its stays; every
other table is read in chunks, so that 146 million rows of monitors need no more memory than one
million. What a row says is declared in `eicu_stays`, `eicu_tables` and `eicu_care_tables`; which
clock that gives, and why a subject is one hospital stay, is told in `eicu_stays`.

Source: the eICU Collaborative Research Database, https://eicu-crd.mit.edu/ (version 2, and its
open demo).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
from tqdm import tqdm

from tsfm.errors import FormatError, InputError
from tsfm.event_table import EventWriter
from tsfm.ingest import eicu_care_tables, eicu_stays, eicu_tables
from tsfm.ingest.csv_rows import BLOCK_BYTES, LINE, BadRow, CsvRows
from tsfm.ingest.provenance import IngestSummary, dataset_facts
from tsfm.ingest.quarantine import Quarantine
from tsfm.ingest.source_table import SourceTable
from tsfm.ingest.table_events import TableEvents

_SUFFIXES = (".csv", ".csv.gz")
_LONGEST_DELAY_HOURS = 24 * 366


def ingest_eicu(
    src: str | Path,
    out: str | Path,
    *,
    culture_delay_hours: float = 120.0,
    n_shards: int = 4,
    progress: bool | None = None,
    max_quarantined: float = 0.5,
    block_bytes: int = BLOCK_BYTES,
) -> IngestSummary:
    """Read a folder of eICU's tables into a new event table.

    Args:
        src: Folder of the tables as CSV or CSV.gz, under their own names in any case.
        out: Root of the data set to write.
        culture_delay_hours: From taking a culture to knowing its result, which the source does not
            time.
        n_shards: Event files to spread the subjects over.
        progress: Show a progress bar; None: on a terminal only.
        max_quarantined: Share of rows set aside above which the run fails.
        block_bytes: Text held in memory at a time; the events do not depend on it.

    Raises:
        InputError: `missing_source`, `empty_source`, `missing_table`, `ambiguous_table`,
            `output_exists` or `bad_culture_delay`.
        FormatError: `missing_column`, `truncated_gzip`, `bad_csv` or `too_many_quarantined`.
    """
    if not 0 <= culture_delay_hours < _LONGEST_DELAY_HOURS:
        raise InputError(
            "the culture delay is negative or beyond a year",
            code="bad_culture_delay",
            place="culture_delay_hours",
            remedy="Give the hours from taking a culture to its result, such as 120.",
        )
    files, unknown = _find_tables(Path(src))
    summary = IngestSummary("eicu")
    with EventWriter(out, n_shards=n_shards) as writer:
        for stale in (Path(out) / "quarantine").glob("*.ndjson"):
            stale.unlink()  # of a run that failed
        quarantine = Quarantine(out)
        try:
            run = _Run(files, TableEvents(writer, quarantine, summary), summary, block_bytes)
            run.read_all(timedelta(hours=culture_delay_hours), progress)
        finally:
            quarantine.close()
        summary.quarantined = dict(quarantine.counts)
        if quarantine.total > max_quarantined * max(1, summary.n_rows):
            raise FormatError(
                f"{quarantine.total:,} of {summary.n_rows:,} rows can't be used",
                code="too_many_quarantined",
                place=str(quarantine.folder),
                remedy="See the reasons there, or raise --max-quarantined.",
            )
        if unknown:
            summary.notes.append(f"unknown files, not read: {', '.join(unknown)}")
        info = writer.finish(
            dataset=dataset_facts(
                "eicu-crd",
                clock="wall",
                module="eicu",
                culture_delay_hours=culture_delay_hours,
                data_as_of=run.as_of(),
                dates_shifted=False,
                nominal_discharge_day=eicu_stays.NOMINAL_DAY,
                subject_is="hospital stay",
            ),
            subject_ids=dict(run.placed.select("subject_id", "uniquepid").iter_rows()),
            subject_splits=eicu_stays.splits_by_patient(run.placed),
        )
    summary.n_subjects, summary.n_events = info.n_subjects, info.n_events
    summary.events_by_class = info.events_by_class
    summary.stop()
    return summary


def _find_tables(src: Path) -> tuple[dict[str, Path], list[str]]:
    """Files by table name, and the names of files that are no known table."""
    if not src.is_dir():
        raise InputError(
            "no such folder", code="missing_source", place=str(src), remedy="Check the path."
        )
    known = set(_all_names())
    files: dict[str, Path] = {}
    unknown: list[str] = []
    for path in sorted(src.iterdir()):
        suffix = next((s for s in reversed(_SUFFIXES) if path.name.lower().endswith(s)), "")
        if not suffix or not path.is_file():
            continue
        name = path.name.lower().removesuffix(suffix)
        if name not in known:
            unknown.append(name)
        elif name in files:
            raise InputError(
                f"table {name} is there twice",
                code="ambiguous_table",
                place=f"{files[name].name}, {path.name}",
                remedy="Remove one of the files.",
            )
        else:
            files[name] = path
    if not files:
        raise InputError(
            "no tables found",
            code="empty_source",
            place=str(src),
            remedy="Give the folder that holds patient.csv.gz and the other tables.",
        )
    if eicu_stays.PATIENT not in files:
        raise InputError(
            f"table {eicu_stays.PATIENT} is missing",
            code="missing_table",
            place=str(src),
            remedy="The times of all other tables count from its unit stays: add it.",
        )
    return files, unknown


def _streamed_tables(culture_delay: timedelta) -> tuple[SourceTable, ...]:
    return (
        *eicu_care_tables.care_tables(),
        *eicu_tables.measurement_tables(culture_delay),
    )


def _all_names() -> list[str]:
    streamed = [table.name for table in _streamed_tables(timedelta())]
    return [eicu_stays.PATIENT, *streamed, *eicu_tables.IGNORED]


@dataclass
class _Run:
    files: dict[str, Path]
    events: TableEvents
    summary: IngestSummary
    block_bytes: int
    placed: pl.DataFrame = field(default_factory=pl.DataFrame)

    def read_all(self, culture_delay: timedelta, progress: bool | None) -> None:
        absent = [name for name in _all_names() if name not in self.files]
        if absent:
            self.summary.notes.append(f"absent: {', '.join(absent)}")
        size = sum(path.stat().st_size for path in self.files.values())
        with tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            desc="eicu",
            disable=None if progress is None else not progress,
        ) as self.bar:
            self._read_stays()
            tables = _streamed_tables(culture_delay)
            for table in tables:
                for rows, bad in self._chunks(table.name, table.columns):
                    self.events.read(table, self.files[table.name].name, rows, bad)
            self.events.add_notes({table.name: table for table in tables})
            for name, reason in eicu_tables.IGNORED.items():
                self._count_ignored(name, reason)

    def as_of(self) -> str | None:
        """Start of the earliest day on which a stay ends: from then on nobody is watched."""
        end = self.placed[eicu_stays.HOSPITAL_END].min()
        if not isinstance(end, datetime):
            return None
        return end.replace(hour=0, minute=0, second=0).isoformat()

    def _read_stays(self) -> None:
        table = eicu_stays.unit_stays()
        name = table.name
        chunks = list(self._chunks(name, table.columns))
        bad = [row for _, bad_rows in chunks for row in bad_rows]
        empty = pl.DataFrame(schema={**dict.fromkeys(table.columns, pl.String), LINE: pl.Int64})
        rows = pl.concat([empty, *(rows.select(empty.columns) for rows, _ in chunks)])
        stays = self.events.clean(table, self.files[name].name, rows, bad)
        self.placed = eicu_stays.place_stays(stays)
        self.events.stays["unit"] = eicu_stays.unit_frame(self.placed)
        self.events.write(table, self.placed)
        self.summary.notes += eicu_stays.notes_of(self.placed)

    def _chunks(
        self, name: str, columns: tuple[str, ...]
    ) -> Iterator[tuple[pl.DataFrame, list[BadRow]]]:
        path = self.files.get(name)
        if path is None:
            return
        ours, theirs = "subject_id", eicu_stays.SUBJECT_COLUMN
        in_file = [theirs if column == ours else column for column in columns]
        rows = CsvRows(path, in_file, place=path.name, block_bytes=self.block_bytes)
        self.bar.set_description(name)
        self.summary.rows_read.setdefault(name, 0)
        before = 0
        for chunk, bad in rows.chunks():
            yield chunk.rename({theirs: ours}, strict=False), bad
            self.bar.update(rows.n_bytes - before)
            before = rows.n_bytes

    def _count_ignored(self, name: str, reason: str) -> None:
        path = self.files.get(name)
        if path is None:
            return
        header = CsvRows(path, (), place=path.name).header
        counts = self.summary.rows_read, self.summary.rows_ignored
        for rows, bad in self._chunks(name, (header[0],)):
            n = rows.height
            for table, more in zip(counts, (n + len(bad), n), strict=True):
                table[name] = table.get(name, 0) + more
            self.events.set_aside(name, path.name, bad)
        self.summary.notes.append(f"{name} is counted and not read: {reason}")
