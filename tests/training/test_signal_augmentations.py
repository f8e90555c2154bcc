"""Augmentations have the statistics that their definitions give in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.stats import kstest

from tsfm.errors import InputError
from tsfm.training import signal_augmentations
from tsfm.training.signal_augmentations import (
    ECG_AUGMENTATION,
    N_KNOTS,
    PPG_AUGMENTATION,
    SignalAugmentation,
    augment,
    cut_out_gain,
    magnitude_gain,
    order_channels,
    spline_matrix,
    time_warp,
    warped_times,
    white_noise,
)

NOTHING = SignalAugmentation(0.0, 0.0, 0.0, 0.0, 0.0)
LIKE = torch.zeros(1, 1, 1001)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_drawn_is_nothing_changed_and_the_input_stays_as_it_was() -> None:
    segments = torch.randn(6, 3, 200)
    kept = segments.clone()
    assert torch.equal(augment(segments, NOTHING, generator=chance()), segments)
    augment(segments, replace(PPG_AUGMENTATION, cut_out=1.0, noise=1.0), generator=chance())
    assert torch.equal(segments, kept)


def test_the_same_seed_gives_the_same_batch() -> None:
    segments = torch.randn(16, 2, 200)
    first, second, other = (
        augment(segments, PPG_AUGMENTATION, generator=chance(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("preset", [PPG_AUGMENTATION, ECG_AUGMENTATION])
@pytest.mark.parametrize("kind", ["cut_out", "magnitude_warp", "time_warp", "noise"])
def test_each_segment_has_a_coin_of_its_own(preset: SignalAugmentation, kind: str) -> None:
    n = 4000
    segments = torch.randn(1, 1, 64, generator=chance(9)).expand(n, 1, 64)
    probability = getattr(preset, kind)
    found = augment(segments, replace(NOTHING, **{kind: probability}), generator=chance())
    changed = (found != segments).any(-1).squeeze(1)
    assert float(changed.float().mean()) == pytest.approx(probability, abs=4 * (0.25 / n) ** 0.5)
    # Neighbours say nothing about each other.
    alike = torch.corrcoef(torch.stack([changed[:-1], changed[1:]]).float())[0, 1]
    assert abs(float(alike)) < 4 / n**0.5


def test_coins_of_different_kinds_are_independent() -> None:
    how = replace(NOTHING, cut_out=0.5, noise=0.5)
    found = augment(torch.ones(4000, 1, 64), how, generator=chance())
    # Noise alone leaves no exact value; a cut alone leaves exact zeros and ones.
    noisy = (found - found.round()).abs().amax((1, 2)) > 1e-6
    cut = found.abs().amin((1, 2)) < 0.5
    assert abs(float(torch.corrcoef(torch.stack([noisy, cut]).float())[0, 1])) < 0.07


def test_a_cut_is_one_block_of_uniform_length_and_place_in_all_channels() -> None:
    gain = cut_out_gain(LIKE, 5000, PPG_AUGMENTATION, chance()).numpy()
    assert set(np.unique(gain)) == {0.0, 1.0}
    edges = np.abs(np.diff(gain, axis=1, prepend=1.0, append=1.0)).sum(1)
    assert (edges == 2).all()
    length = (gain == 0).sum(1)
    assert length.min() >= 300
    assert length.max() <= 500
    assert kstest(length / 1001, "uniform", args=(0.3, 0.2)).pvalue > 1e-3
    place = gain.argmin(1) / (1001 - length)
    assert kstest(place, "uniform").pvalue > 1e-3
    assert np.corrcoef(length, place)[0, 1] == pytest.approx(0.0, abs=0.06)


def test_the_zero_share_of_a_batch_is_probability_times_mean_length() -> None:
    segments = torch.ones(6000, 2, 1001)
    found = augment(segments, replace(NOTHING, cut_out=0.4), generator=chance())
    assert float((found == 0).float().mean()) == pytest.approx(0.4 * 0.4, abs=0.01)
    assert torch.equal(found[:, 0], found[:, 1])


def test_a_spline_is_scipys_and_passes_through_its_knots() -> None:
    knots = torch.randn(4, N_KNOTS, dtype=torch.float64, generator=chance())
    matrix = spline_matrix(LIKE.double())
    curve = knots @ matrix.mT
    places = np.linspace(0, 1000, N_KNOTS)
    expected = np.stack([CubicSpline(places, row)(np.arange(1001)) for row in knots.numpy()])
    np.testing.assert_allclose(curve.numpy(), expected, atol=1e-12)
    torch.testing.assert_close(curve[:, [0, 500, 1000]], knots[:, [0, 3, 6]])
    torch.testing.assert_close(matrix.sum(1), torch.ones(1001, dtype=torch.float64))


def test_a_magnitude_curve_is_normal_around_one_at_every_sample() -> None:
    n = 20_000
    gain = magnitude_gain(LIKE, n, PPG_AUGMENTATION, chance())
    deviation = 0.2 * spline_matrix(LIKE).norm(dim=1)  # of a weighted sum of normal knots
    error = float(5 * deviation.max() / n**0.5)
    torch.testing.assert_close(gain.mean(0), torch.ones(1001), atol=error, rtol=0)
    torch.testing.assert_close(gain.std(0), deviation, atol=error, rtol=0)
    assert float(gain[:, 500].std()) == pytest.approx(0.2, abs=error)  # a knot
    apart = torch.corrcoef(gain[:, [0, 1000]].T)[0, 1]
    assert abs(float(apart)) < 0.04


def test_warped_time_goes_forward_from_the_first_sample_to_the_last() -> None:
    times = warped_times((5000,), LIKE, 0.1, chance())
    assert (times[:, 0] == 0).all()
    torch.testing.assert_close(times[:, -1], torch.full((5000,), 1000.0))
    assert float(times.diff(dim=-1).min()) > 0.04


def test_a_curve_that_goes_forward_by_itself_is_the_published_one() -> None:
    deviation, n_compared = 0.02, 0
    times = warped_times((50,), LIKE.double(), deviation, chance()).double().numpy()
    factors = torch.randn((50, N_KNOTS), generator=chance()).double().numpy()
    places = np.linspace(0, 1000, N_KNOTS)
    for found, row in zip(times, factors, strict=True):
        curve = CubicSpline(places, places * (1 + deviation * row))(np.arange(1001))
        curve *= 1000 / curve[-1]
        if np.diff(curve).min() > 0.1:
            np.testing.assert_allclose(found, curve, atol=0.02)
            n_compared += 1
    assert n_compared > 40


def test_half_of_the_published_curves_turn_back() -> None:
    """Why time is held to a least pace, as the module says."""
    knots = np.random.default_rng(0).normal(1.0, 0.1, (2000, N_KNOTS))
    places = np.linspace(0, 1000, N_KNOTS)
    curves = CubicSpline(places, (places * knots).T)(np.arange(1001)).T
    assert np.mean(np.diff(curves, axis=1).min(1) < 0) == pytest.approx(0.5, abs=0.06)


def test_a_warp_reads_the_signal_as_numpy_interpolates_it() -> None:
    segments = torch.randn(20, 3, 1001, dtype=torch.float64, generator=chance(5))
    found = time_warp(segments, PPG_AUGMENTATION, chance()).numpy()
    times = warped_times((20, 1), segments, 0.1, chance()).double().numpy()[:, 0]
    for i in range(20):
        expected = [np.interp(np.arange(1001), times[i], row) for row in segments[i].numpy()]
        np.testing.assert_allclose(found[i], expected, atol=5e-3)


def test_channels_keep_in_step_unless_each_has_its_own_curve() -> None:
    segments = torch.randn(8, 1, 1001).expand(8, 4, 1001)
    together = time_warp(segments, PPG_AUGMENTATION, chance())
    assert torch.equal(together[:, 0], together[:, 3])
    apart = time_warp(segments, replace(PPG_AUGMENTATION, time_together=False), chance())
    assert not torch.isclose(apart[:, 0], apart[:, 3]).all(-1).any()


def test_noise_is_white_and_its_deviation_uniform() -> None:
    noise = white_noise(torch.zeros(1, 1, 1000), 3000, PPG_AUGMENTATION, chance())
    deviation = noise.std(-1).squeeze(1).numpy()
    # 1000 samples blur a deviation by 2 %.
    assert kstest(deviation, "uniform", args=(0.05, 0.05)).statistic < 0.04
    assert float(noise.mean()) == pytest.approx(0.0, abs=5 * 0.1 / 3e6**0.5)
    unit = noise / noise.std(-1, keepdim=True)
    assert float((unit[..., 1:] * unit[..., :-1]).mean()) == pytest.approx(0.0, abs=0.004)
    assert float(unit.pow(4).mean()) == pytest.approx(3.0, abs=0.05)


def test_all_orders_of_channels_are_equally_likely_and_only_where_chosen() -> None:
    n = 6000
    channels = torch.arange(3.0)[None, :, None].expand(n, 3, 5)
    chosen = torch.arange(0, n, 2)
    found = order_channels(channels, chosen, chance())
    assert torch.equal(found[1::2], channels[1::2])
    codes = (found[::2, :, 0] * torch.tensor([9.0, 3.0, 1.0])).sum(1)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 6
    assert int(counts.min()) > 500 - 5 * 22
    assert int(counts.max()) < 500 + 5 * 22
    assert (found[..., :1] == found).all()


@pytest.mark.parametrize("together", [True, False])
def test_one_compiled_pass_does_what_torch_does(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A float64 batch takes the path of torch; its knots are made to be the same draws.
    def knots(like: torch.Tensor, n: int, how: SignalAugmentation, g: torch.Generator):
        drawn = torch.randn((n, N_KNOTS), generator=g) * how.magnitude_deviation + 1
        return drawn.to(like.dtype) @ spline_matrix(like).mT

    monkeypatch.setattr(signal_augmentations, "magnitude_gain", knots)
    segments = torch.randn(64, 4, 1003, generator=chance(7))
    how = replace(PPG_AUGMENTATION, noise=0.0, time_together=together)
    compiled = augment(segments, how, generator=chance())
    torch.testing.assert_close(
        compiled.double(), augment(segments.double(), how, generator=chance()), atol=1e-5, rtol=0
    )
    assert (compiled != segments).any(-1).any()


def test_compiled_noise_is_white_normal_and_of_uniform_deviation() -> None:
    how = replace(NOTHING, noise=1.0)
    noise = augment(torch.zeros(3000, 1, 1002), how, generator=chance())
    deviation = noise.std(-1).squeeze(1).numpy()
    assert kstest(deviation, "uniform", args=(0.05, 0.05)).statistic < 0.04
    unit = noise / noise.std(-1, keepdim=True)
    for lag in (1, 2, 3, 4, 8):
        alike = float((unit[..., lag:] * unit[..., :-lag]).mean())
        assert alike == pytest.approx(0.0, abs=0.004)
    assert float(unit.pow(4).mean()) == pytest.approx(3.0, abs=0.05)
    assert kstest(unit.flatten()[:20_000].numpy(), "norm").pvalue > 1e-3
    neighbours = float((unit[1:] * unit[:-1]).mean())
    assert neighbours == pytest.approx(0.0, abs=0.004)


@pytest.mark.parametrize("shape", [(3, 100), (3, 1, 6)])
def test_what_is_no_batch_of_segments_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="bad_segments"):
        augment(torch.zeros(shape), PPG_AUGMENTATION, generator=chance())


@pytest.mark.parametrize(
    "change",
    [{"cut_out": 2.0}, {"noise": -0.1}, {"time_warp": float("nan")}, {"cut_share": (0.5, 1.5)},
     {"cut_share": (-1.0, -0.5)}, {"cut_share": (0.5, 0.3)}, {"noise_deviation": (0.2, 0.1)},
     {"magnitude_deviation": -1.0}, {"time_deviation": float("inf")}],
    ids=str,
)  # fmt: skip
def test_what_is_no_probability_share_or_deviation_is_refused(change: dict) -> None:
    with pytest.raises(InputError, match="bad_augmentation"):
        replace(PPG_AUGMENTATION, **change)
