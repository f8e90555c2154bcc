"""Noise for stress tests of ECG and PPG methods: wander, muscle and electrode motion, at an SNR.

The recordings that such tests usually add (NSTDB) are not at hand, so the noise is made here: a
random walk below 0.7 Hz; bursts between 20 and 150 Hz; steps and swings of an electrode that moves,
1 to 10 Hz, where a QRS complex also lies. The ratio is of powers, the signal's taken without its
slow wander.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

from tsfm.errors import InputError

KINDS = ("wander", "muscle", "electrode")
LEAST_HZ = {"wander": 2.0, "muscle": 45.0, "electrode": 21.0}
"""Least sampling rate that has the band of a kind."""

LEAST_SAMPLES = 16  # below, the filters have no room to settle
SNR_DB = (24, 18, 12, 6, 0, -6)


def make_noise(kind: str, n: int, fs_hz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n,) noise of unit power.

    Raises:
        InputError: `unknown_noise`, or `bad_recording`: a rate below the kind's band, or too few
            samples.
    """
    _require(kind, n, fs_hz)
    white = rng.standard_normal(n)
    top = 0.45 * fs_hz
    if kind == "wander":
        noise = _band(np.cumsum(white), 0.05, 0.7, fs_hz)
    elif kind == "muscle":
        loud = _band(rng.standard_normal(n), 0.02, 0.5, fs_hz)
        noise = _band(white, 20.0, min(150.0, top), fs_hz) * np.exp(loud / max(loud.std(), 1e-9))
    else:
        swings = _band(white, 1.0, 10.0, fs_hz)
        loud = _band(rng.standard_normal(n), 0.02, 0.3, fs_hz)
        swings *= np.exp(loud / max(loud.std(), 1e-9))
        steps = np.zeros(n)
        at = rng.integers(0, n, max(1, round(n / fs_hz / 6)))
        steps[at] = rng.standard_normal(len(at)) * 3 * max(swings.std(), 1e-9)
        noise = swings + _band(np.cumsum(steps), 0.5, 10.0, fs_hz)
    return noise / max(noise.std(), 1e-12)


def add_noise(
    signal: NDArray, kind: str, snr_db: float, fs_hz: float, seed: int
) -> NDArray[np.float64]:
    """(..., n) signal with noise of its own on every row.

    A gap stays one, and has no say in the signal's power.

    Raises:
        InputError: See `make_noise`.
    """
    signal = np.asarray(signal, np.float64)
    _require(kind, signal.shape[-1] if signal.ndim else 0, fs_hz)
    rows = signal.reshape(-1, signal.shape[-1])
    rng = np.random.default_rng(seed)
    noisy = []
    for row in rows:
        power = _power(row, fs_hz)
        noise = make_noise(kind, len(row), fs_hz, rng)
        noisy.append(row + noise * power * 10 ** (-snr_db / 20))
    return np.stack(noisy).reshape(signal.shape)


def _power(row: NDArray, fs_hz: float) -> float:
    """Deviation of what was measured, without its slow wander; gaps are bridged for the filter."""
    there = np.isfinite(row)
    if not there.any():
        return 0.0
    bridged = np.interp(np.arange(len(row)), np.flatnonzero(there), row[there])
    return float(_band(bridged, 0.7, min(40.0, 0.45 * fs_hz), fs_hz)[there].std())


def _require(kind: str, n: int, fs_hz: float) -> None:
    if kind not in KINDS:
        raise InputError(
            f"no such noise: {kind}", code="unknown_noise", place="kind",
            remedy=f"Use one of {', '.join(KINDS)}.",
        )  # fmt: skip
    if not (LEAST_HZ[kind] <= fs_hz < math.inf and n >= LEAST_SAMPLES):
        raise InputError(
            f"no room for {kind} noise", code="bad_recording", place="fs_hz",
            remedy=f"Give {LEAST_HZ[kind]:g} Hz or more and at least {LEAST_SAMPLES} samples.",
        )  # fmt: skip


def _band(x: NDArray, low_hz: float, high_hz: float, fs_hz: float) -> NDArray[np.float64]:
    return np.asarray(sosfiltfilt(_design(low_hz, high_hz, fs_hz), x - np.mean(x)))


@cache  # designing a filter takes longer than running it over ten seconds
def _design(low_hz: float, high_hz: float, fs_hz: float) -> NDArray[np.float64]:
    return np.asarray(butter(2, [low_hz, high_hz], "bandpass", fs=fs_hz, output="sos"))
