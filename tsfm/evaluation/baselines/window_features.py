"""Hand-made features of measurements in windows of hours, for gradient boosting in intensive care.

Where values come by the hour, counts over days say little and the course within a day says much.
For every code with values: how often, mean, least, largest, spread and last in windows of the stay;
over the whole stay also the first, quantiles, sum, slope, and the hours since the first and the
last. Ratios of two measurements (oxygen pressure to inspired oxygen, heart rate to pressure) are
series of their own, made where the later of the two stands. Codes without values count. Missing is
NaN, which trees handle.

An event is used if it was available by the prediction time; codes are chosen on training subjects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import codes, schema

STAY = "stay"
_VALUE, _HOURS, _ROW, _SINCE = "_value", "_hours", "_row", "_since"
_DAYS_PER_YEAR = 365.25


@dataclass(frozen=True)
class Window:
    """A stretch of a stay.

    Attributes:
        name: Part of the features' names.
        first_hours: Only so many hours from the start of the stay.
        last_hours: Only so many hours up to the prediction time.
    """

    name: str
    first_hours: float | None = None
    last_hours: float | None = None

    def holds(self) -> pl.Expr:
        """Whether an event lies in the window."""
        inside = pl.lit(True)
        if self.first_hours is not None:
            inside &= pl.col(_SINCE) <= self.first_hours
        if self.last_hours is not None:
            inside &= pl.col(_HOURS) < self.last_hours
        return inside


WINDOWS = (
    Window("last24", last_hours=24.0),
    Window("last8", last_hours=8.0),
    Window("first24", first_hours=24.0),
)


@dataclass(frozen=True)
class Ratio:
    """One measurement over the last value of another.

    Attributes:
        name: Of the new series.
        over: Codes of the measurement that is divided.
        under: Codes of what it is divided by.
        factor: What the ratio is multiplied by.
    """

    name: str
    over: tuple[str, ...]
    under: tuple[str, ...]
    factor: float = 1.0


def window_features(
    events: pl.DataFrame,
    cohort: pl.DataFrame,
    train_subjects: Iterable[int],
    *,
    windows: Sequence[Window] = WINDOWS,
    ratios: Sequence[Ratio] = (),
    min_subjects: int = 20,
) -> tuple[NDArray[np.float32], list[str]]:
    """Features of every row of a cohort.

    Args:
        events: Whole subjects, columns of `schema.EVENTS`.
        cohort: Rows of `schema.COHORT`.
        train_subjects: Subjects on whom codes are chosen.
        windows: Stretches beside the whole stay.
        ratios: Series made of two others.
        min_subjects: Training subjects below which a code is not used.

    Returns:
        Matrix of shape (rows of the cohort, features), in the cohort's order, and the names.
    """
    rows = cohort.select(schema.SUBJECT_ID, schema.PREDICTION_TIME, "start_time")
    rows = rows.with_row_index(_ROW)
    known = _known(events, rows)
    known = pl.concat([known, *(_ratio(known, ratio) for ratio in ratios)])
    train = known.filter(pl.col(schema.SUBJECT_ID).is_in(set(train_subjects)))
    kept = _chosen(train, min_subjects)
    valued = known.filter(pl.col(schema.CODE).is_in(kept[0]) & pl.col(_VALUE).is_not_null())
    valued = valued.sort(
        _ROW, schema.CODE, _HOURS, descending=[False, False, True], maintain_order=True
    )
    tables = [_table(valued, STAY, [*_short(), *_long()], kept[0])]
    for window in windows:
        tables.append(_table(valued.filter(window.holds()), window.name, _short(), kept[0]))
    counted = known.filter(pl.col(schema.CODE).is_in(kept[1]))
    tables.append(_table(counted, STAY, [pl.len().alias("n")], kept[1]))
    wide = rows.select(_ROW).join(_context(events, rows, known), on=_ROW, how="left")
    for table in tables:
        wide = wide.join(table, on=_ROW, how="left")
    wide = wide.sort(_ROW).drop(_ROW)
    counts = [name for name in wide.columns if name.endswith("/n")]
    wide = wide.with_columns(pl.col(counts).fill_null(0)).cast(pl.Float32)
    return wide.fill_null(float("nan")).to_numpy(), wide.columns


def _known(events: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Events with a time that are known by a row's prediction time, a row each."""
    now, at = pl.col(schema.PREDICTION_TIME), pl.col(schema.TIME)
    available = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)
    return (
        events.lazy()
        .filter(at.is_not_null() & (pl.col(schema.CODE) != codes.BIRTH))
        .select(
            schema.SUBJECT_ID, schema.TIME, schema.CODE,
            pl.col(schema.NUMERIC_VALUE).fill_nan(None).cast(pl.Float64).alias(_VALUE),
            available.alias("_available"),
        )
        .join(rows.lazy(), on=schema.SUBJECT_ID, maintain_order="left")
        .filter((pl.col("_available") <= now) & (at >= pl.col("start_time")) & (at <= now))
        .select(
            _ROW, schema.SUBJECT_ID, schema.CODE, _VALUE,
            (now - at).dt.total_microseconds().cast(pl.Float64).truediv(3.6e9).alias(_HOURS),
            (at - pl.col("start_time")).dt.total_microseconds().cast(pl.Float64).truediv(3.6e9)
            .alias(_SINCE),
        )
        .collect()
    )  # fmt: skip


def _ratio(known: pl.DataFrame, ratio: Ratio) -> pl.DataFrame:
    valued = known.filter(pl.col(_VALUE).is_not_null()).sort(_SINCE, maintain_order=True)
    over = valued.filter(pl.col(schema.CODE).is_in(ratio.over))
    under = valued.filter(pl.col(schema.CODE).is_in(ratio.under) & (pl.col(_VALUE) > 0))
    under = under.select(_ROW, _SINCE, pl.col(_VALUE).alias("_under"))
    paired = over.join_asof(
        under, on=_SINCE, by=_ROW, strategy="backward", check_sortedness=False
    ).drop_nulls("_under")
    made = paired.with_columns(
        pl.lit(ratio.name).alias(schema.CODE),
        (pl.col(_VALUE) / pl.col("_under") * ratio.factor).alias(_VALUE),
    )
    return made.select(known.columns)


def _chosen(train: pl.DataFrame, min_subjects: int) -> tuple[list[str], list[str]]:
    """Codes with values, and codes without, that enough training subjects have."""
    found = (
        train.group_by(schema.CODE)
        .agg(
            pl.col(schema.SUBJECT_ID).n_unique().alias("subjects"),
            (pl.col(_VALUE).count() * 2 >= pl.len()).alias("valued"),
        )
        .filter(pl.col("subjects") >= min_subjects)
        .sort(schema.CODE)
    )
    return (
        found.filter("valued")[schema.CODE].to_list(),
        found.filter(~pl.col("valued"))[schema.CODE].to_list(),
    )


def _short() -> list[pl.Expr]:
    value = pl.col(_VALUE)
    return [
        pl.len().alias("n"), value.mean().alias("mean"), value.min().alias("min"),
        value.max().alias("max"), value.std().alias("std"), value.last().alias("last"),
    ]  # fmt: skip


def _long() -> list[pl.Expr]:
    value, time = pl.col(_VALUE), -pl.col(_HOURS)
    centred = time - time.mean()
    spread = centred.pow(2).sum()
    return [
        value.first().alias("first"), value.median().alias("median"), value.sum().alias("sum"),
        value.quantile(0.1).alias("q10"), value.quantile(0.9).alias("q90"),
        pl.when(spread > 0).then((centred * value).sum() / spread).alias("slope"),
        pl.col(_HOURS).last().alias("hours_since_last"),
        pl.col(_SINCE).first().alias("hours_to_first"),
    ]  # fmt: skip


def _table(
    events: pl.DataFrame, window: str, aggregates: list[pl.Expr], of: Collection[str]
) -> pl.DataFrame:
    """A row of the cohort a row, a column a code and aggregate, in a fixed order."""
    long = events.group_by(_ROW, schema.CODE).agg(aggregates)
    names = [name for name in long.columns if name not in (_ROW, schema.CODE)]
    parts: dict[str, pl.DataFrame] = {
        str(key[0]): part for key, part in long.partition_by(schema.CODE, as_dict=True).items()
    }
    everyone = pl.DataFrame(schema={_ROW: long.schema[_ROW]})
    tables: list[pl.DataFrame] = []
    for code in of:
        renamed = {name: f"{code}/{window}/{name}" for name in names}
        part = parts.get(code)
        if part is None:
            part = everyone.with_columns(pl.lit(None, pl.Float64).alias(name) for name in names)
        tables.append(part.select(_ROW, *names).rename(renamed))
    if not tables:
        return everyone
    index = pl.concat([table.select(_ROW) for table in tables]).unique().sort(_ROW)
    return pl.concat(
        [index, *(index.join(t, on=_ROW, how="left", maintain_order="left").drop(_ROW)
                  for t in tables)],
        how="horizontal",
    )  # fmt: skip


def _context(events: pl.DataFrame, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Age, sex, and how much was recorded at all."""
    births = events.filter(pl.col(schema.CODE) == codes.BIRTH).select(
        schema.SUBJECT_ID, _birth=schema.TIME
    )
    sexes = events.filter(
        pl.col(schema.CODE).str.starts_with(codes.GENDER + codes.SEPARATOR)
    ).select(
        schema.SUBJECT_ID,
        _female=pl.col(schema.CODE).str.ends_with("F").cast(pl.Float64),
        _told=pl.coalesce(schema.AVAILABLE_TIME, schema.TIME),
    )
    for_each = {"keep": "first", "maintain_order": True}
    born_days = (pl.col(schema.PREDICTION_TIME) - pl.col("_birth")).dt.total_hours() / 24
    recorded = known.group_by(_ROW).agg(
        pl.len().alias("events"), pl.col(_HOURS).n_unique().alias("moments"),
        pl.col(schema.CODE).n_unique().alias("codes"),
    )  # fmt: skip
    return (
        rows.join(births.unique(schema.SUBJECT_ID, **for_each), on=schema.SUBJECT_ID, how="left")
        .join(sexes.unique(schema.SUBJECT_ID, **for_each), on=schema.SUBJECT_ID, how="left")
        .join(recorded, on=_ROW, how="left")
        .select(
            _ROW, (born_days / _DAYS_PER_YEAR).alias("age_years"),
            pl.when((pl.col("_told") <= pl.col(schema.PREDICTION_TIME)).fill_null(True))
            .then("_female").alias("female"), "events", "moments", "codes",
        )
    )  # fmt: skip
