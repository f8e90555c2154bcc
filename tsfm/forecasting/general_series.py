"""Families of the synthetic prior that belong to no field: what any series may look like.

Mixtures of Gaussian-process kernels by random Fourier features (Rahimi and Recht, 2007), trend and
season, walks, regimes, oscillators and a chaotic flow (Lorenz, 1963), rare counts, constants. Each
law takes a chunk's `Grid` and returns values of its shape, finite by construction.

The ranges are round numbers of our own, wide rather than fitted to any data.
"""

from __future__ import annotations

import numba
import numpy as np

from tsfm.forecasting.series_parts import (
    Array,
    Grid,
    count_around,
    draw_noise,
    draw_period,
    draw_segments,
    log_uniform,
    ornstein_uhlenbeck,
    record,
    recursion,
    season_of,
    uniform,
    value_of_segment,
)


def gaussian_process(rng: np.random.Generator, grid: Grid) -> Array:
    """Sums of smooth, rough, periodic and nearly periodic kernels, and a line."""
    k, total = len(grid.at), np.zeros_like(grid.at)
    for weight in (1.0, 0.6, 0.4):
        scale, period = log_uniform(rng, 2, grid.length, k), draw_period(rng, grid)
        smooth = np.where(rng.random((k, 1)) < 0.5, np.inf, rng.choice((0.5, 1.5, 2.5), (k, 1)))
        wave = rng.choice(3, (k, 1))  # around zero frequency, around harmonics, on harmonics
        for _ in range(12):
            freq = rng.standard_normal((k, 1)) / scale
            shape = np.where(np.isinf(smooth), 1, smooth)
            rough = np.sqrt(rng.standard_gamma(shape) / shape) + 1e-3
            freq = np.where(np.isinf(smooth), freq, freq / rough) * (wave < 2)
            line = 2 * np.pi * np.minimum(rng.geometric(0.6, (k, 1)), period / 3) / period
            freq = np.where(wave == 0, freq, line + freq / 4)
            total += weight * np.cos(freq * grid.at + rng.uniform(0, 2 * np.pi, (k, 1))) / 12**0.5
    line = rng.normal(0, 1.5, (k, 1)) * (rng.random((k, 1)) < 0.3)
    return record(rng, grid, total + line * grid.at / grid.length)


def structural(rng: np.random.Generator, grid: Grid) -> Array:
    """Trend, one or two seasons, added or multiplied, and what is left over."""
    k = len(grid.at)
    season = season_of(rng, grid, draw_period(rng, grid))
    second = np.where(rng.random((k, 1)) < 0.4, uniform(rng, 0, 0.8, k), 0)
    season = season + second * season_of(rng, grid, draw_period(rng, grid))
    trend = _trend(rng, grid)
    growth = 1 + np.where(rng.random((k, 1)) < 0.35, 0.4, 0) * (trend - trend[:, :1])
    slow = np.where(rng.random((k, 1)) < 0.5, uniform(rng, 0, 1, k), 0)
    rest = slow * ornstein_uhlenbeck(rng, grid, log_uniform(rng, 2, grid.length, k))
    return record(rng, grid, trend + season * np.clip(growth, 0.1, 5) + rest)


def _trend(rng: np.random.Generator, grid: Grid) -> Array:
    """A line, a damped line, an exponential, a logistic step, a broken line; or none."""
    k, t = len(grid.at), grid.at / grid.length
    bend, rate = rng.random((k, 1)), log_uniform(rng, 1, 10, k)
    forms = [
        np.zeros_like(t),
        t,
        1 - np.exp(-rate * t),
        np.exp(0.4 * rate * np.minimum(t - 1, 2)),
        1 / (1 + np.exp(-3 * rate * np.clip(t - bend, -2, 2))),
        np.maximum(t - bend, 0) + rng.normal(0, 0.6, (k, 1)) * t,
    ]
    return rng.normal(0, 2, (k, 1)) * np.choose(rng.choice(6, (k, 1)), forms)


def walk(rng: np.random.Generator, grid: Grid) -> Array:
    """Mean-reverting and free walks, their integrals, and damped second-order swings."""
    k = len(grid.at)
    steady = ornstein_uhlenbeck(rng, grid, log_uniform(rng, 2, 30 * grid.length, k))
    drive = draw_noise(rng, grid) * np.sqrt(grid.gap)
    free = np.cumsum(drive, 1) + rng.normal(0, 0.05, (k, 1)) * grid.at
    slope = ornstein_uhlenbeck(rng, grid, log_uniform(rng, 3, grid.length / 2, k))
    smooth = np.cumsum(slope * grid.gap, 1)
    radius, angle = uniform(rng, 0.6, 0.998, k), 2 * np.pi / log_uniform(rng, 3, 60, k)
    first = np.broadcast_to(2 * radius * np.cos(angle), drive.shape)
    swings = recursion(first, np.broadcast_to(-(radius**2), drive.shape), drive)
    form = rng.choice(4, (k, 1), p=(0.35, 0.25, 0.2, 0.2))
    x = np.choose(form, [steady, free, smooth, swings])
    unit = (x - x[:, :1]) / (x.std(1, keepdims=True) + 1e-9)
    return record(rng, grid, np.where(form == 0, x, unit))


def regimes(rng: np.random.Generator, grid: Grid) -> Array:
    """Level, spread, memory and season change together at unforeseen moments."""
    k = len(grid.at)
    stretch = draw_segments(rng, grid, grid.length / log_uniform(rng, 1, 12, k))
    level = 1.5 * value_of_segment(rng, stretch) * (rng.random((k, 1)) < 0.8)
    spread = np.exp(uniform(rng, 0, 1, k) * value_of_segment(rng, stretch)) * 0.3
    decay = np.exp(-grid.gap / np.exp(2 + 1.5 * value_of_segment(rng, stretch)))
    drive = rng.standard_normal(decay.shape) * np.sqrt(1 - decay**2)
    rest = recursion(decay, np.zeros_like(decay), drive)
    season = season_of(rng, grid, draw_period(rng, grid))
    season *= np.maximum(value_of_segment(rng, stretch), 0)
    return record(rng, grid, level + spread * rest + season * (rng.random((k, 1)) < 0.5))


def oscillators(rng: np.random.Generator, grid: Grid) -> Array:
    """Sines that swell, drift and fade, square and saw teeth, and a chaotic flow."""
    k, total = len(grid.at), np.zeros_like(grid.at)
    for weight in (1.0, 0.7, 0.4):
        period = log_uniform(rng, 4, grid.length, k)
        wander = 0.6 * uniform(rng, 0, 1, k) ** 2 * ornstein_uhlenbeck(rng, grid, 5 * period)
        turn = grid.at / period + wander + rng.random((k, 1))
        tooth = 3 * (turn % 1) - 1.5
        forms = [np.sin(2 * np.pi * turn), tooth, np.sign(tooth), np.abs(tooth) - 0.75]
        swell = 1 + uniform(rng, 0, 1, k) * np.sin(turn / log_uniform(rng, 1, 5, k))
        fade = np.exp(-grid.at / grid.length * np.where(rng.random((k, 1)) < 0.2, 3, 0))
        form = rng.choice(4, (k, 1), p=(0.76, 0.08, 0.08, 0.08))
        total += weight * (rng.random((k, 1)) < weight) * np.choose(form, forms) * swell * fade
    chaos = _lorenz(rng.normal((0, 0, 25), 8, (k, 3)), log_uniform(rng, 0.01, 0.12, k), grid.gap)
    return record(rng, grid, np.where(rng.random((k, 1)) < 0.15, chaos, total))


@numba.njit(cache=True)
def _lorenz(start: Array, pace: Array, gap: Array) -> Array:
    """First coordinate of the Lorenz system, by Euler steps of at most 0.01."""
    out = np.empty_like(gap)
    for row in range(len(gap)):
        x, y, z = start[row]
        for t in range(gap.shape[1]):
            span = pace[row, 0] * min(gap[row, t], 20.0)
            parts = int(span / 0.01) + 1
            h = span / parts
            for _ in range(parts):
                dx, dy, dz = 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z
                x, y, z = x + h * dx, y + h * dy, z + h * dz
            out[row, t] = x / 8
    return out


def intermittent(rng: np.random.Generator, grid: Grid) -> Array:
    """Few events a step, more in season, nothing for long stretches; or amounts of demand."""
    k = len(grid.at)
    busy = uniform(rng, 0, 1.2, k) * season_of(rng, grid, draw_period(rng, grid))
    slow = log_uniform(rng, 5, grid.length, k)
    busy += uniform(rng, 0, 0.8, k) * ornstein_uhlenbeck(rng, grid, slow)
    count = count_around(rng, log_uniform(rng, 0.05, 8, k) * np.exp(np.clip(busy, -4, 2.5)))
    amount = np.where(rng.random((k, 1)) < 0.3, rng.geometric(0.3, count.shape), 1)
    return count * amount * rng.choice((1, 1, 5, 10), (k, 1))


def constant(rng: np.random.Generator, grid: Grid) -> Array:
    """One value, or a few that hold for long: settings, doses, saturated sensors."""
    k = len(grid.at)
    level = np.round(rng.normal(0, 1, (k, 1)) * 10 ** rng.integers(0, 4, (k, 1)), 1)
    stretch = draw_segments(rng, grid, grid.length / uniform(rng, 0.2, 6, k))
    moves = np.round(2 * value_of_segment(rng, stretch)) / 4 * (rng.random((k, 1)) < 0.6)
    return level + (np.abs(level) + 0.5) * moves
