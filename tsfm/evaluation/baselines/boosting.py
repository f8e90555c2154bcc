"""Gradient boosting on count features (LightGBM), stopped early on the tuning split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError, TsfmError

MAX_TREES = 3000
PATIENCE = 80
LEAVES = (4, 8, 24)
"""Sizes of tree that are tried; the tuning split chooses."""

_PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "metric": "binary_logloss",
    "learning_rate": 0.03,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.2,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "max_bin": 63,
    "num_threads": 2,
    "deterministic": True,
    "force_col_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True)
class BoostedModel:
    """A fitted ensemble.

    Attributes:
        booster: LightGBM's model, at its best iteration.
        n_trees: Trees it keeps.
        n_leaves: Leaves of each, at most.
        tuning_loss: Its log loss on the tuning split.
    """

    booster: Any
    n_trees: int
    n_leaves: int
    tuning_loss: float

    def predict_probability(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probability of a true label, shape (n,), from features of shape (n, n_features)."""
        return np.asarray(self.booster.predict(X, num_iteration=self.n_trees), dtype=np.float64)


def fit_boosting(
    X: NDArray[np.float32],
    y: ArrayLike,
    X_tuning: NDArray[np.float32],
    y_tuning: ArrayLike,
    seed: int = 0,
) -> BoostedModel:
    """Fit on the training split; number and size of trees are chosen on the tuning split.

    Args:
        X: Features, shape (n, n_features), NaN where missing.
        y: Labels, shape (n,).
        X_tuning: Features of the tuning split.
        y_tuning: Labels of the tuning split.
        seed: Of all draws.

    Raises:
        InputError: A split is empty or holds one class.
        TsfmError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise TsfmError(
            "LightGBM is not installed",
            code="missing_package",
            place="lightgbm",
            remedy="Install it with `pip install tsfm[baselines]`.",
        ) from error
    splits = {"training": np.asarray(y, np.float64), "tuning": np.asarray(y_tuning, np.float64)}
    for name, labels in splits.items():
        if len(np.unique(labels)) < 2:
            raise InputError(
                f"the {name} split has labels of one class only, or none",
                code="one_class",
                place="fit_boosting",
                remedy="Use more subjects.",
            )
    train = lightgbm.Dataset(X, splits["training"], free_raw_data=False, params=_PARAMETERS)
    tuning = lightgbm.Dataset(X_tuning, splits["tuning"], reference=train, free_raw_data=False)
    fitted: list[BoostedModel] = []
    for n_leaves in LEAVES:
        booster = lightgbm.train(
            {**_PARAMETERS, "num_leaves": n_leaves, "seed": seed},
            train,
            MAX_TREES,
            valid_sets=[tuning],
            valid_names=["tuning"],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        n_trees = booster.best_iteration or booster.current_iteration()
        loss = float(booster.best_score["tuning"]["binary_logloss"])
        fitted.append(BoostedModel(booster, n_trees, n_leaves, loss))
    return min(fitted, key=lambda model: model.tuning_loss)
