"""One patient's timeline as a picture: stays, what happened in them, and the values over time.

All panels share one axis of real time. Stays are shaded through all of them, each class of events
has a lane with one tick an event, and the laboratory values and vital signs measured most often
have a panel each, with their own scale.

This figure shows a single patient's data. It is for a person who may see them; it is no part of the
evaluation report, which holds aggregates only.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from tsfm import codes, schema
from tsfm.errors import InputError
from tsfm.reports.figure_style import (
    BLUE,
    FONT_SIZE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILLION,
    as_written,
    clean,
    new_figure,
    write_at,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LANES = {
    codes.ED_ARRIVAL: ("Emergency visits", VERMILLION),
    codes.ICU_ADMISSION: ("Intensive care", VERMILLION),
    codes.OUTPATIENT: ("Outpatient visits", GREEN),
    codes.DIAGNOSIS: ("Diagnoses", PURPLE),
    codes.PROCEDURE: ("Procedures", ORANGE),
    codes.MEDICATION: ("Medications", GREEN),
    codes.LAB: ("Laboratory", BLUE),
    codes.VITAL: ("Vital signs", SKY),
}
_OTHER = "Other events"
_SIGNALS = "Waveforms"
# Drawn as spans or lines, or no event of a day.
_NO_LANE = {
    codes.ADMISSION,
    codes.DISCHARGE,
    codes.ICU_DISCHARGE,
    codes.ED_DEPARTURE,
    codes.BIRTH,
    codes.DEATH,
}
_STAY = "#f3ecdb"


def timeline_plot(
    events: pl.DataFrame,
    *,
    until: datetime | None = None,
    descriptions: Mapping[str, str] | None = None,
    n_series: int = 4,
) -> Figure:
    """Draw the timeline of one subject.

    Args:
        events: Events of one subject, columns of `schema.EVENTS`, in any order.
        until: Draw only what was available by then, and mark it: what a score at this moment may
            know. Naive, on the data set's clock.
        descriptions: Code to text, to name the series; by default the code itself.
        n_series: Numeric laboratory and vital codes to draw, the most frequent first.

    Raises:
        InputError: Not one subject, or nothing with a time to draw.
    """
    if events[schema.SUBJECT_ID].n_unique() != 1:
        raise InputError(
            "a timeline is of one subject",
            code="not_one_subject",
            place="events",
            remedy="Filter the events by subject_id.",
        )
    known = events.filter(pl.col(schema.TIME).is_not_null()).sort(schema.TIME, maintain_order=True)
    if until is not None:
        known = known.filter(pl.col(schema.AVAILABLE_TIME) <= until)
    known = known.with_columns(
        pl.col(schema.CODE).str.split(codes.SEPARATOR).list.first().alias("_class")
    )
    dated = known.filter(pl.col("_class") != codes.BIRTH)
    if dated.height == 0:
        raise InputError(
            "the subject has no events with a time to draw",
            code="no_events",
            place="events",
            remedy="Choose another subject, or a later moment.",
        )
    lanes = _lanes(dated)
    series = _series(dated, n_series)
    first, last = _extent(dated, until)

    heights = [0.30 * max(len(lanes), 1) + 0.25] + [0.78] * len(series)
    figure = new_figure(9.2, sum(heights) + 0.75)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    axes: list[Any] = list(panels[:, 0])
    for place in axes:
        for start, end in _stays(known, until or last):
            place.axvspan(start, end, color=_STAY, lw=0, zorder=0)  # type: ignore[arg-type]
        if until is not None:
            place.axvline(until, color=INK, lw=1.1, ls=(0, (1, 2)), zorder=5)
        for died in dated.filter(pl.col("_class") == codes.DEATH)[schema.TIME]:
            place.axvline(died, color=INK, lw=1.6, zorder=5)
    _draw_lanes(axes[0], lanes)
    for place, code in zip(axes[1:], series, strict=True):
        _draw_series(place, dated.filter(pl.col(schema.CODE) == code), code, descriptions or {})
    axes[0].set_xlim(first, last)  # type: ignore[arg-type]
    _name_lines(axes[0], known, until)
    _date_axis(axes[-1], dated[schema.TIME][0], until or dated[schema.TIME][-1])
    figure.align_ylabels(axes[1:])
    return as_written(figure)


def _lanes(dated: pl.DataFrame) -> list[tuple[str, str, list[datetime]]]:
    """Name, colour and times of each lane that has events, in a fixed order."""
    is_signal = pl.col(schema.SIGNAL_ID).is_not_null()
    rows = dated.filter(~pl.col("_class").is_in(list(_NO_LANE)) | is_signal).with_columns(
        pl.when(is_signal)
        .then(pl.lit(_SIGNALS))
        .otherwise(
            pl.col("_class").replace_strict(
                {name: title for name, (title, _) in _LANES.items()},
                default=_OTHER,
                return_dtype=pl.String,
            )
        )
        .alias("_lane")
    )
    colours = {title: colour for title, colour in _LANES.values()}
    times = {
        str(lane): part[schema.TIME].to_list()
        for (lane,), part in rows.group_by("_lane", maintain_order=True)
    }
    order = [*dict.fromkeys(title for title, _ in _LANES.values()), _SIGNALS, _OTHER]
    return [(name, colours.get(name, GREY), times[name]) for name in order if name in times]


def _series(dated: pl.DataFrame, n_series: int) -> list[str]:
    """Codes with the most values, at least three each."""
    values = dated.filter(
        pl.col("_class").is_in([codes.LAB, codes.VITAL]) & pl.col(schema.NUMERIC_VALUE).is_finite()
    )
    counts = values.group_by(schema.CODE).len().filter(pl.col("len") >= 3)
    return counts.sort(["len", schema.CODE], descending=[True, False])[schema.CODE].to_list()[
        :n_series
    ]


def _stays(known: pl.DataFrame, last: datetime) -> list[tuple[datetime, datetime]]:
    """Spans from admission to discharge; an open stay reaches the end of the picture."""
    moves = known.filter(pl.col("_class").is_in([codes.ADMISSION, codes.DISCHARGE]))
    open_since: dict[int | None, datetime] = {}
    spans: list[tuple[datetime, datetime]] = []
    for kind, time, encounter in moves.select(
        "_class", schema.TIME, schema.ENCOUNTER_ID
    ).iter_rows():
        if kind == codes.ADMISSION:
            open_since[encounter] = time
        elif encounter in open_since:
            spans.append((open_since.pop(encounter), time))
    return spans + [(start, last) for start in open_since.values()]


def _extent(dated: pl.DataFrame, until: datetime | None) -> tuple[datetime, datetime]:
    first, last = dated[schema.TIME][0], dated[schema.TIME][-1]
    last = max(last, until) if until is not None else last
    margin = max((last - first) * 0.015, timedelta(hours=2))
    return first - margin, last + margin


def _draw_lanes(axes: Axes, lanes: list[tuple[str, str, list[datetime]]]) -> None:
    for row, (_, colour, times) in enumerate(lanes):
        # Many ticks in one place should look like many, and one alone should still be seen.
        alpha = 0.35 if len(times) > 200 else 0.6 if len(times) > 40 else 0.9
        axes.plot(times, [row] * len(times), "|", color=colour, ms=11, mew=1.3, alpha=alpha)  # type: ignore[arg-type]
    axes.set_ylim(len(lanes) - 0.45, -0.55)
    clean(axes)
    axes.set_yticks(range(len(lanes)), [f"{name}  {len(times):,}" for name, _, times in lanes])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.hlines(
        [row + 0.5 for row in range(len(lanes) - 1)], 0, 1, color=PALE, lw=0.6,
        transform=axes.get_yaxis_transform(), zorder=0.5,
    )  # fmt: skip
    axes.spines["left"].set_visible(False)


def _draw_series(
    axes: Axes, rows: pl.DataFrame, code: str, descriptions: Mapping[str, str]
) -> None:
    from matplotlib.ticker import MaxNLocator

    values = rows.filter(pl.col(schema.NUMERIC_VALUE).is_finite())
    times, numbers = values[schema.TIME].to_list(), values[schema.NUMERIC_VALUE].to_list()
    # A line would claim to know what happened between stays: join only what is close in time.
    start = 0
    for position in range(1, len(times) + 1):
        if position == len(times) or times[position] - times[position - 1] > timedelta(days=4):
            axes.plot(times[start:position], numbers[start:position], color=BLUE, lw=0.9, alpha=0.6)
            start = position
    axes.plot(times, numbers, "o", color=BLUE, ms=2.8 if len(times) < 300 else 1.8, mew=0)
    clean(axes)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.margins(y=0.22)
    title = _series_title(code, descriptions)
    axes.set_ylabel(title, rotation=0, ha="right", va="center", size=FONT_SIZE - 1)


def _series_title(code: str, descriptions: Mapping[str, str]) -> str:
    """Name and unit in at most three short lines, to stand left of the panel."""
    import textwrap

    parts = code.split(codes.SEPARATOR)
    unit = parts[-1] if len(parts) > 2 and parts[-1] != codes.UNKNOWN else ""
    name = descriptions.get(code) or " ".join(parts[:-1] if len(parts) > 2 else parts)
    lines = textwrap.wrap(name, 20, max_lines=2, placeholder=" \N{HORIZONTAL ELLIPSIS}")
    return "\n".join([*lines, unit] if unit else lines)


def _name_lines(axes: Axes, known: pl.DataFrame, until: datetime | None) -> None:
    above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "bottom"}
    if until is not None:
        write_at(axes, "known by then", (until, 1.0), (-3, 2), ha="right", **above)  # type: ignore[arg-type]
    for died in known.filter(pl.col("_class") == codes.DEATH)[schema.TIME]:
        write_at(axes, "death", (died, 1.0), (3, 2), ha="left", **above)
    if known.filter(pl.col("_class") == codes.ADMISSION).height:
        write_at(
            axes,
            "shaded: hospital stays",
            (0.0, 1.0),
            (0, 2),
            xycoords="axes fraction",
            va="bottom",
            color=GREY,
            size=FONT_SIZE - 1,
        )


def _date_axis(axes: Axes, first: datetime, last: datetime) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    days = f"{first.day} {first:%b %Y} to {last.day} {last:%b %Y}"
    axes.set_xlabel(f"{days}, on the data set's clock", size=FONT_SIZE)
