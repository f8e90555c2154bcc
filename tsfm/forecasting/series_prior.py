"""A synthetic prior over irregular series: what a zero-shot forecaster is trained on.

A series is drawn in three steps. Its family (a heart's beats, yearly epidemics, cumulative counts,
a mixture of Gaussian-process kernels, ...) gives values on a grid whose gaps may themselves be
irregular: Poisson, bursty, jittered. A pattern then takes away 10 to 90 % of the points: at random,
in blocks, or at a fixed phase of a cycle. Last, the grid's step becomes seconds, from 2 ms to a
month, mostly what the family is sampled at in life. In about half of the series the pattern spares
the end, `n_tail` points at regular steps, as forecasts are usually judged; elsewhere it runs on.

The idea that a prior drawn by hand is enough to forecast unseen series: Dooley et al., ForecastPFN,
2023; mixtures of Gaussian-process kernels: Ansari et al., Chronos, 2024 (KernelSynth), here by
random Fourier features (Rahimi and Recht, 2007). The shapes and their ranges are our own round
numbers. No series here is a patient, a place or a heart, and nothing may be concluded about one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.forecasting import general_series, health_series
from tsfm.forecasting.series_parts import DAY, MONTH, WEEK, YEAR, Array, Grid, log_uniform, uniform

MIN_POINTS = 24  # of a series, so that some context and some future are left
MIN_CONTEXT = 16  # points that deletion leaves before the tail
_GRID = 16 / 9  # grid points for each point that may be kept: deletion needs something to delete
_CHUNK = 128  # series drawn at once: arrays of a chunk stay in the processor's cache


@dataclass(frozen=True)
class _Family:
    """One kind of series.

    Attributes:
        name: As in `FAMILIES`.
        weight: Its share, relative to the others'.
        steps: Seconds between grid points that it is sampled at, one drawn with equal chance.
        draw: Its law.
        shortest: Least grid points, so that something of what marks the family is seen.
    """

    name: str
    weight: float
    steps: tuple[float, ...]
    draw: Callable[[np.random.Generator, Grid], Array]
    shortest: int = 2 * MIN_POINTS


_ANY_STEP = (0.01, 1.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, DAY, DAY, WEEK, WEEK, MONTH)
_WEEKLY = (WEEK,) * 8 + (DAY, MONTH)
_ECG_STEPS = (1 / 500, 1 / 360, 1 / 360, 1 / 250, 1 / 250, 1 / 125, 1 / 100, 1 / 50)
_PULSE_STEPS = (1 / 250, 1 / 125, 1 / 100, 1 / 64, 1 / 25)
_BEDSIDE_STEPS = (60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, DAY / 2, DAY)
_FAMILIES = (
    _Family("gaussian_process", 12, _ANY_STEP, general_series.gaussian_process),
    _Family("structural", 14, _ANY_STEP, general_series.structural),
    _Family("walk", 8, _ANY_STEP, general_series.walk),
    _Family("regimes", 5, _ANY_STEP, general_series.regimes),
    _Family("oscillators", 6, _ANY_STEP, general_series.oscillators),
    _Family("yearly_peaks", 12, _WEEKLY, partial(health_series.yearly_peaks, sparse=False), 80),
    _Family("yearly_admissions", 7, _WEEKLY, partial(health_series.yearly_peaks, sparse=True), 80),
    _Family("cumulative_cases", 9, (DAY, DAY, DAY, WEEK), health_series.cumulative_cases),
    _Family("new_cases", 5, (DAY, DAY, WEEK), health_series.new_cases),
    _Family("electrocardiogram", 9, _ECG_STEPS, health_series.electrocardiogram, 250),
    _Family("pulses", 6, _PULSE_STEPS, health_series.pulses),
    _Family("vital_signs", 9, _BEDSIDE_STEPS, health_series.vital_signs),
    _Family("intermittent", 3, (900.0, 3600.0, DAY, DAY, WEEK, MONTH), general_series.intermittent),
    _Family("constant", 1, _ANY_STEP, general_series.constant),
)
FAMILIES: tuple[str, ...] = tuple(family.name for family in _FAMILIES)


@dataclass(frozen=True)
class SeriesBatch:
    """Series end to end; series i is the points from `cu_seqlens[i]` to `cu_seqlens[i + 1]`.

    Attributes:
        seconds: Absolute times, float64, increasing within a series.
        values: Finite values, float64, in the family's units.
        cu_seqlens: Borders of the series, int64, one more than there are series.
        family: Index in `FAMILIES` of each series.
        n_tail: How many points at the end of each series no pattern touched, at regular steps; 0
            where the pattern of missing points runs through to the end.
    """

    seconds: Array
    values: Array
    cu_seqlens: npt.NDArray[np.int64]
    family: npt.NDArray[np.int64]
    n_tail: npt.NDArray[np.int64]


def draw_series(
    rng: np.random.Generator, n_series: int, max_points: int = 576, clean_tail: float = 0.5
) -> SeriesBatch:
    """Draw series, each holding its context and its future; the caller chooses the cut.

    Args:
        rng: Source of all chance: the same state gives the same series.
        n_series: How many.
        max_points: The most points that one series may have, at least 48.
        clean_tail: Share of the series whose end is regular and whole, `n_tail` points of it.

    Raises:
        InputError: If a count or the share is out of range.
    """
    if n_series < 1 or max_points < 2 * MIN_POINTS or not 0 <= clean_tail <= 1:
        raise InputError(
            "the prior can't be drawn with these arguments",
            code="prior_arguments",
            place=f"n_series={n_series}, max_points={max_points}, clean_tail={clean_tail}",
            remedy=f"Ask for 1 series or more, {2 * MIN_POINTS} points or more, a share in [0, 1].",
        )
    weight = np.array([family.weight for family in _FAMILIES])
    family = rng.choice(len(FAMILIES), n_series, p=weight / weight.sum())
    seconds: list[Array] = [np.empty(0)] * n_series
    values = list(seconds)
    n_tail = np.zeros(n_series, np.int64)
    for index, kind in enumerate(_FAMILIES):
        members = np.flatnonzero(family == index)
        for rows in np.split(members, range(_CHUNK, len(members), _CHUNK)):
            if len(rows):
                grid, keep, n_tail[rows] = _draw_grid(rng, len(rows), max_points, kind, clean_tail)
                value = kind.draw(rng, grid)
                when = _wall_clock(rng, grid)
                for row, t, x, kept in zip(rows, when, value, keep, strict=True):
                    seconds[row], values[row] = t[kept], x[kept]
    borders = np.cumsum([0, *map(len, seconds)], dtype=np.int64)
    return SeriesBatch(np.concatenate(seconds), np.concatenate(values), borders, family, n_tail)


def _draw_grid(
    rng: np.random.Generator, k: int, max_points: int, kind: _Family, clean_tail: float
) -> tuple[Grid, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Positions, which of them are kept, and the length of the untouched tail."""
    n = int(_GRID * max_points)
    index = np.arange(n)
    length = np.floor(log_uniform(rng, min(kind.shortest, n), n, k))
    room = max_points - MIN_CONTEXT
    longest = np.where(rng.random((k, 1)) < 0.8, min(64, room), room)
    tail = np.minimum(np.floor(length * rng.uniform(0.1, 0.5, (k, 1))), longest)
    tail = np.where(rng.random((k, 1)) < clean_tail, np.maximum(tail, 4), 0)
    touched = index < length - tail

    timing = rng.choice(4, (k, 1), p=(0.64, 0.12, 0.12, 0.12))  # grid, Poisson-like, bursts, jitter
    waits = rng.standard_gamma(log_uniform(rng, 0.4, 6, k), (k, n))
    waits /= waits.mean(1, keepdims=True)
    burst = log_uniform(rng, 3, 30, k)
    fresh = rng.random((k, n)) < 1 / burst
    bursts = rng.exponential(1, (k, n)) * np.where(fresh, 0.85 * burst, 0.15)
    gap = np.where(timing == 1, waits, np.where(timing == 2, bursts, 1.0))
    gap = np.where(touched, np.maximum(gap, 1e-3), 1.0)
    jitter = rng.uniform(-0.45, 0.45, (k, n)) * uniform(rng, 0, 1, k)
    at = np.cumsum(gap, 1) - gap[:, :1] + np.where((timing == 3) & touched, jitter, 0)
    gap = np.diff(at, axis=1, prepend=at[:, :1] - 1)

    deletion = rng.choice(4, (k, 1), p=(0.35, 0.4, 0.15, 0.1))  # none, points, blocks, phases
    block = log_uniform(rng, 2, np.maximum(length / 4, 3), k)
    of_block = np.take_along_axis(rng.random((k, n)), (index // block).astype(np.int64), 1)
    of_phase = (index / block) % 1
    score = np.where(deletion == 2, of_block, np.where(deletion == 3, of_phase, 0))
    score = score + rng.random((k, n)) * np.where(deletion >= 2, 1e-3, 1)
    lost = uniform(rng, 0.1, 0.9, k) * (length - tail) * (deletion > 0)
    spare = length - tail - np.maximum(MIN_CONTEXT, MIN_POINTS - tail)
    lost = np.maximum(np.minimum(np.floor(lost), spare), 0).astype(np.int64)
    score = np.where(touched, score, np.inf)
    bar = np.take_along_axis(np.sort(score, 1), lost, 1)
    keep = (score >= bar) & (index < length)
    keep &= np.cumsum(keep[:, ::-1], 1)[:, ::-1] <= max_points
    step = rng.choice(kind.steps, (k, 1))
    return Grid(at, gap, length, step), keep, tail[:, 0].astype(np.int64)


def _wall_clock(rng: np.random.Generator, grid: Grid) -> Array:
    """Absolute seconds: from zero, or from some moment of 1970 to 2030; one step in seven odd."""
    k = len(grid.at)
    odd = log_uniform(rng, 0.002, MONTH, k)
    step = np.where(rng.random((k, 1)) < 1 / 7, odd, grid.step_seconds)
    start = np.where(rng.random((k, 1)) < 0.3, 0, uniform(rng, 0, 60 * YEAR, k))
    return start + (grid.at - grid.at[:, :1]) * step
