# pyright: strict
"""MIMIC-IV's CSV tables to the event table.

Patients, admissions and ED stays are small and read whole, because what other rows mean depends on
them; every other table is read in chunks, so that 300 million charted values need no more memory
than one million. What a row says is declared in `mimic4_tables` and `mimic4_icu_ed_tables`; this
file finds the tables, runs them in order and sums up.

Source: https://mimic.mit.edu/docs/iv/ (versions 2 and 3; `ed/` is the data set MIMIC-IV-ED). Times
are de-identified wall clock, shifted per patient by up to two centuries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import polars as pl
from tqdm import tqdm

from tsfm import codes
from tsfm.errors import FormatError, InputError
from tsfm.event_table import EventWriter
from tsfm.ingest import mimic4_icu_ed_tables, mimic4_tables
from tsfm.ingest.csv_rows import BLOCK_BYTES, LINE, BadRow, CsvRows
from tsfm.ingest.provenance import IngestSummary, dataset_facts
from tsfm.ingest.quarantine import Quarantine
from tsfm.ingest.source_table import SourceTable
from tsfm.ingest.table_events import TableEvents, stay_frame

FOLDERS = ("hosp", "icu", "ed")
REQUIRED = ("hosp/patients", "hosp/admissions")
_SUFFIXES = (".csv", ".csv.gz")
_ITEM_CLASSES = (
    codes.LAB,
    "SUBJECT_FLUID_OUTPUT",
    "INFUSION_START",
    "INFUSION_END",
    f"{codes.PROCEDURE}//START",
    f"{codes.PROCEDURE}//END",
    "CHART_DATE",
)


def ingest_mimic4(
    src: str | Path,
    out: str | Path,
    *,
    coding_delay_hours: float = 120.0,
    n_shards: int = 4,
    progress: bool | None = None,
    max_quarantined: float = 0.5,
    block_bytes: int = BLOCK_BYTES,
) -> IngestSummary:
    """Read a folder with `hosp/`, `icu/` and perhaps `ed/` into a new event table.

    Args:
        src: Folder of the tables as CSV or CSV.gz, under their own names in any case.
        out: Root of the data set to write.
        coding_delay_hours: From a discharge to the moment its ICD, DRG and HCPCS codes are known.
        n_shards: Event files to spread the subjects over.
        progress: Show a progress bar; None: on a terminal only.
        max_quarantined: Share of rows set aside above which the run fails.
        block_bytes: Text held in memory at a time; the events do not depend on it.

    Raises:
        InputError: `missing_source`, `empty_source`, `missing_table`, `ambiguous_table`,
            `output_exists` or `bad_coding_delay`.
        FormatError: `missing_column`, `truncated_gzip`, `bad_csv` or `too_many_quarantined`.
    """
    if not 0 <= coding_delay_hours < 24 * 3660:
        raise InputError(
            "the coding delay is negative or beyond ten years",
            code="bad_coding_delay",
            place="coding_delay_hours",
            remedy="Give the hours from discharge to billing codes, such as 120.",
        )
    files, unknown = _find_tables(Path(src))
    summary = IngestSummary("mimic4")
    with EventWriter(out, n_shards=n_shards) as writer:
        for stale in (Path(out) / "quarantine").glob("*.ndjson"):
            stale.unlink()  # of a run that failed
        quarantine = Quarantine(out)
        try:
            run = _Run(files, TableEvents(writer, quarantine, summary), summary, block_bytes)
            run.read_all(timedelta(hours=coding_delay_hours), progress)
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
                "mimic-iv",
                clock="wall",
                module="mimic4",
                coding_delay_hours=coding_delay_hours,
                data_as_of=None,
                dates_shifted=True,
            ),
            descriptions=run.descriptions(),
            subject_ids=run.subject_ids,
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
    folders = [f for f in sorted(src.iterdir()) if f.is_dir() and f.name.lower() in FOLDERS]
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        suffix = next((s for s in reversed(_SUFFIXES) if path.name.lower().endswith(s)), "")
        if not suffix or not path.is_file():
            continue
        name = f"{path.parent.name.lower()}/{path.name.lower().removesuffix(suffix)}"
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
            remedy="Give the folder that holds hosp/ and icu/ with their .csv or .csv.gz files.",
        )
    for name in REQUIRED:
        if name not in files:
            raise InputError(
                f"table {name} is missing",
                code="missing_table",
                place=str(src),
                remedy="Without it nobody is known whose events could be read.",
            )
    if "ed/edstays" not in files and files.keys() & {"ed/triage", "ed/diagnosis"}:
        raise InputError(
            "table ed/edstays is missing",
            code="missing_table",
            place=str(src),
            remedy="ed/triage and ed/diagnosis have no times of their own: add it.",
        )
    return files, unknown


def _streamed_tables(delay: timedelta) -> tuple[SourceTable, ...]:
    return (
        *mimic4_tables.hospital_tables(delay),
        *mimic4_icu_ed_tables.icu_tables(),
        *mimic4_icu_ed_tables.ed_tables(delay),
    )


def _all_names() -> list[str]:
    streamed = [table.name for table in _streamed_tables(timedelta())]
    described = list(mimic4_tables.DESCRIPTIONS)
    return [*REQUIRED, "ed/edstays", *streamed, *described, *mimic4_tables.IGNORED]


@dataclass
class _Run:
    files: dict[str, Path]
    events: TableEvents
    summary: IngestSummary
    block_bytes: int
    subject_ids: dict[int, str] = field(default_factory=dict[int, str])
    names: dict[str, str] = field(default_factory=dict[str, str])

    def read_all(self, delay: timedelta, progress: bool | None) -> None:
        absent = [name for name in _all_names() if name not in self.files]
        if absent:
            self.summary.notes.append(f"absent: {', '.join(absent)}")
        size = sum(path.stat().st_size for path in self.files.values())
        with tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            desc="mimic4",
            disable=None if progress is None else not progress,
        ) as self.bar:
            self._read_stays()
            tables = _streamed_tables(delay)
            for table in tables:
                for rows, bad in self._chunks(table.name, table.columns):
                    self.events.read(table, self.files[table.name].name, rows, bad)
            self.events.add_notes({table.name: table for table in tables})
            for name in mimic4_tables.DESCRIPTIONS:
                self._read_descriptions(name)
            for name in mimic4_tables.IGNORED:
                self._count_ignored(name)

    def descriptions(self) -> dict[str, str]:
        """Texts of the codes that occur; a code with a unit has the text of the one without."""
        texts: dict[str, str] = {}
        for code in self.events.seen_codes:
            text = self.names.get(code) or self.names.get(code.rpartition(codes.SEPARATOR)[0])
            if text:
                texts[code] = text
        return texts

    def _read_stays(self) -> None:
        has_ed = "ed/edstays" in self.files
        patients = mimic4_tables.patients()
        people = self._whole(patients)
        self.events.subjects = people["subject_id"]
        self.subject_ids = {subject: str(subject) for subject in people["subject_id"]}
        admissions = mimic4_tables.admissions(with_ed_times=not has_ed)
        stays = self._whole(admissions)
        self.events.stays["hospital"] = stay_frame(
            stays,
            key="hadm_id",
            start="admittime",
            end="dischtime",
        )
        self.events.write(patients, mimic4_tables.add_life_dates(people, stays))
        self.events.write(admissions, stays)
        if has_ed:
            ed_stays = mimic4_icu_ed_tables.ed_stays()
            visits = self._whole(ed_stays)
            self.events.stays["ed"] = stay_frame(
                visits,
                key="stay_id",
                start="intime",
                end="outtime",
            )
            self.events.write(ed_stays, visits)

    def _whole(self, table: SourceTable) -> pl.DataFrame:
        chunks = list(self._chunks(table.name, table.columns))
        bad = [row for _, bad_rows in chunks for row in bad_rows]
        empty = pl.DataFrame(schema={**dict.fromkeys(table.columns, pl.String), LINE: pl.Int64})
        rows = pl.concat([empty, *(rows.select(empty.columns) for rows, _ in chunks)])
        return self.events.clean(table, self.files[table.name].name, rows, bad)

    def _chunks(
        self, name: str, columns: tuple[str, ...]
    ) -> Iterator[tuple[pl.DataFrame, list[BadRow]]]:
        path = self.files.get(name)
        if path is None:
            return
        rows = CsvRows(path, columns, place=path.name, block_bytes=self.block_bytes)
        self.bar.set_description(name)
        self.summary.rows_read.setdefault(name, 0)
        before = 0
        for chunk in rows.chunks():
            yield chunk
            self.bar.update(rows.n_bytes - before)
            before = rows.n_bytes

    def _read_descriptions(self, name: str) -> None:
        columns = mimic4_tables.DESCRIPTIONS[name]
        for rows, bad in self._chunks(name, columns):
            n = rows.height + len(bad)
            self._count_table(name, n, self.summary.rows_used, rows.height)
            self.events.set_aside(name, self.files[name].name, bad)
            for *key, text in rows.select(columns).iter_rows():
                if text and all(key):
                    self._name(name, key, text)

    def _name(self, table: str, key: list[str], text: str) -> None:
        if table == "hosp/d_icd_diagnoses":
            self.names[codes.icd_diagnosis(key[1], key[0])] = text
        elif table == "hosp/d_icd_procedures":
            self.names[codes.icd_procedure(key[1], key[0])] = text
        else:
            for name in _ITEM_CLASSES:
                self.names[f"{name}{codes.SEPARATOR}{codes.clean_part(key[0])}"] = text

    def _count_ignored(self, name: str) -> None:
        path = self.files.get(name)
        if path is None:
            return
        header = CsvRows(path, (), place=path.name).header
        for rows, bad in self._chunks(name, (header[0],)):
            self._count_table(name, rows.height + len(bad), self.summary.rows_ignored, rows.height)
            self.events.set_aside(name, path.name, bad)

    def _count_table(self, name: str, n_read: int, counts: dict[str, int], n: int) -> None:
        self.summary.rows_read[name] = self.summary.rows_read.get(name, 0) + n_read
        counts[name] = counts.get(name, 0) + n
