"""Stamps that go on where a time column ends, in steps that are given or told from it.

The step of a series is the lower median of its gaps. A step of whole days or months is one of the
calendar, counted on the local clock: daily stamps at 8:00 stay at 8:00 when summer time begins,
monthly ones keep their day, and ends of months stay ends of months. Where the clock then shows a
time twice the first is taken; where it skips it, the time an hour later.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl

from tsfm.errors import InputError
from tsfm.forecasting.time_axis import TICKS_A_SECOND, UNIT_SECONDS, TimeAxis

_MONTHS = {"MS": 1, "ME": 1, "mo": 1, "QS": 3, "QE": 3, "q": 3, "YS": 12, "YE": 12, "y": 12}
_DAYS = {"d": 1, "D": 1, "w": 7, "W": 7}
_SECONDS = {**UNIT_SECONDS, "m": 60.0, "T": 60.0, "H": 3600.0, "S": 1.0}
_LEAST_DAYS_OF_A_MONTH, _MOST_DAYS_OF_A_MONTH = 28, 31


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
    a_day = 86_400.0 * TICKS_A_SECOND[unit]
    last = 2.0**63 / a_day if unit == "ns" else (date.max - date(1970, 1, 1)).days
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
    a_day = 86_400 * TICKS_A_SECOND[unit]
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
        ticks = round(freq / timedelta(microseconds=1)) * TICKS_A_SECOND[unit] // 1_000_000
    else:
        parts = re.fullmatch(r"(\d*)\s*([A-Za-z]+)(-[A-Z]{3})?", str(freq))
        number, name = (int(parts[1] or 1), parts[2]) if parts else (0, "")
        if name in _MONTHS:
            months, month_end = number * _MONTHS[name], name.endswith("E")
        elif name in _DAYS:
            days = number * _DAYS[name]
        elif name in _SECONDS:
            ticks = round(number * _SECONDS[name] * TICKS_A_SECOND[unit])
    if not numeric and axis.dtype == pl.Date and ticks % (86_400 * 1_000_000) == 0:
        days, ticks = days + ticks // (86_400 * 1_000_000), 0
    if not months + days + ticks > 0 or not max(months, days, ticks) < 2.0**53:
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
