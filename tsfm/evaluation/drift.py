"""Whether a hospital's data still look like those a model was fitted on.

Two periods are compared in what can be counted without knowing any outcome (who has a code, what a
measurement is, what the scores are) and, where outcomes are known, in calibration. Every comparison
counts a subject once: rows of one subject are alike, and a test on rows would find drift in every
hospital. The measures:

* `code`: share of subjects with the code, two-proportion z test;
* `value`: each subject's median of the code, Kolmogorov and Smirnov's distance;
* `score`: each subject's mean score, the same distance;
* `calibration`: the shift of all log odds that makes expected and observed events as many, Wald's
  test with subjects as clusters.

The population stability index (PSI) stands beside the tests because hospitals know it: the sum over
bins of (q - p) ln(q / p), bins of equal mass in the reference. The usual limits of 0.1 and 0.25 are
for large samples; equal periods of n and m subjects give (bins - 1)(1/n + 1/m) by chance alone, and
that figure stands beside it.

All p values of a table are adjusted together (Benjamini and Hochberg 1995): of what it calls
drifted, a share of `level` is expected to be chance. Subjects in both periods make the tests
cautious. Comparisons of too few subjects are named and not made. No patient's value is shown; where
one to ten subjects have a code, or lack it, the table tells whether it drifted and no figure, since
they could be counted out of it. Nor is a size shown that leaves one to ten over: of the period's
subjects, of those who have the code but no value, of those who have a score but no outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from tsfm import schema
from tsfm.errors import InputError
from tsfm.evaluation.calibration import calibration_in_the_large, check_probability, logit
from tsfm.evaluation.subgroups import SMALLEST_CELL, is_few

N_BINS = 10
NOT_ENOUGH = "not enough data"
TESTED = "tested"
PROBABILITY = "probability"

COLUMNS = {
    "kind": pl.String,
    "name": pl.String,
    "status": pl.String,
    "n_reference": pl.Int64,
    "n_current": pl.Int64,
    "reference": pl.Float64,
    "current": pl.Float64,
    "distance": pl.Float64,
    "psi": pl.Float64,
    "psi_by_chance": pl.Float64,
    "p_value": pl.Float64,
    "q_value": pl.Float64,
    "drifted": pl.Boolean,
}
"""Columns of a drift table and their types."""


def drift_table(
    reference: pl.DataFrame,
    current: pl.DataFrame,
    *,
    reference_scores: pl.DataFrame | None = None,
    current_scores: pl.DataFrame | None = None,
    level: float = 0.05,
    fewest: int = 30,
) -> pl.DataFrame:
    """Compare two periods.

    Args:
        reference: Events of the period that is known to be well, columns of `schema.EVENTS`; see
            `events_between`. Periods should be equally long: in a longer one more subjects have any
            code.
        current: Events of the period in question.
        reference_scores: Rows with subject_id, probability and, where known, boolean_value.
        current_scores: The same of the other period; both or none.
        level: Share of chance findings among what is called drifted.
        fewest: Subjects that each side of a comparison must have, at least eleven; those with a
            code, both periods together. Calibration needs eleven labels of each kind besides.

    Returns:
        One row a comparison, the smallest p value first: kind; name (the code, or the measure);
        status (`tested` or `not enough data`); n_reference and n_current, subjects compared;
        reference and current, the share of subjects or the calibration shift, null for values and
        scores; distance, their difference or Kolmogorov and Smirnov's; psi, psi_by_chance; p_value,
        q_value; drifted.

    Raises:
        InputError: Scores of one period only, columns missing, or limits out of range.
    """
    if not 0 < level < 1 or fewest < SMALLEST_CELL:
        raise InputError(
            "the level is not between 0 and 1, or the fewest subjects are below eleven",
            code="bad_limit", place="level, fewest", remedy="Use for example 0.05 and 30.",
        )  # fmt: skip
    if (reference_scores is None) != (current_scores is None):
        raise InputError(
            "scores of one period only", code="missing_scores", place="reference_scores",
            remedy="Give the scores of both periods, or of none.",
        )  # fmt: skip
    rows = [*_code_rows(reference, current, fewest), *_value_rows(reference, current, fewest)]
    if reference_scores is not None and current_scores is not None:
        rows += _score_rows(reference_scores, current_scores, fewest)
    kinds = {name: COLUMNS.get(name, pl.Boolean) for name in (*_FOUND, "_hidden")}
    table = _adjust(pl.DataFrame(rows, schema=kinds), level)
    table = table.sort("p_value", "kind", "name", nulls_last=True)
    figures = pl.col(
        "reference", "current", "distance", "psi", "psi_by_chance", "p_value", "q_value"
    )
    return table.with_columns(pl.when(~pl.col("_hidden")).then(figures)).select(*COLUMNS)


def events_between(events: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    """Events of a period, from `start` to just before `end`; static facts are in none."""
    return events.filter(pl.col(schema.TIME).is_between(start, end, closed="left"))


def population_stability(
    reference: ArrayLike, current: ArrayLike, *, n_bins: int = N_BINS
) -> tuple[float, float]:
    """PSI of two samples, and what equal populations would give on average.

    Args:
        reference: Sample whose quantiles are the bins, shape (n,).
        current: Sample to compare, shape (m,).
        n_bins: Bins of equal mass, at most: ties share one.

    Raises:
        InputError: An empty sample, values that are no numbers, or fewer than two bins.
    """
    first, second = (np.asarray(x, dtype=np.float64).ravel() for x in (reference, current))
    empty = not (len(first) and len(second))
    if empty or n_bins < 2 or np.isnan(first).any() or np.isnan(second).any():
        raise InputError(
            "an empty sample, values that are no numbers, or fewer than two bins",
            code="bad_sample", place="population_stability", remedy="Leave missing values out.",
        )  # fmt: skip
    edges = np.unique(np.quantile(first, np.arange(1, n_bins) / n_bins))
    counts = [
        np.bincount(np.searchsorted(edges, x, side="left"), minlength=len(edges) + 1)
        for x in (first, second)
    ]
    used = (counts[0] + counts[1]) > 0
    return _psi(counts[0][used], counts[1][used])


def _psi(reference: NDArray[np.int64], current: NDArray[np.int64]) -> tuple[float, float]:
    """PSI of counts; half a subject in every bin keeps an empty one finite."""
    p, q = ((x + 0.5) / (x.sum() + 0.5 * len(x)) for x in (reference, current))
    by_chance = (len(p) - 1) * (1 / reference.sum() + 1 / current.sum())
    return float(np.sum((q - p) * np.log(q / p))), float(by_chance)


_FOUND = tuple(COLUMNS)[:-2]  # a row before the adjustment
_Row = dict[str, object]


def _row(kind: str, name: str, n_reference: int, n_current: int, **found: object) -> _Row:
    empty: _Row = {**dict.fromkeys(_FOUND), "_hidden": False}
    status = TESTED if found else NOT_ENOUGH
    sizes = {
        "n_reference": n_reference if n_reference >= SMALLEST_CELL else None,
        "n_current": n_current if n_current >= SMALLEST_CELL else None,
    }
    return {**empty, "kind": kind, "name": name, "status": status, **sizes, **found}


def _code_rows(reference: pl.DataFrame, current: pl.DataFrame, fewest: int) -> list[_Row]:
    from scipy.stats import norm

    totals = [frame[schema.SUBJECT_ID].n_unique() for frame in (reference, current)]
    n, m = totals
    owners = [_owners(frame) for frame in (reference, current)]
    both = (
        owners[0]
        .join(owners[1], on=schema.CODE, how="full", coalesce=True, suffix="_current")
        .with_columns(pl.col("have", "have_current").fill_null(0))
        .sort(schema.CODE)
    )
    rows: list[_Row] = []
    for code, have, have_current in both.iter_rows():
        if min(n, m) < fewest or have + have_current < fewest:
            rows.append(_row("code", code, n, m))
            continue
        share, share_current = have / n, have_current / m
        pooled = (have + have_current) / (n + m)
        error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        difference = share_current - share
        p_value = 2 * norm.sf(abs(difference) / error) if error > 0 else 1.0
        psi, by_chance = _psi(
            np.array([have, n - have]), np.array([have_current, m - have_current])
        )
        rows.append(
            _row(
                "code", code, n, m, reference=share, current=share_current,
                distance=difference, psi=psi, psi_by_chance=by_chance, p_value=float(p_value),
                _hidden=_is_small(have, n) or _is_small(have_current, m),
            )
        )  # fmt: skip
    return rows


def _is_small(have: int, n: int) -> bool:
    """Whether a share speaks of a few subjects: one to ten with the code, or without it."""
    return is_few(have) or is_few(n - have)


def _value_rows(reference: pl.DataFrame, current: pl.DataFrame, fewest: int) -> list[_Row]:
    value = pl.col(schema.NUMERIC_VALUE)
    medians = [
        frame.filter(value.is_finite())
        .group_by(schema.CODE, schema.SUBJECT_ID)
        .agg(value.cast(pl.Float64).median().alias("value"))
        .group_by(schema.CODE)
        .agg("value")
        for frame in (reference, current)
    ]
    both = medians[0].join(medians[1], on=schema.CODE, how="full", coalesce=True, suffix="_now")
    frames = (reference, current)
    totals = [frame[schema.SUBJECT_ID].n_unique() for frame in frames]
    owners = [dict(_owners(frame).iter_rows()) for frame in frames]
    return [
        _without_rest(
            _compare("value", code, np.array(before or []), np.array(now or []), fewest),
            [(total, have.get(code, 0)) for total, have in zip(totals, owners, strict=True)],
        )
        for code, before, now in both.sort(schema.CODE).iter_rows()
    ]


def _owners(frame: pl.DataFrame) -> pl.DataFrame:
    """Subjects who have each code."""
    return frame.group_by(schema.CODE).agg(pl.col(schema.SUBJECT_ID).n_unique().alias("have"))


def _without_rest(row: _Row, wider: Sequence[Sequence[int]]) -> _Row:
    """The row without a size that leaves a small one over, of any of its period's wider ones.

    Nor what it follows from: a distance by chance is a formula of both sizes, and a whole number of
    steps of one over their product has its digits from them.
    """
    sizes = ("n_reference", "n_current")
    told = dict(row)
    for name, totals in zip(sizes, wider, strict=True):
        size = row[name]
        if isinstance(size, int) and any(is_few(total - size) for total in totals):
            told[name] = None
    if any(told[name] != row[name] for name in sizes):
        told["psi_by_chance"] = None
        for name in ("distance", "psi", "p_value"):
            figure = told[name]
            told[name] = float(f"{figure:.2g}") if isinstance(figure, float) else figure
    return told


def _compare(
    kind: str, name: str, before: NDArray[np.float64], now: NDArray[np.float64], fewest: int
) -> _Row:
    from scipy.stats import ks_2samp

    n, m = len(before), len(now)
    if min(n, m) < fewest:
        return _row(kind, name, n, m)
    distance, p_value = map(float, np.array(ks_2samp(before, now)))
    psi, by_chance = population_stability(before, now)
    return _row(
        kind, name, n, m, distance=distance, psi=psi, psi_by_chance=by_chance,
        p_value=p_value,
    )  # fmt: skip


def _score_rows(reference: pl.DataFrame, current: pl.DataFrame, fewest: int) -> list[_Row]:
    means: list[NDArray[np.float64]] = []
    for frame in (reference, current):
        if not {schema.SUBJECT_ID, PROBABILITY} <= set(frame.columns):
            raise InputError(
                "scores lack subject_id or probability", code="missing_column", place="scores",
                remedy="Give the rows of a scoring run.",
            )  # fmt: skip
        scored = frame.drop_nulls(PROBABILITY).group_by(schema.SUBJECT_ID)
        means.append(
            scored.agg(pl.col(PROBABILITY).mean())[PROBABILITY].cast(pl.Float64).to_numpy()
        )
    rows = [_compare("score", PROBABILITY, means[0], means[1], fewest)]
    if all(schema.BOOLEAN_VALUE in frame.columns for frame in (reference, current)):
        scored = [(len(mean),) for mean in means]
        rows.append(_without_rest(_calibration_row(reference, current, fewest), scored))
    return rows


def _calibration_row(reference: pl.DataFrame, current: pl.DataFrame, fewest: int) -> _Row:
    from scipy.stats import norm

    known = [f.drop_nulls([PROBABILITY, schema.BOOLEAN_VALUE]) for f in (reference, current)]
    if not all(f[schema.BOOLEAN_VALUE].cast(pl.Float64).is_in([0.0, 1.0]).all() for f in known):
        raise InputError(
            "labels other than true and false", code="bad_label", place=schema.BOOLEAN_VALUE,
            remedy="Give Booleans, or 0 and 1.",
        )  # fmt: skip
    known = [f.with_columns(pl.col(schema.BOOLEAN_VALUE).cast(pl.Boolean)) for f in known]
    sizes = [frame[schema.SUBJECT_ID].n_unique() for frame in known]
    name = "in_the_large"
    # Events are what is counted: a shift told by three of them is no finding.
    told = [
        min(int(frame[schema.BOOLEAN_VALUE].sum()), int((~frame[schema.BOOLEAN_VALUE]).sum()))
        for frame in known
    ]
    if min(sizes) < fewest or min(told) < SMALLEST_CELL:
        return _row("calibration", name, *sizes)
    (shift, error), (shift_now, error_now) = (_shift(frame) for frame in known)
    z = (shift_now - shift) / np.hypot(error, error_now)
    return _row(
        "calibration", name, *sizes, reference=shift, current=shift_now,
        distance=shift_now - shift, p_value=float(2 * norm.sf(abs(z))),
    )  # fmt: skip


def _shift(frame: pl.DataFrame) -> tuple[float, float]:
    """Calibration in the large and its standard error, subjects as clusters."""
    y, p = check_probability(
        frame[schema.BOOLEAN_VALUE].cast(pl.Float64).to_numpy(),
        frame[PROBABILITY].cast(pl.Float64).to_numpy(),
    )
    shift = calibration_in_the_large(y, p)
    fitted = 1 / (1 + np.exp(-(logit(p) + shift)))
    _, owner = np.unique(frame[schema.SUBJECT_ID].to_numpy(), return_inverse=True)
    score = np.bincount(owner, weights=y - fitted)
    return shift, float(np.sqrt(np.sum(score**2)) / np.sum(fitted * (1 - fitted)))


def _adjust(table: pl.DataFrame, level: float) -> pl.DataFrame:
    from scipy.stats import false_discovery_control

    p = table["p_value"].to_numpy()
    tested = np.isfinite(p)
    q = np.full(len(p), np.nan)
    if tested.any():
        q[tested] = false_discovery_control(p[tested])
    return table.with_columns(
        pl.Series("q_value", q, dtype=pl.Float64).fill_nan(None),
        pl.Series("drifted", [bool(v <= level) if np.isfinite(v) else None for v in q],
                  dtype=pl.Boolean),
    )  # fmt: skip
