"""Several models' probabilities as one: a logistic line of their log odds, no weight below nought.

The probabilities it learns from must be out of fold: each row's from models that did not see its
subject. Models that err in different ways gain from each other; one that adds nothing gets nothing.
A stack is calibrated by its own fit. Wolpert, Stacked generalization, Neural Networks 5 (1992);
weights that are not negative: Breiman, Stacked regressions, Machine Learning 24 (1996).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError
from tsfm.evaluation.calibration import check_probability, logit

MOST_MODELS = 8
_RIDGE = 1e-3
_STEPS = 100


@dataclass(frozen=True)
class Stack:
    """How models are weighed.

    Attributes:
        intercept: Of the line.
        weights: Weight of each model's log odds, nought or more.
    """

    intercept: float
    weights: Mapping[str, float]

    def probability(self, models: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """One probability a row from the probabilities of the models that have a weight.

        Raises:
            InputError: One of them is missing, vectors of unequal length, or values that are no
                probabilities.
        """
        missing = [name for name, weight in self.weights.items() if weight and name not in models]
        if missing:
            raise InputError(
                f"no probabilities of {', '.join(missing)}", code="missing_model",
                place="models", remedy="Give those of every model that the stack was fitted on.",
            )  # fmt: skip
        n = len(np.atleast_1d(next(iter(models.values()), ())))
        line = np.full(n, self.intercept)
        for name, weight in self.weights.items():
            if weight:
                line = line + weight * logit(check_probability(np.zeros(n), models[name])[1])
        return np.exp(-np.logaddexp(0.0, -line))


def fit_stack(y: ArrayLike, models: Mapping[str, ArrayLike]) -> Stack:
    """Fit the weights by maximum likelihood.

    Args:
        y: Labels, shape (n,).
        models: Out-of-fold probabilities of each model, shape (n,), at most `MOST_MODELS` of them.

    Raises:
        InputError: No model or too many, one class only, or vectors that do not fit.
    """
    if not 1 <= len(models) <= MOST_MODELS:
        raise InputError(
            f"{len(models)} models to stack", code="bad_models", place="models",
            remedy=f"Give 1 to {MOST_MODELS}.",
        )  # fmt: skip
    labels = np.asarray(y, np.float64)
    columns = [logit(check_probability(labels, p)[1]) for p in models.values()]
    if not len(labels) or labels.min() == labels.max():
        raise InputError(
            "labels of one class only, or none", code="one_class", place="y",
            remedy="Use more subjects.",
        )  # fmt: skip
    names = list(models)
    best: tuple[float, NDArray[np.float64], tuple[int, ...]] | None = None
    # The likelihood is concave, so the best weights are the free optimum of one of the subsets.
    for size in range(len(names) + 1):
        for chosen in combinations(range(len(names)), size):
            design = np.column_stack([np.ones_like(labels), *(columns[i] for i in chosen)])
            beta, loss = _fit(design, labels)
            if (beta[1:] >= 0).all() and (best is None or loss < best[0] - 1e-9):
                best = (loss, beta, chosen)
    assert best is not None
    weights = dict.fromkeys(names, 0.0)
    weights |= {names[i]: float(w) for i, w in zip(best[2], best[1][1:], strict=True)}
    return Stack(float(best[1][0]), weights)


def _fit(design: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Logistic regression by Newton's method; a small ridge keeps equal models apart."""
    beta = np.zeros(design.shape[1])
    beta[0] = logit(y.mean())
    ridge = _RIDGE * np.r_[0.0, np.ones(len(beta) - 1)]

    def loss_of(b: NDArray[np.float64]) -> float:
        z = design @ b
        return float(np.sum(np.logaddexp(0.0, z) - y * z) + 0.5 * ridge @ b**2)

    loss = loss_of(beta)
    for _ in range(_STEPS):
        p = np.exp(-np.logaddexp(0.0, -(design @ beta)))
        slope = design.T @ (y - p) - ridge * beta
        curve = (design * (p * (1 - p))[:, None]).T @ design + np.diag(ridge + 1e-9)
        step = np.linalg.solve(curve, slope)
        while (after := loss_of(beta + step)) > loss + 1e-12 * abs(loss):
            step = step / 2
            if np.abs(step).max() < 1e-12:
                break
        beta, loss = beta + step, after
        if np.abs(step).max() < 1e-9:
            break
    return beta, loss
