"""Scores against worked values and another library; classical forecasts against exact cases."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tsfm.errors import InputError

LEVELS = np.arange(1, 10) / 10
WEEK_SECONDS = 7 * 86_400.0
N_TARGETS = 64


@pytest.fixture(scope="module")
def peers(repository: Any) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        yield importlib.import_module("zero_shot_peers")


def window_of(
    peers: Any,
    values: np.ndarray,
    *,
    left: np.ndarray | None = None,
    period: int = 1,
    target: np.ndarray | None = None,
    naive_error: float = 1.0,
) -> Any:
    """A window of weeks whose context is `values`, of which only the positions `left` are known."""
    positions = np.arange(len(values)) if left is None else left
    start = 1e9
    return peers.Window(
        series="a",
        seconds=start + WEEK_SECONDS * positions,
        values=np.asarray(values, dtype=np.float64)[positions],
        target_seconds=start + WEEK_SECONDS * (len(values) + np.arange(N_TARGETS)),
        target_values=np.zeros(N_TARGETS) if target is None else target,
        step_seconds=WEEK_SECONDS,
        period=period,
        naive_error=naive_error,
    )


def test_the_weighted_quantile_loss_is_its_definition(peers: Any) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(3, 2, (4, 7))
    quantiles = np.sort(rng.normal(3, 2, (4, 7, 3)), axis=-1)
    levels = np.array([0.2, 0.5, 0.9])
    total = 0.0
    for q, level in enumerate(levels):
        for i in range(4):
            for j in range(7):
                off = y[i, j] - quantiles[i, j, q]
                total += 2 * (level * off if off > 0 else (level - 1) * off)
    expected = total / 3 / np.abs(y).sum()
    assert peers.weighted_quantile_loss(levels, quantiles, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_truths_of_nought_have_no_weighted_loss(peers: Any) -> None:
    assert np.isnan(peers.weighted_quantile_loss(np.array([0.5]), np.ones((4, 1)), np.zeros(4)))


def test_true_quantiles_have_the_least_loss_and_it_tends_to_the_crps(peers: Any) -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=20_000)
    levels = np.arange(1, 100) / 100
    truth = np.broadcast_to(stats.norm.ppf(levels), (len(y), len(levels)))
    least = peers.weighted_quantile_loss(levels, truth, y)
    for wrong in (truth * 1.3, truth * 0.7, truth + 0.2):
        assert peers.weighted_quantile_loss(levels, wrong, y) > least * 1.01
    crps = (2 * stats.norm.pdf(y) + y * (2 * stats.norm.cdf(y) - 1) - 1 / np.sqrt(np.pi)).mean()
    assert least * np.abs(y).mean() == pytest.approx(crps, rel=0.02)


def test_scores_of_a_worked_case(peers: Any) -> None:
    target = np.arange(1.0, N_TARGETS + 1)
    windows = [
        window_of(peers, np.arange(9), target=target, naive_error=2.0),
        window_of(peers, np.arange(9), target=-target, naive_error=0.5),
        window_of(peers, np.zeros(9), target=target, naive_error=np.nan),
    ]
    y = np.stack([window.target_values for window in windows])
    levels = np.array([0.1, 0.5, 0.9])
    # Median one too low in the first window, exact elsewhere; the mean is three too high.
    middle = y - np.array([1.0, 0.0, 0.0])[:, None]
    quantiles = np.stack([middle - 2, middle, middle + 0.5], axis=-1)
    found = peers.score_forecasts(windows, levels, quantiles, y + 3, 24)
    assert found["mae"] == pytest.approx(1 / 3)
    assert found["mase"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["mase_median"] == pytest.approx(1 / 4)
    assert found["msse"] == pytest.approx((9 / 4 + 9 / 0.25) / 2)
    first = 2 * (0.1 * 3 + 0.5 * 1 + 0.9 * 0.5) / 3
    others = 2 * (0.1 * 2 + 0 + 0.1 * 0.5) / 3
    assert found["sql"] == pytest.approx((first / 2 + others / 0.5) / 2)
    assert found["wql"] == pytest.approx(24 * (first + 2 * others) / (3 * 24 * 25 / 2))
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["crossing"] == 0
    assert (found["windows"], found["windows_scaled"]) == (3, 2)
    # Points after the horizon do not count.
    quantiles[:, 24:] = 1e9
    assert peers.score_forecasts(windows, levels, quantiles, y + 3, 24) == found
    swapped = quantiles[..., ::-1]
    assert peers.score_forecasts(windows, levels, swapped, y, 24)["crossing"] == 1


def test_forecasts_that_do_not_fit_are_refused(peers: Any) -> None:
    windows = [window_of(peers, np.arange(9))]
    quantiles, mean = np.zeros((1, N_TARGETS, 9)), np.zeros((1, N_TARGETS))
    with pytest.raises(InputError, match="shape_mismatch"):
        peers.score_forecasts(windows, LEVELS[:8], quantiles, mean, 24)
    with pytest.raises(InputError, match="shape_mismatch"):
        peers.score_forecasts(windows, LEVELS + 0.01, quantiles, mean, 24)
    with pytest.raises(InputError, match="shape_mismatch"):
        peers.score_forecasts(windows, LEVELS, quantiles[:, :20], mean[:, :20], 24)
    mean[0, 3] = np.nan
    with pytest.raises(InputError, match="forecast_not_finite"):
        peers.score_forecasts(windows, LEVELS, quantiles, mean, 24)
    with pytest.raises(InputError, match="unknown_peer"):
        peers.forecast_windows(windows, "oracle")


def test_the_last_value_stays_and_its_spread_grows_from_its_own_time(peers: Any) -> None:
    rng = np.random.default_rng(2)
    walk = np.cumsum(rng.normal(0, 3, 4000))
    left = np.sort(rng.permutation(4000)[:2800])
    window = window_of(peers, walk, left=left)
    quantiles, mean = peers.last_value(window, LEVELS)
    assert (mean == walk[left[-1]]).all()
    np.testing.assert_allclose(quantiles[:, 4], mean)
    upper = (quantiles[:, 8] - mean) / stats.norm.ppf(0.9)
    steps = np.arange(4000, 4000 + N_TARGETS) - left[-1]
    # Gaps count with their length, so the step's spread of 3 is found in spite of missing points.
    np.testing.assert_allclose(upper, 3 * np.sqrt(steps), rtol=0.05)


def test_a_season_repeats_itself_exactly_and_without_spread(peers: Any) -> None:
    season = np.tile(np.random.default_rng(3).normal(size=7), 20)
    quantiles, mean = peers.seasonal_naive(window_of(peers, season[:76], period=7), LEVELS)
    np.testing.assert_allclose(mean, season[76 : 76 + N_TARGETS])
    np.testing.assert_allclose(quantiles, np.repeat(mean[:, None], 9, axis=1), atol=1e-12)
    # A trend of 1 a step is a seasonal difference of 7 everywhere: spread 7, 7 sqrt(2), ...
    window = window_of(peers, np.arange(70), period=7)
    quantiles, mean = peers.seasonal_naive(window, LEVELS)
    np.testing.assert_array_equal(mean[:8], [63, 64, 65, 66, 67, 68, 69, 63])
    upper = (quantiles[:, 8] - mean) / stats.norm.ppf(0.9)
    np.testing.assert_allclose(upper[[0, 6, 7, 20]], 7 * np.sqrt([1, 1, 2, 3]))


def test_a_line_goes_on_at_its_true_times(peers: Any) -> None:
    left = np.array([0, 1, 5, 6, 7, 11, 12, 20, 21, 24])
    window = window_of(peers, 2 + 0.5 * np.arange(30), left=left)
    quantiles, mean = peers.linear(window, LEVELS)
    np.testing.assert_allclose(mean, 2 + 0.5 * np.arange(30, 30 + N_TARGETS))
    np.testing.assert_allclose(quantiles[:, 0], mean, atol=1e-9)


def test_intervals_of_the_line_cover_what_they_say(peers: Any) -> None:
    rng = np.random.default_rng(4)
    inside = np.zeros(N_TARGETS)
    for _ in range(600):
        noisy = 5 - 0.3 * np.arange(24 + N_TARGETS) + rng.normal(0, 2, 24 + N_TARGETS)
        quantiles, _mean = peers.linear(window_of(peers, noisy[:24]), LEVELS)
        inside += (quantiles[:, 0] <= noisy[24:]) & (noisy[24:] <= quantiles[:, 8])
    assert abs(inside[0] / 600 - 0.8) < 0.06
    assert abs(inside[-1] / 600 - 0.8) < 0.06


def test_gaps_are_filled_on_straight_lines_and_the_end_is_held(peers: Any) -> None:
    window = window_of(peers, np.arange(10) * 2.0, left=np.array([1, 2, 5, 7]))
    np.testing.assert_allclose(peers.fill_gaps(window), [2, 4, 6, 8, 10, 12, 14, 14, 14])


@pytest.mark.parametrize("peer", ["ets", "stl + ets", "theta"])
def test_peers_on_a_grid_answer_in_order_and_follow_level_and_season(peers: Any, peer: str) -> None:
    pytest.importorskip("statsforecast")
    rng = np.random.default_rng(5)
    t = np.arange(140 + N_TARGETS)
    series = 50 + 8 * np.sin(2 * np.pi * t / 7) + rng.normal(0, 0.3, len(t))
    left = np.sort(rng.permutation(140)[:133])
    window = window_of(peers, series[:140], left=left, period=7, target=series[140:])
    found = peers.forecast_windows([window], peer)
    again = peers.forecast_windows([window], peer)
    np.testing.assert_array_equal(found.quantiles, again.quantiles)
    assert found.n_replaced == 0
    assert found.quantiles.shape == (1, N_TARGETS, 9)
    assert (np.diff(found.quantiles, axis=-1) >= 0).all()
    assert (np.diff(found.quantiles[0, -1]) > 0).all()
    assert (np.abs(found.mean[0] - series[140:])).mean() < 3  # without the season it is 5
    shifted = window_of(peers, series[:140] + 1000, left=left, period=7)
    moved = peers.forecast_windows([shifted], peer).mean
    assert abs((moved - found.mean).mean() - 1000) < 1


def test_no_peer_fails_on_few_points_or_a_constant(peers: Any) -> None:
    names = ["last value", "seasonal naive", "linear"]
    try:
        importlib.import_module("statsforecast")
        names = list(peers.PEERS)
    except ImportError:
        pass
    windows = [
        window_of(peers, np.full(120, 4.0), period=52),
        window_of(peers, np.arange(120), left=np.array([3, 90]), period=52),
        window_of(peers, np.zeros(120), period=7),
    ]
    for name in names:
        found = peers.forecast_windows(windows, name)
        assert np.isfinite(found.quantiles).all()
        assert (np.diff(found.quantiles, axis=-1) >= 0).all()
        np.testing.assert_allclose(found.mean[0], 4.0)
        np.testing.assert_allclose(found.mean[2], 0.0, atol=1e-9)


def test_a_peer_that_fails_is_replaced_and_counted(
    peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(window: Any, levels: np.ndarray) -> Any:
        if window.values[0] == 0:
            raise ValueError
        quantiles, mean = peers.last_value(window, levels)
        return quantiles * np.nan, mean

    monkeypatch.setitem(peers.PEERS, "broken", broken)
    windows = [window_of(peers, np.arange(9)), window_of(peers, np.arange(1, 10))]
    found = peers.forecast_windows(windows, "broken")
    assert found.n_replaced == 2
    expected = peers.forecast_windows(windows, "last value")
    np.testing.assert_array_equal(found.quantiles, expected.quantiles)


def test_without_statsforecast_the_error_names_the_extra(
    peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "statsforecast", None)
    with pytest.raises(InputError, match=r"tsfm\[benchmarks\]"):
        peers.forecast_windows([window_of(peers, np.arange(60))], "ets")
