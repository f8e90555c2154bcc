# pyright: strict
"""MIMIC-IV's CSV tables to the event table.

Patients, admissions and ED stays are small and read whole, because what other rows mean depends on
them; every other table is read in chunks, so that 300 million charted values need no more memory
than one million. Of `hosp/pharmacy` the moment at which each order was entered is kept, 24 bytes a
row, since `hosp/prescriptions` does not say it. What a row says is declared in `mimic4_tables`,
`mimic4_drug_tables` and `mimic4_icu_ed_tables`; this file finds the tables, runs them in order and
sums up.

Source: https://mimic.mit.edu/docs/iv/ (versions 2 and 3; `ed/` is the data set MIMIC-IV-ED). Times
are de-identified wall clock, shifted per patient by up to two centuries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import polars as pl

from tsfm import codes
from tsfm.errors import InputError
from tsfm.ingest import mimic4_drug_tables, mimic4_icu_ed_tables, mimic4_tables
from tsfm.ingest.csv_rows import BLOCK_BYTES
from tsfm.ingest.provenance import IngestSummary, dataset_facts
from tsfm.ingest.source_table import SourceTable
from tsfm.ingest.table_events import parse_stored, stay_frame
from tsfm.ingest.table_folder import TableFolder, check_folder, find_tables
from tsfm.ingest.table_run import table_run

FOLDERS = ("hosp", "icu", "ed")
REQUIRED = ("hosp/patients", "hosp/admissions")
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
    with table_run("mimic4", out, n_shards=n_shards, max_quarantined=max_quarantined) as tables:
        run = _Run(TableFolder(files, tables.events, tables.summary, block_bytes))
        with tables.reading():
            run.read_all(timedelta(hours=coding_delay_hours), progress)
        if unknown:
            tables.summary.notes.append(f"unknown files, not read: {', '.join(unknown)}")
        tables.finish(
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
    return tables.summary


def _find_tables(src: Path) -> tuple[dict[str, Path], list[str]]:
    """Files by table name, and the names of files that are no known table."""
    check_folder(src)
    files, unknown = find_tables(
        src, [f for f in sorted(src.iterdir()) if f.is_dir() and f.name.lower() in FOLDERS],
        set(_all_names()), nested=True,
        remedy="Give the folder that holds hosp/ and icu/ with their .csv or .csv.gz files.",
    )  # fmt: skip
    for name in REQUIRED:
        if name not in files:
            raise InputError(
                f"table {name} is missing",
                code="missing_table",
                place=str(src),
                remedy="Without it nobody is known whose events could be read.",
            )
    if "ed/edstays" not in files and any(name.startswith("ed/") for name in files):
        raise InputError(
            "table ed/edstays is missing",
            code="missing_table",
            place=str(src),
            remedy="The other tables of ed/ tell of its visits: add it, or leave them out.",
        )
    return files, unknown


def _streamed_tables(delay: timedelta) -> tuple[SourceTable, ...]:
    return (
        *mimic4_tables.hospital_tables(delay),
        *mimic4_drug_tables.drug_tables(),
        *mimic4_icu_ed_tables.icu_tables(),
        *mimic4_icu_ed_tables.ed_tables(delay),
    )


def _all_names() -> list[str]:
    streamed = [table.name for table in _streamed_tables(timedelta())]
    described = list(mimic4_tables.DESCRIPTIONS)
    return [*REQUIRED, "ed/edstays", *streamed, *described, *mimic4_tables.IGNORED]


@dataclass
class _Run:
    folder: TableFolder
    subject_ids: dict[int, str] = field(default_factory=dict[int, str])
    names: dict[str, str] = field(default_factory=dict[str, str])

    def read_all(self, delay: timedelta, progress: bool | None) -> None:
        folder = self.folder
        folder.note_absent(_all_names())
        with folder.progress(progress):
            self._read_stays()
            self._read_order_times()
            folder.stream(_streamed_tables(delay))
            for name in mimic4_tables.DESCRIPTIONS:
                self._read_descriptions(name)
            for name in mimic4_tables.IGNORED:
                folder.count_ignored(name)

    def descriptions(self) -> dict[str, str]:
        """Texts of the codes that occur; a code with a unit has the text of the one without."""
        texts: dict[str, str] = {}
        for code in self.folder.events.seen_codes:
            text = self.names.get(code) or self.names.get(code.rpartition(codes.SEPARATOR)[0])
            if text:
                texts[code] = text
        return texts

    def _read_stays(self) -> None:
        has_ed = "ed/edstays" in self.folder.files
        patients = mimic4_tables.patients()
        people = self.folder.whole(patients)
        self.folder.events.subjects = people["subject_id"]
        self.subject_ids = {subject: str(subject) for subject in people["subject_id"]}
        admissions = mimic4_tables.admissions(with_ed_times=not has_ed)
        stays = self.folder.whole(admissions)
        self.folder.events.stays["hospital"] = stay_frame(
            stays.with_columns(dischtime=mimic4_tables.left_at()),
            key="hadm_id",
            start="admittime",
            end="dischtime",
        )
        self.folder.events.write(patients, mimic4_tables.add_life_dates(people, stays))
        self.folder.events.write(admissions, stays)
        if has_ed:
            ed_stays = mimic4_icu_ed_tables.ed_stays()
            visits = self.folder.whole(ed_stays)
            self.folder.events.stays["ed"] = stay_frame(
                visits,
                key="stay_id",
                start="intime",
                end="outtime",
            )
            self.folder.events.write(ed_stays, visits)

    def _read_order_times(self) -> None:
        """When each order was entered, for the prescriptions that name it."""
        pharmacy, (key, entered) = "hosp/pharmacy", mimic4_drug_tables.ENTERED
        if not {pharmacy, "hosp/prescriptions"} <= self.folder.files.keys():
            return
        frames = [
            rows.select(
                pl.col("subject_id", key).str.strip_chars().cast(pl.Int64, strict=False),
                parse_stored(rows[entered].str.strip_chars()),
            ).drop_nulls()
            for rows in self.folder.look_ahead(pharmacy, ("subject_id", key, entered))
        ]
        if frames:
            self.folder.events.joins[key] = pl.concat(frames)

    def _read_descriptions(self, name: str) -> None:
        columns = mimic4_tables.DESCRIPTIONS[name]
        for rows, bad in self.folder.chunks(name, columns):
            n = rows.height + len(bad)
            self.folder.count(name, n, self.folder.summary.rows_used, rows.height)
            self.folder.events.set_aside(name, self.folder.files[name].name, bad)
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
