"""What the benchmarks of risk share: folds of patients, boosting in folds, stacks, scores, one row.

All models are fitted on the same folds of the training subjects, out of fold; a stack of them and
its calibration is fitted on these predictions, and the test subjects are asked of all folds' models
together. What `gbm` says goes through the same: folds, average, calibration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsfm.evaluation.bootstrap import paired_difference
from tsfm.evaluation.calibration import calibration_slope_intercept, logit
from tsfm.evaluation.discrimination import auprc, auroc, brier
from tsfm.evaluation.stacking import Stack, fit_stack

N_FOLDS = 5
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def hashed(name: object, salt: str) -> float:
    """A number of [0, 1) that belongs to a name."""
    digest = hashlib.blake2b(f"{salt}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def a_fifth(subjects: Sequence[int]) -> set[int]:
    """A fifth of the subjects by a hash of their ids."""
    return {s for s in subjects if hashed(s, "test") < 0.2}


def folds_of(subjects: Sequence[int], n_folds: int = N_FOLDS) -> dict[int, int]:
    """Subject to fold, by a hash of its id."""
    return {s: int(hashed(s, "fold") * n_folds) for s in subjects}


@dataclass(frozen=True)
class Boosting:
    """LightGBM's settings; the number of trees is fixed, so that no fold is looked at twice.

    Attributes:
        n_trees: Trees.
        params: LightGBM's parameters.
        n_seeds: Fits whose probabilities are averaged.
    """

    n_trees: int
    params: Mapping[str, Any]
    n_seeds: int = 2

    def fit_predict(
        self, X: NDArray[np.float32], y: NDArray[np.float64], asked: NDArray[np.float32],
        categorical: Sequence[int] = (), threads: int = 2,
    ) -> NDArray[np.float64]:  # fmt: skip
        """Probabilities of the asked rows."""
        import lightgbm

        given = {"objective": "binary", "verbosity": -1, "num_threads": threads, "max_bin": 63}
        columns = list(categorical)
        each = [
            lightgbm.train(
                {**given, **self.params, "seed": seed},
                lightgbm.Dataset(X, y, categorical_feature=columns), self.n_trees,
            ).predict(asked)
            for seed in range(self.n_seeds)
        ]  # fmt: skip
        return np.mean(np.asarray(each, np.float64), 0)


def in_folds(
    fit_predict: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]],
    fold: NDArray[np.int64], n_folds: int,
) -> Pair:  # fmt: skip
    """Out-of-fold probabilities of training rows, and on test rows (fold -1) the folds' average.

    Args:
        fit_predict: From taught and asked row numbers to probabilities of the asked.
        fold: Fold of each row.
        n_folds: Folds.
    """
    apart, on_test = np.full(len(fold), np.nan), np.zeros(len(fold))
    test = np.flatnonzero(fold == -1)
    for k in range(n_folds):
        taught, asked = np.flatnonzero((fold != k) & (fold >= 0)), np.flatnonzero(fold == k)
        p = fit_predict(taught, np.concatenate([asked, test]))
        apart[asked] = p[: len(asked)]
        on_test[test] += logit(p[len(asked) :])
    return apart, np.where(fold == -1, 1 / (1 + np.exp(-on_test / n_folds)), np.nan)


def stacked(
    y: NDArray[np.float64], fold: NDArray[np.int64], members: Mapping[str, Pair]
) -> tuple[NDArray[np.float64], Stack]:
    """Probabilities of the test rows by a stack fitted on the training rows' out-of-fold ones."""
    train, test = fold >= 0, fold == -1
    stack = fit_stack(y[train], {name: apart[train] for name, (apart, _) in members.items()})
    return stack.probability({n: tested[test] for n, (_, tested) in members.items()}), stack


def tell_out_of_fold(
    y: NDArray[np.float64], fold: NDArray[np.int64], members: Mapping[str, Pair], stack: Stack
) -> dict[str, list[float]]:
    """Print and return AUROC and AUPRC of the training rows, each by models that did not see it."""
    train = fold >= 0
    each = {name: apart[train] for name, (apart, _) in members.items()}
    each["stack"] = stack.probability(each)
    found = {name: [auroc(y[train], p), auprc(y[train], p)] for name, p in each.items()}
    told = ", ".join(f"{name} {a:.4f} / {b:.4f}" for name, (a, b) in found.items())
    print(f"out of fold, {int(train.sum()):,} training rows (AUROC / AUPRC): {told}")
    print("weights of the stack: " + ", ".join(f"{n} {w:.2f}" for n, w in stack.weights.items()))
    return found


def least_of_both(y: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    """Score 1 of the Challenge 2012: the largest min(sensitivity, precision) over thresholds."""
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order])
    last = np.r_[np.flatnonzero(np.diff(p[order])), len(p) - 1]  # ties are alerted together
    precision, sensitivity = hits[last] / (last + 1), hits[last] / y.sum()
    return float(np.minimum(precision, sensitivity).max())


def measures(y: NDArray[np.float64], p: NDArray[np.float64]) -> dict[str, float]:
    """What is reported of one model."""
    line = calibration_slope_intercept(y, p)
    return {
        "auroc": auroc(y, p), "auprc": auprc(y, p), "brier": brier(y, p),
        "calibration_slope": float(line.slope), "n": len(y), "min_se_ppv": least_of_both(y, p),
    }  # fmt: skip


def report(
    y: NDArray[np.float64], subjects: NDArray[np.int64], models: Mapping[str, NDArray[np.float64]],
    *, shipped: str, peer: str, n_boot: int = 1000,
) -> dict[str, Any]:  # fmt: skip
    """Print the table of all models on the test rows; return what the last line holds.

    Args:
        y: Labels.
        subjects: Whose they are: the unit of the bootstrap.
        models: Name to probabilities.
        shipped: Name of the model as shipped.
        peer: Name of the boosting beside it.
        n_boot: Resamples.
    """
    print(f"\n{len(y):,} test rows, {int(y.sum()):,} positive")
    print(f"{'':<40}{'AUROC':>8}{'AUPRC':>8}{'Brier':>8}{'slope':>7}{'min':>7}"
          f"   AUROC less boosting's [95 %]")  # fmt: skip
    found: dict[str, Any] = {}
    for name, p in models.items():
        own = measures(y, p)
        delta = paired_difference(auroc, subjects, y, p, models[peer], n_boot)
        area = paired_difference(auprc, subjects, y, p, models[peer], n_boot)
        own["delta_auroc_ci"] = [delta.low, delta.high]
        own["delta_auprc_ci"] = [area.low, area.high]
        found[name] = own
        beside = f"{delta.value:+.4f} [{delta.low:+.4f}, {delta.high:+.4f}]" if name != peer else ""
        print(f"{name:<40}{own['auroc']:>8.4f}{own['auprc']:>8.4f}{own['brier']:>8.4f}"
              f"{own['calibration_slope']:>7.2f}{own['min_se_ppv']:>7.3f}   {beside}",
              flush=True)  # fmt: skip
    return {**found[shipped], "model": shipped, "gbm": found[peer], "models": found}
