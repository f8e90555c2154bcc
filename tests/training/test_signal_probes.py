"""Probes are what refitting would give, and never split a patient."""

from __future__ import annotations

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.training.signal_probes import LinearProbe, fit_logistic, fit_ridge, patient_folds

PENALTIES = (1e-3, 0.1, 2.0, 50.0)


def rows(n: int = 60, n_features: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(3.0, 1.0, (n, n_features)) * np.geomspace(0.01, 100, n_features)
    y = np.stack([x[:, 0] * 100 + rng.normal(size=n), rng.normal(size=n)], 1)
    return x, y


def plain_ridge(x: np.ndarray, y: np.ndarray, penalty: float, like: np.ndarray) -> LinearProbe:
    """Ridge by the normal equations; scales are those of `like`."""
    scale = like.std(0)
    centre, mean = y.mean(0), x.mean(0)
    z = (x - mean) / scale
    gram = z.T @ z + len(like) * penalty * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, z.T @ (y - centre)) / scale[:, None]
    return LinearProbe(weights, centre - mean @ weights, np.array(penalty), np.array(0.0), False)


@pytest.mark.parametrize("n_patients", [60, 17, 2])
def test_losses_of_patients_left_out_are_those_of_refitting(n_patients: int) -> None:
    x, y = rows()
    owner = np.arange(60) % n_patients if n_patients < 60 else np.arange(60)
    found = fit_ridge(x, y, patients=owner, penalties=PENALTIES)
    for i, penalty in enumerate(PENALTIES):
        errors = np.zeros_like(y)
        for patient in range(n_patients):
            out = owner == patient
            refitted = plain_ridge(x[~out], y[~out], penalty, like=x)
            errors[out] = y[out] - refitted.predict(x[out])
        np.testing.assert_allclose(found.validation_loss[i], (errors**2).mean(0), rtol=1e-6)


def test_the_chosen_ridge_is_that_of_the_normal_equations_for_each_target() -> None:
    x, y = rows()
    found = fit_ridge(x, y, patients=None, penalties=PENALTIES)
    assert found.penalty[0] < found.penalty[1]  # one target is there to be found, one is noise
    for target in range(2):
        wanted = plain_ridge(x, y[:, [target]], found.penalty[target], like=x)
        np.testing.assert_allclose(found.weights[:, [target]], wanted.weights, rtol=1e-8)
        np.testing.assert_allclose(found.predict(x)[:, [target]], wanted.predict(x), rtol=1e-8)
    assert found.penalty.tolist() == [
        PENALTIES[i] for i in found.validation_loss.argmin(0)
    ]  # fmt: skip


def test_more_features_than_rows_and_features_that_do_not_vary_are_no_trouble() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 80))
    x[:, 3] = 7.0
    y = x[:, 0] - x[:, 1]
    found = fit_ridge(x, y, patients=np.arange(30) // 2)
    assert np.isfinite(found.weights).all()
    assert abs(found.weights[3]) < 1e-12
    assert np.isfinite(found.validation_loss).all()


def test_rows_of_one_patient_do_not_vouch_for_each_other() -> None:
    # Ten rows a patient say who it is and nothing else: by rows the target is clear, by patients
    # it is not, and the choice of a penalty must see that.
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(15), 10)
    x = np.eye(15)[owner] + rng.normal(0, 0.05, (150, 15))
    y = rng.normal(size=15)[owner]
    by_row = fit_ridge(x, y, patients=None)
    by_patient = fit_ridge(x, y, patients=owner)
    assert by_row.validation_loss.min() < 0.1 * y.var()
    assert by_patient.validation_loss.min() > 0.8 * y.var()
    assert by_patient.penalty > by_row.penalty


def test_logistic_weights_have_no_slope_left() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(2.0, 3.0, (200, 4))
    y = (rng.random((200, 3)) < 1 / (1 + np.exp(-(x[:, :3] - 2)))).astype(float)
    y[:50, 1] = np.nan
    found = fit_logistic(x, y, patients=None, penalties=[0.05])
    mean, scale = x.mean(0), x.std(0)
    for label in range(3):
        told = ~np.isnan(y[:, label])
        p = found.predict(x)[told, label]
        slope = ((p - y[told, label])[:, None] * (x[told] - mean) / scale).mean(0)
        inner = found.weights[:, label] * scale
        np.testing.assert_allclose(slope, -0.05 * inner, atol=1e-4)
        assert p.mean() == pytest.approx(y[told, label].mean(), abs=1e-4)  # a free intercept


def test_labels_do_not_hang_on_each_other_and_agree_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    x = rng.normal(size=(120, 3))
    x = (x - x.mean(0)) / x.std(0)
    y = (rng.random((120, 2)) < 0.3 + 0.4 * (x[:, :2] > 0)).astype(float)
    both = fit_logistic(x, y, patients=None, penalties=[0.02])
    for label in range(2):
        alone = fit_logistic(x, y[:, label], patients=None, penalties=[0.02])
        np.testing.assert_allclose(both.weights[:, [label]], alone.weights, atol=2e-4)
        peer = linear_model.LogisticRegression(C=1 / (0.02 * 120), tol=1e-8)
        peer.fit(x, y[:, label])
        np.testing.assert_allclose(alone.weights[:, 0], peer.coef_[0], atol=2e-4)
        np.testing.assert_allclose(alone.intercept, peer.intercept_, atol=2e-4)


def test_each_label_gets_the_penalty_that_other_patients_ask_for() -> None:
    rng = np.random.default_rng(3)
    owner = np.arange(240) // 2
    x = rng.normal(size=(240, 10))
    clear = x[:, 0] + 0.2 * rng.normal(size=240) > 0
    y = np.stack([clear, rng.random(240) < 0.5], 1).astype(float)
    found = fit_logistic(x, y, patients=owner, penalties=PENALTIES, seed=1)
    assert found.penalty[0] == PENALTIES[0]
    assert found.penalty[1] >= 2.0
    again = np.zeros((len(PENALTIES), 2))
    fold = patient_folds(owner, 5, seed=1)
    for i, penalty in enumerate(PENALTIES):
        for k in range(5):
            out = fold == k
            part = fit_logistic(x[~out], y[~out], patients=None, penalties=[penalty])
            p = part.predict(x[out])
            again[i] -= np.where(y[out] == 1, np.log(p), np.log1p(-p)).sum(0) / 240
    np.testing.assert_allclose(found.validation_loss, again, atol=1e-4)


def test_separable_labels_stay_finite() -> None:
    x = np.linspace(-1, 1, 40)[:, None]
    found = fit_logistic(x, x[:, 0] > 0, patients=None)
    assert np.isfinite(found.weights).all()
    assert ((found.predict(x)[:, 0] > 0.5) == (x[:, 0] > 0)).all()


def test_folds_never_split_a_patient_and_have_like_many() -> None:
    owner = np.random.default_rng(0).integers(0, 23, 300)
    fold = patient_folds(owner, 5, seed=0)
    of_patient = [np.unique(fold[owner == patient]) for patient in np.unique(owner)]
    assert all(len(found) == 1 for found in of_patient)
    counts = np.bincount([int(found[0]) for found in of_patient])
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("change", "code"),
    [("gap", "bad_probe_values"), ("rows", "bad_probe_rows"), ("patients", "too_few_patients")],
)
def test_rows_that_do_not_fit_are_refused(change: str, code: str) -> None:
    x, y = rows()
    owner = np.arange(60)
    if change == "gap":
        x[3, 1] = np.nan
    elif change == "rows":
        y = y[1:]
    else:
        owner = np.zeros(60, int)
    with pytest.raises(InputError, match=code):
        fit_ridge(x, y, patients=owner)
    with pytest.raises(InputError, match=code):
        fit_logistic(x, (y > 0).astype(float), patients=owner)


def test_labels_that_are_none_and_too_many_folds_are_refused() -> None:
    x, y = rows()
    with pytest.raises(InputError, match="bad_probe_values"):
        fit_logistic(x, y, patients=None)
    with pytest.raises(InputError, match="too_few_patients"):
        patient_folds([1, 1, 2], 3, seed=0)


@pytest.mark.parametrize("penalties", [[], [-1.0], [float("nan"), 1.0], [float("inf")]])
def test_penalties_that_are_none_are_refused(penalties: list[float]) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    for fit in (fit_ridge, fit_logistic):
        with pytest.raises(InputError, match="bad_penalties"):
            fit(x, (x[:, 0] > 0) * 1.0, patients=None, penalties=penalties)


@pytest.mark.parametrize("rows_a_patient", [1, 2])
def test_a_penalty_that_lets_the_weights_meet_every_row_is_not_chosen(rows_a_patient: int) -> None:
    """Its errors of patients left out would be rounding, smaller than any other's."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 128)), rng.normal(size=60)  # nothing to be learnt
    owner = np.arange(60) // rows_a_patient
    probe = fit_ridge(x, y, patients=owner, penalties=(0.0, 1e-2, 100.0))
    assert np.isinf(probe.validation_loss[0, 0])
    assert probe.penalty[0] == 100.0
    with pytest.raises(InputError, match="bad_penalties"):
        fit_ridge(x, y, patients=owner, penalties=(0.0,))
    few = fit_ridge(x[:, :3], y, patients=owner, penalties=(0.0,))
    expected = np.linalg.lstsq(np.c_[x[:, :3], np.ones(60)], y, rcond=None)[0]
    np.testing.assert_allclose(few.weights[:, 0], expected[:3], atol=1e-9)


def test_a_label_that_is_known_of_nobody_is_refused() -> None:
    x = np.random.default_rng(0).normal(size=(40, 4))
    label = np.column_stack([x[:, 0] > 0, np.full(40, np.nan)])
    with pytest.raises(InputError, match="no_labels") as caught:
        fit_logistic(x, label, patients=None)
    assert "column 1" in str(caught.value)
