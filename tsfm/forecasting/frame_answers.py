"""From questions about a frame's series to the rows of the answer."""

from __future__ import annotations

import logging

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.forecasting.conformal import SplitConformal
from tsfm.forecasting.frame_questions import pack, series_of, to_questions
from tsfm.forecasting.frames import History, Layout, check_whole
from tsfm.forecasting.packed_series import PackedSeries, answer, embed
from tsfm.forecasting.quantile_levels import at_levels
from tsfm.models.forecaster import ForecasterModel
from tsfm.models.quantile_head import LEVELS

logger = logging.getLogger("tsfm")


def answer_frame(
    model: ForecasterModel,
    calibration: SplitConformal | None,
    history: History,
    layout: Layout,
    asked: pl.DataFrame,
    levels: tuple[float, ...],
    *,
    batch_size: int,
    on_missing: str,
    point: str,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The answer as rows: ids, times, `target_name`, `predictions` and a column a level.

    Args:
        point: `mean` or `median`: what `predictions` are. The others: see `answer_questions`.

    Raises:
        InputError: As `answer_questions`, or a column of the answer is called as one of `df`.
    """
    _check_choice("point", point, ("mean", "median"))
    _check_choice("on_missing", on_missing, ("raise", "nan"))
    own = ["target_name", "predictions", *map(str, levels)]
    _check_columns([layout.id, layout.timestamp], own)
    wanted = levels if point == "mean" else (*levels, 0.5)
    mean, quantiles, counts = answer_questions(
        model, calibration, history, layout, asked, wanted, batch_size=batch_size,
        on_missing=on_missing,
    )  # fmt: skip
    found = pl.DataFrame({
        layout.id: history.ids[asked["item"]],
        layout.timestamp: asked["stamp"],
        "target_name": pl.Series(history.names, dtype=pl.String)[asked["name"]],
        "predictions": mean if point == "mean" else quantiles[:, -1],
        **{str(level): quantiles[:, j] for j, level in enumerate(levels)},
    })  # fmt: skip
    return found, counts | {"n_forecasts": asked.height}


def embed_frame(
    model: ForecasterModel, history: History, layout: Layout, *, batch_size: int
) -> pl.DataFrame:
    """A row a series: ids, `target_name`, and the state of the series as `e0`, `e1`, ...

    Args:
        model: Network in evaluation mode.
        history: What is known.
        layout: Its columns.
        batch_size: Entities read at once.

    Raises:
        InputError: An anonymous series has no point, or a column of the answer is called as ids.
    """
    check_whole("batch_size", batch_size)
    _check_columns([layout.id], ["target_name", *(f"e{j}" for j in range(model.config.d_model))])
    asked = series_of(history, layout)
    packed, series = pack(history, layout, asked)
    refuse_empty(packed, series.to_numpy(), layout)
    tokens = embed(model, packed, series.to_numpy(), batch_size=batch_size)
    return pl.DataFrame({
        layout.id: history.ids[asked["item"]],
        "target_name": pl.Series(history.names, dtype=pl.String)[asked["name"]],
        **{f"e{j}": tokens[:, j] for j in range(tokens.shape[1])},
    })  # fmt: skip


def answer_questions(
    model: ForecasterModel,
    calibration: SplitConformal | None,
    history: History,
    layout: Layout,
    asked: pl.DataFrame,
    levels: tuple[float, ...],
    *,
    batch_size: int,
    on_missing: str = "raise",
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, int]]:
    """Mean and quantiles of each row of `asked`, and parts of the report.

    Args:
        model: Network in evaluation mode.
        calibration: Shifts of the quantiles; None leaves them.
        history: What is known.
        layout: Its columns.
        asked: `item`, `name`, `stamp` and covariates.
        levels: Levels of the quantiles.
        batch_size: Entities read at once.
        on_missing: `raise`, or `nan` for the rows of anonymous series without a point.

    Raises:
        InputError: Such a series, a question before now, or a forecast that is not finite.
    """
    check_whole("batch_size", batch_size)
    packed, series = pack(history, layout, asked)
    n_points = np.diff(packed.cu_points)
    rows = series.to_numpy()
    present = np.full(asked.height, True)
    if not layout.known:
        present = n_points[rows] > 0
        if on_missing == "raise":
            refuse_empty(packed, rows, layout)
        elif not present.all():
            n_empty = len(np.unique(rows[~present]))
            logger.warning("%d series have no value: their forecasts are NaN", n_empty)
    mean = np.full(asked.height, np.nan)
    quantiles = np.full((asked.height, len(levels)), np.nan)
    questions, order = to_questions(
        asked.filter(present), series.filter(present), history, layout
    )  # fmt: skip
    order = np.flatnonzero(present)[order]
    if len(order):
        found = answer(model, packed, questions, batch_size=batch_size)
        raw = found.quantiles
        if calibration is not None:
            names = np.array(history.names, dtype=str)[asked["name"].to_numpy()[order]]
            names = calibration.called(names, layout.known)
            raw = calibration.apply(names, found.lead, LEVELS, raw).astype(np.float64)
        mean[order], quantiles[order] = found.mean, at_levels(raw, levels)
    asked_series = np.unique(rows)
    counts = {
        "n_series": len(asked_series),
        "n_points": len(packed.seconds),
        "n_empty_series": int((n_points[asked_series] == 0).sum()),
    }
    return mean, quantiles, counts


def refuse_empty(packed: PackedSeries, series: NDArray[np.int64], layout: Layout) -> None:
    """Refuse anonymous series without a point: there is nothing to forecast them from.

    Raises:
        InputError: There are some.
    """
    asked = np.unique(series)
    empty = asked[np.diff(packed.cu_points)[asked] == 0]
    if layout.known or not len(empty):
        return
    wide = layout.variable is None
    columns = sorted({layout.targets[packed.name[s] if wide else 0] for s in empty})
    raise InputError(
        f"{len(empty)} series have no finite value up to now", code="all_missing",
        place=f"df, {', '.join(columns)}",
        remedy="Leave these series out, or set on_missing='nan'.",
    )  # fmt: skip


def _check_columns(given: list[str], own: list[str]) -> None:
    if taken := set(given) & set(own):
        raise InputError(
            f"the answer has a column '{min(taken)}' of its own", code="reserved_column",
            place="id_column, timestamp_column", remedy="Give the column of ids or times another "
            "name.",
        )  # fmt: skip


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise InputError(
            f"{name} is none of {', '.join(allowed)}", code="unknown_choice", place=name,
            remedy=f"Use one of {', '.join(allowed)}.",
        )  # fmt: skip
