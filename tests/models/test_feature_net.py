"""A feature network's members are networks of their own, and its inputs are ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tsfm.errors import InputError
from tsfm.models.feature_net import FeatureNet, FeatureNetConfig, RankScale


def made_up(n: int = 200) -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 5)).astype(np.float32)
    X[rng.random(n) < 0.3, 1] = np.nan
    X[np.isnan(X[:, 1]), 2] = np.nan  # missing together
    X[:, 3] = 7.0  # constant
    X[:, 4] = rng.integers(0, 3, n)
    return X


def test_a_member_is_a_network_with_its_own_gains() -> None:
    torch.manual_seed(0)
    net = FeatureNet(FeatureNetConfig(n_inputs=6, n_questions=2, width=10, n_members=3)).eval()
    x = torch.randn(7, 6)
    for k in range(3):
        h = F.silu(net.first(x * net.input_gain[k]))
        h = h + F.silu(net.second(h * net.gain[k]))
        assert torch.allclose(net(x)[:, k], h @ net.out[k] + net.bias[k], atol=1e-5)


def test_members_answers_do_not_depend_on_other_rows() -> None:
    net = FeatureNet(FeatureNetConfig(n_inputs=6)).eval()
    x = torch.randn(7, 6)
    assert torch.allclose(net(x)[2:4], net(x[2:4]), atol=1e-6)
    assert net.probability(x).shape == (7, 1)


def test_inputs_are_normal_scores_whatever_the_scale_of_a_feature() -> None:
    X = made_up()
    scaled = X.copy()
    scaled[:, 0] = np.exp(3 * X[:, 0])  # keeps the order
    told, again = RankScale.fit(X).apply(X), RankScale.fit(scaled).apply(scaled)
    assert torch.equal(told, again)
    assert abs(float(told[:, 0].mean())) < 0.05
    assert float(told[:, 0].std()) == pytest.approx(1.0, abs=0.05)


def test_missing_is_nought_and_told_once_for_features_missing_together() -> None:
    X = made_up()
    scale = RankScale.fit(X)
    told = scale.apply(X)
    absent = torch.from_numpy(np.isnan(X[:, 1]))
    assert scale.n_inputs == 5 + 1
    assert (told[absent, 1] == 0).all()
    assert torch.equal(told[:, 5], absent.float())


def test_a_constant_feature_and_one_never_seen_say_nothing() -> None:
    X = made_up()
    X[:, 0] = np.nan
    scale = RankScale.fit(X)
    other = made_up()
    other[:, 3] = 100.0
    assert (scale.apply(other)[:, [0, 3]] == 0).all()


def test_values_beyond_those_of_training_stay_finite() -> None:
    X = made_up()
    far = X.copy()
    far[:, 0] = 1e30
    assert RankScale.fit(X).apply(far).isfinite().all()


def test_equal_values_get_equal_scores() -> None:
    X = made_up()
    told = RankScale.fit(X).apply(X)[:, 4]
    assert len(told.unique()) == 3


@pytest.mark.parametrize("X", [np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32)])
def test_nothing_to_fit_on_is_refused(X: np.ndarray) -> None:
    with pytest.raises(InputError, match="no_features"):
        RankScale.fit(X)


def test_other_columns_are_refused() -> None:
    with pytest.raises(InputError, match="wrong_features"):
        RankScale.fit(made_up()).apply(made_up()[:, :4])
