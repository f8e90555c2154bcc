"""Change of the sampling rate, at any ratio, with an anti-aliasing filter and safe gaps.

Output sample j lies at time j / `to_hz`; its value is the windowed-sinc interpolation (Kaiser
window, some 60 dB) of the run that it lies in. The sinc cuts a little below the lower of both
Nyquist frequencies, so what the new rate can't hold is gone before it could fold back: hum at half
the new rate too. The kernel is tabulated for each phase of a rational ratio, and between 1024
phases for others, so that 62.4725 Hz is as welcome as 360 Hz.

Duration is kept, never the number of samples: thirty seconds stay thirty seconds.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.signals.shards import find_runs

Signal = npt.NDArray[np.floating[Any]]

_ZEROS = 24  # zero crossings of the sinc on either side
_KAISER = 5.8
_CUT = 0.92  # of the lower Nyquist frequency; the stop band starts at about 1
_PHASES = 1024


def resample(x: npt.ArrayLike, *, fs_hz: float, to_hz: float) -> Signal:
    """Change the sampling rate.

    Args:
        x: (..., n_samples) values, NaN in gaps.
        fs_hz: Rate of `x`.
        to_hz: Rate wanted.

    Returns:
        (..., round(n_samples * to_hz / fs_hz)) values. A sample is a gap where the nearest sample
        of `x` is one; a gap shorter than a new step may vanish. float32 stays float32.

    Raises:
        InputError: `bad_sampling_rate`.
    """
    values = np.asarray(x)
    if not (0 < fs_hz < math.inf and 0 < to_hz < math.inf and values.ndim):
        raise InputError(
            f"can't resample {fs_hz:g} to {to_hz:g} samples a second",
            code="bad_sampling_rate",
            place="to_hz",
            remedy="Give a signal and two positive rates.",
        )
    dtype = np.float32 if values.dtype in (np.float32, np.float16) else np.float64
    step = (Fraction(fs_hz) / Fraction(to_hz)).limit_denominator(1_000_000)
    if step == 1:
        return values.astype(dtype)
    n_new = round(values.shape[-1] * to_hz / fs_hz)
    rows = values.reshape(math.prod(values.shape[:-1]), values.shape[-1]).astype(np.float64)
    resampled = np.full((len(rows), n_new), np.nan)
    table, reach = _kernel(step)
    for row, target in zip(rows, resampled, strict=True):
        for start, length in zip(*find_runs(np.isfinite(row)), strict=True):
            run = np.pad(row[start : start + length], reach, mode="reflect", reflect_type="odd")
            first = _first_sample(int(start), step)
            end = int(start + length)
            last = n_new if end == len(row) else min(_first_sample(end, step), n_new)
            _interpolate(
                run, target, first, last, int(start) - reach,
                step.numerator, step.denominator, table,
            )  # fmt: skip
    return resampled.reshape(*values.shape[:-1], n_new).astype(dtype, copy=False)


def _first_sample(start: int, step: Fraction) -> int:
    """First new sample whose nearest old one is `start` or later."""
    return max(0, math.ceil((start - Fraction(1, 2)) / step))


@lru_cache(maxsize=16)
def _kernel(step: Fraction) -> tuple[npt.NDArray[np.float64], int]:
    """(n_phases + 1, 2 reach) weights of the old samples around each phase, and their reach."""
    n_phases = min(step.denominator, _PHASES)
    cut = _CUT * min(1.0, float(1 / step))
    half = _ZEROS / cut
    reach = math.ceil(half) + 1
    phases = np.arange(n_phases + 1)[:, None] / n_phases
    distance = np.arange(1 - reach, reach + 1) - phases
    inside = np.clip(1 - (distance / half) ** 2, 0.0, None)
    window = np.where(np.abs(distance) < half, np.i0(_KAISER * np.sqrt(inside)), 0.0)
    weights = np.sinc(cut * distance) * window
    return weights / weights.sum(axis=1, keepdims=True), reach


@numba.njit(cache=True)
def _interpolate(
    run: Any, target: Any, first: int, last: int, offset: int, down: int, up: int, table: Any
) -> None:
    """Fill `target[first:last]`; `run` holds old samples from `offset` on."""
    n_phases, n_taps = table.shape[0] - 1, table.shape[1]
    exact = n_phases == up
    for j in range(first, last):
        place = j * down
        whole, part = place // up, place % up
        start = whole - offset + 1 - n_taps // 2
        total = 0.0
        if exact:
            for i in range(n_taps):
                total += table[part, i] * run[start + i]
        else:
            at = part * n_phases / up
            phase = int(at)
            share = at - phase
            for i in range(n_taps):
                low = table[phase, i]
                total += (low + share * (table[phase + 1, i] - low)) * run[start + i]
        target[j] = total
