# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Whose record a WFDB record is, and when it was made.

WFDB headers name no patient, and many no date, so a table beside the records says both: a CSV with
the columns `record` (path below the source folder, without suffix) and `subject` (the source's
patient id, or a subject_id), and if wanted `start_time` (ISO 8601, on the data set's clock) and
`encounter`. Without it every record is a subject of its own.

Records that go into an existing event table must be of its patients and must have a time: an event
without one counts as known from the start, so an undated record would be seen before it was made.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath

from tsfm import clock as clocks
from tsfm import event_table, schema
from tsfm.clock import Clock, StampError
from tsfm.errors import FormatError, InputError
from tsfm.ingest.fhir_fields import stable_id
from tsfm.ingest.wfdb_headers import RecordError

_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose a record is and when it began.

    Attributes:
        subject_id: The subject.
        source_id: Its id in the source.
        encounter_id: The stay it belongs to, where that is known.
        start_time: None where nobody says.
        latest_start: Equal to `start_time`, or the end of the day where only a date is given.
    """

    subject_id: int
    source_id: str
    encounter_id: int | None
    start_time: datetime | None
    latest_start: datetime | None


class Origins:
    """Finds the origin of each record.

    Args:
        table: CSV of records and subjects; None: every record is its own subject.
        out: Root of the data set.
        merging: Whether `out` holds an event table that the records go into.

    Attributes:
        n_unknown_encounters: Records whose `encounter` the event table doesn't know.
    """

    def __init__(self, table: str | Path | None, out: str | Path, *, merging: bool) -> None:
        """Read the table and what the data set knows.

        Raises:
            InputError: The table can't be read, or is needed and not given.
        """
        if table is None and merging:
            raise InputError(
                "the records' patients are not given",
                code="subjects_needed",
                place="--subjects",
                remedy="Give a CSV with the columns record and subject.",
            )
        self.rows = None if table is None else _read_rows(Path(table))
        self.merging = merging
        self.n_unknown_encounters = 0
        facts = event_table.dataset_facts(out) if merging else {}
        self.clock = Clock.create(facts.get("clock", "wall"), facts.get("time_zone"))
        self._by_source: dict[str, int] = {}
        self._subjects: set[int] = set()
        self._encounters: set[int] = set()
        if merging:
            known = event_table.subject_ids(out)
            self._by_source = {source: subject for subject, source in known.items()}
            self._subjects = set(event_table.subject_splits(out))
            for path in event_table.shard_paths(out):
                column = event_table.read_table(path, columns=[schema.ENCOUNTER_ID])
                self._encounters.update(column[schema.ENCOUNTER_ID].drop_null().to_pylist())

    def find(self, record: str, header_time: datetime | None) -> Origin:
        """Origin of one record.

        Args:
            record: Path below the source folder, without suffix.
            header_time: Start by the record's header, on the wall clock.

        Raises:
            RecordError: `no_subject`, `unknown_patient`, or a time that can't be used.
        """
        if self.rows is None:
            return Origin(stable_id(record), record, None, header_time, header_time)
        row = self.rows.get(record)
        if row is None or not row["subject"]:
            raise RecordError("no_subject")
        subject_id = self._subject(row["subject"])
        start, latest = self._start(row.get("start_time", ""), header_time)
        encounter_id = self._encounter(row.get("encounter", ""))
        return Origin(subject_id, row["subject"], encounter_id, start, latest)

    def _subject(self, source_id: str) -> int:
        number = _as_integer(source_id)
        if not self.merging:
            return stable_id(source_id) if number is None else number
        if source_id in self._by_source:
            return self._by_source[source_id]
        if number in self._subjects:
            return number
        raise RecordError("unknown_patient")

    def _encounter(self, source_id: str) -> int | None:
        if not source_id:
            return None
        number = _as_integer(source_id)
        if not self.merging:
            return stable_id(source_id) if number is None else number
        for candidate in (stable_id(source_id), number):
            if candidate in self._encounters:
                return candidate
        self.n_unknown_encounters += 1
        return None

    def _start(
        self, text: str, header_time: datetime | None
    ) -> tuple[datetime | None, datetime | None]:
        if not text and header_time is not None:
            if self.clock.mode == "wall":
                return header_time, header_time
            text = header_time.isoformat()
        if not text:
            if self.merging:
                raise RecordError("no_start_time")
            return None, None
        try:
            stamp = self.clock.read(text)
        except StampError as error:
            raise RecordError(str(error.args[0])) from None
        return clocks.from_us(stamp.us), clocks.from_us(stamp.end_us)


def add_seconds(moment: datetime, seconds: float) -> datetime:
    """Moment some seconds later, rounded up to a microsecond: no record is known before its end."""
    return moment + timedelta(microseconds=-int(-seconds * 1_000_000 // 1))


def _as_integer(text: str) -> int | None:
    """The number that a text is the one spelling of, if it is a 63-bit one."""
    number = int(text) if _INTEGER.fullmatch(text) else None
    return number if number is not None and number < 2**63 else None


def _read_rows(path: Path) -> Mapping[str, dict[str, str]]:
    """Rows of the subjects table by record."""
    rows: dict[str, dict[str, str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            for name in ("record", "subject"):
                if name not in (reader.fieldnames or ()):
                    raise FormatError(
                        f"column '{name}' is missing",
                        code="missing_column",
                        place=path.name,
                        remedy="The table needs record and subject, and may have start_time and "
                        "encounter.",
                    )
            for row in reader:
                # A row with too many fields has them in a list under None.
                texts = {name: row[name].strip() for name in reader.fieldnames or ()}
                record = str(PurePosixPath(texts["record"].removesuffix(".hea")))
                if record in rows:
                    raise FormatError(
                        "a record comes twice",
                        code="duplicate_record",
                        place=f"{path.name}, line {reader.line_num}",
                        remedy="Keep one row a record.",
                    )
                rows[record] = texts
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(
            "the table of subjects can't be read",
            code="bad_subjects_table",
            place=path.name,
            remedy="Give a CSV file in UTF-8.",
        ) from error
    return rows
