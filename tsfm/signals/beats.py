"""R peaks of an electrocardiogram, from one lead of any polarity, gain and rate.

The lead is thinned to some hundred points a second and passed through 6-20 Hz both ways, where QRS
complexes stand out (Pan and Tompkins 1985 chose the like); the root of its power over 0.12 s is the
envelope. For seconds in which much lies between its peaks, and less of it in 12-30 Hz, as where an
electrode moves, that band is read instead. The envelope's peaks are candidates, measured against
the usual peak of the neighbourhood, the median of some blocks before and behind. Those that reach a
share of it are beats; where the rhythm leaves one out, a weaker candidate in the gap is taken
(search back). A weak peak close to a stronger one is a P or T wave. Where the power, over 0.05 s,
hardly falls between its peaks nothing is a beat: that is ventricular fibrillation or noise. At last
each beat is put on the largest deflection of the lead around it, in the direction that most beats
around have, unless the other is much larger.

Nothing is fitted to gains or units, so there is no threshold in millivolts. A gap costs the beats
in it, and one of a few samples nothing. A record is read in blocks, so a week needs no more memory
than half an hour beyond itself. The detector looks ahead: it is for records, and for streams that
may lag by some seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import butter

from tsfm.errors import InputError
from tsfm.signals import beat_kernels
from tsfm.signals.shards import find_runs

Signal = npt.NDArray[np.float64]
Samples = npt.NDArray[np.int64]

_POINTS_HZ = 110.0  # least rate after thinning
_BAND_HZ = (6.0, 20.0)
_HIGHER_BAND_HZ = (12.0, 30.0)
_NOISY_S, _NOISY, _QUIETER = 8.0, 0.18, 0.8  # when the higher band is read
_POWER_S, _QUICK_S = 0.12, 0.05
_APART_S = 0.12  # least distance of candidates
_BLOCK_S, _BLOCKS = 1.5, 5  # the usual peak: median over so many blocks on either side
_FLOOR = 0.15  # of the record's usual peak: a stretch far below it has no beats
_BEAT, _WEAK_BEAT = 0.35, 0.15  # of the usual peak
_LEFT_OUT = 1.6  # of the usual interval: a longer one is searched
_CLOSE_S, _MUCH_WEAKER = 0.30, 0.8
_T_WAVE_S, _T_SLOPE, _NEAR_S = 0.36, 0.5, 0.06
_EVERY = 3  # points: an envelope is smooth, and every third tells how it is spread
_CHAOS_S, _CHAOS, _VALLEYS = 4.0, 0.18, 0.2  # the lowest fifth of `quick`, against its top
_REACH_S = 0.07  # from the envelope's peak to the R peak
_BASELINE_S, _SMOOTH_S = 0.17, 0.015
_AGAINST = 1.5  # how much larger a deflection against the usual direction must be
_PART_S, _MARGIN_S = 1200.0, 20.0
_BRIDGE_S = 0.03
_SHORTEST_S = 0.4  # of a stretch between gaps that is looked at


def find_r_peaks(ecg: npt.ArrayLike, *, fs_hz: float) -> Samples:
    """R peaks of one lead.

    Args:
        ecg: (n_samples,) values in any unit, NaN in gaps.
        fs_hz: Sampling rate, 50 Hz or more.

    Returns:
        (n_beats,) samples of the R peaks, in order.

    Raises:
        InputError: Not one lead, or a rate too low.
    """
    lead = np.asarray(ecg)
    if lead.ndim != 1:
        raise InputError(
            f"a signal of shape {lead.shape} is not one lead", code="bad_signal_shape",
            place="ecg", remedy="Give one lead at a time.",
        )  # fmt: skip
    return find_r_peaks_in_parts(lambda a, b: lead[a:b], len(lead), fs_hz=fs_hz)


def find_r_peaks_in_parts(
    read: Callable[[int, int], npt.ArrayLike], n_samples: int, *, fs_hz: float
) -> Samples:
    """R peaks of a lead that is read piece by piece, such as a week in a signal store.

    Args:
        read: Gives samples `start` to `stop` of the lead.
        n_samples: Length of the lead.
        fs_hz: Sampling rate, 50 Hz or more.

    Returns:
        (n_beats,) samples of the R peaks, in order.

    Raises:
        InputError: A rate too low.
    """
    if not 50 <= fs_hz < np.inf:
        raise InputError(
            f"{fs_hz:g} samples a second are too few for R peaks", code="bad_sampling_rate",
            place="fs_hz", remedy="Give the rate of the record, 50 Hz or more.",
        )  # fmt: skip
    part, margin = round(_PART_S * fs_hz), round(_MARGIN_S * fs_hz)
    found = []
    for start in range(0, n_samples, part):
        first, last = max(0, start - margin), min(n_samples, start + part + margin)
        peaks = first + _in_part(np.asarray(read(first, last), np.float64), fs_hz)
        peaks = peaks[(peaks >= start) & (peaks < start + part)]
        if found and len(found[-1]) and len(peaks):  # a beat on the seam, put on either side of it
            peaks = peaks[peaks - found[-1][-1] > _APART_S * fs_hz]
        found.append(peaks)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def measured_throughout(
    r_peaks: Samples, there: npt.NDArray[np.bool_], *, fs_hz: float
) -> npt.NDArray[np.bool_]:
    """Intervals between beats that hold no gap in which a beat could have been missed.

    Args:
        r_peaks: (n_beats,) samples, in order.
        there: (n_samples,) what was measured.
        fs_hz: Sampling rate.

    Returns:
        (n_beats - 1,) flags; gaps of 30 ms hide no beat and count as measured.
    """
    starts, lengths = find_runs(~there)
    long = lengths > round(_BRIDGE_S * fs_hz)
    begun = np.searchsorted(starts[long], r_peaks[1:])
    over = np.searchsorted((starts + lengths)[long], r_peaks[:-1], side="right")
    return begun == over


def _in_part(lead: Signal, fs_hz: float) -> Samples:
    step = max(1, int(fs_hz // _POINTS_HZ))
    points_hz = fs_hz / step
    there = np.isfinite(lead)
    whole = lead if there.all() else _bridged(lead, there, round(_BRIDGE_S * fs_hz))
    runs = _runs(np.isfinite(whole), round(_SHORTEST_S * fs_hz))
    read = [_read_bands(whole[start:stop], step, points_hz) for start, stop in runs]
    if not read:
        return np.zeros(0, np.int64)
    usual = _usual_peaks([bands.envelope for bands in read], points_hz)
    found = []
    for (start, _), bands, level in zip(runs, read, usual, strict=True):
        at = _beats_of_run(bands, level, points_hz)
        found.append(start + np.rint((at + 0.5) * step - 0.5).astype(np.int64))
    peaks = np.concatenate(found)
    peaks = beat_kernels.place(
        lead, peaks, reach=max(1, round(_REACH_S * fs_hz)),
        baseline=round(_BASELINE_S * fs_hz), smooth=max(1, round(_SMOOTH_S * fs_hz)),
        against=_AGAINST,
    )  # fmt: skip
    apart = round(_APART_S * fs_hz)
    return peaks[np.diff(peaks, prepend=-apart - 1) > apart]


class _Bands(NamedTuple):
    """What is read of a run: (n_points,) each."""

    envelope: Signal  # root of the power over `_POWER_S`
    quick: Signal  # the same over `_QUICK_S`
    speed: Signal  # of the filtered lead


def _read_bands(lead: Signal, step: int, hz: float) -> _Bands:
    """Where much lies between the peaks and less of it in the higher band, that one is read."""
    usual = _in_band(lead, _BAND_HZ, step, hz)
    between, top = _between_and_top(usual.envelope, _NOISY_S * hz, 0.5)
    noisy = between > _NOISY * top
    if not noisy.any():
        return usual
    higher = _in_band(lead, _HIGHER_BAND_HZ, step, hz)
    other_between, other_top = _between_and_top(higher.envelope, _NOISY_S * hz, 0.5)
    scale = top / np.maximum(other_top, np.finfo(np.float64).tiny)
    share = np.where(noisy & (scale * other_between < _QUIETER * between), 1.0, 0.0)
    middle = (np.arange(len(share)) + 0.5) * len(usual.envelope) / len(share)
    points = np.arange(len(usual.envelope))
    share, scale = np.interp(points, middle, share), np.interp(points, middle, scale)
    return _Bands(*(a + share * (scale * b - a) for a, b in zip(usual, higher, strict=True)))


def _in_band(lead: Signal, band_hz: tuple[float, float], step: int, hz: float) -> _Bands:
    low_hz, high_hz = band_hz
    edges_hz = (low_hz, min(high_hz, 0.45 * hz))
    sos = np.asarray(butter(2, edges_hz, "bandpass", fs=hz, output="sos"), np.float64)
    band = beat_kernels.band_pass_thinned(lead, sos, step)
    power = band * band
    envelope, quick = (
        np.sqrt(np.maximum(uniform_filter1d(power, _odd(s * hz)), 0.0))
        for s in (_POWER_S, _QUICK_S)
    )
    return _Bands(envelope, quick, np.abs(np.gradient(band)) if len(band) > 1 else band)


def _between_and_top(envelope: Signal, block: float, share: float) -> tuple[Signal, Signal]:
    """What a share of an envelope stays below, and the height of its peaks, block by block."""
    n = max(1, round(len(envelope) / block))
    size = len(envelope) // n
    some = envelope[: n * size].reshape(n, size)[:, ::_EVERY]
    low, high = (int(x * (some.shape[1] - 1)) for x in (share, 0.98))
    parts = np.partition(some, (low, high), axis=1)
    return parts[:, low], parts[:, high]


def _beats_of_run(bands: _Bands, level: Signal, hz: float) -> Samples:
    """Points of a run's envelope at which a beat is."""
    envelope, speed = bands.envelope, bands.speed
    reach = max(1, round(_APART_S * hz))
    top = maximum_filter1d(envelope, 2 * reach + 1)
    at = np.flatnonzero((envelope == top) & (envelope > 0))
    at = at[np.diff(at, prepend=-reach - 1) > reach]
    at = at[~_chaos(bands.quick, hz)[at]]
    height = envelope[at] / level[at]
    beats = beat_kernels.drop_weak_neighbours(
        at[height >= _BEAT], envelope, round(_CLOSE_S * hz), _MUCH_WEAKER
    )
    beats = beat_kernels.search_back(
        beats, at[height >= _WEAK_BEAT], envelope, round(_CLOSE_S * hz), _LEFT_OUT
    )
    near = max(1, round(_NEAR_S * hz))
    around = np.clip(beats[:, None] + np.arange(-near, near + 1), 0, len(speed) - 1)
    fastest = speed[around].max(axis=1)
    return beat_kernels.drop_t_waves(beats, fastest, round(_T_WAVE_S * hz), _T_SLOPE)


def _usual_peaks(envelopes: list[Signal], hz: float) -> list[Signal]:
    """The usual peak at every point, from blocks of all runs in order: gaps break no habit."""
    block = max(1, round(_BLOCK_S * hz))
    tops, owners = [], []
    for i, envelope in enumerate(envelopes):
        n = max(1, len(envelope) // block)
        size = len(envelope) // n
        tops.append(envelope[: n * size].reshape(n, size).max(1))
        owners += [i] * n
    flat = np.concatenate(tops)
    padded = np.pad(flat, _BLOCKS, mode="reflect" if len(flat) > _BLOCKS else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _BLOCKS + 1)
    usual = np.median(windows, axis=1)
    usual = np.maximum(usual, _FLOOR * np.median(usual))
    usual = np.maximum(usual, np.finfo(np.float64).tiny)
    levels, first = [], 0
    for envelope, own in zip(envelopes, tops, strict=True):
        middle = (np.arange(len(own)) + 0.5) * len(envelope) / len(own)
        levels.append(np.interp(np.arange(len(envelope)), middle, usual[first : first + len(own)]))
        first += len(own)
    return levels


def _chaos(envelope: Signal, hz: float) -> npt.NDArray[np.bool_]:
    """Where the envelope hardly falls between its peaks, for some seconds."""
    if len(envelope) < _CHAOS_S * hz / 2:
        return np.zeros(len(envelope), np.bool_)
    between, top = _between_and_top(envelope, _CHAOS_S * hz, _VALLEYS)
    flags = np.repeat(between > _CHAOS * top, len(envelope) // len(top))
    return np.pad(flags, (0, len(envelope) - len(flags)), mode="edge")


def _bridged(lead: Signal, there: npt.NDArray[np.bool_], longest: int) -> Signal:
    """The lead with lines across gaps of a few samples, which hide no beat."""
    kept = np.flatnonzero(there)
    before, after = kept[:-1], kept[1:]
    short = (after - before > 1) & (after - before <= longest + 1)
    if not short.any():
        return lead
    whole = lead.copy()
    for first, last in zip(before[short].tolist(), after[short].tolist(), strict=True):
        whole[first : last + 1] = np.linspace(lead[first], lead[last], last - first + 1)
    return whole


def _runs(there: npt.NDArray[np.bool_], shortest: int) -> list[tuple[int, int]]:
    """Stretches that are long enough to be looked at."""
    if there.all():  # nearly always, and a day has thirty million samples
        return [(0, len(there))] if len(there) >= shortest else []
    starts, lengths = find_runs(there)
    return [(int(a), int(a + n)) for a, n in zip(starts, lengths, strict=True) if n >= shortest]


def _odd(n: float) -> int:
    return int(n) | 1
