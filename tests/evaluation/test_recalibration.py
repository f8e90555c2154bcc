"""Recalibration: each kind is its own maximum, undoes what it can, and is stored whole."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from tsfm.errors import InputError
from tsfm.evaluation.calibration import (
    calibration_in_the_large,
    calibration_intervals,
    ece,
    fit_platt,
    logit,
    recalibrate,
)
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.recalibration import (
    KINDS,
    Recalibration,
    fit_recalibration,
    fit_recalibrations,
)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def drawn(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    p = generator.beta(1, 4, n)
    return (generator.random(n) < p).astype(float), p


def test_the_temperature_is_the_maximum_of_the_likelihood() -> None:
    y, p = drawn()
    sharp = sigmoid(2.5 * logit(p))
    x = logit(sharp)
    oracle = minimize_scalar(
        lambda s: np.sum(np.logaddexp(0, s * x) - y * s * x), bounds=(0.01, 10), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    found = fit_recalibration("temperature", y, sharp)
    assert found.slope == pytest.approx(oracle.x, rel=1e-5)
    assert found.slope == pytest.approx(1 / 2.5, rel=0.1)
    assert found.offset == 0
    assert found.apply([0.5]).tolist() == [0.5]


def test_platt_is_the_line_that_was_there_before() -> None:
    y, p = drawn()
    line = fit_platt(y, p**2)
    found = fit_recalibration("platt", y, p**2)
    np.testing.assert_array_equal(found.apply(p**2), recalibrate(p**2, line))


def test_isotonic_is_scikit_learns_but_for_zero_and_one() -> None:
    y, p = drawn(800)
    p = np.round(p, 2)  # ties
    oracle = IsotonicRegression(out_of_bounds="clip").fit(p, y)
    least = 1 / (len(y) + 2)
    grid = np.linspace(0, 1, 501)
    expected = np.clip(oracle.predict(grid), least, 1 - least)
    found = fit_recalibration("isotonic", y, p)
    # Where one end of an interpolated stretch was held off the edge, the stretch moves by no more.
    np.testing.assert_allclose(found.apply(grid), expected, atol=least)
    at_data = found.apply(p)
    np.testing.assert_allclose(at_data, np.clip(oracle.predict(p), least, 1 - least), atol=1e-12)
    assert (np.diff(found.apply(grid)) >= 0).all()
    assert at_data.min() > 0
    assert at_data.max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_over_confidence_is_undone_on_other_rows(kind: str) -> None:
    y, p = drawn(20_000)
    sharp = sigmoid(2.0 * logit(p))
    found = fit_recalibration(kind, y[:10_000], sharp[:10_000])
    mended = found.apply(sharp[10_000:])
    assert ece(y[10_000:], sharp[10_000:]) > 0.03
    assert ece(y[10_000:], mended) < 0.015
    assert auroc(y[10_000:], mended) == pytest.approx(auroc(y[10_000:], sharp[10_000:]), abs=0.01)


def test_a_wrong_base_rate_is_mended_by_what_has_an_offset() -> None:
    y, p = drawn(20_000)
    high = sigmoid(logit(p) + 1)
    assert ece(y, fit_recalibration("temperature", y, high).apply(high)) > 0.05
    assert ece(y, fit_recalibration("platt", y, high).apply(high)) < 0.01
    assert ece(y, fit_recalibration("isotonic", y, high).apply(high)) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_survives_json(kind: str) -> None:
    y, p = drawn(500)
    found = fit_recalibration(kind, y, p)
    stored = json.loads(json.dumps(found.as_dict()))
    assert Recalibration.from_dict(stored) == found
    assert np.isnan(found.apply([np.nan])).all()


def test_what_a_model_directory_stores_is_platts() -> None:
    found = Recalibration.from_dict({"slope": 0.9, "offset": -0.1, "n": 100})
    assert found == Recalibration("platt", 0.9, -0.1)


def test_tasks_have_maps_of_their_own() -> None:
    y, p = drawn(500)
    found = fit_recalibrations("platt", {"a": (y, p), "b": (1 - y, p)})
    assert found["a"].slope > 0 > found["b"].slope


@pytest.mark.parametrize(
    "stored",
    [
        {"kind": "spline"},
        {"kind": "isotonic"},
        {"kind": "platt", "knots": [0.1], "levels": [0.1]},
        {"kind": "isotonic", "knots": [0.1, 0.2], "levels": [0.3]},
        {"kind": "isotonic", "knots": [0.2, 0.1], "levels": [0.3, 0.4]},
        {"kind": "isotonic", "knots": [0.1, 0.2], "levels": [0.4, 0.3]},
        {"kind": "isotonic", "knots": [0.1, 0.2], "levels": [5, 7]},
        {"kind": "isotonic", "knots": [-0.1, 0.2], "levels": [0.1, 0.2]},
        {"kind": "isotonic", "knots": None, "levels": None},
        {"kind": "isotonic", "knots": [0.1, float("nan")], "levels": [0.1, 0.2]},
        {"slope": float("nan")},
        {"offset": float("inf")},
        {"slope": "x"},
        {"slope": [1.0]},
        [1, 2],
    ],
)
def test_stored_nonsense_is_refused(stored: Any) -> None:
    with pytest.raises(InputError, match="bad_recalibration"):
        Recalibration.from_dict(stored)


def test_nothing_to_fit_is_an_error() -> None:
    y, p = drawn(200)
    with pytest.raises(InputError, match="unknown_recalibration"):
        fit_recalibration("beta", y, p)
    for kind in KINDS:
        with pytest.raises(InputError, match="nothing_to_calibrate"):
            fit_recalibration(kind, np.ones(5), np.linspace(0.1, 0.9, 5))
    with pytest.raises(InputError, match="nothing_to_calibrate"):
        fit_recalibration("temperature", [1, 0, 1, 0], [0.2, 0.8, 0.3, 0.9])


def test_calibration_in_the_large_is_the_shift_that_was_made() -> None:
    y, p = drawn(50_000)
    assert calibration_in_the_large(y, p) == pytest.approx(0, abs=0.03)
    assert calibration_in_the_large(y, sigmoid(logit(p) + 0.7)) == pytest.approx(-0.7, abs=0.03)
    moved = sigmoid(logit(p**2) + calibration_in_the_large(y, p**2))
    assert moved.sum() == pytest.approx(y.sum(), rel=1e-6)
    assert math.isnan(calibration_in_the_large([1, 1], [0.2, 0.3]))


def test_intervals_of_a_calibrated_model_hold_its_ideals() -> None:
    y, p = drawn(3000)
    subjects = np.arange(3000) // 2
    found = calibration_intervals(subjects, y, p, n=100)
    ideals = {"slope": 1, "intercept": 0, "in_the_large": 0, "observed_to_expected": 1}
    for name, ideal in ideals.items():
        assert found[name].low < ideal < found[name].high
    assert found["ece"].value == pytest.approx(ece(y, p))
    over = calibration_intervals(subjects, y, sigmoid(2 * logit(p)), n=100)
    assert over["slope"].high < 0.7
    assert over["ece"].low > found["ece"].high
