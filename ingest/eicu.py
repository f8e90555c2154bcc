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

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from tsfm.errors import InputError
from tsfm.ingest import eicu_care_tables, eicu_stays, eicu_tables
from tsfm.ingest.csv_rows import BLOCK_BYTES
from tsfm.ingest.provenance import IngestSummary, dataset_facts
from tsfm.ingest.source_table import SourceTable
from tsfm.ingest.table_folder import TableFolder, check_folder, find_tables
from tsfm.ingest.table_run import table_run

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
            place="--culture-delay-hours",
            remedy="Give the hours from taking a culture to its result, such as 120.",
        )
    files, unknown = _find_tables(Path(src))
    with table_run("eicu", out, n_shards=n_shards, max_quarantined=max_quarantined) as tables:
        run = _Run(TableFolder(files, tables.events, tables.summary, block_bytes))
        with tables.reading():
            run.read_all(timedelta(hours=culture_delay_hours), progress)
        if unknown:
            tables.summary.notes.append(f"unknown files, not read: {', '.join(unknown)}")
        tables.finish(
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
    return tables.summary


def _find_tables(src: Path) -> tuple[dict[str, Path], list[str]]:
    """Files by table name, and the names of files that are no known table."""
    check_folder(src)
    files, unknown = find_tables(
        src, [src], set(_all_names()), nested=False,
        remedy="Give the folder that holds patient.csv.gz and the other tables.",
    )  # fmt: skip
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
    folder: TableFolder
    placed: pl.DataFrame = field(default_factory=pl.DataFrame)

    def read_all(self, culture_delay: timedelta, progress: bool | None) -> None:
        folder = self.folder
        folder.in_file = {"subject_id": eicu_stays.SUBJECT_COLUMN}
        folder.note_absent(_all_names())
        with folder.progress(progress):
            self._read_stays()
            folder.stream(_streamed_tables(culture_delay))
            for name, reason in eicu_tables.IGNORED.items():
                if folder.count_ignored(name):
                    note = f"{name} is counted and not read: {reason}"
                    folder.summary.notes.append(note)

    def as_of(self) -> str | None:
        """Start of the earliest day on which a stay ends: from then on nobody is watched."""
        end = self.placed[eicu_stays.HOSPITAL_END].min()
        if not isinstance(end, datetime):
            return None
        return end.replace(hour=0, minute=0, second=0).isoformat()

    def _read_stays(self) -> None:
        table, events = eicu_stays.unit_stays(), self.folder.events
        self.placed = eicu_stays.place_stays(self.folder.whole(table))
        events.stays["unit"] = eicu_stays.unit_frame(self.placed)
        events.write(table, self.placed)
        self.folder.summary.notes += eicu_stays.notes_of(self.placed)
