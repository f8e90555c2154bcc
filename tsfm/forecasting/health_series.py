"""Families of the synthetic prior from health: epidemics, hearts, bedside values.

Epidemics follow an SIR law with lost immunity and a season (Kermack and McKendrick, 1927), or grow
and die exponentially; beats are sums of Gaussian waves (McSharry et al., 2003) at uneven intervals.
Each law takes a chunk's `Grid` and returns values of its shape, finite by construction.

The ranges are round numbers of our own. Those of yearly peaks and of case counts were moved until
autocorrelation, skewness, zeros and growth lay near those of the public series kept for development
(national ILI to 2014, weekly admissions, cumulative COVID-19 counts); no series itself is in here.
These are shapes to learn forecasting from, no models of a disease, a heart or a patient.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from tsfm.forecasting.series_parts import (
    DAY,
    YEAR,
    Array,
    Grid,
    count_around,
    draw_noise,
    draw_segments,
    log_uniform,
    ornstein_uhlenbeck,
    round_off,
    sum_events,
    uniform,
    value_of_segment,
)

# Waves P, Q, R, S, T as (seconds from R at 60 a minute, millivolts, seconds of width): a normal
# beat, and an ectopic one, broad and without P.
_BEATS = np.array(
    [
        [
            (-0.17, 0.12, 0.022),
            (-0.028, -0.1, 0.009),
            (0, 1, 0.011),
            (0.03, -0.25, 0.012),
            (0.28, 0.3, 0.05),
        ],
        [
            (-0.05, 0.3, 0.03),
            (0, 1.2, 0.035),
            (0.08, -0.7, 0.04),
            (0.3, -0.5, 0.07),
            (0.4, 0, 0.05),
        ],
    ]
)


def yearly_peaks(rng: np.random.Generator, grid: Grid, sparse: bool) -> Array:
    """Epidemics of every winter: steep, uneven peaks; `sparse`: admissions, nearly none between.

    Values are whole counts, or percents with two decimals where not sparse.
    """
    k, year = len(grid.at), YEAR / grid.step_seconds
    n = int((grid.at[:, -1:] / year).max()) + 4
    late = np.where(rng.random((k, 1)) < 0.15, 0.12, 0.04) * year
    when = (np.arange(n) - 1.5 + rng.random((k, 1))) * year + late * rng.standard_normal((k, n))
    height = np.exp(uniform(rng, 0.1, 0.8 if sparse else 0.5, k) * rng.standard_normal((k, n)))
    kind = (rng.random((k, n)) < 0.25).astype(np.int64)
    # The epidemic itself, a second wave or shoulder in half of them, a broad foot.
    size = rng.uniform((1, 0, 0), (1, 0.7, 0.1 if sparse else 0.4), (k, 2, 3))
    size[..., 1] *= rng.random((k, 2)) < 0.5
    delay = rng.normal(0, (0, 0.12, 0.12), (k, 2, 3))
    width = np.exp(rng.uniform(np.log(0.025), np.log(0.09), (2, k, 2, 3))) * (1, 1, 3)
    rise, fall = width * year[..., None]
    bumps = np.stack([delay * year[..., None], size, rise, fall], -1)
    wave = sum_events(grid.at, np.sort(when, 1), height, kind, bumps, rng.random((k, 1)) < 0.8)
    floor = log_uniform(rng, 0.002, 0.1, k) if sparse else log_uniform(rng, 0.1, 1, k)
    drift = uniform(rng, 0, 0.3, k) * ornstein_uhlenbeck(rng, grid, year)
    drift += rng.normal(0, 0.1, (k, 1)) * grid.at / year
    ripple = log_uniform(rng, 0.02, 0.15, k) * ornstein_uhlenbeck(rng, grid, np.full((k, 1), 2.0))
    mean = (floor + wave) * np.exp(np.clip(drift + ripple, -4, 4))
    if sparse:
        return count_around(rng, mean * log_uniform(rng, 10, 3000, k), least=12)
    counts = count_around(rng, mean * log_uniform(rng, 100, 3e4, k), least=30)
    percent = np.round(mean * log_uniform(rng, 0.5, 5, k), 2)
    return np.where(rng.random((k, 1)) < 0.5, counts, percent)


def _waves(rng: np.random.Generator, grid: Grid) -> Array:
    """Expected new cases a step: an SIR epidemic, or waves that grow and die; at most 1."""
    k, n, length = len(grid.at), 12, grid.length
    year = np.where(
        YEAR / grid.step_seconds < length,
        YEAR / grid.step_seconds,
        length * uniform(rng, 0.3, 1, k),
    )
    forced = uniform(rng, 0, 0.35, k) * np.cos(2 * np.pi * (grid.at / year + rng.random((k, 1))))
    slow = length * uniform(rng, 0.03, 0.2, k)
    mood = uniform(rng, 0, 0.4, k) * ornstein_uhlenbeck(rng, grid, slow)
    spell = log_uniform(rng, 3, 20, k)
    rate = uniform(rng, 1.2, 3.5, k) / spell * np.exp(forced + mood)
    loss = 1 / (length * log_uniform(rng, 0.05, 3, k))
    sir = _epidemic(rate, loss, log_uniform(rng, 1e-6, 1e-2, k), 1 / spell, grid.gap) / grid.gap

    when = np.sort(rng.uniform(-0.3, 1.3, (k, n)) * length, 1)
    used = rng.random((k, n)) < uniform(rng, 0.2, 1, k)
    size = uniform(rng, 0.3, 2, k) * rng.standard_normal((k, n))
    height = np.where(used, np.exp(size), 0.0)
    rise = length[..., None] * np.exp(rng.uniform(np.log(0.006), np.log(0.08), (k, 2, 2)))
    fall = rise * rng.uniform(0.7, 3, (k, 2, 2))
    bumps = np.stack([rng.normal(0, 2, rise.shape) * rise, rng.random(rise.shape), rise, fall], -1)
    kind = rng.integers(0, 2, (k, n))
    wave = sum_events(grid.at, when, height, kind, bumps, rng.random((k, 1)) < 0.8)
    mean = np.where(rng.random((k, 1)) < 0.35, sir, wave * np.exp(mood))
    lasting = log_uniform(rng, 1e-4, 0.15, k) * np.clip(grid.at / slow, 0, 1)
    return (mean / (mean.max(1, keepdims=True) + 1e-9) + lasting) / (1 + lasting)


@numba.njit(cache=True)
def _epidemic(rate: Array, loss: Array, seed: Array, recovery: Array, gap: Array) -> Array:
    """New infections a step of an SIR epidemic whose immunity is lost; shares of the people."""
    out = np.empty_like(rate)
    for row in range(len(rate)):
        s, i = 1.0 - 2 * seed[row, 0], seed[row, 0]
        for t in range(rate.shape[1]):
            new = 0.0
            for _ in range(4):
                h = min(gap[row, t], 30.0) / 4
                caught = s * (1 - np.exp(-rate[row, t] * i * h))
                healed = i * (1 - np.exp(-recovery[row, 0] * h))
                s += (1 - s - i) * (1 - np.exp(-loss[row, 0] * h)) - caught
                i += caught - healed + 1e-6 * s * h
                s -= 1e-6 * s * h
                new += caught
            out[row, t] = new
    return out


def new_cases(rng: np.random.Generator, grid: Grid) -> Array:
    """Waves as reported a day or a week: by weekday, in whole numbers, some not at weekends."""
    return _reported(rng, grid, np.ones_like(grid.gap))


def cumulative_cases(rng: np.random.Generator, grid: Grid) -> Array:
    """Running totals of reported waves, a few of them corrected downwards once."""
    k = len(grid.at)
    total = np.cumsum(_reported(rng, grid, grid.gap), 1)
    before = log_uniform(rng, 1e-4, 3, k) * (rng.random((k, 1)) < 0.5)
    corrected = (rng.random((k, 1)) < 0.05) & (grid.at > grid.length * rng.random((k, 1)))
    lower = corrected * uniform(rng, 0, 0.05, k)
    return np.floor((total + before * total[:, -1:]) * (1 - lower))


def _reported(rng: np.random.Generator, grid: Grid, span: Array) -> Array:
    """Counts of `span` steps each, with the habits of weekdays where a step is a day."""
    k = len(grid.at)
    day = np.where(grid.step_seconds == DAY, np.floor(grid.at) % 7, 0).astype(np.int64)
    habit = np.exp(uniform(rng, 0, 0.5, k) * rng.standard_normal((k, 7)))
    habit[:, 5:] *= np.where(rng.random((k, 1)) < 0.15, 0.02, 1)
    mean = _waves(rng, grid) * span * np.take_along_axis(habit, day, 1)
    return count_around(rng, mean * log_uniform(rng, 0.5, 1e5, k))


def _beat_times(
    rng: np.random.Generator, grid: Grid, mean: Array
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Moments of beats, and which come early; intervals breathe, wander or have no rhythm."""
    k = len(mean)
    n = min(int(((grid.at[:, -1:] + 8) / mean).max() * 1.4) + 8, 800)
    breath = np.sin(2 * np.pi * (np.arange(n) / uniform(rng, 2.5, 7, k) + rng.random((k, 1))))
    lost = np.where(rng.random((k, 1)) < 0.12, 0.2, 0.01)
    early = (rng.random((k, n)) < uniform(rng, 0.02, 0.3, k)) & (rng.random((k, 1)) < 0.2)
    change = uniform(rng, 0, 0.07, k) * breath + lost * rng.standard_normal((k, n))
    change += np.cumsum(rng.normal(0, 0.008, (k, n)), 1)
    ratio = np.exp(np.clip(change, -0.6, 0.6)) * np.where(early, 0.65, 1)
    ratio[:, 1:] *= np.where(early[:, :-1], 1.35, 1)
    return np.cumsum(ratio * mean, 1) - uniform(rng, 2, 4, k) * mean, early


def electrocardiogram(rng: np.random.Generator, grid: Grid) -> Array:
    """One lead: P, QRS and T of each beat, ectopic beats, wander, mains and muscle noise."""
    k, per_second = len(grid.at), 1 / grid.step_seconds
    rr = log_uniform(rng, 0.45, 1.25, k)
    when, early = _beat_times(rng, grid, rr * per_second)
    law = np.broadcast_to(_BEATS, (k, 2, 5, 3))
    stretch = np.exp(0.2 * rng.standard_normal((k, 2, 5)))
    delay = law[..., 0] * np.sqrt(rr)[..., None] * np.exp(0.1 * rng.standard_normal((k, 2, 5)))
    size = law[..., 1] * np.exp(0.5 * rng.standard_normal((k, 2, 5)))
    size *= np.where(rng.random((k, 2, 5)) < (0.1, 0.1, 0.25, 0.1, 0.2), -1, 1)
    width = law[..., 2] * stretch * per_second[..., None]
    fall = np.where(np.arange(5) == 4, 0.7, 1.0) * width
    bumps = np.stack([delay * per_second[..., None], size, width, fall], -1)
    height = 1 + 0.08 * rng.standard_normal(when.shape)
    x = sum_events(grid.at, when, height, early.astype(np.int64), bumps, np.zeros((k, 1), bool))
    seconds = grid.at * grid.step_seconds
    breath = uniform(rng, 0.05, 0.5, k) * seconds + rng.random((k, 1))
    wander = log_uniform(rng, 0.01, 0.5, k) * np.sin(2 * np.pi * breath)
    hum = np.sin(2 * np.pi * rng.choice((50, 60), (k, 1)) * seconds)
    mains = 0.05 * (rng.random((k, 1)) < 0.15) * hum
    noise = log_uniform(rng, 0.003, 0.08, k) * rng.standard_normal(x.shape)
    unit = np.where(rng.random((k, 1)) < 0.7, log_uniform(rng, 0.4, 2, k), 200)
    return round_off(rng, unit * (x + wander + mains + noise + rng.normal(0, 0.3, (k, 1))), 0.3)


def pulses(rng: np.random.Generator, grid: Grid) -> Array:
    """Pulse waves, and beats of random shape at any pace."""
    k = len(grid.at)
    heart = rng.random((k, 1)) < 0.7
    rr = log_uniform(rng, 0.45, 1.25, k) / grid.step_seconds
    mean = np.maximum(np.where(heart, rr, log_uniform(rng, 6, grid.length / 2, k)), 5)
    when, _ = _beat_times(rng, grid, mean)
    parts = np.where(np.arange(4) < 2, 1, rng.random((k, 4)) < 0.5)
    delay = np.where(heart, (0, 0.36, 0.15, 0.5), rng.random((k, 4)) * 0.8)
    delay += rng.normal(0, 0.02, (k, 4))
    size = np.where(heart, (1, 0.4, 0.3, 0.1), rng.standard_normal((k, 4)))
    size *= np.exp(0.3 * rng.standard_normal((k, 4)))
    rise = np.where(heart, (0.09, 0.1, 0.1, 0.15), np.exp(rng.uniform(-4, -1.5, (k, 4))))
    fall = rise * np.exp(np.where(heart, 0.5, rng.normal(0, 0.7, (k, 4))))
    bumps = np.stack([delay * mean, size * parts, rise * mean, fall * mean], -1)[:, None]
    breath = np.arange(when.shape[1]) / uniform(rng, 3, 7, k) + rng.random((k, 1))
    breath = np.sin(2 * np.pi * breath)
    height = 1 + uniform(rng, 0, 0.25, k) * breath + 0.04 * rng.standard_normal(when.shape)
    kind = np.zeros(when.shape, np.int64)
    x = sum_events(grid.at, when, height, kind, bumps, np.zeros((k, 1), bool))
    slow = log_uniform(rng, 2, 10, k) * mean
    wander = log_uniform(rng, 0.02, 0.5, k) * ornstein_uhlenbeck(rng, grid, slow)
    noise = log_uniform(rng, 0.002, 0.06, k) * rng.standard_normal(x.shape)
    unit = log_uniform(rng, 0.05, 100, k)
    return round_off(rng, unit * (x + wander + noise + uniform(rng, -1, 3, k)), 0.3)


def vital_signs(rng: np.random.Generator, grid: Grid) -> Array:
    """Bedside values: a day's rhythm, slow and fast swings, steps, recoveries, whole units."""
    k = len(grid.at)
    day = np.maximum(DAY / grid.step_seconds, 3)
    x = uniform(rng, 0, 0.8, k) * np.cos(2 * np.pi * (grid.at / day + rng.random((k, 1))))
    slow = log_uniform(rng, 3, grid.length, k)
    x += uniform(rng, 0.2, 1.2, k) * ornstein_uhlenbeck(rng, grid, slow)
    x += uniform(rng, 0.05, 0.7, k) * draw_noise(rng, grid)
    stretch = draw_segments(rng, grid, grid.length / uniform(rng, 0.5, 4, k))
    x += uniform(rng, 0, 1.5, k) * value_of_segment(rng, stretch) * (rng.random((k, 1)) < 0.4)
    since = grid.at - grid.length * uniform(rng, -0.3, 0.9, k)
    half = grid.length * log_uniform(rng, 0.03, 0.5, k)
    heal = np.exp(-np.maximum(since, 0) / half) * (since >= 0)
    x += rng.normal(0, 3, (k, 1)) * heal * (rng.random((k, 1)) < 0.5)
    level = rng.choice((37, 80, 120, 16, 97, 7.4, 140, 4, 1, 10, 200, 70), (k, 1))
    value = level * (1 + log_uniform(rng, 0.005, 0.2, k) * np.clip(x, -4.5, 6))
    skewed = level * np.exp(uniform(rng, 0.1, 0.6, k) * np.clip(x, -5, 6))
    value = np.where(rng.random((k, 1)) < 0.25, skewed, value)
    value = np.where(level == 97, np.minimum(value, 100), value)
    digit = np.where(level < 50, 0.1, 1) * rng.choice((1, 1, 1, 0.1), (k, 1))
    return np.maximum(np.round(value / digit) * digit, 0)
