"""Pulses of a photoplethysmogram: upstroke, systolic peak and onset of each.

The steepest moment of the upstroke is the surest mark of a pulse: the dicrotic wave, which doubles
the count of methods that look for peaks, rises far more slowly. The signal passes 0.5-8 Hz both
ways; local maxima of its speed that reach a share of the usual one around (median over blocks
before and behind) are upstrokes, and of two that are too close the slower goes.

A sensor that moves makes steep rises of its own. Where the better of the pulses around are unlike
the usual one, upstrokes are sought anew below 2.5 Hz, where motion has less power, as the chain
that is strongest and most even (`pulse_chain`). An irregular rhythm does not count as motion: its
full beats are as like as ever.

Peak and onset are the extremes just behind and before an upstroke. Gains and units do not matter; a
gap costs the pulses in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d

from tsfm.errors import InputError
from tsfm.signals.filters import band_pass
from tsfm.signals.pulse_chain import best_chain
from tsfm.signals.row_correlation import row_correlation

Signal = npt.NDArray[np.float64]
Samples = npt.NDArray[np.int64]

_BAND_HZ = (0.5, 8.0)
_APART_S, _CLOSE_S = 0.12, 0.28
_BLOCK_S, _BLOCKS = 2.0, 4
_LEAST = 0.4  # of the usual speed
_REACH_S = 0.35
_SLOW_HZ, _WEAK = 2.5, 0.15  # where motion is; what may still be a pulse there
_SHAPE_S, _AROUND_S = (-0.2, 0.4), 8.0
_ALIKE, _BETTER = 0.985, 0.75  # correlation that the better quarter of the pulses around has
_FEWEST = 5


@dataclass(frozen=True, eq=False)
class Pulses:
    """Pulses in order, one entry each.

    Attributes:
        upstrokes: (n,) samples of the steepest moments.
        peaks: (n,) samples of the systolic peaks.
        onsets: (n,) samples of the feet.
        speed: (n,) steepness, units of the signal a second.
        height: (n,) peak less onset.
        peak_level: (n,) the peak in the signal below 8 Hz.
        onset_level: (n,) the foot in it.
    """

    upstrokes: Samples
    peaks: Samples
    onsets: Samples
    speed: Signal
    height: Signal
    peak_level: Signal
    onset_level: Signal

    def __len__(self) -> int:
        """Pulses."""
        return len(self.upstrokes)


def find_pulses(ppg: npt.ArrayLike, *, fs_hz: float) -> Pulses:
    """Pulses of one channel.

    Args:
        ppg: (n_samples,) values in any unit, more light absorbed upwards; NaN in gaps.
        fs_hz: Sampling rate, 20 Hz or more.

    Raises:
        InputError: Not one channel, or a rate too low.
    """
    signal = np.asarray(ppg, np.float64)
    if signal.ndim != 1 or not fs_hz >= 20:
        raise InputError(
            f"a signal of shape {signal.shape} at {fs_hz:g} Hz", code="bad_signal_shape",
            place="ppg", remedy="Give one channel at 20 Hz or more.",
        )  # fmt: skip
    if len(signal) < 2 or not np.isfinite(signal).any():
        none, empty = np.zeros(0, np.int64), np.zeros(0)
        return Pulses(none, none, none, empty, empty, empty, empty)
    low, high = _BAND_HZ
    fast = band_pass(signal, fs_hz=fs_hz, low_hz=low, high_hz=min(high, 0.45 * fs_hz))
    level = band_pass(signal, fs_hz=fs_hz, low_hz=0.05, high_hz=min(high, 0.45 * fs_hz))
    speed = np.asarray(np.nan_to_num(np.gradient(fast)) * fs_hz, np.float64)
    there = np.isfinite(fast)
    at = _upstrokes(speed, there, fs_hz)
    moving = _unlike(np.nan_to_num(np.asarray(fast, np.float64)), at, fs_hz)
    if moving.any():
        at = _merge(at, _chained(signal, there, fs_hz), moving, fs_hz)
    reach = round(_REACH_S * fs_hz)
    level = np.where(np.isfinite(level), np.asarray(level, np.float64), np.nan)
    peaks = np.array([i + _argmax(level[i : i + reach + 1]) for i in at], np.int64)
    onsets = np.array([i - _argmax(-level[max(0, i - reach) : i + 1][::-1]) for i in at], np.int64)
    return Pulses(
        at, peaks, onsets, speed[at], level[peaks] - level[onsets], level[peaks], level[onsets]
    )


def _upstrokes(speed: Signal, there: npt.NDArray[np.bool_], fs_hz: float) -> Samples:
    half = max(1, round(_APART_S * fs_hz))
    top = maximum_filter1d(speed, 2 * half + 1)
    at = np.flatnonzero((speed == top) & (speed > 0))
    at = at[np.diff(at, prepend=-half - 1) > half]
    at = at[speed[at] > _LEAST * _usual(speed, there, at, fs_hz)]
    keep = np.ones(len(at), np.bool_)
    for i in range(len(at)):
        for j in (i - 1, i + 1):
            if 0 <= j < len(at) and abs(at[j] - at[i]) < _CLOSE_S * fs_hz:
                keep[i] &= speed[at[i]] >= speed[at[j]]
    return at[keep]


def _usual(speed: Signal, there: npt.NDArray[np.bool_], at: Samples, fs_hz: float) -> Signal:
    """Median of the largest speeds of the blocks around, at some samples."""
    known = np.flatnonzero(there)
    n = max(1, len(known) // max(1, round(_BLOCK_S * fs_hz)))
    tops = np.array([part.max() for part in np.array_split(speed[known], n)])
    padded = np.pad(tops, _BLOCKS, mode="reflect" if n > _BLOCKS else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _BLOCKS + 1)
    middles = np.array([part.mean() for part in np.array_split(known, n)])
    return np.interp(at, middles, np.median(windows, axis=1))


def _unlike(fast: Signal, at: Samples, fs_hz: float) -> npt.NDArray[np.bool_]:
    """(second,) whether even the better of the pulses around are unlike the usual one."""
    first, behind = (round(s * fs_hz) for s in _SHAPE_S)
    seconds = np.arange(int(np.ceil(len(fast) / fs_hz)))
    whole = at[(at + first >= 0) & (at + behind <= len(fast))]
    if len(whole) < _FEWEST:
        return np.zeros(len(seconds), np.bool_)
    shapes = fast[whole[:, None] + np.arange(first, behind)]
    like = row_correlation(shapes, np.median(_unit(shapes), axis=0))
    place = whole / fs_hz
    low = np.searchsorted(place, seconds - _AROUND_S)
    high = np.searchsorted(place, seconds + _AROUND_S)
    enough = high - low > 2
    found = [
        np.quantile(like[a:b], _BETTER) if told else 0.0
        for a, b, told in zip(low, high, enough, strict=True)
    ]
    return np.array(found) < _ALIKE


def _unit(shapes: Signal) -> Signal:
    level = shapes - shapes.mean(1, keepdims=True)
    return level / np.maximum(np.linalg.norm(level, axis=1, keepdims=True), 1e-12)


def _chained(signal: Signal, there: npt.NDArray[np.bool_], fs_hz: float) -> Samples:
    """Upstrokes below 2.5 Hz, the most even chain of them."""
    slow = band_pass(signal, fs_hz=fs_hz, low_hz=_BAND_HZ[0], high_hz=_SLOW_HZ)
    speed = np.asarray(np.nan_to_num(np.gradient(slow)) * fs_hz, np.float64)
    half = max(1, round(_APART_S * fs_hz))
    at = np.flatnonzero((speed == maximum_filter1d(speed, 2 * half + 1)) & (speed > 0))
    at = at[np.diff(at, prepend=-half - 1) > half]
    strength = speed[at] / np.maximum(_usual(speed, there, at, fs_hz), 1e-12)
    at, strength = at[strength > _WEAK], strength[strength > _WEAK]
    return at[best_chain(at, strength, fs_hz=fs_hz)]


def _merge(still: Samples, moved: Samples, moving: npt.NDArray[np.bool_], fs_hz: float) -> Samples:
    """Upstrokes of the still seconds, and the chained ones of the others."""
    kept = still[~moving[(still / fs_hz).astype(np.int64)]]
    taken = moved[moving[(moved / fs_hz).astype(np.int64)]]
    at = np.sort(np.concatenate([kept, taken]))
    return at[np.diff(at, prepend=-np.iinfo(np.int32).max) >= _CLOSE_S * fs_hz]


def _argmax(values: Signal) -> int:
    return 0 if np.isnan(values).all() else int(np.nanargmax(values))
