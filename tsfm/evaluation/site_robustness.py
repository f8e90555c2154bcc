"""Whether an embedding tells the hospital better than the patient's state.

A model that has learnt a hospital's habits of coding puts patients of one hospital next to each
other, whatever becomes of them, and fails at the next hospital. Two looks at it:

**Robustness index** (de Jong, Marcus and Teuwen 2025, arXiv 2501.18055, there for pathology images
and medical centres; here for stays and hospitals). Of the nearest neighbours that agree with a row
in exactly one of outcome and site,

    R_k = n(same outcome, other site) / (n(same outcome, other site) + n(other outcome, same site))

1: neighbours share the patient's state; 0: they share the hospital. Neighbours that share both or
neither say nothing about which of the two counts. Sites of unequal size or rate of events move what
indifference would give, so R of all pairs of rows stands beside it as `by_chance`.

**Probes**: how well a linear classifier reads the site, and the outcome, from the embedding of
patients that it has not seen.

Rows of one subject are never each other's neighbours and never in training and test at once. Both
looks describe; they do not say whether the sites' patients differ, which they mostly do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError, TsfmError
from tsfm.evaluation.bootstrap import Interval, bootstrap_interval
from tsfm.evaluation.discrimination import auroc

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class SiteRobustness:
    """How an embedding stands to site and outcome.

    Attributes:
        index: Robustness index, with its interval over resampled subjects.
        by_chance: The index of neighbours drawn at random.
        site_auroc: Area under the curve of a linear probe of the site, mean over the sites.
        outcome_auroc: The same of the outcome.
        n_neighbours: Neighbours looked at of each row.
    """

    index: Interval
    by_chance: float
    site_auroc: float
    outcome_auroc: float
    n_neighbours: int

    def _repr_html_(self) -> str:
        i = self.index
        return (
            f"<b>Site robustness</b> {i.value:.2f} ({i.low:.2f} to {i.high:.2f}; by chance "
            f"{self.by_chance:.2f}), {self.n_neighbours} neighbours<table>"
            f"<tr><td>site told from the embedding, AUROC</td><td>{self.site_auroc:.3f}</td></tr>"
            f"<tr><td>outcome</td><td>{self.outcome_auroc:.3f}</td></tr></table>"
        )


def site_robustness(
    embedding: ArrayLike,
    outcome: ArrayLike,
    site: ArrayLike,
    subject_ids: ArrayLike,
    *,
    n_neighbours: int = 20,
    n: int = 500,
    seed: int = 0,
) -> SiteRobustness:
    """Robustness index and probes of one embedding.

    Args:
        embedding: One row a stay, shape (n_rows, n_features).
        outcome: Class of each row, such as the label, shape (n_rows,).
        site: Hospital of each row, shape (n_rows,).
        subject_ids: Subject of each row, shape (n_rows,).
        n_neighbours: Neighbours of each row, by cosine of the standardised embedding.
        n: Resamples of the interval.
        seed: Of resamples and folds.

    Raises:
        InputError: Shapes that do not fit, values that are no numbers or missing, or a single site
            or outcome.
    """
    x, labels, places, owners = _check(embedding, outcome, site, subject_ids)
    neighbours = nearest_neighbours(x, owners, n_neighbours)
    rows = np.repeat(np.arange(len(x)), neighbours.shape[1])
    other = neighbours.ravel()
    found = other >= 0
    rows, other = rows[found], other[found]
    same_outcome, same_site = labels[rows] == labels[other], places[rows] == places[other]
    telling = same_outcome != same_site
    by_state = same_outcome[telling].astype(np.float64)
    return SiteRobustness(
        index=bootstrap_interval(
            lambda y, p: float(y.mean()) if len(y) else float("nan"),
            owners[rows[telling]], by_state, np.zeros_like(by_state), n, seed,
        ),
        by_chance=_by_chance(labels, places, owners),
        site_auroc=probe_auroc(x, places, owners, seed=seed),
        outcome_auroc=probe_auroc(x, labels, owners, seed=seed),
        n_neighbours=n_neighbours,
    )  # fmt: skip


def nearest_neighbours(
    embedding: ArrayLike, subject_ids: ArrayLike, n_neighbours: int
) -> NDArray[np.int64]:
    """Rows most alike to each row, of other subjects, the most alike first.

    Args:
        embedding: Shape (n_rows, n_features).
        subject_ids: Shape (n_rows,).
        n_neighbours: How many.

    Returns:
        Row numbers, shape (n_rows, n_neighbours); -1 where there are fewer.

    Raises:
        InputError: Fewer than one neighbour asked for.
    """
    if n_neighbours < 1:
        raise InputError("fewer than one neighbour", code="bad_n_neighbours", place="n_neighbours")
    x = _unit_rows(np.asarray(embedding, dtype=np.float64))
    owners = np.asarray(subject_ids)
    found = np.full((len(x), n_neighbours), -1, np.int64)
    k = min(n_neighbours, len(x))
    for start in range(0, len(x), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        likeness = x[part] @ x.T
        likeness[owners[part, None] == owners] = -np.inf
        best = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
        # argpartition leaves them unordered, and equal ones at random: by row number then.
        value = np.take_along_axis(likeness, best, 1)
        order = np.lexsort((best, -value), axis=1)
        best, value = (np.take_along_axis(a, order, 1) for a in (best, value))
        found[part, :k] = np.where(np.isfinite(value), best, -1)
    return found


def probe_auroc(
    embedding: ArrayLike,
    label: ArrayLike,
    subject_ids: ArrayLike,
    *,
    n_folds: int = 5,
    seed: int = 0,
) -> float:
    """How well a linear probe reads a label from subjects it has not seen.

    Args:
        embedding: Shape (n_rows, n_features).
        label: Classes, two or more, shape (n_rows,).
        subject_ids: Shape (n_rows,); all rows of a subject fall into one fold.
        n_folds: Folds; every row is predicted once, from the others.
        seed: Of the folds.

    Returns:
        Mean over the classes of the area under the curve of each against the rest (of two classes
        one says it all). NaN where a class is missing from the training rows of a fold.

    Raises:
        InputError: A single class, or fewer subjects than folds.
        TsfmError: scikit-learn is not installed.
    """
    x, y, owners = np.asarray(embedding, np.float64), np.asarray(label), np.asarray(subject_ids)
    classes, coded = np.unique(y, return_inverse=True)
    subjects, owner = np.unique(owners, return_inverse=True)
    if len(classes) < 2 or len(subjects) < n_folds or n_folds < 2:
        raise InputError(
            "a single class, or fewer subjects than folds, has nothing to probe",
            code="nothing_to_probe", place="label", remedy="Use more rows, or fewer folds.",
        )  # fmt: skip
    fold = np.random.default_rng(seed).permutation(np.arange(len(subjects)) % n_folds)[owner]
    scores = np.full((len(x), len(classes)), np.nan)
    for number in range(n_folds):
        held = fold == number
        if len(np.unique(coded[~held])) < len(classes):
            return float("nan")
        scores[held] = _fit_probe(x[~held], coded[~held], x[held])
    used = range(len(classes)) if len(classes) > 2 else (1,)
    return float(np.mean([auroc(coded == c, scores[:, c]) for c in used]))


def _fit_probe(
    x: NDArray[np.float64], y: NDArray[np.int64], held: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Class probabilities of held-out rows by a regularised logistic regression."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise TsfmError(
            "scikit-learn is not installed", code="missing_package", place="scikit-learn",
            remedy="Install it with `pip install tsfm[baselines]`.",
        ) from error  # fmt: skip
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return np.asarray(probe.fit(x, y).predict_proba(held), dtype=np.float64)


def _by_chance(labels: NDArray, places: NDArray, owners: NDArray) -> float:
    """The index over all pairs of rows of different subjects, from counts."""

    def n_pairs(*columns: NDArray) -> float:
        _, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
        return float(np.sum(counts.astype(np.float64) ** 2))

    outcome = n_pairs(labels) - n_pairs(labels, owners)
    site = n_pairs(places) - n_pairs(places, owners)
    both = n_pairs(labels, places) - n_pairs(labels, places, owners)
    total = (outcome - both) + (site - both)
    return (outcome - both) / total if total else float("nan")


def _unit_rows(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Features standardised, then rows of length one: no feature rules by its scale alone."""
    spread = x.std(0)
    x = (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


def _check(
    embedding: ArrayLike, outcome: ArrayLike, site: ArrayLike, subject_ids: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    x = np.asarray(embedding, dtype=np.float64)
    columns = [np.asarray(column) for column in (outcome, site, subject_ids)]
    if x.ndim != 2 or any(c.shape != x.shape[:1] for c in columns) or not np.isfinite(x).all():
        raise InputError(
            "the embedding is no finite matrix with an outcome, a site and a subject for each row",
            code="bad_embedding", place="embedding", remedy="Give one value of each for every row.",
        )  # fmt: skip
    for what, column in zip(("outcome", "site", "subject_ids"), columns, strict=True):
        # A missing one would be a class, or a hospital, of its own.
        if pl.Series(column, strict=False).is_null().any() or bool(np.any(column != column)):
            raise InputError(
                "a row has none", code="missing_value", place=what,
                remedy="Leave rows without outcome, site or subject out.",
            )  # fmt: skip
    labels, places, owners = (np.unique(c, return_inverse=True)[1] for c in columns)
    for what, found in (("outcome", labels), ("site", places)):
        if found.max(initial=0) == 0:
            raise InputError(
                f"a single {what}: nothing can be told apart", code="single_class", place=what,
                remedy="Use rows of two or more.",
            )  # fmt: skip
    return x, labels, places, owners
