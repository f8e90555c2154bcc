"""How usable each stretch of an electrocardiogram or photoplethysmogram is.

A record is cut into windows, and for each lead and window are told: the shares that are missing,
that stand still and that are clipped; the power of baseline wander, of muscle and of the mains
against that of the signal's own band; and how like the beats are to their median beat, which falls
with whatever lies in the signal's own band (Orphanidou et al. 2015 judge by the like). `index` is
the product of what each leaves, from 1 (clean) to 0 (of no use). It is a feature to weigh windows
by, as much as a threshold to drop them.

Everything is a ratio, so gain, unit and offset don't matter; a lead in the wrong unit or under the
wrong name is for `tsfm.signals.limb_leads`. Beats that truly differ, as ectopic ones do, lower the
agreement, and a window of ventricular fibrillation or standstill scores 0: the index says how well
beats can be read, not how well the patient is. The band of muscle noise needs 90 samples a second
and the mains more than twice its frequency; what can't be measured is NaN and costs nothing. A
record is read some windows at a time, and looks ahead: this is no streaming filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.signals.beats import find_r_peaks_in_parts
from tsfm.signals.pulses import find_pulses
from tsfm.signals.row_correlation import row_correlation
from tsfm.signals.shards import find_runs

Signal = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Samples = npt.NDArray[np.int64]
Kind = Literal["ecg", "ppg"]

_BLOCK_S, _MARGIN_S = 1200.0, 20.0
_LOWEST_HZ = 50.0
_MAINS_HZ, _MAINS_WIDE_HZ = (50.0, 60.0), 1.0
_RAIL_S, _SHORT_RAIL_S, _OFTEN = 0.10, 0.008, 3  # one long stay at the rail, or several short
_LEAST_BEATS = 3
_READABLE_S = 0.8  # with less of a window measured, it holds no beat to be read
_BEATS_DUE_S = 6.0  # of signal, in which three beats must be, lest nothing can be read
_HALF = {"baseline": 1.0, "muscle": 0.1, "mains": 0.1}  # ratio that halves the index
_CLIPPED_COST = 5.0  # a fifth clipped is of no use: the peaks are what is cut off


class _Rules(NamedTuple):
    """What differs between an ECG and a PPG."""

    band_hz: tuple[float, float]  # of the signal itself; below it is baseline
    muscle_hz: float  # from here on
    flat_s: float  # a standstill longer than any between beats
    beat_s: tuple[float, float]  # around an R peak, or the steepest moment of a pulse


_RULES = {
    "ecg": _Rules((0.7, 35.0), 35.0, 0.3, (-0.20, 0.35)),
    "ppg": _Rules((0.5, 10.0), 10.0, 0.5, (-0.20, 0.45)),
}


@dataclass(frozen=True, eq=False)
class SignalQuality:
    """Quality by window; every array but `start` is (n_windows,) or (n_leads, n_windows).

    Attributes:
        start: (n_windows + 1,) samples at which windows begin, and the end of the last. All are of
            one length but the last, which has half to one and a half of it.
        missing: Share of samples that are NaN or infinite.
        flat: Share of samples in a standstill of 0.3 s (ECG) or 0.5 s (PPG) or longer.
        clipped: Share of samples that stay at the largest or least value of the whole lead.
        baseline: Power below 0.7 Hz (PPG: 0.5), over that of the signal's band.
        muscle: Power from 35 to 150 Hz (PPG: from 10), the mains left out, over the same.
        mains: Power at 50 or 60 Hz that stands out of its surroundings, over the same.
        agreement: Mean correlation of beats with their median beat; NaN with fewer than three.
        index: 0 to 1, falls with each of them; 0 where less than 0.8 s was measured.
    """

    start: Samples
    missing: Signal
    flat: Signal
    clipped: Signal
    baseline: Signal
    muscle: Signal
    mains: Signal
    agreement: Signal
    index: Signal


def signal_quality(
    signal: npt.ArrayLike, *, fs_hz: float, kind: Kind, window_s: float = 10.0
) -> SignalQuality:
    """Judge every window of a signal.

    Args:
        signal: (n_samples,) or (n_leads, n_samples) values in any unit, NaN in gaps; an array on
            disk is read piece by piece.
        fs_hz: Sampling rate, 50 Hz or more.
        kind: `ecg`, or `ppg` with more light absorbed upwards.
        window_s: Length of a window, 2 s or more. With less than 6 s of signal, windows of fewer
            than three beats are judged without them; with more, their index is 0.

    Returns:
        Arrays by window, and by lead where the signal has leads.

    Raises:
        InputError: `bad_signal_shape`, `bad_sampling_rate`, `bad_window`, `unknown_kind`.
    """
    values = np.asanyarray(signal)
    _check(values, fs_hz, kind, window_s)
    leads = values[None] if values.ndim == 1 else values
    start = _window_starts(values.shape[-1], window_s * fs_hz)
    rows = [_judge_lead(lead, start, fs_hz, kind) for lead in leads]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if values.ndim == 1:
        found = {name: array[0] for name, array in found.items()}
    return SignalQuality(start=start, **found)


def _check(values: npt.NDArray[Any], fs_hz: float, kind: str, window_s: float) -> None:
    turned = values.ndim == 2 and values.shape[0] > values.shape[1]
    if values.ndim not in (1, 2) or not values.size or values.dtype.kind not in "fiu" or turned:
        raise InputError(
            f"a signal of shape {values.shape} and type {values.dtype} can't be judged",
            code="bad_signal_shape",
            place="signal",
            remedy="Give (n_samples,) or (n_leads, n_samples) numbers, time along the last.",
        )
    if not _LOWEST_HZ <= fs_hz < np.inf:
        raise InputError(
            f"{fs_hz:g} samples a second are too few to judge a signal by",
            code="bad_sampling_rate",
            place="fs_hz",
            remedy="Give the rate of the record, 50 Hz or more.",
        )
    if kind not in _RULES:
        raise InputError(
            "no such kind of signal",
            code="unknown_kind",
            place="kind",
            remedy=f"Use {' or '.join(_RULES)}.",
        )
    if not 2 <= window_s < np.inf:
        raise InputError(
            f"a window of {window_s:g} s holds no rhythm",
            code="bad_window",
            place="window_s",
            remedy="Use 2 s or more; 10 s is usual.",
        )


def _window_starts(n: int, size: float) -> Samples:
    """Starts of windows that are as even as whole samples allow, and the end of the last."""
    n_windows = max(1, round(n / size))
    return np.append(np.rint(np.arange(n_windows) * size).astype(np.int64), n)


def _judge_lead(
    lead: npt.NDArray[Any], start: Samples, fs_hz: float, kind: Kind
) -> dict[str, Signal]:
    rules = _RULES[kind]
    rails = _find_rails(lead, fs_hz)
    beats = _find_beats(lead, fs_hz, kind)
    margin = round(_MARGIN_S * fs_hz)
    rows = []
    for first, last in _blocks(start, _BLOCK_S * fs_hz):
        before = max(0, start[first] - margin)
        block = np.asarray(lead[before : start[last] + margin], np.float64)
        still = _in_runs(np.diff(block) == 0, round(rules.flat_s * fs_hz) - 1, joints=True)
        stuck = _stuck(block, rails)
        for a, b in zip(start[first:last] - before, start[first + 1 : last + 1] - before,
                        strict=True):  # fmt: skip
            own = beats[np.searchsorted(beats, a + before) : np.searchsorted(beats, b + before)]
            window = block[a:b]
            there = np.isfinite(window)
            rows.append(
                (
                    1 - there.mean(), still[a:b].mean(), stuck[a:b].mean(),
                    *_power_ratios(window, there, fs_hz, rules),
                    _agreement(block, own - before, fs_hz, rules), there.sum() / fs_hz,
                )
            )  # fmt: skip
    names = ("missing", "flat", "clipped", "baseline", "muscle", "mains", "agreement", "known_s")
    columns = np.array(rows, np.float64).T
    found: dict[str, Signal] = {name: columns[i] for i, name in enumerate(names)}
    known_s = found.pop("known_s")
    return found | {"index": _index(found, known_s)}


def _blocks(start: Samples, size: float) -> Iterator[tuple[int, int]]:
    """Windows from `first` to before `last` that are read together."""
    first = 0
    while first < len(start) - 1:
        last = int(np.searchsorted(start, start[first] + size, side="right")) - 1
        last = min(max(last, first + 1), len(start) - 1)
        yield first, last
        first = last


def _parts(lead: npt.NDArray[Any], fs_hz: float) -> Iterator[Signal]:
    size = round(_BLOCK_S * fs_hz)
    for a in range(0, len(lead), size):
        yield np.asarray(lead[a : a + size], np.float64)


def _find_rails(lead: npt.NDArray[Any], fs_hz: float) -> tuple[tuple[float, int], ...]:
    """Largest and least value of a lead, and the shortest stay there that counts as clipped."""
    low, high = np.inf, -np.inf
    for part in _parts(lead, fs_hz):
        there = part[np.isfinite(part)]
        low, high = min(low, there.min(initial=np.inf)), max(high, there.max(initial=-np.inf))
    short, long = max(2, round(_SHORT_RAIL_S * fs_hz)), round(_RAIL_S * fs_hz)
    rails = []
    for rail in (low, high):
        stays = 0
        for part in _parts(lead, fs_hz):
            stays += int((find_runs(part == rail)[1] >= short).sum())
        rails.append((rail, short if stays >= _OFTEN else long))
    return tuple(rails) if high > low else ()


def _stuck(block: Signal, rails: tuple[tuple[float, int], ...]) -> Mask:
    stuck = np.zeros(len(block), np.bool_)
    for rail, shortest in rails:
        stuck |= _in_runs(block == rail, shortest)
    return stuck


def _in_runs(mask: Mask, shortest: int, joints: bool = False) -> Mask:
    """Where runs of True are that are long enough; of joints, the samples they join."""
    starts, lengths = find_runs(mask)
    keep = lengths >= max(1, shortest)
    edge = np.zeros(len(mask) + 1 + joints, np.int64)
    np.add.at(edge, starts[keep], 1)
    np.add.at(edge, (starts + lengths)[keep] + joints, -1)
    return np.cumsum(edge)[: len(mask) + joints] > 0


def _find_beats(lead: npt.NDArray[Any], fs_hz: float, kind: Kind) -> Samples:
    if kind == "ecg":
        return find_r_peaks_in_parts(lambda a, b: lead[a:b], len(lead), fs_hz=fs_hz)
    size, margin = round(_BLOCK_S * fs_hz), round(_MARGIN_S * fs_hz)
    found = []
    for start in range(0, len(lead), size):
        first = max(0, start - margin)
        part = np.asarray(lead[first : start + size + margin], np.float64)
        at = first + find_pulses(part, fs_hz=fs_hz).upstrokes
        found.append(at[(at >= start) & (at < start + size)])
    return np.concatenate(found)


def _power_ratios(
    window: Signal, there: Mask, fs_hz: float, rules: _Rules
) -> tuple[float, float, float]:
    """Power of baseline, muscle and mains over the signal's; NaN where most is missing."""
    if there.mean() < 0.5 or len(window) < fs_hz:
        return np.nan, np.nan, np.nan
    n = len(window)
    if not there.all():  # a line across gaps adds nothing that is fast
        known = np.flatnonzero(there)
        window = np.interp(np.arange(n), known, window[known])
    time = np.linspace(-1, 1, n)
    window = window - window.mean()
    window = window - time * (time @ window) / (time @ time)
    power = np.abs(np.fft.rfft(window * np.hanning(n))) ** 2
    hz = np.fft.rfftfreq(n, 1 / fs_hz)
    top_hz = 0.45 * fs_hz
    low, high = rules.band_hz
    own = power[(hz >= low) & (hz < min(high, top_hz))].sum()
    if not own > 0:
        return np.nan, np.nan, np.nan
    baseline = power[hz < low].sum()
    hum, mains = 0.0, np.zeros(len(hz), np.bool_)
    for mains_hz in _MAINS_HZ:
        if mains_hz + 2 * _MAINS_WIDE_HZ >= fs_hz / 2:
            continue
        off_hz = np.abs(hz - mains_hz)
        line = off_hz <= _MAINS_WIDE_HZ
        around = (off_hz > _MAINS_WIDE_HZ) & (off_hz <= 5 * _MAINS_WIDE_HZ)
        level = np.median(power[around]) if around.any() else 0.0
        hum = max(hum, float(power[line].sum() - level * line.sum()))
        mains |= line
    fast = (hz >= rules.muscle_hz) & (hz <= min(150.0, top_hz)) & ~mains
    muscle = power[fast].sum() / own if rules.muscle_hz < 0.9 * top_hz else np.nan
    return baseline / own, muscle, hum / own if mains.any() else np.nan


def _agreement(block: Signal, beats: Samples, fs_hz: float, rules: _Rules) -> float:
    first, last = (round(s * fs_hz) for s in rules.beat_s)
    beats = beats[(beats + first >= 0) & (beats + last < len(block))]
    cut = block[beats[:, None] + np.arange(first, last + 1)]
    cut = cut[np.isfinite(cut).all(1)]
    if len(cut) < _LEAST_BEATS:
        return np.nan
    cut = cut - cut.mean(1, keepdims=True)
    cut = cut / max(float(np.abs(cut).max()), np.finfo(np.float64).tiny)  # any unit is the same
    return float(np.mean(row_correlation(cut, np.median(cut, 0))))


def _index(found: dict[str, Signal], known_s: Signal) -> Signal:
    index = (1 - found["missing"]) * (1 - found["flat"])
    index = index * np.maximum(1 - _CLIPPED_COST * found["clipped"], 0)
    for name, half in _HALF.items():
        index = index / (1 + np.maximum(np.nan_to_num(found[name]), 0) / half)
    unread = np.where(known_s >= _BEATS_DUE_S, 0.0, 1.0)
    agreement = np.where(np.isnan(found["agreement"]), unread, found["agreement"])
    index = index * np.clip(agreement, 0, 1) ** 2
    return np.where(known_s >= _READABLE_S, index, 0.0)
