"""Boosted decision trees as plain arrays, evaluated exactly as LightGBM evaluates them.

A fitted LightGBM model is a sum of trees, and a tree is a handful of comparisons, so it needs
neither that library nor a pickle to be used: `from_lightgbm` copies the trees of its public dump
into arrays, and a compiled loop adds their leaves up. Values are compared as float64 and leaves
are added in the order of the trees, so scores are LightGBM's to the last bit (Ke et al., LightGBM,
NeurIPS 2017; the comparison is that of its `Tree::NumericalDecision`).

Scores are raw: what a link function, softmax or logistic, makes of them is the caller's business.
Categorical splits, linear leaves and averaged forests are refused. Nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

import numba
import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError, ModelMismatch

_DTYPES = {
    "root": np.int32, "column": np.int16, "feature": np.int16, "threshold": np.float64,
    "left": np.int32, "right": np.int32, "missing": np.int8, "default_left": np.bool_,
    "leaf": np.float64,
}  # fmt: skip
_OF_TREES, _OF_NODES = ("column",), ("threshold", "left", "right", "missing", "default_left")
_MISSING = ("None", "Zero", "NaN")  # LightGBM's names; their places are stored
_MOST_FEATURES = 32_767
_ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold: what lies within counts as missing
_ENDLESS = 1e300  # what LightGBM's dump writes for infinity, the threshold that NaN alone exceeds


@dataclass(frozen=True, eq=False)
class BoostedTrees:
    """Trees whose leaves are added up, column by column.

    A place in the trees is one number: that of a node, or `~leaf`, which is negative, for a leaf.

    Attributes:
        n_features: Columns of what is scored.
        n_columns: Columns of the scores, one for each class and member.
        root: (n_trees,) place at which each tree starts.
        column: (n_trees,) column of the scores that the tree adds to.
        feature: (n_nodes,) what is compared.
        threshold: (n_nodes,) a value up to this goes left.
        left: (n_nodes,) place on the left.
        right: (n_nodes,) place on the right.
        missing: (n_nodes,) what counts as missing: 0 nothing, and NaN is read as zero; 1 zero and
            NaN; 2 NaN.
        default_left: (n_nodes,) where a missing value goes.
        leaf: (n_leaves,) values of the leaves.
    """

    n_features: int
    n_columns: int
    root: npt.NDArray[np.int32]
    column: npt.NDArray[np.int16]
    feature: npt.NDArray[np.int16]
    threshold: npt.NDArray[np.float64]
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    missing: npt.NDArray[np.int8]
    default_left: npt.NDArray[np.bool_]
    leaf: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what is no forest: a loop below trusts every number in it."""
        _check(self.state(), self.n_features, self.n_columns)

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return len(self.root)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name, as they are stored."""
        return {name: getattr(self, name) for name in _DTYPES}

    @classmethod
    def from_state(
        cls, state: Mapping[str, npt.NDArray[Any]], *, n_features: int, n_columns: int
    ) -> BoostedTrees:
        """Trees from arrays that may come from anywhere.

        Args:
            state: As `state` gives them.
            n_features: Columns of what is scored.
            n_columns: Columns of the scores.

        Raises:
            ModelMismatch: `bad_trees`: arrays are missing, extra, misshapen or of other types, a
                number is no number or out of range, or the places make no trees.
        """
        if set(state) != set(_DTYPES):
            raise _bad("arrays are missing or unknown")
        _check_types(state)
        return cls(n_features, n_columns, **state)

    def score(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Raw scores of rows.

        Args:
            values: (n_rows, n_features), NaN where a value is missing.

        Returns:
            (n_rows, n_columns) sums of leaves.

        Raises:
            ModelMismatch: `other_features`: another number of features.
        """
        rows = np.ascontiguousarray(values, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ModelMismatch(
                f"{rows.shape} is not (row, {self.n_features})", code="other_features",
                place="score", remedy="Give the features that the trees were fitted on, in order.",
            )  # fmt: skip
        scores = np.zeros((len(rows), self.n_columns))
        _add_leaves(
            rows, self.root, self.column, self.feature, self.threshold, self.left, self.right,
            self.missing, self.default_left, self.leaf, scores,
        )  # fmt: skip
        return scores


def from_lightgbm(*boosters: Any) -> BoostedTrees:
    """Trees of fitted LightGBM boosters; columns of the scores are booster by booster.

    Args:
        boosters: `lightgbm.Booster`s on the same features. Of one that stopped early the trees up
            to its best iteration are taken, as its own `predict` does.

    Raises:
        InputError: `unknown_trees`: no booster, boosters of different features, or what is not
            copied: categorical splits, linear leaves, averaged forests, numbers not finite.
    """
    try:
        dumps = [booster.dump_model() for booster in boosters]
    except ValueError as error:  # LightGBM writes numbers that are not finite as no JSON
        raise _unknown("a number that is not finite") from error
    widths = {dump["max_feature_idx"] + 1 for dump in dumps}
    if len(widths) != 1 or max(widths) > _MOST_FEATURES:
        raise _unknown("no booster, or boosters of different features")
    lists: dict[str, list[Any]] = {name: [] for name in _DTYPES}
    n_columns = 0
    for dump in dumps:
        if dump.get("average_output"):
            raise _unknown("an averaged forest")
        n_outputs = dump["num_tree_per_iteration"]
        for i, tree in enumerate(dump["tree_info"]):
            lists["column"].append(n_columns + i % n_outputs)
            lists["root"].append(_append(tree["tree_structure"], lists))
        n_columns += n_outputs
    state = {name: np.array(lists[name], dtype) for name, dtype in _DTYPES.items()}
    return BoostedTrees.from_state(state, n_features=widths.pop(), n_columns=n_columns)


def _append(branch: Mapping[str, Any], lists: dict[str, list[Any]]) -> int:
    """Append a branch, each node before what is below it, and give its place."""
    if "leaf_const" in branch or branch.get("decision_type", "<=") != "<=":
        raise _unknown("a linear leaf, or a categorical split")
    if "split_feature" not in branch:
        lists["leaf"].append(branch["leaf_value"])
        return ~(len(lists["leaf"]) - 1)
    place = len(lists["feature"])
    lists["feature"].append(branch["split_feature"])
    threshold = branch["threshold"]
    lists["threshold"].append(threshold if threshold < _ENDLESS else np.inf)
    lists["missing"].append(_MISSING.index(branch["missing_type"]))
    lists["default_left"].append(branch["default_left"])
    lists["left"].append(0)
    lists["right"].append(0)
    lists["left"][place] = _append(branch["left_child"], lists)
    lists["right"][place] = _append(branch["right_child"], lists)
    return place


def _check_types(state: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, dtype in _DTYPES.items():
        if state[name].dtype != dtype or state[name].ndim != 1:
            raise _bad(f"'{name}' is of another type or shape")


def _check(state: Mapping[str, npt.NDArray[Any]], n_features: int, n_columns: int) -> None:
    _check_types(state)
    root, feature, leaf = state["root"], state["feature"], state["leaf"]
    lengths = [len(state[name]) == len(root) for name in _OF_TREES]
    lengths += [len(state[name]) == len(feature) for name in _OF_NODES]
    if not (all(lengths) and len(root) and 0 < n_features <= _MOST_FEATURES and n_columns > 0):
        raise _bad("arrays of different lengths, or no tree")
    if not (_within(feature, n_features) and _within(state["column"], n_columns)):
        raise _bad("a feature or a column that is not there")
    if len(np.unique(state["column"])) < n_columns:
        raise _bad("a column without a tree")
    if np.isnan(state["threshold"]).any() or not np.isfinite(leaf).all():
        raise _bad("a threshold that is no number, or an endless leaf")
    if not _within(state["missing"], len(_MISSING)):
        raise _bad("an unknown kind of missing value")
    places = np.concatenate([root, state["left"], state["right"]])
    every = np.arange(-len(leaf), len(feature))
    if not np.array_equal(np.sort(places), every):
        raise _bad("places that are not there, or are reached twice or never")
    # Each node lies before what is below it, so no way down can come back.
    below = np.stack([state["left"], state["right"]])
    if ((below >= 0) & (below <= np.arange(len(feature)))).any():
        raise _bad("a node that leads back")


def _within(numbers: npt.NDArray[Any], end: int) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())


@numba.njit(nogil=True, cache=True)
@no_type_check
def _add_leaves(
    rows, root, column, feature, threshold, left, right, missing, default_left, leaf, scores
):
    for row in range(rows.shape[0]):
        for tree in range(root.shape[0]):
            place = root[tree]
            while place >= 0:
                value = rows[row, feature[place]]
                kind = missing[place]
                if np.isnan(value) and kind != 2:
                    value = 0.0
                if (kind == 1 and abs(value) <= _ZERO) or (kind == 2 and np.isnan(value)):
                    goes_left = default_left[place]
                else:
                    goes_left = value <= threshold[place]
                place = left[place] if goes_left else right[place]
            scores[row, column[tree]] += leaf[~place]


def _bad(what: str) -> ModelMismatch:
    return ModelMismatch(
        what, code="bad_trees", place="trees",
        remedy="Restore the model directory as it was written.",
    )  # fmt: skip


def _unknown(what: str) -> InputError:
    return InputError(
        what, code="unknown_trees", place="from_lightgbm",
        remedy="Give boosters with numerical splits and constant leaves, on the same features.",
    )  # fmt: skip
