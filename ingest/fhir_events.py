# pyright: strict
"""Events of FHIR resources as they are collected: columns, clock, references, descriptions.

Every mapping in `fhir_stays`, `fhir_observations`, `fhir_clinical` and `fhir_drugs` is a function
from one decoded resource and an `EventColumns` to an outcome: "" when the resource was used,
`IGNORED`, or the reason for which it is set aside. A resource may be set aside in part: a Patient
with an unreadable birth date keeps its other facts, and is counted.

Nothing here knows files or the order in which resources come.
"""

from __future__ import annotations

from collections import Counter

import polars as pl

from tsfm import schema
from tsfm.clock import Clock, CodingDelay, Stamp
from tsfm.ingest.fhir_fields import Period, Reference
from tsfm.ingest.fhir_references import ReferenceIndex, Stay

IGNORED = "-"
"""Outcome of a resource that tells nothing about a patient, such as a cancelled visit."""

NOT_DONE = ("not-done", "not-taken", "cancelled", "declined")
_MAX_STAMPS = 100_000
_FLOAT32_MAX = 3.4028234e38


class UnusableError(ValueError):
    """A resource can't be used; its one argument is a quarantine reason code."""


class StampCache(dict[str, Stamp]):
    """Time stamps already read: panels and stays repeat theirs many times."""

    def __init__(self, clock: Clock) -> None:
        """Start empty, on one clock."""
        super().__init__()
        self._read = clock.read

    def __missing__(self, text: str) -> Stamp:
        """Read a stamp seen for the first time."""
        if len(self) >= _MAX_STAMPS:
            self.clear()
        stamp = self[text] = self._read(text)
        return stamp


class EventColumns:
    """Events of the current batch, one list a column, with what it takes to make them.

    Args:
        references: Everything the first pass has indexed, already settled.
        clock: The data set's clock.
        delay: When billing codes become known.
    """

    def __init__(self, references: ReferenceIndex, clock: Clock, delay: CodingDelay) -> None:
        """Start with no events."""
        self.references = references
        self.stamps = StampCache(clock)
        self.delay = delay
        self.descriptions: dict[str, str] = {}
        self.measurement_codes: dict[tuple[str, str, str, str], tuple[str, bool]] = {}
        self.counts: Counter[str] = Counter()  # facts for the summary's notes
        self.n_taken = 0  # events handed over by `take` so far
        self.subject: list[int] = []
        self.time: list[int | None] = []
        self.code: list[str] = []
        self.value: list[float | None] = []
        self.text: list[str | None] = []
        self.available: list[int | None] = []
        self.encounter: list[int | None] = []

    def __len__(self) -> int:
        """Events collected since the last `take`."""
        return len(self.code)

    def add(
        self,
        subject: int,
        code: str,
        time: int | None,
        available: int | None = None,
        stay: Stay | None = None,
        value: float | None = None,
        text: str | None = None,
        description: str = "",
    ) -> None:
        """Append one event; times in microseconds on the data set's clock."""
        self.subject.append(subject)
        self.time.append(time)
        self.code.append(code)
        self.value.append(value)
        self.text.append(text)
        self.available.append(time if available is None else available)
        self.encounter.append(None if stay is None else stay.encounter_id)
        if description and code not in self.descriptions:
            self.descriptions[code] = description

    def subject_of(self, reference: Reference | None) -> int:
        """Subject id behind a reference.

        Raises:
            UnusableError: `no_subject` or `unknown_patient`.
        """
        if reference is None or not reference.reference:
            raise UnusableError("no_subject")
        subject = self.references.subject(reference.reference)
        if subject is None:
            raise UnusableError("unknown_patient")
        return subject

    def stay_of(self, reference: Reference | None) -> Stay | None:
        """Encounter behind a reference; one that leads nowhere is counted."""
        if reference is None or not reference.reference:
            return None
        stay = self.references.stay(reference.reference)
        if stay is None:
            self.counts["unresolved_encounters"] += 1
        return stay

    def moment(self, instant: str | None, period: Period | None = None) -> tuple[int, int] | None:
        """When something was so, and when it could first be known.

        A period's fact is known when the period is over, a date's at the end of the day.

        Raises:
            StampError: A stamp can't be read.
        """
        if instant:
            stamp = self.stamps[instant]
            return stamp.us, stamp.end_us
        if period is None:
            return None
        start, end = period.start, period.end
        if not start:
            return self.moment(end)
        first = self.stamps[start]
        return first.us, max(first.end_us, self.stamps[end].end_us) if end else first.end_us

    def take(self) -> pl.DataFrame:
        """The collected events as a frame for `EventWriter.add`; the columns start anew.

        Times come as microseconds.
        """
        self.n_taken += len(self.code)
        moment = pl.Datetime("us")
        frame = pl.DataFrame(
            [
                pl.Series(schema.SUBJECT_ID, self.subject, pl.Int64),
                pl.Series(schema.TIME, self.time, pl.Int64).cast(moment),
                pl.Series(schema.CODE, self.code, pl.String),
                pl.Series(schema.NUMERIC_VALUE, self.value, pl.Float64),
                pl.Series(schema.TEXT_VALUE, self.text, pl.String),
                pl.Series(schema.AVAILABLE_TIME, self.available, pl.Int64).cast(moment),
                pl.Series(schema.ENCOUNTER_ID, self.encounter, pl.Int64),
            ]
        )
        for column in (self.subject, self.time, self.code, self.value, self.text):
            column.clear()
        self.available.clear()
        self.encounter.clear()
        return frame


def check_value(value: float) -> float:
    """The value itself, if the event table's 32-bit numbers can hold it.

    Raises:
        UnusableError: `value_out_of_range`.
    """
    if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        raise UnusableError("value_out_of_range")
    return value
