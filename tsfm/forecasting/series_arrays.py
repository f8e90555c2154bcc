"""Series and asked times given as arrays, as the frames that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError


def frames_of_arrays(
    series: Any, query_times: Any, variables: Any, items: Any, now: Any
) -> tuple[pl.DataFrame, pl.DataFrame, list[int]]:
    """Series and questions given as arrays, as long frames, and the questions of each series.

    Args:
        series: Times and values of each series.
        query_times: Asked times, one array for all series or a list of one for each.
        variables: Variable of each series, or None.
        items: Item of each series; None is an item a series.
        now: When all are forecast from, or None.

    Raises:
        InputError: Lengths or shapes that do not fit, or a series without a point and no now.
    """
    try:
        n = len(series)
        each = isinstance(query_times, list | tuple) and bool(query_times)
        each = each and any(np.ndim(q) for q in query_times)
        asked = [np.asarray(q) for q in query_times] if each else [np.asarray(query_times)] * n
        points = [(np.asarray(t), np.asarray(v, np.float64)) for t, v in series]
        names = ["series"] * n if variables is None else [str(name) for name in variables]
        place: dict[Any, int] = {}
        of_item = range(n) if items is None else [place.setdefault(i, len(place)) for i in items]
    except (TypeError, ValueError):  # whose texts quote what was given
        raise InputError(
            "series, asked times, variables or items can't be read", code="bad_arrays",
            place="series", remedy="Give pairs of times and numbers, times, texts, and ids.",
        ) from None  # fmt: skip
    shapes = all(t.ndim == 1 and t.shape == v.shape for t, v in points)
    shapes = shapes and all(q.ndim == 1 for q in asked)
    if not n or not shapes or not len(asked) == len(names) == len(of_item) == n:
        raise InputError(
            "there is no series, or times, values, asked times, variables or items do not fit",
            code="bad_arrays", place="series",
            remedy="Give (times, values) of one length each, and one of the others a series.",
        )  # fmt: skip
    if len(set(zip(of_item, names, strict=True))) < n:
        raise InputError(
            "two series are of one item and variable", code="bad_arrays", place="items",
            remedy="Join them, or name their variables.",
        )  # fmt: skip
    if any(not len(t) for t, _ in points) and now is None:
        raise InputError(
            "a series has no point and nothing says when it is forecast from",
            code="bad_arrays", place="series", remedy="Give now, or leave the series out.",
        )  # fmt: skip
    if now is not None:  # a series without a point still belongs to the frame
        points = [
            (_times([t, [now]]), np.r_[v, np.nan]) if not len(t) else (t, v) for t, v in points
        ]

    def frame(times: list[ArrayLike]) -> pl.DataFrame:
        counts = [len(np.asarray(t)) for t in times]
        return pl.DataFrame({
            "item": np.repeat(of_item, counts),
            "variable": np.repeat(np.array(names, dtype=str), counts).tolist(),
            "time": _times(times),
        })  # fmt: skip

    values = np.concatenate([v for _, v in points])
    history = frame([t for t, _ in points]).with_columns(value=pl.Series(values))
    future = frame(list(asked)).with_row_index("row")
    return history, future, [len(q) for q in asked]


def _times(parts: list[Any]) -> NDArray[Any]:
    arrays = [np.asarray(part) for part in parts]
    try:
        return np.concatenate([a for a in arrays if len(a)] or [np.empty(0)])
    except TypeError:
        raise InputError(
            "times of series are of several types", code="bad_arrays", place="series",
            remedy="Give datetime64 everywhere, or numbers everywhere.",
        ) from None  # fmt: skip
