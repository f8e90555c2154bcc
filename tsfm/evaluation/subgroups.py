"""For whom the scores work: the same measures by group, small cells left out.

A cell of fewer than eleven subjects is named but shows no figure, not its size either. Where the
hidden groups of a column are one, or hold fewer than eleven subjects together, their size could be
had by subtraction: the next smallest groups are hidden with them. A subject may be in several
groups, and is one subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from tsfm import schema
from tsfm.errors import InputError
from tsfm.evaluation.bootstrap import bootstrap_interval
from tsfm.evaluation.discrimination import auroc, brier

SMALLEST_CELL = 11
"""Subjects below which a cell is suppressed."""

PROBABILITY = "predicted_boolean_probability"

_COLUMNS = {
    "column": pl.String,
    "group": pl.String,
    "suppressed": pl.Boolean,
    "n": pl.Int64,
    "n_subjects": pl.Int64,
    "prevalence": pl.Float64,
    "auroc": pl.Float64,
    "auroc_low": pl.Float64,
    "auroc_high": pl.Float64,
    "brier": pl.Float64,
    "mean_predicted": pl.Float64,
    "observed_to_expected": pl.Float64,
}


def subgroup_table(
    frame: pl.DataFrame, columns: Sequence[str], *, n: int = 200, seed: int = 0
) -> pl.DataFrame:
    """Measures by the values of some columns.

    Args:
        frame: Scored rows whose label is known: the columns of `schema.PREDICTIONS` and `columns`.
        columns: Grouping columns; a null is the group `unknown`.
        n: Bootstrap resamples of subjects for the interval of AUROC.
        seed: Of the draws.

    Returns:
        One row a group: column, group, suppressed, n, n_subjects, prevalence, auroc, auroc_low,
        auroc_high, brier, mean_predicted, observed_to_expected (null where not defined).

    Raises:
        InputError: A column is missing.
    """
    wanted = [schema.SUBJECT_ID, schema.BOOLEAN_VALUE, PROBABILITY, *columns]
    absent = [name for name in wanted if name not in frame.columns]
    if absent:
        raise InputError(
            f"the frame lacks {', '.join(absent)}",
            code="missing_column",
            place="subgroup_table",
            remedy="Join the grouping columns to the predictions first.",
        )
    rows: list[dict[str, object]] = []
    for column in columns:
        named = frame.with_columns(pl.col(column).cast(pl.String).fill_null("unknown").alias("_g"))
        parts = {str(group): part for (group,), part in named.group_by(["_g"])}
        hidden = _hidden({g: set(p[schema.SUBJECT_ID]) for g, p in parts.items()})
        for group, part in sorted(parts.items()):
            told = {"suppressed": True} if group in hidden else _measure(part, n, seed)
            rows.append({"column": column, "group": group, **told})
    return pl.DataFrame(rows, schema=_COLUMNS).fill_nan(None)


def _hidden(subjects: Mapping[str, set[int]]) -> set[str]:
    """Groups without figures: small ones, and as many others as keep them from subtraction."""
    order = sorted(subjects, key=lambda group: (len(subjects[group]), group))
    n_hidden = sum(len(own) < SMALLEST_CELL for own in subjects.values())
    while 0 < n_hidden < len(order) and (
        n_hidden == 1
        or len(set().union(*(subjects[group] for group in order[:n_hidden]))) < SMALLEST_CELL
    ):
        n_hidden += 1
    return set(order[:n_hidden])


def _measure(part: pl.DataFrame, n: int, seed: int) -> dict[str, object]:
    n_subjects = part[schema.SUBJECT_ID].n_unique()
    y = part[schema.BOOLEAN_VALUE].cast(pl.Float64).to_numpy()
    p = part[PROBABILITY].cast(pl.Float64).to_numpy()
    interval = bootstrap_interval(auroc, part[schema.SUBJECT_ID].to_numpy(), y, p, n, seed)
    return {
        "suppressed": False,
        "n": part.height,
        "n_subjects": n_subjects,
        "prevalence": float(y.mean()),
        "auroc": interval.value,
        "auroc_low": interval.low,
        "auroc_high": interval.high,
        "brier": brier(y, p),
        "mean_predicted": float(p.mean()),
        "observed_to_expected": float(y.sum() / p.sum()) if p.sum() else None,
    }
