# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Whose record a WFDB record is, and when it was made.

WFDB headers name no patient, and many no date, so a table beside the records says both: a CSV with
the columns `record` (path below the source folder, without suffix) and `subject` (the source's
patient id, or a subject_id), and if wanted `start_time` (ISO 8601, on the data set's clock) and
`encounter`. Without it every record is a subject of its own. The table's time goes before the
header's; but on a `wall` clock, which drops offsets, a time with an offset must show the hour that
the header shows: 17:26Z is not 13:26 on the wall.

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
from tsfm.data_end import DataEnd
from tsfm.errors import FormatError, InputError
from tsfm.ingest.fhir_fields import stable_id
from tsfm.ingest.wfdb_headers import LAST_YEAR, RecordError

_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")
_SAME = timedelta(minutes=1)  # two clocks that show the same, one of them perhaps without seconds


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
        n_unknown_encounters: Records whose `encounter` is no stay of their subject in the event
            table.
        n_dropped_offsets: Records whose `start_time` has an offset that the clock drops.
        n_late: Records that begin after the data set's end (`data_as_of`).
        signals: Records that events of the data set point to already.
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
        self.n_unknown_encounters = self.n_dropped_offsets = self.n_late = 0
        facts = event_table.dataset_facts(out) if merging else {}
        self.clock = Clock.create(facts.get("clock", "wall"), facts.get("time_zone"))
        self._by_source: dict[str, int] = {}
        self._subjects: set[int] = set()
        self._encounters: set[tuple[int, int]] = set()
        self.signals: set[str] = set()
        end = DataEnd(facts)
        self._end_us = end.until_us if end.is_told else None
        if merging:
            known = event_table.subject_ids(out)
            self._by_source = {source: subject for subject, source in known.items()}
            self._subjects = set(event_table.subject_splits(out))
            for path in event_table.shard_paths(out):
                names = [schema.SUBJECT_ID, schema.ENCOUNTER_ID, schema.SIGNAL_ID]
                table_columns = event_table.read_table(path, columns=names)
                subjects, encounters, signals = (table_columns[n].to_pylist() for n in names)
                pairs = zip(subjects, encounters, strict=True)
                self._encounters.update((s, e) for s, e in pairs if e is not None)
                self.signals.update(signal for signal in signals if signal is not None)

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
        encounter_id = self._encounter(row.get("encounter", ""), subject_id)
        if start is not None and self._end_us is not None:
            self.n_late += clocks.to_us(start) > self._end_us
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

    def _encounter(self, source_id: str, subject_id: int) -> int | None:
        if not source_id:
            return None
        number = _as_integer(source_id)
        if not self.merging:
            return stable_id(source_id) if number is None else number
        for candidate in (stable_id(source_id), number):
            if candidate is not None and (subject_id, candidate) in self._encounters:
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
        start = clocks.from_us(stamp.us)
        if self.clock.mode == "wall" and _has_offset(text):
            if header_time is not None and abs(start - header_time) > _SAME:
                raise RecordError("offset_contradicts_header")
            self.n_dropped_offsets += 1
        return start, clocks.from_us(stamp.end_us)


def add_seconds(moment: datetime, seconds: float) -> datetime:
    """Moment some seconds later, rounded up to a microsecond: no record is known before its end.

    Raises:
        RecordError: `time_out_of_range`: no calendar reaches so far.
    """
    try:
        later = moment + timedelta(microseconds=-int(-seconds * 1_000_000 // 1))
    except OverflowError:
        raise RecordError("time_out_of_range") from None
    if later.year > LAST_YEAR:
        raise RecordError("time_out_of_range")
    return later


def _has_offset(text: str) -> bool:
    """Whether a stamp that could be read says where its hour holds; a bare date never does."""
    return len(text) > 10 and datetime.fromisoformat(text).tzinfo is not None


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
                if not any(texts.values()):  # spreadsheets leave such rows behind the last
                    continue
                if not texts["record"]:
                    raise FormatError(
                        "a row names no record",
                        code="no_record_name",
                        place=f"{path.name}, line {reader.line_num}",
                        remedy="Fill the column record, or remove the row.",
                    )
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
