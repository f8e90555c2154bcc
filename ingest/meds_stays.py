# pyright: strict
"""Hospital stays in a MEDS data set: what they tell about events that do not say it themselves.

MEDS has no word for when a fact became known or to which stay it belongs. The official MIMIC-IV
conversion puts billing codes at the moment of discharge (procedures at midnight of their day),
where they would tell a model at that moment what coders wrote days later. Here such codes are
available a coding delay after the end of their stay, and events between an admission and its
discharge get that stay's key.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

import polars as pl

from tsfm import clock, codes, schema

START, END = "_start", "_end"
_ENCOUNTER, _SOURCE_ROW = "_encounter", "_source_row"
_BILLED_CLASSES = (codes.DIAGNOSIS, "DRG", "HCPCS")


def is_class(name: str) -> pl.Expr:
    """Rows whose code is of a class; see `codes.is_class`."""
    code = pl.col(schema.CODE)
    return (code == name) | code.str.starts_with(name + codes.SEPARATOR)


def is_billing_code() -> pl.Expr:
    """Rows whose code is set by coders after the patient left."""
    return pl.any_horizontal(
        *(is_class(name) for name in _BILLED_CLASSES),
        is_class(f"{codes.PROCEDURE}{codes.SEPARATOR}ICD"),
    )


def is_bound() -> pl.Expr:
    """Rows that begin or end a hospital stay."""
    return is_class(codes.ADMISSION) | is_class(codes.DISCHARGE)


def in_clock_range(*columns: str) -> pl.Expr:
    """Rows whose times are none, or in a year that a de-identified record may have."""
    return pl.all_horizontal(_in_clock_range(pl.col(name)) for name in columns)


def _in_clock_range(time: pl.Expr) -> pl.Expr:
    # A time beyond the calendar has no year: it is there, and out of range.
    year = time.dt.year().is_between(clock.FIRST_YEAR, clock.LAST_YEAR)
    return time.is_null() | year.fill_null(value=False)


def pair_stays(bounds: pl.DataFrame) -> pl.DataFrame:
    """Hospital stays from their admissions and discharges.

    Where every bound names its encounter, the encounter pairs them. Else, for a subject with as
    many discharges as admissions and none too early, the k-th of each are paired; otherwise a
    discharge ends the latest admission before it.

    Args:
        bounds: Rows of `is_bound()` with subject, time, code and perhaps encounter, times not null.

    Returns:
        One row a stay: subject, start, end (null while it lasts), encounter; ordered by start.
    """
    subject, encounter = schema.SUBJECT_ID, schema.ENCOUNTER_ID
    if encounter not in bounds.columns:
        bounds = bounds.with_columns(pl.lit(None, pl.Int64).alias(encounter))
    starts = bounds.filter(is_class(codes.ADMISSION)).select(
        subject, pl.col(schema.TIME).alias(START), pl.col(encounter).alias(_ENCOUNTER)
    )
    ends = bounds.filter(is_class(codes.DISCHARGE)).select(
        subject, pl.col(schema.TIME).alias(END), pl.col(encounter).alias(_ENCOUNTER)
    )
    if bounds.height and not bounds[encounter].null_count():
        key = [subject, _ENCOUNTER]
        stays = (
            starts.group_by(key)
            .agg(pl.col(START).min())
            .join(ends.group_by(key).agg(pl.col(END).max()), on=key, how="left")
        )
    else:
        stays = _pair_by_order(starts.drop(_ENCOUNTER), ends.drop(_ENCOUNTER))
        keys = [
            stay_key(s, t) for s, t in stays.select(subject, pl.col(START).cast(pl.Int64)).rows()
        ]
        stays = stays.with_columns(pl.Series(_ENCOUNTER, keys, dtype=pl.Int64))
    return stays.select(subject, START, END, _ENCOUNTER).sort(START, subject, _ENCOUNTER)


def stay_key(subject_id: int, start_us: int) -> int:
    """Positive 63-bit key of a stay, the same in every run.

    >>> stay_key(7, 0) == stay_key(7, 0) < 2**63
    True
    """
    digest = hashlib.blake2b(f"{subject_id}:{start_us}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def add_encounters(events: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """Give each event within a stay, bounds included, that stay's encounter id.

    A billing code or a discharge at the moment a stay ends belongs to that stay, even if another
    begins at the same moment.
    """
    frame = _with_stay(events, stays)
    return frame.with_columns(
        pl.coalesce(
            pl.when(is_billing_code() | is_class(codes.DISCHARGE)).then("_ended_encounter"),
            pl.when(_is_dated_code()).then("_day_encounter"),
            _ENCOUNTER,
        ).alias(schema.ENCOUNTER_ID)
    ).select(*events.columns, schema.ENCOUNTER_ID)


def add_available_times(
    events: pl.DataFrame, stays: pl.DataFrame, delay: timedelta
) -> tuple[pl.DataFrame, int, int]:
    """Fill in when events could first be known, where they do not say.

    Args:
        events: Events; a present `available_time` is kept.
        stays: From `pair_stays`.
        delay: From a stay's end to its billing codes being known.

    Returns:
        The events with `available_time`, how many billing codes were given one, and for how many
        of these no finished stay was found: these are known the delay after their own time.
    """
    frame = _with_stay(events, stays)
    billed = is_billing_code() & pl.col(schema.TIME).is_not_null()
    if schema.AVAILABLE_TIME in events.columns:
        billed = billed & pl.col(schema.AVAILABLE_TIME).is_null()
    else:
        frame = frame.with_columns(pl.lit(None, pl.Datetime("us")).alias(schema.AVAILABLE_TIME))
    own_end = pl.lit(None, pl.Datetime("us"))
    if schema.ENCOUNTER_ID in events.columns:
        key = [schema.SUBJECT_ID, schema.ENCOUNTER_ID]
        own = stays.select(
            schema.SUBJECT_ID,
            pl.col(_ENCOUNTER).alias(schema.ENCOUNTER_ID),
            pl.col(END).alias("_own_end"),
        ).unique(key)
        frame = frame.join(own, on=key, how="left", maintain_order="left")
        own_end = pl.col("_own_end")
    until = pl.coalesce(
        own_end,
        pl.when(pl.col("_ended_encounter").is_not_null()).then(schema.TIME),
        pl.when(_is_dated_code()).then("_day_end"),
        END,
    )
    frame = frame.with_columns(billed.alias("_billed"), until.alias("_until")).with_columns(
        pl.when("_billed")
        .then(pl.max_horizontal("_until", schema.TIME) + delay)
        .otherwise(pl.coalesce(schema.AVAILABLE_TIME, schema.TIME))
        .alias(schema.AVAILABLE_TIME)
    )
    n_billed = int(frame["_billed"].sum())
    n_alone = int((frame["_billed"] & frame["_until"].is_null()).sum())
    columns = dict.fromkeys([*events.columns, schema.AVAILABLE_TIME])
    return frame.select(*columns), n_billed, n_alone


def _pair_by_order(starts: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    subject = schema.SUBJECT_ID
    nth = pl.int_range(pl.len()).over(subject).alias("_nth")
    starts = starts.sort(subject, START).with_columns(nth)
    ends = ends.sort(subject, END).with_columns(nth)
    both = starts.join(ends, on=[subject, "_nth"], how="full", coalesce=True)
    bad = both[START].is_null() | both[END].is_null() | (both[END] < both[START])
    uneven = both.filter(bad)[subject].unique()
    even = both.filter(~pl.col(subject).is_in(uneven.implode())).select(subject, START, END)
    rest = starts.filter(pl.col(subject).is_in(uneven.implode())).sort(START).drop("_nth")
    ended = (
        ends.sort(END)
        .join_asof(
            rest.with_columns(pl.col(START).alias("_of")),
            left_on=END,
            right_on=START,
            by=subject,
            strategy="backward",
            check_sortedness=False,
        )
        .filter(pl.col("_of").is_not_null())
        .group_by(subject, "_of")
        .agg(pl.col(END).min())
    )
    matched = rest.unique([subject, START], maintain_order=True).join(
        ended, left_on=[subject, START], right_on=[subject, "_of"], how="left"
    )
    return pl.concat([even, matched.select(subject, START, END)])


def _is_dated_code() -> pl.Expr:
    """Billing codes that have a date but no hour: they may stand before their stay's first hour."""
    time = pl.col(schema.TIME)
    return is_billing_code() & (time == time.dt.truncate("1d"))


def _with_stay(events: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """Events with the stay around them by the hour, by the day, and the one that ends with them."""
    subject = schema.SUBJECT_ID
    frame = events.with_row_index(_SOURCE_ROW).sort(schema.TIME, nulls_last=False)
    begun = stays.sort(START)
    by_day = begun.select(
        subject,
        pl.col(START).dt.truncate("1d").alias("_day"),
        pl.col(END).alias("_day_end"),
        pl.col(_ENCOUNTER).alias("_day_encounter"),
    ).sort("_day", maintain_order=True)
    ended = stays.drop_nulls(END).unique([subject, END], keep="last", maintain_order=True)
    for right, key in ((begun, START), (by_day, "_day")):
        frame = frame.join_asof(
            right,
            left_on=schema.TIME,
            right_on=key,
            by=subject,
            strategy="backward",
            check_sortedness=False,
        )
    ended = ended.select(
        subject, pl.col(END).alias(schema.TIME), pl.col(_ENCOUNTER).alias("_ended_encounter")
    )
    lasts = pl.col(schema.TIME) <= pl.coalesce(END, pl.col(schema.TIME))
    lasts_day = pl.col(schema.TIME) <= pl.coalesce("_day_end", pl.col(schema.TIME))
    return (
        frame.join(ended, on=[subject, schema.TIME], how="left")
        .with_columns(
            *(pl.when(lasts).then(name).alias(name) for name in (END, _ENCOUNTER)),
            *(pl.when(lasts_day).then(n).alias(n) for n in ("_day_end", "_day_encounter")),
        )
        .sort(_SOURCE_ROW)
    )
