"""The prior over irregular series: what is promised of times, values, patterns and families."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tsfm.errors import InputError
from tsfm.forecasting import health_series
from tsfm.forecasting.series_parts import Grid, ornstein_uhlenbeck, recursion, sum_events
from tsfm.forecasting.series_prior import (
    FAMILIES,
    MIN_CONTEXT,
    MIN_POINTS,
    SeriesBatch,
    draw_series,
)

Array = npt.NDArray[np.float64]
WEEK, YEAR = 604800.0, 31557600.0


def draw(seed: int, n_series: int, **options: float) -> SeriesBatch:
    return draw_series(np.random.default_rng(seed), n_series, **options)  # type: ignore[arg-type]


def series(batch: SeriesBatch, family: str | None = None) -> list[tuple[Array, Array, int]]:
    """Seconds, values and tail of each series of a family, or of all."""
    borders = batch.cu_seqlens
    return [
        (batch.seconds[a:b], batch.values[a:b], int(tail))
        for a, b, kind, tail in zip(
            borders[:-1], borders[1:], batch.family, batch.n_tail, strict=True
        )
        if family in (None, FAMILIES[kind])
    ]


def regular_grid(k: int, n: int, step_seconds: float = 1.0) -> Grid:
    at = np.broadcast_to(np.arange(n, dtype=np.float64), (k, n)).copy()
    return Grid(at, np.ones((k, n)), np.full((k, 1), float(n)), np.full((k, 1), step_seconds))


@pytest.fixture(scope="module")
def drawn() -> SeriesBatch:
    return draw(0, 1500)


def test_the_same_seed_draws_the_same_series_and_another_seed_others() -> None:
    first, again, other = draw(3, 60), draw(3, 60), draw(4, 60)
    for name in ("seconds", "values", "cu_seqlens", "family", "n_tail"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.cu_seqlens, other.cu_seqlens)


def test_every_family_is_drawn_and_no_family_rules(drawn: SeriesBatch) -> None:
    counts = np.bincount(drawn.family, minlength=len(FAMILIES))
    assert len(counts) == len(FAMILIES) == len(set(FAMILIES))
    assert counts.min() > 0
    assert counts.max() < len(drawn.family) / 4


def test_times_increase_and_values_are_finite(drawn: SeriesBatch) -> None:
    assert drawn.seconds.dtype == drawn.values.dtype == np.float64
    assert np.isfinite(drawn.values).all()
    for seconds, _, _ in series(drawn):
        assert np.isfinite(seconds).all()
        assert (np.diff(seconds) > 0).all()


@pytest.mark.parametrize("max_points", [48, 130, 576])
def test_series_are_packed_and_keep_to_their_bounds(max_points: int) -> None:
    batch = draw(1, 300, max_points=max_points)
    sizes = np.diff(batch.cu_seqlens)
    assert batch.cu_seqlens[0] == 0
    assert batch.cu_seqlens[-1] == len(batch.values) == len(batch.seconds)
    assert sizes.min() >= MIN_POINTS
    assert sizes.max() == max_points
    assert ((sizes - batch.n_tail)[batch.n_tail > 0] >= MIN_CONTEXT).all()


def test_a_clean_tail_is_regular_and_no_longer_than_half() -> None:
    for seconds, _, tail in series(draw(2, 400, clean_tail=1.0)):
        gaps = np.diff(seconds[-tail:])
        assert tail >= 4
        # Times near 2030 in double precision are good to about a microsecond.
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-6, atol=1e-6)


def test_the_share_of_clean_tails_is_as_asked(drawn: SeriesBatch) -> None:
    assert not draw(2, 200, clean_tail=0.0).n_tail.any()
    assert np.mean(drawn.n_tail > 0) == pytest.approx(0.5, abs=0.05)


def test_deletion_leaves_a_tenth_of_the_points_or_more_and_many_shares_between() -> None:
    shares = []
    for seconds, _, tail in series(draw(5, 800, clean_tail=1.0)):
        step = (seconds[-1] - seconds[-tail]) / (tail - 1)
        past = (seconds[: -tail + 1] - seconds[0]) / step
        if len(seconds) < 576 and np.abs(past - past.round()).max() < 1e-2:
            shares.append(len(past) / (past[-1] + 1))
    shares = np.array(shares)
    assert shares.min() > 0.08
    assert np.mean(shares > 0.99) > 0.2
    for low in (0.1, 0.3, 0.5, 0.7):
        assert np.mean((shares > low) & (shares < low + 0.2)) > 0.03


def test_some_series_are_regular_some_jitter_and_some_come_in_bursts(drawn: SeriesBatch) -> None:
    spread = np.array([np.diff(s).std() / np.diff(s).mean() for s, _, _ in series(drawn)])
    assert np.mean(spread < 1e-3) > 0.1
    assert np.mean((spread > 0.02) & (spread < 0.9)) > 0.1
    assert np.mean(spread > 1.5) > 0.05


def test_steps_reach_from_milliseconds_to_a_month(drawn: SeriesBatch) -> None:
    step = np.array([np.median(np.diff(s)) for s, _, _ in series(drawn)])
    assert step.min() < 0.005
    assert step.max() > 20 * 86400
    counts = np.histogram(np.log10(step), bins=[-3, -2, -1, 1, 3, 5, 6, 8])[0]
    assert (counts > len(step) / 100).all()


def test_records_start_at_zero_or_anywhere_in_sixty_years(drawn: SeriesBatch) -> None:
    start = drawn.seconds[drawn.cu_seqlens[:-1]]
    assert start.min() >= 0
    # Those at zero may have lost their first points.
    assert np.mean(start < YEAR) > 0.2
    assert np.mean((start > 20 * YEAR) & (start < 60.5 * YEAR)) > 0.3


def test_running_totals_fall_once_at_most(drawn: SeriesBatch) -> None:
    falls = [int((np.diff(x) < 0).sum()) for _, x, _ in series(drawn, "cumulative_cases")]
    assert max(falls) <= 1
    assert np.mean(np.array(falls) == 0) > 0.8


@pytest.mark.parametrize(
    "family", ["cumulative_cases", "new_cases", "yearly_admissions", "intermittent"]
)
def test_counts_are_whole_and_not_negative(drawn: SeriesBatch, family: str) -> None:
    values = np.concatenate([x for _, x, _ in series(drawn, family)])
    assert values.min() >= 0
    np.testing.assert_array_equal(values, np.floor(values))


def test_yearly_epidemics_return_after_a_year_and_not_after_half() -> None:
    x = health_series.yearly_peaks(
        np.random.default_rng(0), regular_grid(100, 420, WEEK), sparse=False
    )
    z = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    year, half = ((z[:, lag:] * z[:, :-lag]).mean(1) for lag in (52, 26))
    assert np.median(year) > 0.2 > 0 > np.median(half)
    # Peaks stand high on a long low floor.
    assert np.median((z**3).mean(1)) > 1


def test_a_heart_beats_at_a_heart_s_pace() -> None:
    fs_hz = 100
    x = health_series.electrocardiogram(
        np.random.default_rng(0), regular_grid(100, 1000, 1 / fs_hz)
    )
    z = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    lags = range(int(0.1 * fs_hz), 2 * fs_hz)
    likeness = np.array([(z[:, lag:] * z[:, :-lag]).mean(1) for lag in lags])
    pace = (likeness[20:].argmax(0) + lags[20]) / fs_hz
    assert np.median(likeness[20:].max(0)) > 0.4
    assert 0.45 < np.median(pace) < 1.25


def test_the_correlation_of_the_ou_process_is_that_of_the_time_between() -> None:
    rng = np.random.default_rng(0)
    gap = np.tile(np.array([1.0, 0.2, 3.0, 0.5]), (400, 50))
    grid = Grid(np.cumsum(gap, 1), gap, np.full((400, 1), 200.0), np.ones((400, 1)))
    x = ornstein_uhlenbeck(rng, grid, np.full((400, 1), 2.0))
    assert x.var() == pytest.approx(1, abs=0.05)
    for start in range(4):
        found = (x[:, start + 3 : -1 : 4] * x[:, start + 4 :: 4]).mean()
        assert found == pytest.approx(np.exp(-gap[0, start] / 2), abs=0.04)


def test_the_recursion_solves_its_difference_equation() -> None:
    rng = np.random.default_rng(0)
    first, second, drive = rng.uniform(-0.5, 0.5, (3, 4, 30))
    x = recursion(first, second, drive)
    before = np.pad(x, ((0, 0), (2, 0)))
    np.testing.assert_allclose(x, first * before[:, 1:-1] + second * before[:, :-2] + drive)


@pytest.mark.parametrize("tailed", [False, True])
def test_a_sum_of_events_is_the_sum_of_its_bumps(tailed: bool) -> None:
    at = np.sort(np.random.default_rng(0).uniform(0, 60, (1, 200)), 1)
    when, height = np.array([[5.0, 20.0, 47.0]]), np.array([[1.0, 3.0, -2.0]])
    kind = np.array([[0, 1, 0]])
    bumps = np.array([[[(0.0, 1.0, 1.0, 2.0), (3.0, 0.5, 2.0, 1.0)], [(-2.0, 1, 0.5, 1)] * 2]])
    expected = np.zeros_like(at)
    for event in range(3):
        for delay, size, rise, fall in bumps[0, kind[0, event]]:
            x = at - when[0, event] - delay
            bell = np.exp(-0.5 * (x / np.where(x < 0, rise, fall)) ** 2)
            tails = 2 / (np.exp(-x / rise) + np.exp(x / fall))
            expected += height[0, event] * size * (tails if tailed else bell)
    found = sum_events(at, when, height, kind, bumps, np.array([[tailed]]))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_an_epidemic_without_lost_immunity_ends_at_its_final_size() -> None:
    spread, recovery, n = np.array([[1.5], [2.5]]), 0.1, 1500
    rate = np.broadcast_to(spread * recovery, (2, n)).copy()
    none, seed = np.zeros((2, 1)), np.full((2, 1), 1e-6)
    new = health_series._epidemic(rate, none, seed, np.full((2, 1), recovery), np.ones((2, n)))
    size = new.sum(1)
    # Kermack and McKendrick: ln(1 - z) = -R z; a few people are infected from outside.
    np.testing.assert_allclose(np.log(1 - size), -spread[:, 0] * size, rtol=0.03)


@pytest.mark.parametrize(
    ("n_series", "options"),
    [(0, {}), (5, {"max_points": 47}), (5, {"clean_tail": 1.5}), (5, {"clean_tail": float("nan")})],
)
def test_impossible_wishes_are_refused(n_series: int, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="prior_arguments"):
        draw(0, n_series, **options)
