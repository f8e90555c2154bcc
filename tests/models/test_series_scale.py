"""A series is scaled by its context or its past, never by what comes later, and scaled back."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.series_scale import RULES, RunningScale, fit_series_scale, running_scale

LENGTHS = [1, 2, 5, 40, 3, 29]
BORDERS = torch.tensor([0, *itertools.accumulate(LENGTHS)])
N = int(BORDERS[-1])
IQR, DEVIATION, NONE = range(len(RULES))
HALF_LIVES = [None, 6.0]


def make_series(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Values of mixed level and size, hours between them, and which are context."""
    generator = torch.Generator().manual_seed(0)
    level = torch.tensor([0.0, 5.0, -3.0, 1e4, 0.1, 70.0]).repeat_interleave(torch.tensor(LENGTHS))
    values = level + torch.randn(N, generator=generator) * (1 + level.abs() / 50)
    gaps = torch.rand(N, generator=generator) * 8
    context = torch.rand(N, generator=generator) < 0.8
    context[BORDERS[:-1]] = True
    return values.to(dtype), gaps.to(dtype), context


def everything(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The packed series one by one."""
    return list(zip(*(t.split(LENGTHS) for t in tensors), strict=True))


def test_location_and_scale_are_median_and_quartiles_of_the_context() -> None:
    values, _, context = make_series()
    fitted = fit_series_scale(values, context, BORDERS)
    for i, (series, known) in enumerate(parts(values, context)):
        x = series[known].numpy()
        assert fitted.n_points[i] == len(x)
        assert float(fitted.location[i]) == pytest.approx(np.median(x), rel=1e-12)
        if len(x) > 1:
            spread = np.subtract(*np.percentile(x, [75, 25])) / 1.349
            assert float(fitted.scale[i]) == pytest.approx(spread, rel=1e-4)
            assert fitted.rule[i] == IQR


def test_a_packed_series_is_scaled_as_it_is_alone() -> None:
    values, _, context = make_series(torch.float32)
    fitted = fit_series_scale(values, context, BORDERS)
    z = fitted.apply(values, BORDERS)
    for i, (series, known, expected) in enumerate(parts(values, context, z)):
        alone = fit_series_scale(series, known)
        assert torch.equal(alone.scale, fitted.scale[i : i + 1])
        assert torch.equal(alone.apply(series), expected)


@pytest.mark.parametrize("horizon", [1e9, math.nan, math.inf])
def test_the_horizon_changes_nothing(horizon: float) -> None:
    values, _, context = make_series()
    changed = torch.where(context, values, horizon)
    before, after = (fit_series_scale(x, context, BORDERS) for x in (values, changed))
    for name in ("location", "scale", "n_points", "n_ignored", "rule"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert not after.n_ignored.any()


@pytest.mark.parametrize("asinh", [False, True])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_scaling_back_gives_the_values(asinh: bool, dtype: torch.dtype, digits: float) -> None:
    values, gaps, context = make_series(dtype)
    values[7::9] *= 1e4  # outliers
    fitted = fit_series_scale(values, context, BORDERS, asinh=asinh)
    back = fitted.invert(fitted.apply(values, BORDERS), BORDERS)
    lengths = BORDERS.diff()
    size = values.abs() + (fitted.location.abs() + fitted.scale).repeat_interleave(lengths)
    assert float(((back - values).abs() / size).max()) < digits
    for half_life in HALF_LIVES:
        running = running_scale(values, gaps, BORDERS, half_life_hours=half_life, asinh=asinh)
        back = running.invert(running.apply(values))
        size = values.abs() + running.mean.abs() + running.scale
        assert float(((back - values).abs() / size).max()) < digits


def test_the_largest_numbers_of_the_type_come_back() -> None:
    most = torch.finfo(torch.float32).max
    values = torch.tensor([-most, -most, -most, most])  # as far apart as no float32 is
    fitted = fit_series_scale(values, everything(values))
    z = fitted.apply(values)
    assert float(z.abs().max()) < 6
    torch.testing.assert_close(fitted.invert(z), values, rtol=1e-6, atol=0.0)


def test_quantiles_are_scaled_beside_values_and_gradients_pass() -> None:
    values, _, context = make_series()
    fitted = fit_series_scale(values, context, BORDERS, asinh=True)
    z = fitted.apply(values, BORDERS)
    quantiles = torch.stack([z - 1, z, z + 1], -1).requires_grad_()
    back = fitted.invert(quantiles, BORDERS)
    torch.testing.assert_close(back[:, 1], values)
    assert bool((back.diff(dim=-1) > 0).all())
    (slope,) = torch.autograd.grad(back.sum(), quantiles)
    scale = fitted.scale.repeat_interleave(BORDERS.diff())
    torch.testing.assert_close(slope, quantiles.cosh() * scale.unsqueeze(-1))


@pytest.mark.parametrize(("a", "b"), [(2.5, -40.0), (1e-6, 0.0), (1e6, 1e5), (-3.0, 7.0)])
def test_units_do_not_matter(a: float, b: float) -> None:
    values, gaps, context = make_series()
    keep = BORDERS[2]  # from here on every series has a spread
    values, gaps, context, borders = values[keep:], gaps[keep:], context[keep:], BORDERS[2:] - keep
    there, here = values * a + b, values
    z = [fit_series_scale(x, context, borders).apply(x, borders) for x in (there, here)]
    torch.testing.assert_close(z[0], math.copysign(1.0, a) * z[1], rtol=1e-8, atol=1e-8)
    for half_life in HALF_LIVES:
        running = [
            running_scale(x, gaps, borders, half_life_hours=half_life) for x in (there, here)
        ]
        z = [scale.apply(x) for scale, x in zip(running, (there, here), strict=True)]
        torch.testing.assert_close(z[0], math.copysign(1.0, a) * z[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "location", "scale", "rule"),
    [
        ([3.0], 3.0, 1.0, NONE),
        ([0.1] * 7, 0.1, 1.0, NONE),
        ([1e6, 1e6 * (1 + 1e-7), 1e6], 1e6, 1.0, NONE),  # one unit in the last place
        ([math.nan] * 4, 0.0, 1.0, NONE),
        ([math.inf, -math.inf], 0.0, 1.0, NONE),
        ([math.nan, 3.0, math.inf], 3.0, 1.0, NONE),
        ([0.0, 4.0], 2.0, 2.0 / 1.3489795, IQR),
        ([5.0, 5.0, 5.0, 5.0, 13.0], 5.0, 1.6 * math.sqrt(math.pi / 2), DEVIATION),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 1e30], 3.5, 2.5 / 1.3489795, IQR),
        ([1.0, math.inf, 2.0, 3.0, math.nan, 4.0, 5.0], 3.0, 2.0 / 1.3489795, IQR),
    ],
)
def test_every_series_has_a_scale(
    values: list[float], location: float, scale: float, rule: int
) -> None:
    x = torch.tensor(values)
    fitted = fit_series_scale(x, everything(x))
    assert float(fitted.location) == pytest.approx(location, rel=1e-6)
    assert float(fitted.scale) == pytest.approx(scale, rel=1e-6)
    assert int(fitted.rule) == rule
    assert int(fitted.n_points) == int(x.isfinite().sum())
    assert int(fitted.n_ignored) == len(x) - int(fitted.n_points)
    assert torch.equal(fitted.apply(x).isfinite(), x.isfinite())


def test_a_series_without_context_is_left_as_it_is() -> None:
    values, _, context = make_series()
    context[BORDERS[3] : BORDERS[4]] = False
    context[BORDERS[5] :] = False
    z = fit_series_scale(values, context, BORDERS).apply(values, BORDERS)
    for i, (series, found) in enumerate(parts(values, z)):
        assert torch.equal(series, found) == (i in (3, 5))
    nothing = fit_series_scale(values, torch.zeros_like(context), BORDERS, asinh=True)
    torch.testing.assert_close(nothing.apply(values, BORDERS), values.asinh())


def test_where_the_quartiles_are_equal_so_is_the_median_absolute_deviation_nought() -> None:
    """Why the chain goes from quartiles to the mean deviation."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        x = torch.randint(0, 3, (int(torch.randint(1, 12, (), generator=generator)),))
        x = x.double().numpy()
        if np.subtract(*np.percentile(x, [75, 25])) == 0:
            assert np.median(np.abs(x - np.median(x))) == 0


def welford(values: list[float], gaps: list[float], half_life: float | None) -> list[list[float]]:
    """Weight, pairs, mean and squares after each point, from all weights anew: no recurrence."""
    rows = []
    times = np.cumsum([0.0, *gaps[1:]])
    for t in range(len(values)):
        seen = [i for i in range(t + 1) if math.isfinite(values[i])]
        x = np.array([values[i] for i in seen])
        age = times[t] - times[seen]
        w = np.ones(len(x)) if half_life is None else 0.5 ** (age / half_life)
        mean = (w * x).sum() / w.sum() if len(x) else 0.0
        squares = (w * (x - mean) ** 2).sum()
        rows.append([w.sum(), w.sum() ** 2 - (w**2).sum(), mean, squares])
    return rows


def state(scale: RunningScale) -> Tensor:
    return torch.stack([scale.weight, scale.pairs, scale.mean, scale.squares], -1)


@pytest.mark.parametrize("half_life", HALF_LIVES)
def test_packed_and_streamed_are_the_plain_loop(half_life: float | None) -> None:
    values, gaps, _ = make_series()
    values[4::6] = math.nan
    values[BORDERS[3]] = math.inf  # the first of its series
    packed = running_scale(values, gaps, BORDERS, half_life_hours=half_life)
    expected = [welford(x.tolist(), g.tolist(), half_life) for x, g in parts(values, gaps)]
    flat = torch.tensor(list(itertools.chain(*expected)), dtype=torch.float64)
    torch.testing.assert_close(state(packed), flat, rtol=1e-9, atol=1e-9)
    for (x, g), rows in zip(parts(values, gaps), expected, strict=True):
        one = RunningScale.start(1, half_life_hours=half_life, dtype=values.dtype)
        for t in range(len(x)):
            one = one.update(x[t : t + 1], g[t : t + 1])
            torch.testing.assert_close(state(one)[0], torch.tensor(rows[t]).double())


def test_without_forgetting_it_is_mean_and_standard_deviation() -> None:
    values, gaps, _ = make_series()
    packed = running_scale(values, gaps, BORDERS, half_life_hours=None)
    last = packed.rows(BORDERS[1:] - 1)
    for i, (x,) in enumerate(parts(values)):
        assert float(last.mean[i]) == pytest.approx(x.mean().item(), rel=1e-12)
        expected = x.std().item() if len(x) > 1 else 1.0
        assert float(last.scale[i]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("half_life", HALF_LIVES)
def test_a_point_is_scaled_by_points_up_to_it(half_life: float | None) -> None:
    values, gaps, _ = make_series(torch.float32)
    whole = running_scale(values, gaps, BORDERS, half_life_hours=half_life)
    for cut in (1, 2, 9, 20, N - 1):
        later = torch.arange(N) >= cut
        changed = running_scale(
            torch.where(later, 1e6, values), torch.where(later, 0.5, gaps), BORDERS,
            half_life_hours=half_life,
        )  # fmt: skip
        assert torch.equal(state(changed)[:cut], state(whole)[:cut])
        assert not torch.equal(state(changed)[cut:], state(whole)[cut:])


def test_a_stream_goes_on_from_packed_series_row_by_row() -> None:
    values, gaps, _ = make_series()
    packed = running_scale(values, gaps, BORDERS, half_life_hours=6.0)
    ends = BORDERS[1:] - 1
    more, wait = torch.randn(len(ends)).double(), torch.rand(len(ends)).double()
    going_on = packed.rows(ends).update(more, wait)
    for i, (x, g) in enumerate(parts(values, gaps)):
        longer = running_scale(
            torch.cat([x, more[i : i + 1]]), torch.cat([g, wait[i : i + 1]]), half_life_hours=6.0
        )
        torch.testing.assert_close(state(going_on)[i], state(longer)[-1])


@pytest.mark.parametrize("half_life", HALF_LIVES)
def test_streams_of_nothing_constants_and_single_points_have_unit_scale(
    half_life: float | None,
) -> None:
    series = {
        "nothing": torch.full((5,), math.nan),
        "constant": torch.full((5,), 0.1),
        "point": torch.tensor([math.nan, 4.0, math.inf, math.nan, math.nan]),
        "rounding": torch.tensor([1e6, 1e6 * (1 + 1e-7), 1e6, 1e6, 1e6]),
    }
    gaps = torch.tensor([math.nan, 1.0, 0.0, math.inf, 1e4])
    for name, values in series.items():
        packed = running_scale(values, gaps, half_life_hours=half_life)
        stream = RunningScale.start(1, half_life_hours=half_life)
        for t in range(5):
            stream = stream.update(values[t : t + 1], gaps[t : t + 1])
            for scale, row in ((packed, t), (stream, 0)):
                assert float(scale.scale[row]) == 1.0, name
                assert bool(state(scale)[row].isfinite().all()), name
        assert torch.equal(packed.apply(values).isfinite(), values.isfinite())


def test_a_series_keeps_its_spread_through_a_gap_of_many_half_lives() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(41, generator=generator, dtype=torch.float64)
    gaps = torch.ones(41).double()
    gaps[-1] = 300.0
    scales = running_scale(values, gaps, half_life_hours=10.0).scale
    assert 0.3 < float(scales[-1] / scales[-2]) < 3
    gaps[-1] = math.inf
    forgot = running_scale(values, gaps, half_life_hours=10.0)
    assert (float(forgot.mean[-1]), float(forgot.scale[-1])) == (float(values[-1]), 1.0)


def test_a_far_off_level_costs_no_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    # In steps that a number near the far level can take too.
    noise = torch.randint(-(2**21), 2**21, (2000,), generator=generator).double() * 2.0**-20
    gaps = torch.ones_like(noise)
    near, far = (
        running_scale(noise + level, gaps, half_life_hours=100.0) for level in (0.0, 2.0**30)
    )
    torch.testing.assert_close(near.scale, far.scale, rtol=1e-9, atol=0.0)


def test_what_cannot_be_is_refused() -> None:
    values, gaps, context = make_series()
    fitted = fit_series_scale(values, context, BORDERS)
    with pytest.raises(InputError, match="cu_seqlens"):
        fitted.apply(values)
    with pytest.raises(InputError, match="bad_cu_seqlens"):
        fit_series_scale(values, context, BORDERS[:-1])
    for half_life in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="half_life_hours"):
            running_scale(values, gaps, BORDERS, half_life_hours=half_life)
        with pytest.raises(InputError, match="half_life_hours"):
            RunningScale.start(1, half_life_hours=half_life)
    one = RunningScale.start(1, half_life_hours=None).update(torch.ones(1), torch.zeros(1))
    for gap in (-1.0, math.nan):
        gaps[10] = gap
        with pytest.raises(InputError, match="gap_hours"):
            running_scale(values, gaps, BORDERS, half_life_hours=None)
        with pytest.raises(InputError, match="gap_hours"):
            one.update(torch.ones(1), torch.full((1,), gap))
