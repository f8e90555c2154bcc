"""For whom the scores work: the same measures by group, small cells left out.

A cell of fewer than eleven subjects is named but shows no figure, not its size either. Where one to
ten subjects of a shown cell have the outcome, or lack it, its shares of the outcome are not shown.
Nor is what would tell either by subtraction:

* where the hidden groups of a column are one, or hold fewer than eleven subjects together, the next
  smallest groups are hidden with them;
* where the groups of one column that lie within a group of another leave one to ten subjects of it
  over (`A` beside `A or C`), the smallest of them is hidden, if need be with one that reaches
  beyond.

A subject may be in several groups, and is one subject. What several tables tell together, such as
those of two nights, is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import schema
from tsfm.errors import InputError
from tsfm.evaluation.bootstrap import bootstrap_interval
from tsfm.evaluation.discrimination import auroc, brier

SMALLEST_CELL = 11
"""Subjects below which a cell is suppressed."""

PROBABILITY = "predicted_boolean_probability"
_OF_THE_OUTCOME = ("prevalence", "observed_to_expected")

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
        auroc_high, brier, mean_predicted, observed_to_expected (null where not defined, or not
        shown).

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
    names = [pl.col(c).cast(pl.String).fill_null("unknown") for c in dict.fromkeys(columns)]
    groups = frame.select(names)
    _, owner = np.unique(frame[schema.SUBJECT_ID].to_numpy(), return_inverse=True)
    y = frame[schema.BOOLEAN_VALUE].cast(pl.Boolean).to_numpy()
    hidden = _hidden(groups, owner, np.ones_like(y), {name: set() for name in groups.columns})
    of_outcome = [_hidden(groups, owner, counted, hidden) for counted in (y, ~y)]
    rows: list[dict[str, object]] = []
    for column in columns:
        named = frame.with_columns(groups[column].alias("_g"))
        parts = {str(group): part for (group,), part in named.group_by(["_g"])}
        for group, part in sorted(parts.items()):
            told = {"suppressed": True} if group in hidden[column] else _measure(part, n, seed)
            if any(group in found[column] for found in of_outcome):
                told = {**told, **dict.fromkeys(_OF_THE_OUTCOME)}
            rows.append({"column": column, "group": group, **told})
    return pl.DataFrame(rows, schema=_COLUMNS).fill_nan(None)


def is_few(n_subjects: int) -> bool:
    """Whether a number of subjects is a small cell; none at all are nobody."""
    return 0 < n_subjects < SMALLEST_CELL


def _hidden(
    groups: pl.DataFrame,
    owner: NDArray[np.int64],
    counted: NDArray[np.bool_],
    before: Mapping[str, set[str]],
) -> dict[str, set[str]]:
    """Groups of each column of which must not be told how many of the `counted` rows they have.

    Small ones, those of `before`, and as many others as keep them from subtraction. What is hidden
    in a column can be had together, as what its shown groups leave over.

    Args:
        groups: Group of each row, in each column.
        owner: Number of each row's subject.
        counted: Rows that are counted: all, or those with the outcome, or without.
        before: Groups that are hidden already.
    """
    found: dict[str, set[str]] = {}
    for column in groups.columns:
        rows = {g: groups[column].eq(g).to_numpy() & counted for g in groups[column].unique()}
        sizes = {group: len(np.unique(owner[own])) for group, own in rows.items()}
        order = sorted(sizes, key=lambda group: (sizes[group], group))
        few = {g for g in order if is_few(sizes[g]) and g not in before[column]}
        hidden = few | {group for group in order if group in before[column]}
        shown = [group for group in order if group not in hidden]
        shown = [group for group in shown if sizes[group]]
        while (
            few
            and shown
            and is_few(len(np.unique(owner[np.any([rows[g] for g in hidden], axis=0)])))
        ):
            hidden.add(shown.pop(0))
        found[column] = hidden
    while told := _told_across(groups, owner, counted, found):
        column, more = min(told, key=lambda one: len(one[1]))
        found[column] |= more  # at least one group a round: it ends
    return found


def _told_across(
    groups: pl.DataFrame,
    owner: NDArray[np.int64],
    counted: NDArray[np.bool_],
    hidden: Mapping[str, set[str]],
) -> list[tuple[str, set[str]]]:
    """Columns and the groups to hide in them, where a few could be had across columns."""
    told: list[tuple[str, set[str]]] = []
    known = {column: _Known(groups[column], hidden[column]) for column in hidden}
    for outer, inner in permutations(known.values(), 2):
        for cell in range(len(outer.names)):
            inside = outer.cell == cell
            within = np.bincount(inner.cell[inside], minlength=len(inner.names)) == inner.n_rows
            rest = inside & ~within[inner.cell] & counted
            if within.any() and is_few(len(np.unique(owner[rest]))):
                told.append((inner.column, inner.more(within, set(inner.cell[rest].tolist()))))
    return told


class _Known:
    """What can be known of a column: its shown groups, and its hidden ones together.

    Attributes:
        names: Of the shown groups, None for the hidden ones.
        cell: Index in `names`, a row each.
        n_rows: Rows of each.
    """

    def __init__(self, group: pl.Series, hidden: set[str]) -> None:
        self.column = group.name
        self.names: list[str | None] = sorted(set(group) - hidden)
        self.names += [None] if hidden else []
        last = len(self.names) - 1
        place = {name: i for i, name in enumerate(self.names)}
        self.cell = np.array([place.get(name, last) for name in group], np.int64)
        self.n_rows = np.bincount(self.cell, minlength=len(self.names))

    def more(self, within: NDArray[np.bool_], rest: set[int]) -> set[str]:
        """Groups to hide so that those `within` another no longer leave the `rest` of it over.

        What is hidden must reach beyond the other group, or it would still be known within it.
        """
        order = [i for i in np.argsort(self.n_rows, kind="stable") if self.names[i] is not None]
        inside, beyond = [i for i in order if within[i]][:1], [i for i in order if i in rest][:1]
        if None not in self.names:
            return {str(self.names[i]) for i in inside + beyond}
        return {str(self.names[i]) for i in (beyond if within[-1] else inside)}


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
