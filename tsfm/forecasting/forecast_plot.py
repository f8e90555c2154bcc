"""A forecast as a picture: what was measured, the median, and bands of 80 and 95 %.

Drawn on a figure of its own, without pyplot and its global state, or on axes that are given. The
palette is Okabe and Ito's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tsfm.errors import InputError
from tsfm.forecasting.frames import Layout, numbers, read_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BANDS = ((0.025, 0.975, "95 %", 0.16), (0.1, 0.9, "80 %", 0.32))
_BLUE, _INK, _GREY, _PALE = "#0072B2", "#222222", "#6b6b6b", "#dcdcdc"
_PAST_A_FUTURE = 3.0  # as many times the forecast's span are shown of the past


def plot_forecast(
    history: pl.DataFrame, forecast: pl.DataFrame, *, title: str, unit: str = "", ax: Any = None
) -> Axes:
    """Draw one series.

    Args:
        history: `time` and `value`, in the order of time; missing values leave no mark.
        forecast: `time`, `predictions` and a column a level.
        title: Name of the series.
        unit: Unit of the values.
        ax: Axes to draw on; None makes a figure.

    Raises:
        InputError: The forecast has no row.
    """
    bands = [b for b in BANDS if {f"{b[0]:g}", f"{b[1]:g}"} <= set(forecast.columns)]
    middle = "0.5" if "0.5" in forecast.columns else "predictions"
    if forecast.is_empty():
        raise _nothing()
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(7.2, 3.0), layout="constrained", dpi=120).add_subplot()
    forecast = forecast.sort("time")
    history = history.filter(pl.col("value").is_finite())
    times = [_drawn(frame["time"]) for frame in (history, forecast)]
    for low, high, name, alpha in bands:
        ax.fill_between(
            times[1], forecast[f"{low:g}"].to_numpy(), forecast[f"{high:g}"].to_numpy(),
            color=_BLUE, alpha=alpha, lw=0, label=name,
        )  # fmt: skip
    dense = history.height > 200
    ax.plot(
        times[0], history["value"].to_numpy(), color=_GREY, lw=1.0, marker=None if dense else "o",
        ms=3, mec=_INK, mfc=_INK, label="measured",
    )  # fmt: skip
    label = "median" if middle == "0.5" else "forecast"
    mark = "o" if forecast.height == 1 else None
    ax.plot(times[1], forecast[middle].to_numpy(), color=_BLUE, lw=1.8, marker=mark, label=label)
    _show_the_near_past(ax, *times)
    ax.set_title(title, loc="left", fontsize=9.5, color=_INK)
    ax.set_ylabel(unit, fontsize=9.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_GREY)
    ax.tick_params(colors=_INK, labelsize=8.5, color=_GREY)
    ax.grid(color=_PALE, lw=0.6)
    ax.set_axisbelow(True)
    if times[1].dtype.kind != "f":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    handles, names = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1], names[::-1], loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False,
        fontsize=8.5, ncols=len(names), borderaxespad=0.2,
    )  # fmt: skip
    return ax


def rows_of_series(
    df: Any, forecast: Any, layout: Layout, item_id: Any, target_name: str | None
) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """History and forecast of one series for `plot_forecast`, and its name.

    Args:
        df: What was known.
        forecast: What `predict_df` returned of it.
        layout: Columns of both.
        item_id: Which item.
        target_name: Which of its variables; None is the first.

    Raises:
        InputError: A column is missing, the forecast has no such series, or the id is of another
            type than theirs.
    """
    levels = [f"{level:g}" for band in BANDS for level in band[:2]]
    columns = [layout.id, layout.timestamp, "target_name", "predictions"]
    found, _ = read_frame(forecast, columns, "forecast", ["0.5", *levels])
    found = _of_item(found, layout, item_id)
    name = target_name or (found["target_name"][0] if found.height else "")
    found = found.filter(pl.col("target_name") == pl.lit(name))
    if found.is_empty():
        raise _nothing()
    past, _ = read_frame(df, layout.columns, "df")
    past = _of_item(past, layout, item_id)
    if layout.variable is not None:
        past = past.filter(pl.col(layout.variable).cast(pl.String) == name)
    column = layout.targets[0] if layout.variable is not None else str(name)
    if column not in past.columns:
        raise _nothing()
    past = pl.DataFrame({
        "time": past[layout.timestamp], "value": numbers(past[column], f"df, {column}")
    })  # fmt: skip
    return past.sort("time"), found.rename({layout.timestamp: "time"}), str(name)


def _of_item(frame: pl.DataFrame, layout: Layout, item_id: Any) -> pl.DataFrame:
    try:
        return frame.filter(pl.col(layout.id) == pl.lit(item_id))
    except (pl.exceptions.PolarsError, TypeError, ValueError):
        raise InputError(
            f"the id is of type {type(item_id).__name__}, those of the frame are "
            f"{frame[layout.id].dtype}", code="other_ids", place="item_id",
            remedy="Give an id as it stands in the frame.",
        ) from None  # fmt: skip


def _nothing() -> InputError:
    return InputError(
        "there is no forecast of this series to draw", code="nothing_to_draw", place="forecast",
        remedy="Give what predict_df returned, and an item and target of it.",
    )  # fmt: skip


def _drawn(times: pl.Series) -> np.ndarray:
    """Times for matplotlib: numbers, or the clock on the wall."""
    if times.dtype.is_numeric():
        return times.cast(pl.Float64).to_numpy()
    if isinstance(times.dtype, pl.Datetime):
        times = times.dt.replace_time_zone(None)
    return times.cast(pl.Datetime("us")).to_numpy()


def _show_the_near_past(ax: Axes, past: np.ndarray, future: np.ndarray) -> None:
    """Cut off what is so long ago that the forecast would be a sliver."""
    from matplotlib.dates import date2num

    x = [times if times.dtype.kind == "f" else np.asarray(date2num(times))
         for times in (past, future)]  # fmt: skip
    if not len(x[0]):
        return
    span = float(x[1].max() - min(x[0].max(), x[1].min())) or 1.0
    left = max(float(x[0].min()), float(x[1].max()) - (1 + _PAST_A_FUTURE) * span)
    ax.set_xlim(left - 0.02 * span, float(x[1].max()) + 0.02 * span)
