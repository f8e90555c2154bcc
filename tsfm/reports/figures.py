"""The figures of an evaluation, as matplotlib objects that belong to the caller.

Each function takes plain arrays and returns a `matplotlib.figure.Figure`; nothing is shown, no
global state is touched (`pyplot` is never imported) and no colour has to be seen to read a figure:
lines differ in dash as well, and labels sit at what they name (see `tsfm.reports.figure_style`).

`timeline_plot` and `figure_to_svg` can be had from here too. Metrics are not computed here, except
the counts that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError
from tsfm.evaluation.calibration import reliability_curve
from tsfm.evaluation.discrimination import alerts_at_capacity
from tsfm.reports.figure_style import (
    BLUE,
    FONT_SIZE,
    GREY,
    INK,
    LINES,
    SKY,
    VERMILLION,
    as_written,
    clean,
    label_ends,
    legend,
    new_figure,
    percent_axes,
    thousands,
    write_at,
)
from tsfm.reports.figure_style import figure_to_svg as figure_to_svg
from tsfm.reports.timeline_figure import timeline_plot as timeline_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


def reliability_plot(
    y: ArrayLike,
    p: ArrayLike,
    *,
    n_bins: int = 10,
    slope: float | None = None,
    intercept: float | None = None,
    outcome: str = "event",
    subject_ids: ArrayLike | None = None,
    fewest: int = 1,
) -> Figure:
    """Observed share against predicted probability, with the scores' histogram below.

    Points are bins of equal numbers of stays with Wilson's 95 % intervals; the diagonal is perfect
    calibration. Both axes have one scale and end where the data end, not at 1.

    Args:
        y: Labels, shape `(n,)`.
        p: Probabilities, shape `(n,)`.
        n_bins: Bins of equal size; fewer where fewer values are distinct.
        slope: Calibration slope to print.
        intercept: Calibration intercept to print.
        outcome: Name of what is predicted, for the axes.
        subject_ids: Subject of each row, shape `(n,)`; None takes each row for a subject.
        fewest: Subjects behind a point, at least.
    """
    y, p = _labelled(y, p)
    curve = reliability_curve(y, p, n_bins, subject_ids=subject_ids, fewest=fewest)
    limit = min(
        1.0, 0.05 * np.ceil(max(curve.high.max(), np.quantile(p, 0.995), 0.1) * 1.02 / 0.05)
    )

    figure = new_figure(5.2, 6.75)
    top, bottom = figure.subplots(2, 1, height_ratios=[4.4, 1], sharex=True)
    top.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)), zorder=1)
    top.vlines(curve.predicted, curve.low, curve.high, color=BLUE, lw=1.6, alpha=0.75, zorder=2)
    top.plot(
        curve.predicted, curve.observed, "o", color=BLUE, ms=6.5, mec="white", mew=0.8, zorder=3,
        clip_on=False,
    )  # fmt: skip
    top.set_xlim(0, limit)
    top.set_ylim(0, limit)
    top.set_box_aspect(1)
    write_at(
        top,
        "perfect calibration",
        (limit * 0.93, limit * 0.93),
        (-4, 4),
        rotation=45,
        rotation_mode="anchor",
        ha="right",
        color=GREY,
        size=FONT_SIZE - 1,
    )
    facts = [f"{len(y):,} stays, {int(y.sum()):,} with {outcome}"]
    fitted = [f"slope {slope:.2f} (ideal 1)"] if slope is not None else []
    if intercept is not None:
        fitted.append(f"intercept {_signed(intercept)} (ideal 0)")
    # Above the axes: within them an interval of any height may pass through the words.
    facts += [", ".join(fitted)] if fitted else []
    above = {"xycoords": "axes fraction", "va": "bottom", "linespacing": 1.5}
    write_at(top, "\n".join(facts), (0, 1), (0, 6), **above)
    top.set_ylabel(f"Observed share with {outcome}")
    percent_axes(top, "xy")
    clean(top)

    edges = np.linspace(0, limit, 41)
    beyond = int((p > limit).sum())
    bottom.hist(np.minimum(p, limit), bins=edges.tolist(), color=SKY, alpha=0.75)
    bottom.set_ylabel("Stays")
    bottom.set_xlabel(f"Predicted probability of {outcome}")
    if beyond:
        write_at(
            bottom,
            f"last bar: with {beyond:,} beyond",
            (0.99, 0.96),
            xycoords="axes fraction",
            ha="right",
            va="top",
            color=GREY,
            size=FONT_SIZE - 1,
        )
    thousands(bottom)
    percent_axes(bottom, "x")
    clean(bottom)
    return as_written(figure)


def roc_plot(models: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Sensitivity against the false positive rate, one line a model.

    Args:
        models: Name to labels and scores, each of shape `(n,)`; the first is drawn on top.
    """
    figure = new_figure(4.7, 4.9)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)))
    lines: dict[str, Line2D] = {}
    for rank, (name, (y, p)) in reversed(list(enumerate(models.items()))):
        y, p = _labelled(y, p)
        hits, alarms, _ = _cumulate(y, p)
        colour, dash = LINES[rank % len(LINES)]
        x = np.r_[0, alarms / max(alarms[-1], 1)]
        sensitivity = np.r_[0, hits / max(hits[-1], 1)]
        (lines[name],) = axes.plot(x, sensitivity, color=colour, ls=dash, lw=1.9)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_box_aspect(1)
    axes.set_xlabel("False positives, share of stays without the outcome")
    axes.set_ylabel("Sensitivity")
    percent_axes(axes, "xy")
    clean(axes)
    legend(axes, lines, "lower right")
    return as_written(figure)


def precision_recall_plot(models: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Positive predictive value against sensitivity, one line a model, and the base rate.

    Thresholds that flag fewer than 10 stays are not drawn: their values are noise.

    Args:
        models: Name to labels and scores, each of shape `(n,)`; the first is drawn on top.
    """
    figure = new_figure(4.7, 4.9)
    axes = figure.subplots()
    top, rate = 0.0, 0.0
    lines: dict[str, Line2D] = {}
    for rank, (name, (y, p)) in reversed(list(enumerate(models.items()))):
        y, p = _labelled(y, p)
        hits, _, flagged = _cumulate(y, p)
        enough = flagged >= min(10, len(y))
        precision = (hits / flagged)[enough]
        rate = y.mean()
        top = max(top, precision.max())
        colour, dash = LINES[rank % len(LINES)]
        sensitivity = (hits / max(hits[-1], 1))[enough]
        (lines[name],) = axes.plot(sensitivity, precision, color=colour, ls=dash, lw=1.9)
    axes.axhline(rate, color=GREY, lw=1, ls=(0, (4, 3)))
    small = {"va": "top", "color": GREY, "size": FONT_SIZE - 1}
    write_at(axes, f"base rate {rate:.1%}", (0.01, rate), (0, -4), **small)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(0, min(1.02, max(top * 1.1, 0.1)))
    axes.set_box_aspect(1)
    axes.set_xlabel("Sensitivity")
    axes.set_ylabel("Positive predictive value")
    percent_axes(axes, "xy")
    clean(axes)
    legend(axes, lines, "upper right")
    return as_written(figure)


def capacity_plot(
    y: ArrayLike, p: ArrayLike, *, chosen: float | None = None, most: float = 0.5
) -> Figure:
    """What a team finds if it can look at a given share of all stays, highest scores first.

    Args:
        y: Labels, shape `(n,)`.
        p: Scores, shape `(n,)`.
        chosen: Share to mark, a fraction.
        most: Largest share drawn, a fraction.
    """
    y, p = _labelled(y, p)
    hits, _, flagged = _cumulate(y, p)
    share = flagged / len(y)
    keep = (flagged >= min(10, len(y))) & (share <= max(most, share[0]))
    values = {
        "Sensitivity": (hits / max(hits[-1], 1), BLUE, "-"),
        "Positive predictive value": (hits / flagged, VERMILLION, (0, (5, 1.5))),
    }
    # A curve between two thresholds is no whole alert: the dots are those of the alert table.
    found = None if chosen is None else alerts_at_capacity(y, p, float(chosen))
    figure = new_figure(6.4, 3.7)
    axes = figure.subplots()
    rate = y.mean()
    axes.axhline(rate, color=GREY, lw=1, ls=(0, (4, 3)))
    if chosen is not None:
        axes.axvline(chosen, color=INK, lw=1, ls=(0, (1, 2)))
    ends: list[tuple[float, str, str]] = [(rate, f"Base rate {rate:.1%}", GREY)]
    for name, (value, colour, dash) in values.items():
        axes.plot(share[keep], value[keep], color=colour, ls=dash, lw=2)
        ends.append((float(value[keep][-1]) if keep.any() else rate, name, colour))
        if chosen is not None and found is not None:
            at = found.sensitivity if name == "Sensitivity" else found.ppv
            if not np.isfinite(at):
                continue
            axes.plot([chosen], [at], "o", color=colour, ms=6, mec="white", zorder=4)
            # Sensitivity rises and the predictive value falls: each leaves room on its own side.
            shift, side = ((7, -3), "top") if name == "Sensitivity" else ((7, 4), "bottom")
            style = {"va": side, "color": colour, "weight": "bold"}
            write_at(axes, f"{at:.0%}", (chosen, at), shift, **style)
    axes.set_xlim(0, most)
    axes.set_ylim(0, 1.02)
    label_ends(axes, most, ends)
    axes.set_xlabel("Share of all stays that are alerted, highest scores first")
    axes.set_ylabel("Share")
    percent_axes(axes, "xy")
    clean(axes)
    return as_written(figure)


def score_histogram(p: ArrayLike, *, outcome: str = "event") -> Figure:
    """Distribution of scores alone, for a run whose outcomes are not known yet.

    Args:
        p: Probabilities, shape `(n,)`.
        outcome: Name of what is predicted.
    """
    p = np.asarray(p, float)
    if p.size == 0:
        raise InputError("there are no scores to draw", code="no_scores", place="p")
    limit = _axis_end(float(p.max()))
    figure = new_figure(6.4, 3.0)
    axes = figure.subplots()
    axes.hist(p, bins=np.linspace(0, limit, 41).tolist(), color=SKY, alpha=0.75)
    median, mean = float(np.median(p)), float(p.mean())
    for value, name, dash, side in (
        (min(median, mean), "median" if median <= mean else "mean", (0, (1, 1)), "right"),
        (max(median, mean), "mean" if median <= mean else "median", (0, (5, 2)), "left"),
    ):
        axes.axvline(value, color=INK, lw=1.2, ls=dash)
        shift = (-4 if side == "right" else 4, 3)
        at = (value, 1.0)
        write_at(
            axes, f"{name} {value:.1%}", at, shift, xycoords=("data", "axes fraction"), ha=side
        )
    axes.set_xlim(0, limit)
    axes.set_xlabel(f"Predicted probability of {outcome}")
    axes.set_ylabel("Stays")
    thousands(axes)
    percent_axes(axes, "x")
    clean(axes)
    return as_written(figure)


def _labelled(y: ArrayLike, p: ArrayLike) -> tuple[NDArray, NDArray]:
    y, p = np.asarray(y, float), np.asarray(p, float)
    if y.shape != p.shape or y.ndim != 1 or y.size == 0:
        raise InputError(
            "labels and scores are not two equally long, non-empty rows of numbers",
            code="bad_scores",
            place="y, p",
        )
    return y, p


def _axis_end(largest: float) -> float:
    """The next twentieth above a probability: small risks should not crowd into a corner."""
    return float(min(1.0, 0.05 * np.ceil(max(largest, 0.1) * 1.01 / 0.05)))


def _cumulate(y: NDArray, p: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """True alerts, false alerts and all alerts at each distinct threshold, highest first."""
    order = np.argsort(-p, kind="stable")
    y, p = y[order], p[order]
    last = np.r_[np.flatnonzero(np.diff(p)), len(p) - 1]
    hits = np.cumsum(y)[last]
    flagged = last + 1.0
    return hits, flagged - hits, flagged


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
