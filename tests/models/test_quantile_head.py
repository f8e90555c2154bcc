"""The head starts as a mix of simple rules, its quantiles never cross, its losses are proper."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.models.quantile_head import LEVELS, QuantileHead, bounded_square, pinball
from tsfm.models.series_summary import N_BASES

N, WIDTH, N_VARIABLES = 50, 8, 3


def make_input(seed: int = 0, size: float = 1.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, WIDTH, generator=generator) * size
    variable = torch.arange(N) % N_VARIABLES
    bases = torch.randn(N, N_BASES, generator=generator) * size
    step = torch.exp(3 * torch.randn(N, generator=generator))
    return x, variable, bases, step


def shaken(seed: int, size: float) -> QuantileHead:
    head = QuantileHead(WIDTH, N_VARIABLES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return head


def test_levels_ascend_and_mirror_each_other() -> None:
    assert list(LEVELS) == sorted(LEVELS)
    np.testing.assert_allclose(np.add(LEVELS, LEVELS[::-1]), 1.0)
    assert 0.5 in LEVELS


def test_a_fresh_head_is_a_convex_mix_of_the_simple_forecasts() -> None:
    x, variable, bases, step = make_input()
    mean, quantiles = QuantileHead(WIDTH, N_VARIABLES)(x, variable, bases, step)
    for middle in (mean, quantiles[:, LEVELS.index(0.5)]):
        assert bool((middle >= bases.amin(-1) - 1e-6).all())
        assert bool((middle <= bases.amax(-1) + 1e-6).all())
    torch.testing.assert_close(mean, bases.mean(-1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([1e-3, 1.0, 1e4]))
def test_quantiles_never_cross(seed: int, weights: float, size: float) -> None:
    mean, quantiles = shaken(seed, weights)(*make_input(seed, size))
    assert bool(mean.isfinite().all() & quantiles.isfinite().all())
    assert bool((quantiles.diff(dim=-1) >= 0).all())


def test_a_wilder_series_has_wider_quantiles() -> None:
    x, variable, bases, step = make_input()
    head = shaken(1, 0.1)
    narrow, wide = (head(x, variable, bases, s).quantiles for s in (step, 4 * step))
    assert bool(((wide[:, -1] - wide[:, 0]) >= (narrow[:, -1] - narrow[:, 0])).all())


def test_a_variable_can_have_a_say_of_its_own() -> None:
    x, variable, bases, step = make_input()
    head = QuantileHead(WIDTH, N_VARIABLES)
    with torch.no_grad():
        head.by_variable.weight[1] = torch.randn(head.by_variable.weight.shape[1])
    fresh = QuantileHead(WIDTH, N_VARIABLES)(x, variable, bases, step).mean
    changed = (head(x, variable, bases, step).mean - fresh).abs() > 1e-6
    assert torch.equal(changed, variable == 1)


def test_pinball_is_twice_the_mean_quantile_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.randn(N, len(LEVELS), generator=generator).double().sort(-1).values
    truth = torch.randn(N, generator=generator).double() * 2
    expected = [
        2 * np.mean([
            level * (y - q) if y >= q else (1 - level) * (q - y)
            for level, q in zip(LEVELS, row, strict=True)
        ])
        for row, y in zip(quantiles.tolist(), truth.tolist(), strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(pinball(quantiles, truth).numpy(), expected, rtol=1e-12)


def test_pinball_of_a_normal_forecast_is_near_its_crps() -> None:
    """CRPS of N(0, 1) at y: y (2 Phi(y) - 1) + 2 phi(y) - 1/sqrt(pi)."""
    normal = NormalDist()
    y = torch.linspace(-3, 3, 25, dtype=torch.float64)
    rows = torch.tensor([normal.inv_cdf(level) for level in LEVELS]).double().expand(len(y), -1)
    exact = [
        v * (2 * normal.cdf(v) - 1) + 2 * normal.pdf(v) - 1 / np.sqrt(np.pi) for v in y.tolist()
    ]
    np.testing.assert_allclose(pinball(rows, y).numpy(), exact, rtol=0.2)


@pytest.mark.parametrize(("shift", "stretch"), [(0.3, 1.0), (-0.3, 1.0), (0.0, 0.7), (0.0, 1.4)])
def test_pinball_is_least_for_the_true_quantiles(shift: float, stretch: float) -> None:
    normal = NormalDist()
    y = torch.tensor([normal.inv_cdf((i + 0.5) / 1000) for i in range(1000)]).double()
    true = torch.tensor([normal.inv_cdf(level) for level in LEVELS]).double().expand(1000, -1)
    assert pinball(true, y).mean() < pinball(stretch * true + shift, y).mean()


@pytest.mark.parametrize("bound", [0.5, 5.0])
def test_a_bounded_square_goes_on_as_its_tangent(bound: float) -> None:
    error = torch.linspace(-20, 20, 4001, dtype=torch.float64, requires_grad=True)
    loss = bounded_square(error, bound)
    (slope,) = torch.autograd.grad(loss.sum(), error)
    with torch.no_grad():
        inside = error.abs() <= bound
        torch.testing.assert_close(loss[inside], error[inside].square())
        # Neither value nor slope jumps, and the slope stays what it is at the bound.
        torch.testing.assert_close(slope, 2 * error.clamp(-bound, bound))
        assert float(loss.diff().abs().max()) <= 2 * bound * 0.0101
        torch.testing.assert_close(loss, loss.flip(0))
