"""Simulated electrocardiograms and photoplethysmograms of a few leads.

A record starts from its beats: intervals around a mean that breathe (respiratory sinus arrhythmia),
wander, come early (ventricular ectopic beats with a compensatory pause), or are irregular without
P waves (atrial fibrillation). An ECG beat is a sum of Gaussian waves, P, Q, R, S and T, with one
amplitude a wave and lead; the T wave follows the interval's square root, as in Bazett's formula.
Leads III, aVR, aVL and aVF are computed from I and II (Einthoven, Goldberger), noise included, so
the twelve leads contradict each other nowhere. A PPG pulse is two Gaussians, systolic and
dicrotic, that arrive after the beat by the pulse transit time.

The amplitudes are plausible round numbers of our own. This is test material whose truth is known;
it is no model of a heart, and nothing about real recordings may be concluded from it. Records are
written by `tsfm.simulation.record_writer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.signals.store import STANDARD_LEADS, canonical_lead

Signal = npt.NDArray[np.float64]

_WAVES = ("P", "Q", "R", "S", "T")
_CENTRES_S = np.array([-0.16, -0.026, 0.0, 0.028, 0.30])  # T: at an interval of one second
_WIDTHS_S = np.array([0.022, 0.009, 0.011, 0.010, 0.045])
_AMPLITUDES_MV = {
    "I": (0.08, -0.04, 0.65, -0.10, 0.18),
    "II": (0.13, -0.06, 1.05, -0.15, 0.28),
    "V1": (0.05, 0.00, 0.22, -0.95, -0.06),
    "V2": (0.06, 0.00, 0.45, -1.20, 0.32),
    "V3": (0.06, -0.02, 0.80, -0.80, 0.38),
    "V4": (0.06, -0.05, 1.30, -0.45, 0.38),
    "V5": (0.06, -0.07, 1.25, -0.22, 0.32),
    "V6": (0.06, -0.07, 0.95, -0.10, 0.25),
}
_ECTOPIC_WIDTH = 2.6  # of the QRS, against a beat that was conducted
_ECTOPIC_EARLY = 0.65  # of the interval after which an ectopic beat comes
_REFRACTORY_S = 0.28
_BREATHS_HZ = 0.25
_TRANSIT_S = 0.20  # from the R wave to the foot of the pulse
_SYSTOLE_S, _SYSTOLE_WIDTH_S = 0.12, 0.060  # from the foot to the systolic peak
_DICROTIC_S, _DICROTIC_WIDTH_S, _DICROTIC = 0.34, 0.080, 0.35
LONGEST_S, MAX_FS_HZ = 7 * 86_400.0, 100_000.0


@dataclass(frozen=True, eq=False)
class Beats:
    """Beats of one record.

    Attributes:
        times_s: (n,) moments of the R waves from the record's start; some lie just outside it.
        intervals_s: (n,) time since the beat before.
        ectopic: (n,) beats that arise in a ventricle.
        atrial_fibrillation: Whether the atria fibrillate: irregular intervals, no P wave.
    """

    times_s: Signal
    intervals_s: Signal
    ectopic: npt.NDArray[np.bool_]
    atrial_fibrillation: bool


def simulate_beats(
    rng: np.random.Generator,
    *,
    duration_s: float,
    heart_rate_bpm: float,
    ectopic_fraction: float = 0.0,
    atrial_fibrillation: bool = False,
) -> Beats:
    """Draw the beats of one record; their mean interval is 60 / `heart_rate_bpm` seconds.

    Args:
        rng: Source of chance.
        duration_s: Length of the record, a week at most.
        heart_rate_bpm: Mean rate, 20 to 200 a minute.
        ectopic_fraction: Chance f, 0 to 0.5, that a beat behind one that is conducted is a
            ventricular ectopic one. Never two come in a row, so that their share of the beats is
            f / (1 + f).
        atrial_fibrillation: Whether the intervals are irregular and the P waves absent.

    Raises:
        InputError: An argument out of its range.
    """
    if not (20 <= heart_rate_bpm <= 200 and 0 <= ectopic_fraction <= 0.5):
        raise InputError(
            "no such heart",
            code="bad_rhythm",
            place="simulate_beats",
            remedy="Use 20 to 200 beats a minute and a fraction of at most a half.",
        )
    require_length(duration_s, place="simulate_beats")
    mean_s = 60.0 / heart_rate_bpm
    n_beats = math.ceil(duration_s / mean_s) + 4
    floor = min(_REFRACTORY_S, 0.7 * mean_s)
    if atrial_fibrillation:
        spread = rng.gamma(4.0, 1.0, n_beats)
        relative = floor / mean_s + (1 - floor / mean_s) * spread / spread.mean()
    else:
        breath = np.sin(2 * np.pi * (_BREATHS_HZ * mean_s * np.arange(n_beats) + rng.random()))
        wander = _first_order(rng, n_beats, memory=0.8) * 0.015
        relative = 1.0 + 0.03 * breath + wander
    intervals = mean_s * relative / relative.mean()
    ectopic = rng.random(n_beats) < ectopic_fraction
    ectopic[[0, -1]] = False
    for i in np.flatnonzero(ectopic):
        if ectopic[i - 1]:
            ectopic[i] = False
            continue
        early = (1 - _ECTOPIC_EARLY) * intervals[i]
        intervals[i] -= early
        intervals[i + 1] += early  # the pause compensates: the rhythm behind goes on undisturbed
    start = -rng.random() * intervals[0] - intervals[0]
    times = start + np.cumsum(intervals)
    # A fibrillating heart may begin with an interval longer than all that was drawn to spare. What
    # is missing is drawn last, so that a train that is long enough depends on nothing of this.
    while times[-1] < duration_s:
        spread = rng.gamma(4.0, 1.0) / 4.0
        more = floor + (mean_s - floor) * spread if atrial_fibrillation else mean_s
        intervals, times = np.append(intervals, more), np.append(times, times[-1] + more)
        ectopic = np.append(ectopic, False)
    return Beats(times, intervals, ectopic, atrial_fibrillation)


def simulate_ecg(
    rng: np.random.Generator,
    *,
    fs_hz: float,
    duration_s: float,
    heart_rate_bpm: float | None = None,
    ectopic_fraction: float = 0.0,
    atrial_fibrillation: bool = False,
    leads: Sequence[str] | str = ("II", "V5"),
    beats: Beats | None = None,
    noise_mv: float = 0.01,
) -> dict[str, Signal]:
    """Simulate leads of a standard electrocardiogram.

    Args:
        rng: Source of chance.
        fs_hz: Sampling rate.
        duration_s: Length of the record, a week at most.
        heart_rate_bpm: Mean rate; needed unless `beats` are given, which have their own rhythm.
        ectopic_fraction: See `simulate_beats`.
        atrial_fibrillation: See `simulate_beats`.
        leads: Some of the twelve standard leads, or a single one, in any case.
        beats: Beats to draw, so that other signals can follow the same ones.
        noise_mv: Standard deviation of the noise; the baseline wanders by three times as much.

    Returns:
        Lead in its standard spelling to (n_samples,) mV.

    Raises:
        InputError: An unknown lead, neither or both of a rhythm and beats, or a rate or length that
            can't be.
    """
    require_length(duration_s, fs_hz, place="simulate_ecg")
    names = [canonical_lead(name) for name in ((leads,) if isinstance(leads, str) else leads)]
    unknown = sorted(set(names) - set(STANDARD_LEADS))
    if unknown:
        raise InputError(
            f"no such lead: {', '.join(unknown)}",
            code="unknown_lead",
            place="simulate_ecg",
            remedy=f"Use some of {', '.join(STANDARD_LEADS)}.",
        )
    if beats is not None and (
        heart_rate_bpm is not None or ectopic_fraction or atrial_fibrillation
    ):
        _refuse_both("simulate_ecg")
    if beats is None:
        beats = simulate_beats(
            rng,
            duration_s=duration_s,
            heart_rate_bpm=_require_rate(heart_rate_bpm, "simulate_ecg"),
            ectopic_fraction=ectopic_fraction,
            atrial_fibrillation=atrial_fibrillation,
        )
    measured = {name: _AMPLITUDES_MV[name] for name in _AMPLITUDES_MV}
    amplitudes = np.array(list(measured.values()))
    n_samples = round(duration_s * fs_hz)
    time = np.arange(n_samples) / fs_hz
    values = np.zeros((len(measured), n_samples))
    for beat_s, interval_s, ectopic in zip(
        beats.times_s, beats.intervals_s, beats.ectopic, strict=True
    ):
        first, last = np.searchsorted(time, [beat_s - 0.4, beat_s + 0.8])
        waves = _draw_waves(time[first:last] - beat_s, interval_s, bool(ectopic))
        height = amplitudes.copy()
        if ectopic:
            height *= (0.0, 0.0, 1.4, 1.4, -1.2)
        elif beats.atrial_fibrillation:
            height[:, 0] = 0.0
        values[:, first:last] += height @ waves
    if beats.atrial_fibrillation:
        values += 0.5 * amplitudes[:, :1] * _fibrillation(rng, time)
    values += _noise(rng, time, len(measured)) * noise_mv
    by_lead = dict(zip(measured, values, strict=True))
    one, two = by_lead["I"], by_lead["II"]
    by_lead |= {
        "III": two - one,
        "aVR": -(one + two) / 2,
        "aVL": one - two / 2,
        "aVF": two - one / 2,
    }
    return {name: by_lead[name] for name in names}


def simulate_ppg(
    rng: np.random.Generator,
    *,
    fs_hz: float,
    duration_s: float,
    beat_times_s: Signal | None = None,
    heart_rate_bpm: float | None = None,
    noise: float = 0.005,
) -> Signal:
    """Simulate a photoplethysmogram in normalised units, a pulse about one unit high.

    Args:
        rng: Source of chance.
        fs_hz: Sampling rate.
        duration_s: Length of the record, a week at most.
        beat_times_s: Moments of the R waves, such as `Beats.times_s`; each pulse follows its beat.
        heart_rate_bpm: Mean rate of sinus rhythm; needed unless `beat_times_s` is given.
        noise: Standard deviation of the noise.

    Returns:
        (n_samples,) values.

    Raises:
        InputError: Neither or both of beats and a rate, or a sampling rate or length that can't be.
    """
    require_length(duration_s, fs_hz, place="simulate_ppg")
    if beat_times_s is not None and heart_rate_bpm is not None:
        _refuse_both("simulate_ppg")
    if beat_times_s is None:
        rate = _require_rate(heart_rate_bpm, "simulate_ppg")
        beat_times_s = simulate_beats(rng, duration_s=duration_s, heart_rate_bpm=rate).times_s
    time = np.arange(round(duration_s * fs_hz)) / fs_hz
    values = np.zeros(len(time))
    intervals = np.diff(beat_times_s, prepend=np.nan)
    typical = float(np.nanmedian(intervals)) if len(intervals) > 1 else 1.0
    for beat_s, interval_s in zip(beat_times_s, intervals, strict=True):
        # A heart that had less time to fill throws out less.
        filling = 1.0 if math.isnan(interval_s) else min(interval_s / typical, 1.3)
        foot = beat_s + _TRANSIT_S
        first, last = np.searchsorted(time, [foot - 0.2, foot + 0.8])
        local = time[first:last] - foot
        breath = 1.0 + 0.05 * np.sin(2 * np.pi * _BREATHS_HZ * beat_s)
        values[first:last] += (
            filling
            * breath
            * (
                _gaussian(local, _SYSTOLE_S, _SYSTOLE_WIDTH_S)
                + _DICROTIC * _gaussian(local, _DICROTIC_S, _DICROTIC_WIDTH_S)
            )
        )
    return values + _noise(rng, time, 1)[0] * noise


def require_length(duration_s: float, fs_hz: float = 1.0, *, place: str) -> None:
    """Refuse a length or a sampling rate that no recording has.

    Raises:
        InputError: `bad_recording`.
    """
    if not (0 < duration_s <= LONGEST_S and 0 < fs_hz <= MAX_FS_HZ):
        raise InputError(
            "no such recording",
            code="bad_recording",
            place=place,
            remedy=f"Give a length of up to {LONGEST_S:g} s and a rate of up to {MAX_FS_HZ:g} Hz.",
        )


def _refuse_both(place: str) -> NoReturn:
    raise InputError(
        "a rhythm beside beats, which have their own",
        code="rhythm_and_beats",
        place=place,
        remedy="Give one of them.",
    )


def _require_rate(heart_rate_bpm: float | None, place: str) -> float:
    if heart_rate_bpm is None:
        raise InputError(
            "neither a heart rate nor beats",
            code="no_heart_rate",
            place=place,
            remedy="Give one of them.",
        )
    return heart_rate_bpm


def _draw_waves(time_s: Signal, interval_s: float, ectopic: bool) -> Signal:
    """(n_waves, n_samples) unit waves around a beat at 0."""
    centres, widths = _CENTRES_S.copy(), _WIDTHS_S.copy()
    centres[4] *= math.sqrt(min(max(interval_s, 0.3), 1.5))
    if ectopic:
        centres[1:4] *= _ECTOPIC_WIDTH
        widths[1:4] *= _ECTOPIC_WIDTH
    return np.exp(-0.5 * ((time_s - centres[:, None]) / widths[:, None]) ** 2)


def _gaussian(time_s: Signal, centre_s: float, width_s: float) -> Signal:
    return np.exp(-0.5 * ((time_s - centre_s) / width_s) ** 2)


def _fibrillation(rng: np.random.Generator, time_s: Signal) -> Signal:
    """Fibrillatory waves, 5 to 8 a second, of a wandering rate."""
    rate_hz = 6.5 + 1.5 * np.sin(2 * np.pi * (0.3 * time_s + rng.random()))
    step_s = time_s[1] - time_s[0] if len(time_s) > 1 else 0.0
    return np.sin(2 * np.pi * (np.cumsum(rate_hz) * step_s + rng.random()))


def _noise(rng: np.random.Generator, time_s: Signal, n_leads: int) -> Signal:
    """(n_leads, n_samples) white noise of unit deviation on a slow wander of three."""
    phase = rng.random((n_leads, 1))
    wander = 3 * math.sqrt(2) * np.sin(2 * np.pi * (0.15 * time_s + phase))
    return wander + rng.standard_normal((n_leads, len(time_s)))


def _first_order(rng: np.random.Generator, n: int, *, memory: float) -> Signal:
    """(n,) a first-order autoregressive series of unit deviation."""
    shocks = rng.standard_normal(n) * math.sqrt(1 - memory**2)
    series = np.empty(n)
    last = rng.standard_normal()
    for i in range(n):
        last = memory * last + shocks[i]
        series[i] = last
    return series
