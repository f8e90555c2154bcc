"""From data frames to packed series and back, for frames of pandas, polars and pyarrow.

A frame is wide (a row an item and time, a column a variable) or long (a row an item, time and
variable). Rows may come in any order, with gaps, with stamps that are there twice, with values that
are missing; what was done to them is counted in a `PredictReport`. What comes back is a frame of
the kind that came in, its id and time columns of the types that came in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.forecasting.time_axis import TimeAxis
from tsfm.models.forecaster_checkpoint import Covariate

_UNREADABLE = (TypeError, ValueError, OverflowError, NotImplementedError, pl.exceptions.PolarsError)
_ROUNDING = 1e-10  # a spread below this share of the values is none
GiveBack = Callable[[pl.DataFrame, Sequence[str]], Any]


@dataclass(frozen=True)
class Layout:
    """Which column is what.

    Attributes:
        id: Item: patient, region, sensor.
        timestamp: Time.
        targets: Columns of values; of a long frame one.
        variable: Column that names the variable of a long frame; None is a wide frame.
        time_unit: Unit of a numeric time column.
        known: Variables that the model knows, in its order; none for anonymous series.
        covariates: What the model is told of the asked times.
    """

    id: str
    timestamp: str
    targets: tuple[str, ...]
    variable: str | None = None
    time_unit: str | None = None
    known: tuple[str, ...] = ()
    covariates: tuple[Covariate, ...] = ()

    @classmethod
    def of(cls, target: str | Sequence[str], variable_column: str | None, **rest: Any) -> Layout:
        """From arguments as users give them.

        Raises:
            InputError: No target, one twice, or several of a long frame.
        """
        targets = (target,) if isinstance(target, str) else tuple(target)
        if not targets or len(set(targets)) < len(targets) or (variable_column and targets[1:]):
            raise InputError(
                "the target columns are none, one is there twice, or several of a long frame",
                code="bad_target", place="target",
                remedy="Name each column once; a long frame has one column of values.",
            )  # fmt: skip
        return cls(targets=targets, variable=variable_column, **rest)

    @property
    def columns(self) -> list[str]:
        """Columns that a frame must have."""
        return [self.id, self.timestamp, *self.targets, *([self.variable] if self.variable else [])]


@dataclass(frozen=True)
class PredictReport:
    """What became of the rows.

    Attributes:
        n_rows: Rows of the frame.
        n_items: Different ids.
        n_series: Series that were asked for.
        n_points: Points that were read.
        n_missing: Values that are missing.
        n_not_finite: Infinite values, left out.
        n_duplicates: Values beyond the first at a time of a series; their mean was taken.
        n_after_now: Values after `now`, left out.
        n_beyond_context: Values before the last `context_length` of a series, left out.
        n_empty_series: Series asked for without any point.
        n_steps_borrowed: Series whose step is that of the others, for want of two times.
        n_forecasts: Forecasts given.
    """

    n_rows: int
    n_items: int
    n_series: int
    n_points: int
    n_missing: int
    n_not_finite: int
    n_duplicates: int
    n_after_now: int
    n_beyond_context: int
    n_empty_series: int
    n_steps_borrowed: int
    n_forecasts: int


@dataclass(frozen=True)
class History:
    """A frame as it was read.

    Attributes:
        ids: Ids in the order of their first appearance.
        names: Names of the variables.
        axis: Kind of the time column.
        pairs: Series that have rows, before or after now: `item`, `name` (indices).
        rows: All rows up to now: `item`, `name`, `stamp`.
        points: Values up to now: `item`, `name`, `seconds`, `value` and covariates, sorted.
        now: When each item is forecast from: `item`, `stamp`.
        now_seconds: The same in seconds.
        counts: Parts of the report.
    """

    ids: pl.Series
    names: tuple[str, ...]
    axis: TimeAxis
    pairs: pl.DataFrame
    rows: pl.DataFrame
    points: pl.DataFrame
    now: pl.DataFrame
    now_seconds: NDArray[np.float64]
    counts: dict[str, int]


def read_frame(
    frame: Any, columns: Sequence[str], place: str, optional: Sequence[str] = ()
) -> tuple[pl.DataFrame, GiveBack]:
    """Columns of a frame as polars, and the way back to the caller's kind.

    The way back takes a frame of polars and the columns that are to have the types they had here.

    Args:
        frame: A table of pandas, polars or pyarrow.
        columns: Columns that must be there.
        place: Name of the argument, for errors.
        optional: Columns that are read if they are there.

    Raises:
        InputError: Another kind, a column is missing, or one can't be read.
    """
    kind = type(frame).__module__.partition(".")[0]
    name = type(frame).__name__
    if (kind, name) not in {("polars", "DataFrame"), ("pandas", "DataFrame"), ("pyarrow", "Table")}:
        raise InputError(
            f"the table is a {kind}.{name}", code="unknown_frame", place=place,
            remedy="Give a data frame of pandas or polars, or a table of pyarrow.",
        )  # fmt: skip
    present = list(frame.column_names if kind == "pyarrow" else frame.columns)
    wanted = list(dict.fromkeys([*columns, *(c for c in optional if c in present)]))
    if missing := [column for column in wanted if present.count(column) != 1]:
        raise InputError(
            f"the column '{missing[0]}' is not there once", code="missing_column", place=place,
            remedy="Name the columns of id, time and values.",
        )  # fmt: skip
    try:
        if kind == "polars":
            return frame.select(wanted), lambda found, _: found
        if kind == "pandas":
            types = frame[wanted].dtypes
            return pl.from_pandas(frame[wanted]), lambda found, like: _to_pandas(found, types[like])
        schema = frame.select(wanted).schema
        read = pl.DataFrame(pl.from_arrow(frame.select(wanted)))
        return read, lambda found, like: _to_arrow(found, {c: schema.field(c).type for c in like})
    except _UNREADABLE as error:
        raise InputError(
            "a column holds values of several types, or of one that is not read",
            code="unreadable_frame", place=place,
            remedy="Give each column one type: numbers, texts, dates or date-times.",
        ) from error  # fmt: skip


def read_history(
    frame: pl.DataFrame,
    layout: Layout,
    *,
    place: str = "df",
    now: Any = None,
    context_length: int | None = None,
    with_covariates: bool = False,
) -> History:
    """Read a frame: one clock, one row a point, sorted.

    Args:
        frame: From `read_frame`.
        layout: Its columns.
        place: Name of the argument, for errors.
        now: When all items are forecast from; None is each item's last row.
        context_length: The most points of a series.
        with_covariates: Read the covariates' columns too.

    Raises:
        InputError: It is empty, ids or times are null, values are no numbers, or variables are
            unknown to the model.
    """
    if frame.is_empty():
        raise InputError(
            "the frame has no rows", code="empty_frame", place=place,
            remedy="Give at least one row an item.",
        )  # fmt: skip
    axis = TimeAxis.of(frame[layout.timestamp], layout.time_unit, f"{place}, {layout.timestamp}")
    ids = read_ids(frame, layout.id, place)
    known_values = [c.name for c in layout.covariates] if with_covariates else []
    base = pl.DataFrame({
        "item": index_of(frame[layout.id], ids), "stamp": frame[layout.timestamp],
        "seconds": axis.seconds(frame[layout.timestamp]),
        **{f"known {i}": numbers(frame[c], f"{place}, {c}") for i, c in enumerate(known_values)},
    })  # fmt: skip
    values = [numbers(frame[column], f"{place}, {column}") for column in layout.targets]
    if layout.variable is None:
        names = layout.targets
        check_known(names, layout, place)
        index = np.repeat(np.arange(len(names)), frame.height)
        base = pl.concat([base] * len(names))
    else:
        names = names_of(frame, layout, place)
        index = name_index(frame, layout, names, place)
    rows = base.with_columns(name=pl.Series(index), value=pl.concat(values, rechunk=True))
    counts = {"n_rows": frame.height, "n_items": len(ids), "n_beyond_context": 0}
    n_before = rows.height
    pairs = rows.select("item", "name").unique().sort("item", "name")
    if now is None:
        last = rows.sort("seconds", maintain_order=True).group_by("item").last().sort("item")
        moments, now_seconds = last.select("item", "stamp"), last["seconds"].to_numpy()
    else:
        moment = axis.moment(now, layout.time_unit, "now")
        at = TimeAxis(moment.dtype, axis.unit_seconds).seconds(moment)[0]
        now_seconds = np.full(len(ids), at)
        moments = pl.DataFrame({"item": np.arange(len(ids))}).join(
            pl.DataFrame({"stamp": moment}), how="cross"
        )
        rows = rows.filter(pl.col("seconds") <= at)
    counts["n_after_now"] = n_before - rows.height
    value = pl.col("value")
    there = rows.filter(value.is_finite())
    counts["n_missing"] = rows.filter(value.is_null() | value.is_nan()).height
    counts["n_not_finite"] = rows.filter(value.is_infinite()).height
    key = ["item", "name", "seconds"]
    points = there.group_by(key).agg(
        value.mean(), pl.col("^known .*$").fill_nan(None).mean().fill_null(float("nan"))
    )
    counts["n_duplicates"] = there.height - points.height
    points = points.sort(key)
    if context_length is not None:
        check_whole("context_length", context_length)
        kept = points.group_by("item", "name", maintain_order=True).tail(context_length)
        counts["n_beyond_context"] = points.height - kept.height
        points = kept.sort(key)
    rows = rows.select("item", "name", "stamp")
    return History(ids, names, axis, pairs, rows, points, moments, now_seconds, counts)


def check_whole(name: str, given: Any, least: int = 1) -> None:
    """Check that an argument is a whole number, of any integer type.

    Raises:
        InputError: It is not, or is below the least.
    """
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < least:
        raise InputError(
            f"{name} is not a whole number from {least} on", code=f"bad_{name}", place=name,
            remedy=f"Give a whole number, {least} or more.",
        )  # fmt: skip


def index_of(column: pl.Series, ids: pl.Series, place: str = "df") -> pl.Series:
    """Index of each row's id, null where it is not there.

    Raises:
        InputError: The two are of types that can't be compared.
    """
    table = pl.DataFrame({"id": ids, "item": np.arange(len(ids))})
    rows = pl.DataFrame({"id": column})
    try:
        found = rows.join(table, on="id", how="left", maintain_order="left", nulls_equal=False)
        return found["item"]
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"ids are of type {column.dtype}, those of df of type {ids.dtype}",
            code="other_ids", place=place, remedy="Give both frames ids of the same type.",
        ) from error  # fmt: skip


def fit_covariates(frame: pl.DataFrame, names: Sequence[str]) -> tuple[Covariate, ...]:
    """Covariates with the mean and the standard deviation of their columns.

    Raises:
        InputError: One is not finite.
    """
    found = []
    for name in names:
        column = numbers(frame[name], f"df, {name}")
        column = column.filter(column.is_finite())
        mean, std = column.mean(), column.std()
        location = float(mean) if isinstance(mean, float) else 0.0
        spread = float(std) if isinstance(std, float) else 0.0
        if not np.isfinite([location, spread]).all():
            raise InputError(
                "the covariate has no finite mean and spread", code="bad_covariate",
                place=f"df, {name}", remedy="Look for values that are off by many powers of ten.",
            )  # fmt: skip
        same = is_rounding(spread, column.to_numpy())
        found.append(Covariate(name, location, 1.0 if same else spread))
    return tuple(found)


def is_rounding(spread: float, values: NDArray[np.float64]) -> bool:
    """Whether a spread is nought, or the rounding of values that are all the same."""
    return spread <= _ROUNDING * np.abs(values).max(initial=0.0)


def read_ids(frame: pl.DataFrame, column: str, place: str) -> pl.Series:
    """Different ids in the order of their first appearance.

    Raises:
        InputError: Some are null.
    """
    if n := frame[column].null_count():
        raise InputError(
            f"{n} rows have no id", code="null_id", place=f"{place}, {column}",
            remedy="Leave these rows out, or say which item they are of.",
        )  # fmt: skip
    return frame[column].unique(maintain_order=True)


def names_of(frame: pl.DataFrame, layout: Layout, place: str) -> tuple[str, ...]:
    """Variables of a long frame: those of the model, or those found in order of appearance."""
    if layout.known:
        return layout.known
    assert layout.variable is not None
    found = frame[layout.variable].cast(pl.String).unique(maintain_order=True).drop_nulls()
    return tuple(found.to_list())


def name_index(
    frame: pl.DataFrame, layout: Layout, names: tuple[str, ...], place: str
) -> NDArray[np.int64]:
    """Index in `names` of each row's variable.

    Raises:
        InputError: Some are null, or not among the names.
    """
    assert layout.variable is not None
    texts = frame[layout.variable].cast(pl.String)
    index = index_of(texts, pl.Series(names, dtype=pl.String))
    if n := index.null_count():
        known = f" Known are: {', '.join(layout.known)}." if layout.known else ""
        raise InputError(
            f"{n} rows have no variable, or one that is not known", code="unknown_variable",
            place=f"{place}, {layout.variable}", remedy=f"Leave these rows out.{known}",
        )  # fmt: skip
    return index.to_numpy()


def check_known(names: Sequence[str], layout: Layout, place: str) -> None:
    """Check that the model knows the columns of a wide frame.

    Raises:
        InputError: It does not.
    """
    if layout.known and (unknown := [name for name in names if name not in layout.known]):
        raise InputError(
            f"the model does not know the variable '{unknown[0]}'", code="unknown_variable",
            place=place, remedy=f"Name columns as it does: {', '.join(layout.known)}.",
        )  # fmt: skip


def numbers(column: pl.Series, place: str) -> pl.Series:
    """A column as float64.

    Raises:
        InputError: It holds no numbers.
    """
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise InputError(
            f"the column is of type {column.dtype}", code="not_numeric", place=place,
            remedy="Make it numbers; missing values may be null or NaN.",
        )  # fmt: skip
    return column.cast(pl.Float64)


def _to_pandas(found: pl.DataFrame, types: Any) -> Any:
    return found.to_pandas().astype(dict(types))


def _to_arrow(found: pl.DataFrame, types: dict[str, Any]) -> Any:
    import pyarrow as pa

    table = found.to_arrow()
    fields = [
        (f.name, types.get(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type))
        for f in table.schema
    ]
    return table.cast(pa.schema(fields))
