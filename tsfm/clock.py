"""Which clock a time stamp is on, and when a fact could first be known.

A data set lives on one clock, naive microseconds since 1970-01-01:

* `utc`: stamps carry offsets and are brought to UTC. Durations are exact, also across the hour that
  repeats when summer time ends. The default where the source gives offsets.
* `wall`: the clock on the wall as written; an offset is dropped. Right for de-identified sources
  whose offsets are an artefact of their making (MIMIC-IV on FHIR).

A stamp with an hour but no offset needs a time zone by name on the `utc` clock; none is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tsfm.errors import InputError

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
LONGEST_DAY_US = 49 * HOUR_US
"""No bare date means more than this, in whatever zone it was written."""
_EPOCH = datetime(1970, 1, 1)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
FIRST_YEAR, LAST_YEAR = 1850, 2300  # de-identified sources shift dates up to two centuries ahead


class StampError(ValueError):
    """A time stamp can't be read; its one argument is a quarantine reason code."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A time stamp with the interval it may mean.

    Attributes:
        us: Start of the interval, microseconds on the data set's clock.
        end_us: Last microsecond of it; equal to `us` for an instant, the end of the day for a date.
    """

    us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class Clock:
    """Reader of ISO 8601 / FHIR date-times onto one clock.

    Attributes:
        mode: `utc` or `wall`.
        zone: IANA zone of stamps without an offset and of bare dates on the `utc` clock.
        west_us: Without a zone on the `utc` clock, a bare date is over so long after the UTC day:
            where stamps are behind UTC, the day lasts longer there.
    """

    mode: str
    zone: ZoneInfo | None = None
    west_us: int = 0

    @classmethod
    def create(cls, mode: str, zone_name: str | None = None) -> Clock:
        """Build a clock from command-line words.

        Raises:
            InputError: Unknown mode or zone.
        """
        if mode not in ("utc", "wall"):
            raise InputError(
                f"unknown clock '{mode}'",
                code="unknown_clock",
                place="--clock",
                remedy="Use utc or wall; a FHIR export is also read on auto.",
            )
        try:
            return cls(mode, ZoneInfo(zone_name) if zone_name else None)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise InputError(
                f"unknown time zone '{zone_name}'",
                code="unknown_time_zone",
                place="--time-zone",
                remedy="Use an IANA name such as Europe/Berlin.",
            ) from error

    def read(self, text: str) -> Stamp:
        """Read one FHIR date, dateTime or instant (or `YYYY-MM-DD HH:MM:SS`).

        Raises:
            StampError: With the reason `bad_time`, `time_out_of_range` or `no_time_zone`.
        """
        # ISO weeks and days of the year are no FHIR dates, and would be read as something else.
        if not (text.isascii() and text[:4].isdigit() and text[4:5] in ("", "-")
                and text[7:8] in ("", "-")):  # fmt: skip
            raise StampError("bad_time")
        if len(text) <= 10:
            return self._read_date(text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise StampError("bad_time") from None
        if not FIRST_YEAR <= moment.year <= LAST_YEAR:
            raise StampError("time_out_of_range")
        if self.mode == "wall":
            us = _naive_us(moment.replace(tzinfo=None))
        elif moment.tzinfo is not None:
            us = _naive_us(moment.astimezone(UTC).replace(tzinfo=None))
        elif self.zone is not None:
            us = self._zone_to_us(moment)
        else:
            raise StampError("no_time_zone")
        return Stamp(us, us)

    def _read_date(self, text: str) -> Stamp:
        try:
            if len(text) == 10:
                first = date.fromisoformat(text)
                after = first.toordinal() + 1
            elif len(text) == 7:
                first = date(int(text[:4]), int(text[5:7]), 1)
                after = date(first.year + first.month // 12, first.month % 12 + 1, 1).toordinal()
            elif len(text) == 4:
                first = date(int(text), 1, 1)
                after = date(first.year + 1, 1, 1).toordinal()
            else:
                raise StampError("bad_time")
        except (ValueError, OverflowError):
            raise StampError("bad_time") from None
        if not FIRST_YEAR <= first.year <= LAST_YEAR:
            raise StampError("time_out_of_range")
        if self.mode == "utc" and self.zone is not None:
            start = self._zone_to_us(datetime.combine(first, datetime.min.time()))
            end = self._zone_to_us(datetime.combine(date.fromordinal(after), datetime.min.time()))
            return Stamp(start, end - 1)
        return Stamp(
            (first.toordinal() - _EPOCH_ORDINAL) * DAY_US,
            (after - _EPOCH_ORDINAL) * DAY_US - 1 + self.west_us,
        )

    def _zone_to_us(self, moment: datetime) -> int:
        return _naive_us(moment.replace(tzinfo=self.zone).astimezone(UTC).replace(tzinfo=None))


def _naive_us(moment: datetime) -> int:
    delta = moment - _EPOCH
    return delta.days * DAY_US + delta.seconds * 1_000_000 + delta.microseconds


def from_us(us: int) -> datetime:
    """Naive datetime of microseconds since 1970-01-01."""
    return _EPOCH + timedelta(microseconds=us)


def to_us(moment: datetime) -> int:
    """Microseconds since 1970-01-01 of a naive datetime."""
    return _naive_us(moment)


@dataclass(frozen=True, slots=True)
class CodingDelay:
    """When discharge codes become known: billing codes are set days after the patient left.

    Attributes:
        hours: From the end of the encounter to the moment its ICD and DRG codes are available.
    """

    hours: float = 120.0

    def available_us(self, encounter_end_us: int) -> int:
        """Microseconds at which an encounter's billing codes may first be read."""
        return encounter_end_us + int(self.hours * HOUR_US)
