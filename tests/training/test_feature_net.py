"""A feature network learns what its features hold, from answers that are partly unknown."""

from __future__ import annotations

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.discrimination import auroc
from tsfm.training.feature_net import FeatureNetTraining, fit_feature_net

SHORT = FeatureNetTraining(epochs=8, n_seeds=1)


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, two answers and the true log odds of the first."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 8)).astype(np.float32)
    z = 1.5 * X[:, 0] * X[:, 1] + X[:, 2]
    answers = (rng.random((n, 2)) < 1 / (1 + np.exp(-np.column_stack([z, X[:, 3]])))).astype(float)
    return X, answers, z


def test_products_of_features_are_learnt() -> None:
    X, answers, _ = drawn(3000, 0)
    longer = FeatureNetTraining(epochs=60, weight_decay=0.01, n_seeds=1)
    fitted = fit_feature_net(X, answers, training=longer)
    test, truth, z = drawn(2000, 1)
    found = auroc(truth[:, 0], fitted.probability(test)[:, 0])
    assert auroc(truth[:, 0], test[:, 2]) + 0.04 < found <= auroc(truth[:, 0], z) + 0.01


def test_unknown_answers_teach_nothing() -> None:
    X, answers, _ = drawn(400, 0)
    unknown = answers.copy()
    unknown[:200, 1] = np.nan
    other = unknown.copy()
    fitted = fit_feature_net(X, unknown, training=SHORT)
    assert np.isfinite(fitted.probability(X)).all()
    again = fit_feature_net(X, other, training=SHORT)
    assert np.array_equal(fitted.probability(X), again.probability(X))
    told = fit_feature_net(X, answers, training=SHORT)
    assert not np.array_equal(fitted.probability(X), told.probability(X))


def test_a_fit_does_not_touch_the_callers_random_numbers() -> None:
    import torch

    X, answers, _ = drawn(100, 0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_feature_net(X, answers, training=FeatureNetTraining(epochs=1, n_seeds=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "answers",
    [np.zeros((5, 1)), np.full((100, 1), 0.5), np.full((100, 1), np.nan), np.zeros(100)],
)
def test_answers_that_do_not_fit_are_refused(answers: np.ndarray) -> None:
    with pytest.raises(InputError, match="bad_answers"):
        fit_feature_net(drawn(100, 0)[0], answers)
