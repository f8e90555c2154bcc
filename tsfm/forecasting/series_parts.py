"""What the families of the synthetic prior are made of; many series at once.

A `Grid` says where a chunk of series may have points. On it stand a linear recursion, sums of
events such as beats and epidemics, the Ornstein-Uhlenbeck process, seasons, stretches between
changes, noise, and what recording does to a process: a range, units, a last digit, whole counts.

The families themselves are in `general_series` and `health_series`, times and missing points in
`series_prior`. The ranges are round numbers of our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

DAY, WEEK, MONTH, YEAR = 86400.0, 604800.0, 2629800.0, 31557600.0  # seconds
_CYCLES = (1.0, 60.0, 3600.0, DAY, WEEK, MONTH, YEAR)


@dataclass(frozen=True)
class Grid:
    """Where a chunk of series may have points; rows are series.

    Attributes:
        at: Positions (k, n) in steps, increasing; mean gap about 1.
        gap: Steps since the point before, (k, n).
        length: Points of each series, (k, 1); those beyond are never kept.
        step_seconds: Seconds a step in the family's own life, (k, 1).
    """

    at: Array
    gap: Array
    length: Array
    step_seconds: Array


def uniform(rng: np.random.Generator, low: float, high: float, k: int) -> Array:
    """One number a series, (k, 1)."""
    return rng.uniform(low, high, (k, 1))


def log_uniform(rng: np.random.Generator, low: float, high: float | Array, k: int) -> Array:
    """One number a series, (k, 1), its logarithm uniform."""
    return np.exp(rng.uniform(np.log(low), np.log(high), (k, 1)))


@numba.njit(cache=True)
def recursion(first: Array, second: Array, drive: Array) -> Array:
    """x_t = first_t x_(t-1) + second_t x_(t-2) + drive_t for each row."""
    out = np.empty_like(drive)
    for row in range(len(drive)):
        x = y = 0.0
        for t in range(drive.shape[1]):
            x, y = first[row, t] * x + second[row, t] * y + drive[row, t], x
            out[row, t] = x
    return out


@numba.njit(cache=True)
def sum_events(
    at: Array,
    when: Array,
    height: Array,
    kind: npt.NDArray[np.int64],
    bumps: Array,
    tailed: npt.NDArray[np.bool_],
) -> Array:
    """Sum over events of bumps, each with (delay, size, rise, fall), Gaussian or with exp. tails.

    `when`, `height` and `kind` are (k, events), sorted in time; `bumps` is (k, kinds, bumps, 4).
    """
    out = np.zeros_like(at)
    for row in range(len(at)):
        reach = 0.0
        for bump in bumps[row].reshape(-1, 4):
            width = max(bump[2], bump[3]) * (9.0 if tailed[row, 0] else 4.0)
            reach = max(reach, width + abs(bump[0]))
        first = 0
        for i in range(at.shape[1]):
            while first < when.shape[1] and when[row, first] < at[row, i] - reach:
                first += 1
            event = first
            while event < when.shape[1] and when[row, event] < at[row, i] + reach:
                for bump in bumps[row, kind[row, event]]:
                    x = at[row, i] - when[row, event] - bump[0]
                    if tailed[row, 0]:
                        part = 2 / (np.exp(-x / bump[2]) + np.exp(x / bump[3]))
                    else:
                        x /= bump[2] if x < 0 else bump[3]
                        part = np.exp(-0.5 * x * x)
                    out[row, i] += height[row, event] * bump[1] * part
                event += 1
    return out


def ornstein_uhlenbeck(rng: np.random.Generator, grid: Grid, tau: Array) -> Array:
    """Unit-variance Ornstein-Uhlenbeck process with `tau` in steps."""
    decay = np.exp(-grid.gap / tau)
    drive = rng.standard_normal(grid.gap.shape) * np.sqrt(1 - decay**2)
    drive[:, 0] /= np.sqrt(1 - decay[:, 0] ** 2)
    return recursion(decay, np.zeros_like(decay), drive)


def draw_segments(rng: np.random.Generator, grid: Grid, mean: Array) -> npt.NDArray[np.int64]:
    """Number of the stretch that each point lies in; stretches last `mean` steps on average."""
    changed = rng.random(grid.at.shape) < 1 - np.exp(-grid.gap / mean)
    return np.cumsum(changed, 1, dtype=np.int64)


def value_of_segment(rng: np.random.Generator, segment: npt.NDArray[np.int64]) -> Array:
    """A standard normal number that holds for each stretch."""
    return np.take_along_axis(rng.standard_normal((len(segment), segment.max() + 1)), segment, 1)


def draw_period(rng: np.random.Generator, grid: Grid) -> Array:
    """A period in steps: a cycle of the calendar where one fits the step, else any."""
    k = len(grid.step_seconds)
    cycles = np.array(_CYCLES) / grid.step_seconds
    fits = (cycles >= 3) & (cycles <= 0.7 * grid.length)
    draw = np.where(fits, rng.random(fits.shape), -1)
    calendar = np.take_along_axis(cycles, draw.argmax(1)[:, None], 1)
    free = log_uniform(rng, 4, grid.length / 1.5, k)
    return np.where(fits.any(1, keepdims=True) & (rng.random((k, 1)) < 0.7), calendar, free)


def season_of(rng: np.random.Generator, grid: Grid, period: Array) -> Array:
    """A periodic shape of unit size: harmonics of falling weight, drifting slowly."""
    k = len(period)
    wander = uniform(rng, 0, 0.05, k) * ornstein_uhlenbeck(rng, grid, 4 * period)
    phase = grid.at / period + rng.random((k, 1)) + wander
    fall = uniform(rng, 0.5, 3, k)
    harmonics = 1 + np.floor(uniform(rng, 0, 1, k) ** 2 * np.minimum(period / 2, 7))
    total, power = np.zeros_like(grid.at), np.zeros((k, 1))
    for m in range(1, 8):
        size = np.where(m <= harmonics, rng.standard_normal((k, 1)) * m**-fall, 0)
        total += size * np.cos(2 * np.pi * (m * phase + rng.random((k, 1))))
        power += size**2 / 2
    return total / np.sqrt(power + 1e-9)


def draw_noise(rng: np.random.Generator, grid: Grid) -> Array:
    """Unit noise: Gaussian or heavy-tailed, sometimes correlated, its size steady or not."""
    k, shape = len(grid.at), grid.at.shape
    heavy = np.clip(rng.standard_t(3, shape), -12, 12) / 1.7
    white = np.where(rng.random((k, 1)) < 0.3, heavy, rng.standard_normal(shape))
    lasting = ornstein_uhlenbeck(rng, grid, log_uniform(rng, 1, 8, k))
    noise = np.where(rng.random((k, 1)) < 0.3, lasting, white)
    swing = np.where(rng.random((k, 1)) < 0.3, uniform(rng, 0.3, 1.2, k), 0)
    return noise * np.exp(swing * ornstein_uhlenbeck(rng, grid, log_uniform(rng, 10, 200, k)))


def round_off(rng: np.random.Generator, x: Array, share: float) -> Array:
    """Some rows in whole multiples of a digit, from fine to half a standard deviation."""
    digit = x.std(1, keepdims=True) * log_uniform(rng, 0.01, 0.5, len(x)) + 1e-12
    return np.where(rng.random((len(x), 1)) < share, np.round(x / digit) * digit, x)


def count_around(rng: np.random.Generator, mean: Array, least: float = 3) -> Array:
    """Whole numbers with this mean, Poisson or wider: relative spread up to 1 / sqrt(least)."""
    spread = log_uniform(rng, least, 100 * least, len(mean))
    chance = rng.standard_gamma(spread, mean.shape) / spread
    return rng.poisson(np.minimum(mean, 1e12) * chance).astype(np.float64)


def record(rng: np.random.Generator, grid: Grid, z: Array) -> Array:
    """A unit process as it is recorded: noise, outliers, a range, units, a last digit."""
    k, shape = len(z), z.shape
    noisy = rng.random((k, 1)) < 0.75
    z = z + noisy * log_uniform(rng, 0.01, 0.6, k) * draw_noise(rng, grid)
    wild = (rng.random(shape) < 0.01) & (rng.random((k, 1)) < 0.1)
    z = np.clip(z + wild * rng.normal(0, 6, shape), -40, 40)
    tame = np.clip(z, -6, 6)
    rate = np.log1p(np.exp(tame)) * grid.gap
    forms = [
        z,
        np.exp(uniform(rng, 0.2, 1.0, k) * tame),
        100 / (1 + np.exp(-uniform(rng, 0.5, 2.5, k) * tame - uniform(rng, -3, 3, k))),
        np.maximum(z + uniform(rng, -0.5, 1.5, k), 0),
        np.cumsum(rate, 1) / grid.length,
        tame**2,
    ]
    form = rng.choice(len(forms), (k, 1), p=(0.5, 0.18, 0.12, 0.08, 0.06, 0.06))
    offset = rng.normal(0, 5, (k, 1)) * (rng.random((k, 1)) < 0.6) * (form == 0)
    unit = np.where(form == 2, 1, log_uniform(rng, 0.01, 1000, k))
    return round_off(rng, unit * (np.choose(form, forms) + offset), 0.25)
