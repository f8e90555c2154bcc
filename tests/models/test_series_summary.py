"""A summary equals its definitions, point by point or packed, and its lines follow a line."""

from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch

from tsfm.models.series_summary import (
    HALF_LIVES,
    N_BASES,
    N_SUMMARY_FEATURES,
    SeriesSummary,
    summarise,
)

LENGTHS = [0, 1, 2, 17, 0, 40, 0]
BORDERS = torch.tensor([0, *itertools.accumulate(LENGTHS)])
N_HALF_LIVES = len(HALF_LIVES)
SHRINKAGE = 0.25  # clock units squared, added to the variance of time under a slope


def make_points(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and clock times at uneven gaps, some of them nought, of far-apart origins."""
    generator = torch.Generator().manual_seed(seed)
    n = int(BORDERS[-1])
    gaps = torch.rand(n, generator=generator).double() * 6
    gaps[torch.rand(n, generator=generator) < 0.2] = 0.0
    clock = torch.cat([g.cumsum(0) - 1e3 * i for i, g in enumerate(gaps.split(LENGTHS))])
    return torch.randn(n, generator=generator) * 2 + 1, clock


def by_definition(z: np.ndarray, clock: np.ndarray) -> dict[str, np.ndarray | float]:
    """Every number of a series' summary in float64."""
    back = clock - clock[-1]
    weight = 0.5 ** (-back[:, None] / np.array(HALF_LIVES))
    steps = np.diff(z, prepend=z[0])
    return {
        "count": len(z), "last": z[-1], "before": z[max(0, len(z) - 2)],
        "before_that": z[max(0, len(z) - 3)], "first": z[0], "low": z.min(), "high": z.max(),
        "total": z.sum(), "squares": ((z - z[0]) ** 2).sum(), "weight": weight.sum(0),
        "level": weight.T @ z, "time": weight.T @ back, "time_squares": weight.T @ back**2,
        "time_level": weight.T @ (back * z), "steps": weight[:, 1] @ steps**2,
        "last_clock": clock[-1] - clock[0],
    }  # fmt: skip


def one_by_one(z: torch.Tensor, clock: torch.Tensor) -> SeriesSummary:
    summary = SeriesSummary.empty(1)
    gaps = torch.zeros_like(z)
    gaps[1:] = clock.diff().float()
    for i in range(len(z)):
        summary = summary.update(z[i : i + 1], gaps[i : i + 1])
    return summary


def assert_same(a: SeriesSummary, b: SeriesSummary) -> None:
    for field in fields(SeriesSummary):
        torch.testing.assert_close(
            getattr(a, field.name), getattr(b, field.name), rtol=2e-5, atol=2e-3, msg=field.name
        )


def test_every_number_is_what_it_is_said_to_be() -> None:
    z, clock = make_points()
    summary = summarise(z, clock, BORDERS)
    for i, (values, times) in enumerate(zip(z.split(LENGTHS), clock.split(LENGTHS), strict=True)):
        if not len(values):
            expected = dict.fromkeys((f.name for f in fields(SeriesSummary)), 0.0)
        else:
            expected = by_definition(values.double().numpy(), times.numpy())
        for name, number in expected.items():
            got = getattr(summary, name)[i].double().numpy()
            np.testing.assert_allclose(got, number, rtol=1e-5, atol=1e-3, err_msg=f"{name} of {i}")


def test_a_summary_kept_up_point_by_point_is_the_same() -> None:
    z, clock = make_points(1)
    summary = summarise(z, clock, BORDERS)
    for i, (values, times) in enumerate(zip(z.split(LENGTHS), clock.split(LENGTHS), strict=True)):
        assert_same(one_by_one(values, times), summary.rows(torch.tensor([i])))


def test_rows_are_updated_side_by_side() -> None:
    z, clock = make_points(2)
    rows = torch.tensor([0, 2, 3])
    before = summarise(z, clock, BORDERS).rows(rows)
    value, gap = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([9.0, 0.0, 30.0])
    after = before.update(value, gap)
    for i in range(len(rows)):
        one = torch.tensor([i])
        assert_same(before.rows(one).update(value[one], gap[one]), after.rows(one))


def test_a_first_points_gap_is_not_looked_at() -> None:
    one = torch.tensor([3.0])
    near, far = (SeriesSummary.empty(1).update(one, torch.tensor([g])) for g in (0.0, 1e9))
    assert_same(near, far)


def test_series_do_not_touch_each_other_and_their_origin_does_not_matter() -> None:
    z, clock = make_points(3)
    whole = summarise(z, clock, BORDERS)
    for i, (values, times) in enumerate(zip(z.split(LENGTHS), clock.split(LENGTHS), strict=True)):
        alone = summarise(values, times + 12_345.0, torch.tensor([0, len(values)]))
        assert_same(alone, whole.rows(torch.tensor([i])))


def test_no_point_at_all_is_a_summary_of_noughts() -> None:
    nothing = summarise(torch.zeros(0), torch.zeros(0).double(), torch.zeros(4, dtype=torch.int64))
    assert_same(nothing, SeriesSummary.empty(3))
    assert nothing.features().shape == (3, N_SUMMARY_FEATURES)
    assert nothing.features().isfinite().all()
    assert not nothing.base_forecasts(torch.arange(3), torch.ones(3)).any()
    assert bool((nothing.step_size() > 0).all())


def test_base_forecasts_are_last_mean_nought_and_forgetting_means() -> None:
    z, clock = make_points(4)
    series = torch.tensor([3, 5, 5])
    bases = summarise(z, clock, BORDERS).base_forecasts(series, torch.tensor([1.0, 2.0, 90.0]))
    assert bases.shape == (3, N_BASES)
    for row, i in enumerate(series.tolist()):
        values, times = z.split(LENGTHS)[i].double().numpy(), clock.split(LENGTHS)[i].numpy()
        expected = by_definition(values, times)
        level = np.divide(expected["level"], expected["weight"])
        np.testing.assert_allclose(bases[row, :3], [values[-1], values.mean(), 0.0], atol=1e-5)
        np.testing.assert_allclose(bases[row, 3 : 3 + N_HALF_LIVES], level, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ahead", [0.0, 1.0, 5.0])
def test_lines_follow_a_straight_line_up_to_their_shrinkage(ahead: float) -> None:
    """A slope is the covariance over the variance of time plus a quarter of a squared unit."""
    n, slope = 60, 0.05
    clock = torch.arange(n).double()
    z = (slope * clock).float()
    bases = summarise(z, clock, torch.tensor([0, n])).base_forecasts(
        torch.tensor([0]), torch.tensor([ahead])
    )
    lines = bases[0, -N_HALF_LIVES:].double().numpy()
    back = clock.numpy() - (n - 1)
    for line, half_life in zip(lines, HALF_LIVES, strict=True):
        weight = 0.5 ** (-back / half_life)
        weight /= weight.sum()
        centre = weight @ back
        variance = weight @ back**2 - centre**2
        kept = variance / (variance + SHRINKAGE)
        expected = slope * (n - 1 + centre) + kept * slope * (ahead - centre)
        assert line == pytest.approx(expected, abs=2e-4)
        assert kept > 0.9
    assert lines[-1] == pytest.approx(slope * (n - 1 + ahead), abs=0.01)


def test_points_of_one_moment_have_no_slope() -> None:
    z = torch.tensor([1.0, 5.0, -2.0, 4.0])
    summary = summarise(z, torch.zeros(4).double(), torch.tensor([0, 4]))
    bases = summary.base_forecasts(torch.zeros(2, dtype=torch.int64), torch.tensor([0.0, 1e6]))
    torch.testing.assert_close(bases[0], bases[1])


def test_a_line_is_not_followed_to_the_moon() -> None:
    clock = torch.arange(20).double()
    summary = summarise(clock.float() / 4, clock, torch.tensor([0, 20]))
    far = summary.base_forecasts(torch.tensor([0]), torch.tensor([1e12]))
    assert far.isfinite().all()
    assert float(far.max()) < 19 / 4 + 20


def test_step_size_of_even_steps_is_their_size() -> None:
    clock = torch.arange(200).double()
    z = 0.3 * (torch.arange(200) % 2).float()
    summary = summarise(z, clock, torch.tensor([0, 200]))
    assert float(summary.step_size()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.xfail(strict=True, reason="the weight of steps is taken for the weight of points")
def test_a_mean_of_steps_is_not_above_the_largest() -> None:
    """The root mean square of one step is that step, however far apart its two points are."""
    summary = summarise(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 8.0]).double(),
                        torch.tensor([0, 2]))  # fmt: skip
    assert float(summary.step_size()) == pytest.approx(2.0, rel=1e-3)


def test_features_of_a_wild_value_stay_small() -> None:
    z = torch.tensor([0.0, 1.0, 1e15, 2.0, 1.0])
    summary = summarise(z, torch.arange(5).double(), torch.tensor([0, 5]))
    assert float(summary.features().abs().max()) < 50


def test_features_of_the_wildest_values_are_finite() -> None:
    summary = summarise(torch.tensor([0.0, 1e30, 1.0]), torch.arange(3).double(),
                        torch.tensor([0, 3]))  # fmt: skip
    assert summary.features().isfinite().all()


def test_spread_costs_no_digits_far_from_nought() -> None:
    """A variable whose location is not its own: 98.6 among values standardised by others."""
    z = torch.full((50,), 98.6)
    z[7] = 98.7
    summary = summarise(z, torch.arange(50).double(), torch.tensor([0, 50]))
    assert float(summary.features()[0, 7]) == pytest.approx(0.014, abs=1e-3)
