# pyright: strict
"""Events of FHIR resources as they are collected: columns, clock, references, descriptions.

Every mapping in `fhir_stays`, `fhir_observations`, `fhir_clinical` and `fhir_drugs` is a function
from one decoded resource and an `EventBatch` to an outcome: "" when the resource was used,
`IGNORED`, or the reason for which it is set aside. A resource may be set aside in part: a Patient
with an unreadable birth date keeps its other facts, and is counted.

Nothing here knows files or the order in which resources come.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import polars as pl

from tsfm import schema
from tsfm.clock import HOUR_US, LONGEST_DAY_US, Clock, CodingDelay, Stamp, to_us
from tsfm.ingest.fhir_encounters import Stay
from tsfm.ingest.fhir_fields import Period, Reference
from tsfm.ingest.fhir_references import ReferenceIndex

IGNORED = "-"
"""Outcome of a resource that tells nothing about a patient, such as a cancelled visit."""

NOT_DONE = ("not-done", "not-taken", "cancelled", "declined")
_MAX_STAMPS = 100_000
_HOURS = {f"{n:02d}:": n * HOUR_US for n in range(24)}
_MINUTES = {f"{n:02d}:": n * HOUR_US // 60 for n in range(60)}
_SECONDS = {f"{n:02d}": n * 1_000_000 for n in range(60)}
_OFFSET = re.compile(r"Z|[+-]\d\d:\d\d$")
_FLOAT32_MAX = 3.4028234e38


_COLUMNS: dict[str, Any] = {
    schema.SUBJECT_ID: pl.Int64,
    schema.TIME: pl.Int64,
    schema.CODE: pl.String,
    schema.NUMERIC_VALUE: pl.Float64,
    schema.TEXT_VALUE: pl.String,
    schema.AVAILABLE_TIME: pl.Int64,
    schema.ENCOUNTER_ID: pl.Int64,
}


class UnusableError(ValueError):
    """A resource can't be used; its one argument is a quarantine reason code."""


class StampCache(dict[str, Stamp]):
    """Time stamps on one clock; the same ones come again and again in panels and stays.

    A day's instants differ only by their time of day, so the costly part of reading is done once
    a day and offset; what is then looked up are two-digit words, which leaves no room for a stamp
    that the clock itself would refuse.

    Attributes:
        latest_us: See `note`; None before anything was read.
    """

    def __init__(self, clock: Clock) -> None:
        """Start empty."""
        super().__init__()
        self.latest_us: int | None = None
        self._now_us = to_us(datetime.now(UTC).replace(tzinfo=None))
        self._clock = clock
        self._days: dict[str, int] = {}  # date and offset to microseconds of its midnight

    def __missing__(self, text: str) -> Stamp:
        """Read a stamp seen for the first time."""
        if len(self) >= _MAX_STAMPS:
            self.clear()
        stamp = self[text] = self._clock.read(text)
        self.note(stamp)
        return stamp

    def note(self, stamp: Stamp | None) -> None:
        """Keep the latest moment up to now that any stamp tells, to the day at least.

        It is how far the source tells the patients' story. A month or a year says of no day in it
        that anybody was watched then, and what becomes available later was not seen later.
        """
        if stamp is None or stamp.end_us - stamp.us > LONGEST_DAY_US:
            return
        if stamp.end_us <= self._now_us and (self.latest_us or stamp.end_us) <= stamp.end_us:
            self.latest_us = stamp.end_us

    def interval(self, text: str) -> tuple[int, int]:
        """Start and end of what a stamp may mean, as `tsfm.clock.Stamp` without the object.

        Raises:
            StampError: It can't be read.
        """
        try:
            time_of_day = _HOURS[text[11:14]] + _MINUTES[text[14:17]] + _SECONDS[text[17:19]]
        except KeyError:
            stamp = self[text]
            return stamp.us, stamp.end_us
        day = text[:11] + text[19:]
        try:
            us = self._days[day] + time_of_day
        except KeyError:
            us = self._clock.read(text).us
            # Without an offset, the hours of a day are counted from it only where none changes.
            if self._clock.mode == "wall" or _OFFSET.search(text, 19):
                if len(self._days) >= _MAX_STAMPS:
                    self._days.clear()
                self._days[day] = us - time_of_day
        if self.latest_us is None or us > self.latest_us:
            self.note(Stamp(us, us))
        return us, us


class EventBatch:
    """Events of the current batch, with what it takes to make them.

    Args:
        references: Everything the first pass has indexed, already settled.
        clock: The data set's clock.
        delay: When billing codes become known.
    """

    def __init__(self, references: ReferenceIndex, clock: Clock, delay: CodingDelay) -> None:
        """Start with no events."""
        self.references = references
        self.subjects = references.subjects  # by every spelling met so far: the hot path asks here
        self.stays = references.stays
        self.clock = clock
        self.stamps = StampCache(clock)
        self.delay = delay
        self.descriptions: dict[str, str] = {}
        self.measurement_codes: dict[tuple[str, str, str, str], tuple[str, bool]] = {}
        self.counts: Counter[str] = Counter()  # facts for the summary's notes
        self.is_changed_again = False  # whether the row at hand changes a result once more
        self.n_taken = 0  # events handed over by `take` so far
        self._columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self.codes: list[str] = self._columns[schema.CODE]
        self._appends = tuple(column.append for column in self._columns.values())

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
        """Append one event; times in microseconds on the data set's clock.

        Nothing is known before it is so: an event whose time is still to come when it is said to be
        available would tell the future, and is available at its time.
        """
        known = time if available is None else available
        if time is not None and known is not None and known < time:
            known = time
        encounter = None if stay is None else stay.encounter_id
        # Bound once: a list of tuples would cost the garbage collector more than all appends.
        add_subject, add_time, add_code, add_value, add_text, add_known, add_stay = self._appends
        add_subject(subject)
        add_time(time)
        add_code(code)
        add_value(value)
        add_text(text)
        add_known(known)
        add_stay(encounter)
        if description and code not in self.descriptions:
            self.descriptions[code] = description

    def subject_of(self, reference: Reference | None) -> int:
        """Subject id behind a reference.

        Raises:
            UnusableError: `no_subject`, `unknown_patient` or `deleted_patient`.
        """
        if reference is None or not reference.reference:
            raise UnusableError("no_subject")
        subject = self.subjects.get(reference.reference)
        if subject is None:
            subject = self.references.subject(reference.reference)
        if subject is None:
            is_deleted = self.references.patients.is_deleted(reference.reference)
            raise UnusableError("deleted_patient" if is_deleted else "unknown_patient")
        return subject

    def stay_of(self, reference: Reference | None) -> Stay | None:
        """Encounter behind a reference; one that leads nowhere is counted."""
        if reference is None or not reference.reference:
            return None
        stay = self.stays.get(reference.reference)
        if stay is None:
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
            return self.stamps.interval(instant)
        if period is None:
            return None
        start, end = period.start, period.end
        if not start:
            return self.moment(end)
        first = self.stamps.interval(start)
        return (first[0], max(first[1], self.stamps.interval(end)[1])) if end else first

    def take(self) -> pl.DataFrame:
        """The collected events as a frame for `EventWriter.add`; collecting starts anew."""
        self.n_taken += len(self.codes)
        frame = pl.DataFrame(
            [pl.Series(name, self._columns[name], kind) for name, kind in _COLUMNS.items()]
        )
        for column in self._columns.values():
            column.clear()
        moment = pl.Datetime("us")
        return frame.with_columns(
            pl.col(schema.TIME).cast(moment), pl.col(schema.AVAILABLE_TIME).cast(moment)
        )


def undone(status: str) -> str:
    """Why a resource of this status tells of nothing that happened; "" if it may."""
    if status == "entered-in-error":
        return "entered_in_error"
    return "not_done" if status in NOT_DONE else ""


def check_value(value: float) -> float:
    """The value itself, if the event table's 32-bit numbers can hold it.

    Raises:
        UnusableError: `value_out_of_range`.
    """
    if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        raise UnusableError("value_out_of_range")
    return value
