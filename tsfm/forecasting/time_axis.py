"""The time column of a frame: as seconds for a model, and stamps that go on where it ends.

Stamps may be dates, date-times with or without a zone, or plain numbers whose unit is then asked
for. With a zone, durations are between instants, so the hour that repeats when summer time ends is
two hours; without one, the clock is taken to run on evenly, as written.

The step of a series is the lower median of its gaps. A step of whole days or months is one of the
calendar, counted on the local clock: daily stamps at 8:00 stay at 8:00 when summer time begins,
monthly ones keep their day, and ends of months stay ends of months. Where the clock then shows a
time twice the first is taken; where it skips it, the time an hour later.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm.errors import InputError

UNIT_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0,
    "w": 604_800.0,
}  # fmt: skip
_TICKS_A_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_MONTHS = {"MS": 1, "ME": 1, "mo": 1, "QS": 3, "QE": 3, "q": 3, "YS": 12, "YE": 12, "y": 12}
_DAYS = {"d": 1, "D": 1, "w": 7, "W": 7}
_SECONDS = {**UNIT_SECONDS, "m": 60.0, "T": 60.0, "H": 3600.0, "S": 1.0}
_LEAST_DAYS_OF_A_MONTH, _MOST_DAYS_OF_A_MONTH = 28, 31


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
        a_second = _TICKS_A_SECOND[self.dtype.time_unit]
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
    fine = np.datetime_data(when)[0] in _TICKS_A_SECOND
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


def future_stamps(
    rows: pl.DataFrame, start: pl.DataFrame, n: int, freq: Any, axis: TimeAxis
) -> tuple[pl.DataFrame, int]:
    """Stamps that go on in steps.

    Args:
        rows: Stamps of each series so far: `series`, `stamp`.
        start: After what they go on: `series`, `stamp`, a row a series.
        n: How many.
        freq: A step such as "15min", "1h", "1d", "MS", a timedelta, or a number for a numeric axis;
            None is the typical step of each series, or that of all where one has no gap.
        axis: Kind of the stamps.

    Returns:
        `series` and `stamp`, in the order of `start`, and how many series took the step of all.

    Raises:
        InputError: No step is given and none can be told, or it can't be read.
    """
    borrowed = 0
    if axis.dtype.is_integer():  # in small types, sums and gaps would wrap around
        rows, start = (frame.cast({"stamp": pl.Int64}) for frame in (rows, start))
    if freq is not None:
        steps = start.select("series").join(_read_step(freq, axis), how="cross")
    else:
        steps, borrowed = _typical_steps(rows, start, axis)
    every = start.join(steps, on="series", how="left", maintain_order="left")
    every = every.join(pl.DataFrame({"k": np.arange(1, n + 1)}), how="cross", maintain_order="left")
    if axis.dtype.is_numeric():
        if axis.dtype.is_integer() and every["ticks"].dtype.is_integer():
            whole = every.select("series", pl.col("stamp") + pl.col("k") * pl.col("ticks"))
            narrow = whole.with_columns(pl.col("stamp").cast(axis.dtype, strict=False))
            return whole if narrow["stamp"].has_nulls() else narrow, borrowed
        going_on = pl.col("stamp") + pl.col("k") * pl.col("ticks")
        going_on = going_on.cast(axis.dtype if axis.dtype.is_float() else pl.Float64)
        return every.select("series", going_on), borrowed
    if axis.dtype == pl.Date and bool((every["ticks"] != 0).any()):
        raise _bad_freq("a step of part of a day on a column of dates")
    _check_reach(every, axis)
    stamp = pl.col("stamp").cast(pl.Datetime("us")) if axis.dtype == pl.Date else pl.col("stamp")
    local = stamp.dt.replace_time_zone(None)
    by_calendar = local.dt.offset_by(
        pl.format("{}mo{}d", pl.col("k") * pl.col("months"), pl.col("k") * pl.col("days"))
    )
    by_calendar = pl.when("month_end").then(by_calendar.dt.month_end()).otherwise(by_calendar)
    if axis.zone is not None:
        first = by_calendar.dt.replace_time_zone(
            axis.zone, ambiguous="earliest", non_existent="null"
        )
        later = by_calendar.dt.offset_by("1h").dt.replace_time_zone(
            axis.zone, ambiguous="earliest", non_existent="null"
        )
        by_calendar = first.fill_null(later)
    exact = (stamp.to_physical() + pl.col("k") * pl.col("ticks")).cast(
        pl.Datetime("us") if axis.dtype == pl.Date else axis.dtype
    )
    going_on = pl.when(pl.col("ticks") == 0).then(by_calendar).otherwise(exact)
    return every.select("series", going_on.cast(axis.dtype).alias("stamp")), borrowed


def _check_reach(every: pl.DataFrame, axis: TimeAxis) -> None:
    """Refuse steps that lead beyond the last time that the column can hold."""
    unit = axis.dtype.time_unit if isinstance(axis.dtype, pl.Datetime) else "us"
    a_day = 86_400.0 * _TICKS_A_SECOND[unit]
    last = 2.0**63 / a_day if unit == "ns" else (datetime.max - datetime(1970, 1, 1)).days
    stamp = pl.col("stamp").cast(pl.Datetime("us")) if axis.dtype == pl.Date else pl.col("stamp")
    months, days, ticks = (pl.col(part).cast(pl.Float64) for part in ("months", "days", "ticks"))
    ahead = months * _MOST_DAYS_OF_A_MONTH + days + ticks / a_day
    reach = stamp.to_physical() / a_day + pl.col("k") * ahead
    # A day or two for the zone.
    if bool((every.select(reach.alias("reach"))["reach"] >= last - 2).any()):
        raise _bad_freq("a step that leads beyond what a time can hold")


def _typical_steps(
    rows: pl.DataFrame, start: pl.DataFrame, axis: TimeAxis
) -> tuple[pl.DataFrame, int]:
    """Step of each series of `start`, and how many took the most usual one."""
    rows = rows.unique(["series", "stamp"]).sort("series", "stamp")
    gap = pl.col("stamp").diff().over("series")
    if axis.dtype.is_numeric():
        found = rows.with_columns(gap=gap).group_by("series").agg(ticks=_middle(pl.col("gap")))
    else:
        found = _calendar_steps(rows, axis)
    steps = start.select("series").join(found, on="series", how="left", maintain_order="left")
    told = steps.drop_nulls("ticks")
    if told.is_empty():
        raise InputError(
            "no series has two times to tell a step from", code="no_step", place="freq",
            remedy="Give freq, or future_df with the times.",
        )  # fmt: skip
    usual = told.drop("series").group_by(pl.all(), maintain_order=True).len()
    usual = usual.sort("len", descending=True, maintain_order=True).drop("len").row(0, named=True)
    without = pl.col("ticks").is_null()
    filled = [pl.when(without).then(pl.lit(v)).otherwise(k).alias(k) for k, v in usual.items()]
    return steps.with_columns(filled), steps.height - told.height


def _calendar_steps(rows: pl.DataFrame, axis: TimeAxis) -> pl.DataFrame:
    """`months`, `days`, `ticks` and `month_end` of each series; two of the first three are 0."""
    stamp = pl.col("stamp").cast(pl.Datetime("us")) if axis.dtype == pl.Date else pl.col("stamp")
    rows = rows.with_columns(stamp=stamp, local=stamp.dt.replace_time_zone(None))
    unit = axis.dtype.time_unit if isinstance(axis.dtype, pl.Datetime) else "us"
    a_day = 86_400 * _TICKS_A_SECOND[unit]
    local, count = pl.col("local"), pl.col("local").dt.year() * 12 + pl.col("local").dt.month()
    rows = rows.with_columns(
        gap=pl.col("stamp").to_physical().diff().over("series"),
        local_gap=local.to_physical().diff().over("series"),
        month_gap=count.diff().over("series"),
        time=local.dt.time(),
        day=local.dt.day(),
        at_end=local.dt.month_end() == local,
    )
    told = rows.group_by("series").agg(
        gap=_middle(pl.col("gap")), local_gap=_middle(pl.col("local_gap")),
        month_gap=_middle(pl.col("month_gap")),
        at_end=pl.col("at_end").all(), one_day=pl.col("day").n_unique() == 1,
        one_time=pl.col("time").n_unique() == 1,
    )  # fmt: skip
    long = pl.col("local_gap") >= _LEAST_DAYS_OF_A_MONTH * a_day
    monthly = long & pl.col("one_time") & (pl.col("at_end") | pl.col("one_day"))
    daily = ~monthly & (pl.col("local_gap") % a_day == 0)
    return told.select(
        "series",
        months=pl.when(monthly).then("month_gap").otherwise(0).cast(pl.Int64),
        days=pl.when(daily).then(pl.col("local_gap") // a_day).otherwise(0),
        ticks=pl.when(pl.col("gap").is_null()).then(None)
        .when(monthly | daily).then(0).otherwise("gap"),
        month_end=monthly & pl.col("at_end"),
    )  # fmt: skip


def _middle(gap: pl.Expr) -> pl.Expr:
    """Lower median: a gap that there is."""
    gap = gap.drop_nulls().sort()
    return gap.get((gap.len().cast(pl.Int64) - 1) // 2, null_on_oob=True)


def _read_step(freq: Any, axis: TimeAxis) -> pl.DataFrame:
    """One row of a step's parts."""
    months = days = ticks = 0
    month_end = False
    numeric = axis.dtype.is_numeric()
    if numeric != isinstance(freq, int | float | np.number) or isinstance(freq, bool):
        raise _bad_freq(f"a step of type {type(freq).__name__} on a column of {axis.dtype}")
    unit = axis.dtype.time_unit if isinstance(axis.dtype, pl.Datetime) else "us"
    if numeric:
        ticks = freq.item() if isinstance(freq, np.number) else freq
    elif isinstance(freq, timedelta):
        ticks = round(freq / timedelta(microseconds=1)) * _TICKS_A_SECOND[unit] // 1_000_000
    else:
        parts = re.fullmatch(r"(\d*)\s*([A-Za-z]+)(-[A-Z]{3})?", str(freq))
        number, name = (int(parts[1] or 1), parts[2]) if parts else (0, "")
        if name in _MONTHS:
            months, month_end = number * _MONTHS[name], name.endswith("E")
        elif name in _DAYS:
            days = number * _DAYS[name]
        elif name in _SECONDS:
            ticks = round(number * _SECONDS[name] * _TICKS_A_SECOND[unit])
    if not numeric and axis.dtype == pl.Date and ticks % (86_400 * 1_000_000) == 0:
        days, ticks = days + ticks // (86_400 * 1_000_000), 0
    if numeric and not math.isfinite(ticks):
        raise _bad_freq("a step that is no number")
    if not months + days + ticks > 0 or (not numeric and max(months, days, ticks) >= 2**53):
        raise _bad_freq("a step that can't be read, or is not longer than nought")
    return pl.DataFrame(
        {"months": [months], "days": [days], "ticks": [ticks], "month_end": [month_end]}
    )


def _bad_freq(message: str) -> InputError:
    return InputError(
        message, code="bad_freq", place="freq",
        remedy="Give a step such as '15min', '1h', '1d', '1w', 'MS' or a timedelta; for a numeric "
        "time column a number of its units.",
    )  # fmt: skip
