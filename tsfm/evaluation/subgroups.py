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
from dataclasses import dataclass, field
from itertools import combinations, permutations

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
_OF_THE_OUTCOME = ("prevalence", "observed_to_expected", "brier")
# A whole number of half pairs, of those with the outcome and those without: its digits tell how
# many of each there are.
_OF_PAIRS = ("auroc", "auroc_low", "auroc_high")
ROUGH_DECIMALS = 2
"""Decimals of an AUROC where the number of outcomes is not shown."""
_LEAST_OPEN = 10  # numbers of outcomes that must fit one

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
                told = {**told, **_rough(told), **dict.fromkeys(_OF_THE_OUTCOME)}
            rows.append({"column": column, "group": group, **told})
    return pl.DataFrame(rows, schema=_COLUMNS).fill_nan(None)


def _rough(told: Mapping[str, object]) -> dict[str, float | None]:
    auroc, n = told.get("auroc"), told.get("n")
    if not (isinstance(auroc, float) and isinstance(n, int) and may_be_told(auroc, n)):
        return dict.fromkeys(_OF_PAIRS)
    figures = {name: told[name] for name in _OF_PAIRS}
    return {
        name: round(figure, ROUGH_DECIMALS) if isinstance(figure, float) else None
        for name, figure in figures.items()
    }


def may_be_told(auroc: float, n: int) -> bool:
    """Whether a rounded AUROC of `n` rows leaves open how many of them have the outcome.

    Of k of n rows it is a whole number of pairs, k (n - k), so that of few rows even two decimals
    fit a single k.
    """
    if not np.isfinite(auroc):
        return False
    k = np.arange(1, n)
    pairs = k * (n - k)
    told = round(auroc, ROUGH_DECIMALS)
    off = np.abs(np.round(told * pairs) / pairs - told)
    return int((off <= 0.5 * 10.0**-ROUGH_DECIMALS).sum()) >= _LEAST_OPEN


def is_few(n_subjects: float) -> bool:
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
    found = {c: _hidden_alone(groups[c], owner, counted, before[c]) for c in groups.columns}
    known = _Known(groups, owner, counted, found)
    while told := known.told():
        known.hide(*told)  # at least one group a round: it ends
    return known.hidden


def _hidden_alone(
    group: pl.Series, owner: NDArray[np.int64], counted: NDArray[np.bool_], before: set[str]
) -> set[str]:
    """Groups to hide in a column that stands alone: small ones, those of `before`, the next."""
    rows = pl.DataFrame({"group": group, "owner": owner, "counted": counted})
    asked = pl.col("owner").filter("counted").n_unique()
    sizes = dict(rows.group_by("group").agg(asked).iter_rows())
    order = sorted(sizes, key=lambda group: (sizes[group], group))
    few = {g for g in order if is_few(sizes[g]) and g not in before}
    hidden = few | {group for group in order if group in before}
    shown = [group for group in order if group not in hidden and sizes[group]]
    together = rows.filter(pl.col("counted") & pl.col("group").is_in(sorted(hidden)))
    if few and shown and is_few(together["owner"].n_unique()):
        hidden.add(shown[0])  # of eleven subjects or more, so it is enough
    return hidden


@dataclass
class _Shared:
    """Rows that a cell of one column and a cell of another have in common.

    Attributes:
        n_rows: Number of the rows.
        owners: Subjects of those that are counted; of more than a small cell, some of them.
    """

    n_rows: int = 0
    owners: set[int] = field(default_factory=set[int])

    def take(self, other: _Shared) -> None:
        """Join the rows of another cell."""
        self.n_rows += other.n_rows
        self.owners |= other.owners


class _Known:
    """What can be known of the columns together.

    A cell is a shown group, or, named None, all hidden groups of its column: what these hold
    together is what the shown ones leave over. Rows are counted once, by pairs of columns; a group
    that is hidden is joined to the hidden cell, and only the cells that it meets are asked anew.

    Attributes:
        hidden: Groups of each column that are not shown.
    """

    def __init__(
        self,
        groups: pl.DataFrame,
        owner: NDArray[np.int64],
        counted: NDArray[np.bool_],
        hidden: dict[str, set[str]],
    ) -> None:
        self.hidden = hidden
        cells = groups.select(
            pl.when(~pl.col(c).is_in(sorted(hidden[c]))).then(pl.col(c)) for c in groups.columns
        )
        self._n_rows: dict[str, dict[str | None, int]] = {
            c: dict(cells[c].value_counts().iter_rows()) for c in cells.columns
        }
        self._rank = {pair: i for i, pair in enumerate(permutations(cells.columns, 2))}
        self._shared: dict[tuple[str, str], dict[str | None, dict[str | None, _Shared]]] = {
            pair: {cell: {} for cell in self._n_rows[pair[0]]} for pair in self._rank
        }
        owners = pl.col("owner").filter("counted").unique().head(SMALLEST_CELL)
        for one, other in combinations(cells.columns, 2):
            rows = pl.DataFrame(
                {"one": cells[one], "other": cells[other], "owner": owner, "counted": counted}
            )
            found = rows.group_by("one", "other").agg(pl.len(), owners)
            for a, b, n_rows, subjects in found.iter_rows():
                shared = _Shared(n_rows, set(subjects))
                self._shared[one, other][a][b] = self._shared[other, one][b][a] = shared
        self._told: set[tuple[str, str, str | None]] = set()
        for outer, inner in self._rank:
            for cell in self._shared[outer, inner]:
                self._ask(outer, inner, cell)

    def told(self) -> tuple[str, set[str]] | None:
        """A column and the groups to hide in it, where a few could be had; None where nowhere.

        Of several such, one for which a single group is enough, else the first.
        """
        if not self._told:
            return None
        outer, inner, cell = min(
            self._told,
            key=lambda one: (not self.hidden[one[1]], self._rank[one[:2]], _in_order(one[2])),
        )
        return inner, self._more(outer, inner, cell)

    def hide(self, column: str, more: set[str]) -> None:
        """Hide these shown groups of a column, too."""
        self.hidden[column] |= more
        n_rows = self._n_rows[column]
        n_rows[None] = n_rows.get(None, 0) + sum(n_rows.pop(group) for group in more)
        for other in (name for name in self._n_rows if name != column):
            mine, theirs = self._shared[column, other], self._shared[other, column]
            hidden = mine.setdefault(None, {})
            # What was hidden may have been all within one cell, and no longer be.
            met = set(hidden) if len(hidden) == 1 else set[str | None]()
            for group in more:
                self._told.discard((column, other, group))
                for cell, shared in mine.pop(group).items():
                    del theirs[cell][group]
                    theirs[cell][None] = hidden.setdefault(cell, _Shared())
                    hidden[cell].take(shared)
                    met.add(cell)
            self._ask(column, other, None)
            for cell in met:
                self._ask(other, column, cell)

    def _ask(self, outer: str, inner: str, cell: str | None) -> None:
        """Note whether the cells of `inner` that lie within the cell leave a few of it over."""
        within, rest = self._split(outer, inner, cell)
        subjects: set[int] = set()
        for other in rest if within else ():
            subjects |= self._shared[outer, inner][cell][other].owners
            if len(subjects) >= SMALLEST_CELL:
                break
        asked = (outer, inner, cell)
        (self._told.add if is_few(len(subjects)) else self._told.discard)(asked)

    def _split(
        self, outer: str, inner: str, cell: str | None
    ) -> tuple[list[str | None], list[str | None]]:
        """Cells of `inner` that lie within the cell, and those that have others of its rows."""
        shared = self._shared[outer, inner][cell]
        n_rows = self._n_rows[inner]
        within = [other for other, both in shared.items() if both.n_rows == n_rows[other]]
        rest = [other for other, both in shared.items() if both.n_rows < n_rows[other]]
        return within, rest

    def _more(self, outer: str, inner: str, cell: str | None) -> set[str]:
        """Groups to hide so that those within the cell no longer leave the rest of it over.

        What is hidden must reach beyond the cell, or it would still be known within it.
        """
        within, rest = self._split(outer, inner, cell)
        n_rows, shared = self._n_rows[inner], self._shared[outer, inner][cell]
        left = [other for other in rest if shared[other].owners]

        def smallest(cells: list[str | None]) -> set[str]:
            named = [group for group in cells if group is not None]
            return set(sorted(named, key=lambda group: (n_rows[group], group))[:1])

        if not self.hidden[inner]:
            return smallest(within) | smallest(left)
        return smallest(left if None in within else within)


def _in_order(cell: str | None) -> tuple[bool, str]:
    """Shown groups by name, the hidden ones last."""
    return cell is None, cell or ""


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
