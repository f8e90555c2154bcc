"""The time column of a frame as seconds for a model.

Stamps may be dates, date-times with or without a zone, or plain numbers whose unit is then asked
for. With a zone, durations are between instants, so the hour that repeats when summer time ends is
two hours; without one, the clock is taken to run on evenly, as written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm.errors import InputError

UNIT_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0,
    "w": 604_800.0,
}  # fmt: skip
TICKS_A_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class TimeAxis:
    """What kind of column the times are.

    Attributes:
        dtype: Type of the column.
        unit_seconds: Length of its unit where it is numeric; 1 elsewhere.
    """

    dtype: pl.DataType
    unit_seconds: float = 1.0

    @classmethod
    def of(cls, column: pl.Series, time_unit: str | None, place: str) -> TimeAxis:
        """Of a column.

        Raises:
            InputError: It holds no times, has nulls, or is numeric without a unit.
        """
        dtype = column.dtype
        if column.null_count():
            raise InputError(
                f"{column.null_count()} rows have no time", code="null_timestamp", place=place,
                remedy="Leave these rows out, or give them their time.",
            )  # fmt: skip
        if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
            return cls(dtype)
        if not dtype.is_numeric():
            raise InputError(
                f"the time column is of type {dtype}", code="bad_time_column", place=place,
                remedy="Make it dates, date-times, or numbers with time_unit.",
            )  # fmt: skip
        if time_unit not in UNIT_SECONDS:
            raise InputError(
                "the time column is numeric and its unit is not said", code="no_time_unit",
                place=place, remedy=f"Give time_unit, one of {', '.join(UNIT_SECONDS)}.",
            )  # fmt: skip
        if not bool(column.cast(pl.Float64).is_finite().all()):
            raise InputError(
                "a time is not finite", code="bad_time_column", place=place,
                remedy="Leave these rows out, or give them their time.",
            )  # fmt: skip
        return cls(dtype, UNIT_SECONDS[time_unit])

    @property
    def zone(self) -> str | None:
        """Time zone of the column."""
        return self.dtype.time_zone if isinstance(self.dtype, pl.Datetime) else None

    def check_same_clock(self, other: TimeAxis, place: str) -> None:
        """Check that two columns can be compared.

        Raises:
            InputError: One has a zone and the other none, or one is numeric.
        """
        kinds = [(a.dtype.is_numeric(), a.zone is None) for a in (self, other)]
        if kinds[0] != kinds[1]:
            raise InputError(
                "two time columns are not on the same clock", code="other_clock", place=place,
                remedy="Give both with a time zone, both without, or both as numbers.",
            )  # fmt: skip

    def seconds(self, column: pl.Series) -> NDArray[np.float64]:
        """Seconds since 1970, or since the nought of a numeric axis."""
        if self.dtype.is_numeric():
            return column.cast(pl.Float64).to_numpy() * self.unit_seconds
        if self.dtype == pl.Date:
            return column.cast(pl.Int32).to_numpy() * 86_400.0
        assert isinstance(self.dtype, pl.Datetime)
        ticks = column.to_physical().to_numpy()
        a_second = TICKS_A_SECOND[self.dtype.time_unit]
        return ticks // a_second + (ticks % a_second) / a_second

    def moment(self, when: Any, time_unit: str | None, place: str) -> pl.Series:
        """One moment as a column of this axis' type.

        Args:
            when: A date, date-time or number.
            time_unit: Unit of a number.
            place: Name of the argument.

        Raises:
            InputError: It is not on this clock.
        """
        known = isinstance(when, date | np.datetime64 | int | float | np.number)
        # NaT is a date-time and a datetime64 that is not itself.
        if not known or isinstance(when, bool) or (when != when and not _is_numeric(when)):
            raise InputError(
                f"a time of type {type(when).__name__}", code="bad_time", place=place,
                remedy="Give a date-time, or a number for a numeric time column.",
            )  # fmt: skip
        if hasattr(when, "to_datetime64"):  # of pandas, to the nanosecond
            stamp: Any = when
            column = _of_datetime64(stamp.to_datetime64())
            column = column.dt.replace_time_zone("UTC") if stamp.tzinfo else column
        elif isinstance(when, np.datetime64):
            column = _of_datetime64(when)
        else:
            column = pl.Series([when]) if isinstance(when, date) else pl.Series(np.array([when]))
        self.check_same_clock(TimeAxis.of(column, time_unit, place), place)
        if self.dtype == pl.Date:
            return column.cast(pl.Datetime("us"))
        if self.dtype.is_numeric():
            return column
        return column.cast(self.dtype)


def _is_numeric(when: Any) -> bool:
    return isinstance(when, int | float | np.number)


def _of_datetime64(when: np.datetime64) -> pl.Series:
    fine = np.datetime_data(when)[0] in TICKS_A_SECOND
    return pl.Series(np.array([when], None if fine else "datetime64[us]"))


class PointClock:
    """Reads times one by one: all with a zone, all without, or all numbers of one unit.

    Args:
        time_unit: Unit of times that are numbers; None takes none.

    Attributes:
        kind: What times are, `aware`, `naive` or `number`; empty until its owner has taken one.

    Raises:
        InputError: An unknown unit.
    """

    def __init__(self, time_unit: str | None) -> None:
        """Begin without a kind."""
        if time_unit is not None and time_unit not in UNIT_SECONDS:
            raise InputError(
                f"'{time_unit}' is no unit of time", code="bad_time_unit", place="time_unit",
                remedy=f"Give one of {', '.join(UNIT_SECONDS)}.",
            )  # fmt: skip
        self.unit, self.kind = time_unit, ""

    def read(self, when: Any) -> tuple[str, float]:
        """Kind and seconds since 1970 of a date-time, one without a zone as if in UTC, or a number.

        Raises:
            InputError: It can't be read, or is of another kind than those before.
        """
        kind, seconds = "", math.nan
        if isinstance(when, np.datetime64):
            kind, seconds = "naive", float(when.astype("datetime64[us]").astype(np.int64)) / 1e6
        elif isinstance(when, datetime) and when == when:  # NaT of pandas is one, and not itself
            kind = "aware" if when.tzinfo else "naive"
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        elif self.unit and isinstance(when, int | float | np.number):
            kind, seconds = "number", float(when) * UNIT_SECONDS[self.unit]
        if not kind or not -1e12 < seconds < 1e12:
            raise InputError(
                "a time can't be read", code="bad_time", place="timestamp",
                remedy="Give a date-time, or a number and its time_unit.",
            )  # fmt: skip
        if kind != (self.kind or kind):
            raise InputError(
                f"a time is {kind} among {self.kind} ones", code="mixed_clocks", place="timestamp",
                remedy="Give all times a zone, or none, or all as numbers.",
            )  # fmt: skip
        return kind, seconds

    def listed(self, times: Any) -> list[Any]:
        """Times as a list, of which one alone is one.

        Raises:
            InputError: They are none.
        """
        if isinstance(times, np.ndarray):
            return list(times.ravel())
        if isinstance(times, date | str | int | float | np.generic):
            return [times]
        try:
            return list(times)
        except TypeError:
            raise InputError(
                f"times of type {type(times).__name__}", code="bad_time", place="timestamps",
                remedy="Give a list of times, or one.",
            ) from None  # fmt: skip

    def column(self, times: list[Any]) -> pl.Series:
        """Times that were read as a column."""
        if self.kind == "number":
            plain = [t.item() if isinstance(t, np.generic) else t for t in times]
            whole = all(isinstance(t, int) and abs(t) < 2**63 for t in plain)
            return pl.Series(plain, dtype=pl.Int64 if whole else pl.Float64, strict=False)
        if any(isinstance(t, np.datetime64) for t in times):
            found = np.array([np.datetime64(t) for t in times])
            fine = found.dtype == np.dtype("datetime64[ns]")
            return pl.Series(found if fine else found.astype("datetime64[us]"))
        if len({t.tzinfo for t in times}) > 1:
            times = [t.astimezone(UTC) for t in times]
        return pl.Series(times)
