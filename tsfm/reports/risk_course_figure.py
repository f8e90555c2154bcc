"""One stay's risk as a picture: how it moved, and which news moved it.

Above the calibrated risk at every moment, drawn as steps because it holds until something new is
known; below the change in log odds that each moment's news made. The largest changes carry a
number, and the numbers their codes.

This figure shows a single patient's data. It is for a person who may see them; it is no part of the
evaluation report, which holds aggregates only.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from tsfm import codes, schema
from tsfm.errors import InputError
from tsfm.reports.figure_style import (
    BLUE,
    FONT_SIZE,
    GREY,
    INK,
    VERMILLION,
    as_written,
    clean,
    new_figure,
    percent_axes,
    write_at,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_START = "start_time"


def plot_risk_course(
    frame: pl.DataFrame,
    subject_id: int,
    *,
    start_time: datetime | None = None,
    descriptions: Mapping[str, str] | None = None,
    outcome: str = "the event",
    n_named: int = 5,
) -> Figure:
    """Draw the risk over one stay.

    Args:
        frame: Rows of `risk_course`.
        subject_id: Whose.
        start_time: Start of the stay to draw; the subject's last one by default.
        descriptions: Code to text, to name the news; by default the code itself.
        outcome: What the risk is of, for the axis.
        n_named: Changes to name, the largest first.

    Raises:
        InputError: No row of the subject, or of the stay, has a risk.
    """
    rows = frame.filter(
        (pl.col(schema.SUBJECT_ID) == subject_id) & pl.col("probability").is_not_null()
    )
    if start_time is None:
        rows = rows.filter(pl.col(_START) == pl.col(_START).max())
    else:
        rows = rows.filter(pl.col(_START) == start_time)
    if rows.height == 0:
        raise InputError(
            "no risk of this subject and stay to draw", code="no_course", place="subject_id",
            remedy="Use a subject_id and start_time of the frame.",
        )  # fmt: skip
    news = _news(rows)
    named = _largest(news, n_named)
    figure = new_figure(9.2, 4.0 + 0.17 * named.height)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    _draw_risk(above, news, named, outcome)
    _draw_changes(below, news, named)
    _date_axis(below, news)
    if named.height:
        _name_news(below, named, descriptions or {})
    return as_written(figure)


def _news(rows: pl.DataFrame) -> pl.DataFrame:
    """One row a moment: the settled risk, the change since the moment before, what made it."""
    change = pl.col("log_odds_change").fill_null(0.0)
    return (
        rows.group_by(schema.TIME, maintain_order=True)
        .agg(
            pl.col("probability").last(),
            change.sum().alias("change"),
            pl.col(schema.CODE).sort_by(change.abs(), descending=True).first().alias("code"),
            pl.len().alias("n"),
        )
        .sort(schema.TIME)
    )


def _largest(news: pl.DataFrame, n_named: int) -> pl.DataFrame:
    """The moments of the largest changes, numbered in the order of time."""
    moved = news.filter(pl.col("change") != 0)
    return (
        moved.sort(pl.col("change").abs(), descending=True)
        .head(n_named)
        .sort(schema.TIME)
        .with_row_index("number", offset=1)
    )


def _draw_risk(axes: Axes, news: pl.DataFrame, named: pl.DataFrame, outcome: str) -> None:
    times, risk = news[schema.TIME].to_list(), news["probability"].to_list()
    axes.plot(times, risk, color=BLUE, lw=1.6, drawstyle="steps-post")
    axes.set_ylim(0, min(1.0, max(risk) * 1.22 + 0.005))
    percent_axes(axes, "y")
    clean(axes)
    axes.set_ylabel(f"Risk of {outcome}", size=FONT_SIZE)
    for row in named.iter_rows(named=True):
        at = (row[schema.TIME], row["probability"])
        axes.plot(*[[value] for value in at], "o", color=_colour(row["change"]), ms=4.5, mew=0)
        # A fall has its own line above it: the number stands beside.
        shift, side = ((0, 5), "center") if row["change"] > 0 else ((5, 3), "left")
        write_at(axes, str(row["number"]), at, shift, ha=side, va="bottom")
    last: Any = (times[-1], risk[-1])
    write_at(axes, f"{risk[-1]:.1%}", last, (5, 0), va="center", color=BLUE)


def _draw_changes(axes: Axes, news: pl.DataFrame, named: pl.DataFrame) -> None:
    for is_up in (True, False):
        part = news.filter(pl.col("change") > 0 if is_up else pl.col("change") < 0)
        colour = _colour(1.0 if is_up else -1.0)
        axes.vlines(part[schema.TIME].to_list(), 0, part["change"].to_list(), color=colour, lw=1.6)
    axes.axhline(0, color=GREY, lw=0.8)
    widest = max(float(news["change"].abs().max() or 0.0), 0.05)  # type: ignore[arg-type]
    axes.set_ylim(-1.35 * widest, 1.35 * widest)
    clean(axes)
    axes.set_ylabel("Change,\nlog odds", size=FONT_SIZE)
    for row in named.iter_rows(named=True):
        is_up = row["change"] > 0
        at = (row[schema.TIME], row["change"])
        shift, side = ((0, 2), "bottom") if is_up else ((0, -2), "top")
        write_at(axes, str(row["number"]), at, shift, ha="center", va=side, size=FONT_SIZE - 1)


def _name_news(axes: Axes, named: pl.DataFrame, descriptions: Mapping[str, str]) -> None:
    """The key of the numbers, below the axis."""
    lines: list[str] = []
    for row in named.iter_rows(named=True):
        code = row[schema.CODE]
        text = descriptions.get(code) or code.replace(codes.SEPARATOR, " ")
        others = f" and {row['n'] - 1} more" if row["n"] > 1 else ""
        text = textwrap.shorten(text, 70, placeholder=" \N{HORIZONTAL ELLIPSIS}")
        sign = "+" if row["change"] > 0 else "\N{MINUS SIGN}"
        lines.append(f"{row['number']}   {sign}{abs(row['change']):.2f}   {text}{others}")
    axes.figure.supxlabel("\n".join(lines), x=0.075, ha="left", size=FONT_SIZE - 1, color=INK)  # type: ignore[union-attr]


def _date_axis(axes: Axes, news: pl.DataFrame) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    first, last = news[schema.TIME][0], news[schema.TIME][-1]
    axes.set_xlabel(
        f"{first.day} {first:%b %Y} to {last.day} {last:%b %Y}, on the data set's clock",
        size=FONT_SIZE,
    )


def _colour(change: float) -> str:
    return VERMILLION if change > 0 else BLUE
