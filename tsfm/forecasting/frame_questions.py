"""What is asked of a frame's series, and the series side by side as a model reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.forecasting.frames import (
    History,
    Layout,
    check_whole,
    index_of,
    name_index,
    numbers,
    read_frame,
    read_ids,
)
from tsfm.forecasting.future_stamps import future_stamps
from tsfm.forecasting.packed_series import PackedSeries, Questions
from tsfm.forecasting.time_axis import TimeAxis


def pack(history: History, layout: Layout, asked: pl.DataFrame) -> tuple[PackedSeries, pl.Series]:
    """Series side by side: an item's known variables, or each anonymous series by itself.

    Args:
        history: What is known.
        layout: Its columns, and the variables of the model.
        asked: Series that are asked for: `item`, `name`.

    Returns:
        The series, and which of them each row of `asked` is.
    """
    n_names = len(history.names)
    if layout.known:
        model_index = np.array([layout.known.index(name) for name in history.names])
        name_of = np.full(len(layout.known), -1)
        name_of[model_index] = np.arange(n_names)
        n_items, n_known = len(history.ids), len(layout.known)
        variable = np.tile(np.arange(n_known), n_items)
        item, name = np.arange(n_items), name_of[variable]
        cu_series = np.arange(n_items + 1) * n_known

        def place(frame: pl.DataFrame) -> NDArray[np.int64]:
            return frame["item"].to_numpy() * n_known + model_index[frame["name"].to_numpy()]

        points = history.points
    else:
        pairs = asked.select("item", "name").unique().sort("item", "name")
        points = history.points.join(pairs, on=["item", "name"], how="semi")
        item, name = pairs["item"].to_numpy(), pairs["name"].to_numpy()
        code, variable = item * n_names + name, np.zeros(len(item), np.int64)
        cu_series = np.arange(len(item) + 1)

        def place(frame: pl.DataFrame) -> NDArray[np.int64]:
            return np.searchsorted(code, frame["item"].to_numpy() * n_names + frame["name"])

    series = place(points)
    order = np.argsort(series, kind="stable")
    counts = np.bincount(series, minlength=len(variable))
    packed = PackedSeries(
        points["seconds"].to_numpy()[order], points["value"].to_numpy()[order],
        standardised(points, layout)[order], np.r_[0, counts.cumsum()], variable, name, cu_series,
        item, history.now_seconds[item],
    )  # fmt: skip
    return packed, pl.Series("series", place(asked))


def ask(
    history: History, layout: Layout, future_df: Any, prediction_length: int | None, freq: Any
) -> tuple[pl.DataFrame, int]:
    """Questions of a frame, or at the next steps, as arguments say it.

    Args:
        history: What is known.
        layout: Its columns.
        future_df: Asked ids and times as the user gave them; None asks the next steps.
        prediction_length: How many steps.
        freq: Length of a step.

    Returns:
        `item`, `name`, `stamp` and covariates, and how many series borrowed their step.

    Raises:
        InputError: Neither is given, the two do not fit, or one can't be read.
    """
    if future_df is not None:
        optional = [c.name for c in layout.covariates]
        optional += [layout.variable] if layout.variable else []
        future, _ = read_frame(future_df, [layout.id, layout.timestamp], "future_df", optional)
        asked = ask_frame(future, history, layout, "future_df")
        check_length(asked, prediction_length)
        return asked, 0
    if prediction_length is None:
        raise InputError(
            "nothing says which times are asked for", code="no_times", place="predict_df",
            remedy="Give prediction_length, or future_df with the times.",
        )  # fmt: skip
    return ask_ahead(history, layout, prediction_length, freq)


def ask_ahead(history: History, layout: Layout, n: int, freq: Any) -> tuple[pl.DataFrame, int]:
    """Questions at the next steps of every series; see `future_stamps`.

    Returns:
        `item`, `name`, `stamp` in this order of rows, and how many series borrowed their step.
    """
    check_whole("prediction_length", n)
    pairs = series_of(history, layout)
    start = pairs.join(history.now, on="item", how="left", maintain_order="left")
    rows = history.rows.join(pairs, on=["item", "name"], how="inner").select("series", "stamp")
    stamps, borrowed = future_stamps(rows, start.select("series", "stamp"), n, freq, history.axis)
    return pairs.join(stamps, on="series", how="left", maintain_order="left").drop(
        "series"
    ), borrowed


def series_of(history: History, layout: Layout) -> pl.DataFrame:
    """Series that have rows in the frame: `item`, `name`, `series`; of a wide frame all."""
    if layout.variable is None:
        pairs = pl.DataFrame({"item": np.arange(len(history.ids))}).join(
            pl.DataFrame({"name": np.arange(len(history.names))}),
            how="cross",
            maintain_order="left",
        )
    else:
        pairs = history.pairs
    return pairs.with_row_index("series").with_columns(pl.col("series").cast(pl.Int64))


def ask_frame(future: pl.DataFrame, history: History, layout: Layout, place: str) -> pl.DataFrame:
    """Questions that a frame asks: `item`, `name`, `stamp` and covariates.

    Items come in the order of the history, then variables, then rows as they stand.

    Raises:
        InputError: Ids that the history does not have, or another clock.
    """
    axis = TimeAxis.of(future[layout.timestamp], layout.time_unit, f"{place}, {layout.timestamp}")
    history.axis.check_same_clock(axis, place)
    ids = read_ids(future, layout.id, place)
    item = index_of(future[layout.id], history.ids, place)
    if n_unknown := item.null_count():
        n_ids = len(ids) - len(ids.implode().list.set_intersection(history.ids.implode())[0])
        raise InputError(
            f"{n_unknown} rows of {n_ids} ids have no history", code="unknown_item", place=place,
            remedy="Give these items a row in df; its value may be missing.",
        )  # fmt: skip
    covariates = {
        f"known {i}": numbers(future[c.name], f"{place}, {c.name}")
        if c.name in future.columns
        else pl.Series([None] * future.height, dtype=pl.Float64)
        for i, c in enumerate(layout.covariates)
    }
    asked = pl.DataFrame({"item": item, "stamp": future[layout.timestamp], **covariates})
    asked = asked.with_row_index("row")
    if layout.variable is not None and layout.variable in future.columns:
        index = name_index(future, layout, history.names, place)
        asked = asked.with_columns(name=pl.Series(index))
    else:
        pairs = series_of(history, layout).select("item", "name")
        asked = asked.join(pairs, on="item", how="left").sort("row")
    return asked.sort("item", "name", maintain_order=True)


def check_length(asked: pl.DataFrame, prediction_length: int | None) -> None:
    """Check that a frame asks as many times of each series as is said beside it.

    Raises:
        InputError: It does not.
    """
    counts = asked.group_by("item", "name").len()["len"]
    if prediction_length is not None and bool((counts != prediction_length).any()):
        raise InputError(
            "future_df does not ask prediction_length times of every series",
            code="other_length", place="future_df",
            remedy="Leave prediction_length out: future_df says the times.",
        )  # fmt: skip


def to_questions(
    asked: pl.DataFrame, series: pl.Series, history: History, layout: Layout
) -> tuple[Questions, NDArray[np.int64]]:
    """Questions in the order of the series, and which row of `asked` each is.

    Raises:
        InputError: A question lies before now.
    """
    seconds = TimeAxis(asked["stamp"].dtype, history.axis.unit_seconds).seconds(asked["stamp"])
    early = int((seconds < history.now_seconds[asked["item"].to_numpy()]).sum())
    if early:
        raise InputError(
            f"{early} asked times lie before the last row of their item", code="query_before_now",
            place="future_df", remedy="Give now=, from which later rows are left out.",
        )  # fmt: skip
    order = np.argsort(series.to_numpy(), kind="stable")
    known = standardised(asked, layout)
    return Questions(series.to_numpy()[order], seconds[order], known[order]), order


def standardised(frame: pl.DataFrame, layout: Layout) -> NDArray[np.float64]:
    """Covariates of each row, NaN where not known, (row, covariate)."""
    known = np.full((frame.height, len(layout.covariates)), np.nan)
    for i, covariate in enumerate(layout.covariates):
        if f"known {i}" in frame.columns:
            column = frame[f"known {i}"].to_numpy()
            known[:, i] = (column - covariate.location) / covariate.scale
    return known
