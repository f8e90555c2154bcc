"""Weights of a stack are those of the likelihood, and never negative."""

from __future__ import annotations

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.calibration import calibration_slope_intercept, logit
from tsfm.evaluation.stacking import Stack, fit_stack


def probability(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two models that each know half of the truth, one that knows nothing, one that is wrong."""
    rng = np.random.default_rng(0)
    a, b, noise = rng.normal(size=(3, 20_000))
    y = (rng.random(20_000) < probability(a + 0.5 * b - 1.0)).astype(float)
    models = {"a": a, "b": b, "noise": noise, "against": -a - 0.5 * b}
    return y, {name: probability(z) for name, z in models.items()}


def test_the_truth_is_found_where_the_models_hold_it(drawn) -> None:
    y, models = drawn
    stack = fit_stack(y, {name: models[name] for name in ("a", "b", "noise")})
    assert stack.weights["a"] == pytest.approx(1.0, abs=0.05)
    assert stack.weights["b"] == pytest.approx(0.5, abs=0.05)
    assert stack.weights["noise"] == pytest.approx(0.0, abs=0.05)
    assert stack.intercept == pytest.approx(-1.0, abs=0.05)


def test_a_model_that_is_always_wrong_gets_no_weight(drawn) -> None:
    y, models = drawn
    stack = fit_stack(y, {"against": models["against"], "noise": models["noise"]})
    assert stack.weights["against"] == 0.0
    assert min(stack.weights.values()) >= 0.0


def test_a_stack_is_calibrated_where_it_was_fitted(drawn) -> None:
    y, models = drawn
    line = calibration_slope_intercept(y, fit_stack(y, models).probability(models))
    assert line.slope == pytest.approx(1.0, abs=1e-3)
    assert line.intercept == pytest.approx(0.0, abs=1e-3)


def test_models_that_know_nothing_give_the_share_of_events(drawn) -> None:
    y, models = drawn
    stack = fit_stack(y, {"against": models["against"]})
    assert stack.probability(models) == pytest.approx(np.full(len(y), y.mean()), abs=1e-6)


def test_one_model_is_recalibrated(drawn) -> None:
    y, models = drawn
    stack = fit_stack(y, {"a": models["a"]})
    line = calibration_slope_intercept(y, models["a"])
    assert stack.weights["a"] == pytest.approx(line.slope, rel=1e-4)
    assert stack.intercept == pytest.approx(line.intercept, abs=1e-4)


def test_equal_models_share_the_weight(drawn) -> None:
    y, models = drawn
    stack = fit_stack(y, {"one": models["a"], "two": models["a"]})
    assert stack.weights["one"] == pytest.approx(stack.weights["two"], abs=1e-3)


def test_a_stack_does_not_ask_for_models_without_a_weight() -> None:
    p = np.array([0.2, 0.7])
    stack = Stack(0.5, {"a": 2.0, "b": 0.0})
    assert stack.probability({"a": p}) == pytest.approx(probability(0.5 + 2 * logit(p)))
    with pytest.raises(InputError, match="missing_model"):
        stack.probability({"b": p})


@pytest.mark.parametrize(
    ("y", "models", "code"),
    [
        ([0, 1], {}, "bad_models"),
        ([1, 1], {"a": [0.1, 0.2]}, "one_class"),
        ([0, 1], {"a": [0.1]}, "unequal_lengths"),
        ([0, 1], {"a": [0.1, 1.2]}, "bad_probability"),
    ],
)
def test_what_can_not_be_stacked_is_refused(y, models, code) -> None:
    with pytest.raises(InputError, match=code):
        fit_stack(y, models)


@pytest.mark.parametrize(
    ("models", "code"),
    [
        ({"a": [1.7, -3.0]}, "bad_probability"),
        ({"a": [0.5, np.nan]}, "nan_score"),
        ({"b": [0.1, 0.2, 0.3], "a": [0.5]}, "unequal_lengths"),
        ({"b": [0.1, 0.2], "a": [0.5, 0.2, 0.3]}, "unequal_lengths"),
    ],
)
def test_a_stack_takes_probabilities_of_the_same_rows_only(models, code) -> None:
    with pytest.raises(InputError, match=code):
        Stack(0.0, {"a": 1.0, "b": 0.0}).probability(models)
