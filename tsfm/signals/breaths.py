"""Breathing rate from a photoplethysmogram alone, with how sure it is.

Breathing moves a pulse wave in several ways: its peaks and feet rise and fall with the pressure in
the chest, its height with the stroke volume, its speed and its intervals with the nerves (Charlton
et al. 2018 review them). Each of these, and the slow part of the signal itself, gives a spectrum
over breaths a minute. None is reliable: in half of the patients the largest line of any of them is
not the breathing. So they are added up as evidence, weighted by how much each was worth on
recordings with marked breaths, on top of what is usual among patients,

    log P(f) = sum_m w_m log(eps + S_m(f)) - (log f - log c)^2 / 2 s^2 + constant,

and the answer is the median of that. Where the spectra say little it is the median of the last
term, which lies above the likeliest rate c: about 20 with the fitted model. Where there is no
signal at all there is no answer. Weights, centre and spread come from `fit_breath_model`; the ones
here are printed by `benchmarks/ppg_hr.py --train`, fitted to the BIDMC recordings of intensive
care.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from tsfm.errors import InputError
from tsfm.signals.filters import low_pass
from tsfm.signals.pulses import Pulses, find_pulses

Signal = npt.NDArray[np.float64]

RATES_BPM = np.arange(6.0, 40.01, 0.25)
MODULATIONS = ("peak", "foot", "height", "speed", "interval", "baseline")
_EPS = 0.05
_EVEN_HZ = 4.0
_FEWEST_PULSES = 8
_BLUR_BPM, _PENALTY = 0.8, 0.01
_MOVES = 1e-9  # of the largest value: a smaller span is rounding


@dataclass(frozen=True)
class BreathModel:
    """How much each modulation is worth, and which rates are usual.

    Attributes:
        weights: One of each of `MODULATIONS`.
        centre_bpm: Likeliest rate where nothing is heard.
        spread: Deviation of the logarithm of rates.
    """

    weights: tuple[float, ...] = (0.66, 0.568, -0.095, -0.04, 0.248, 0.387)
    centre_bpm: float = 17.89
    spread: float = 0.326


@dataclass(frozen=True, eq=False)
class BreathingRate:
    """The rate of one window; all of it NaN where nothing was measured or nothing moves.

    Attributes:
        bpm: Median of the distribution.
        low_bpm: Its tenth percentile.
        high_bpm: Its ninetieth.
        probability: (rate,) over `RATES_BPM`.
    """

    bpm: float
    low_bpm: float
    high_bpm: float
    probability: Signal


def breathing_rate(
    ppg: npt.ArrayLike, *, fs_hz: float, model: BreathModel | None = None
) -> BreathingRate:
    """Breaths a minute in one window of a photoplethysmogram.

    Args:
        ppg: (n_samples,) a window of ten seconds or more, 32 is usual; NaN in gaps.
        fs_hz: Sampling rate.
        model: What evidence is worth; the fitted one by default.

    Returns:
        The rate; NaN where nothing was measured or nothing moves.

    Raises:
        InputError: Not one channel, a window too short, or a rate too low.
    """
    signal = np.asarray(ppg, np.float64)
    pulses = find_pulses(signal, fs_hz=fs_hz)
    spectra = breath_spectra(signal, pulses, fs_hz=fs_hz, start_s=0.0, stop_s=len(signal) / fs_hz)
    there = signal[np.isfinite(signal)]
    if not len(there) or np.ptp(there) <= _MOVES * np.abs(there).max():
        nan = float("nan")
        return BreathingRate(nan, nan, nan, np.full(len(RATES_BPM), nan))
    return rate_from_spectra(spectra, model or BreathModel())


def rate_from_spectra(spectra: Signal, model: BreathModel) -> BreathingRate:
    """The rate that spectra of one window speak for; see `breath_spectra`."""
    p = _posterior(spectra[None], _flat(model))[0]
    below = np.cumsum(p)
    low, middle, high = (float(RATES_BPM[int(np.argmax(below >= q))]) for q in (0.1, 0.5, 0.9))
    return BreathingRate(middle, low, high, p)


def breath_spectra(
    ppg: npt.ArrayLike, pulses: Pulses, *, fs_hz: float, start_s: float, stop_s: float
) -> Signal:
    """Spectra of all modulations in a window of a recording.

    Args:
        ppg: (n_samples,) the recording.
        pulses: All of its pulses.
        fs_hz: Sampling rate.
        start_s: Start of the window.
        stop_s: Its end.

    Returns:
        (modulation, rate) shares of power over `RATES_BPM`, each row summing to one.

    Raises:
        InputError: A window of less than ten seconds.
    """
    if stop_s - start_s < 10.0:
        raise InputError(
            "a window of less than ten seconds has no breathing rate", code="window_too_short",
            place="breath_spectra", remedy="Use windows of 30 seconds or so.",
        )  # fmt: skip
    at = pulses.upstrokes / fs_hz
    series = [
        (at, pulses.peak_level), (at, pulses.onset_level), (at, pulses.height),
        (at, pulses.speed), (at[1:], np.diff(at)),
    ]  # fmt: skip
    rows = [_pulse_spectrum(t, v, start_s, stop_s) for t, v in series]
    signal = np.asarray(ppg, np.float64)[round(start_s * fs_hz) : round(stop_s * fs_hz)]
    rows.append(_baseline_spectrum(signal, fs_hz))
    return np.stack(rows)


def fit_breath_model(spectra: npt.ArrayLike, rates_bpm: npt.ArrayLike) -> BreathModel:
    """Weights, centre and spread that make marked rates most likely.

    Args:
        spectra: (window, modulation, rate) as `breath_spectra` gives them.
        rates_bpm: (window,) marked breaths a minute.
    """
    given, rates = np.asarray(spectra, np.float64), np.asarray(rates_bpm, np.float64)
    target = np.exp(-0.5 * ((RATES_BPM - rates[:, None]) / _BLUR_BPM) ** 2)
    target /= target.sum(1, keepdims=True)

    def loss(flat: Signal) -> float:
        p = _posterior(given, flat)
        surprise = -(target * np.log(p + 1e-9)).sum(1).mean()
        return float(surprise + _PENALTY * (flat[:-2] ** 2).sum())

    start = np.append(np.full(given.shape[1], 0.3), [math.log(17.0), math.log(0.25)])
    flat = minimize(loss, start, method="L-BFGS-B").x
    weights = tuple(round(float(w), 3) for w in flat[:-2])
    return BreathModel(weights, round(math.exp(flat[-2]), 2), round(math.exp(float(flat[-1])), 3))


def _flat(model: BreathModel) -> Signal:
    return np.array([*model.weights, math.log(model.centre_bpm), math.log(model.spread)])


def _posterior(spectra: Signal, flat: Signal) -> Signal:
    evidence = np.log(spectra * len(RATES_BPM) + _EPS)
    log_p = np.einsum("nmf,m->nf", evidence, flat[:-2])
    log_p -= 0.5 * ((np.log(RATES_BPM) - flat[-2]) / math.exp(flat[-1])) ** 2
    log_p -= log_p.max(1, keepdims=True)
    p = np.exp(log_p)
    return p / p.sum(1, keepdims=True)


def _pulse_spectrum(times: Signal, values: Signal, start_s: float, stop_s: float) -> Signal:
    inside = (times >= start_s - 1) & (times < stop_s + 1) & np.isfinite(values)
    times, values = times[inside], values[inside]
    if len(times) < _FEWEST_PULSES:
        return np.full(len(RATES_BPM), 1 / len(RATES_BPM))
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle)) + 1e-12
    values = np.clip((values - middle) / spread, -3, 3)
    even = np.arange(start_s, stop_s, 1 / _EVEN_HZ)
    return _spectrum(even, np.interp(even, times, values))


def _baseline_spectrum(signal: Signal, fs_hz: float) -> Signal:
    there = np.isfinite(signal)
    if there.mean() < 0.5:
        return np.full(len(RATES_BPM), 1 / len(RATES_BPM))
    filled = np.interp(np.arange(len(signal)), np.flatnonzero(there), signal[there])
    slow = np.asarray(low_pass(filled, fs_hz=fs_hz, cut_hz=1.5), np.float64)
    step = max(1, int(fs_hz / 8))
    return _spectrum(np.arange(0, len(slow), step) / fs_hz, slow[::step])


def _spectrum(times: Signal, values: Signal) -> Signal:
    since = times - times[0]
    flat = values - np.polyval(np.polyfit(since, values, 2), since)
    flat = flat * np.hanning(len(flat))
    waves = np.exp(-2j * np.pi * np.outer(RATES_BPM / 60.0, since))
    power = np.abs(waves @ flat) ** 2
    total = power.sum()
    if not total > 0:
        return np.full(len(RATES_BPM), 1 / len(RATES_BPM))
    return power / total
