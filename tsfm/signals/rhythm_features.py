"""Features of the rhythm of one lead: how regular the beats are, and whether P waves precede them.

Of the intervals: rate, spread, successive differences, their histogram, Poincare axes, sample
entropy and its coefficient form for short records (Lake and Moorman 2011), the turning-point ratio,
runs of equal intervals, shares of early and late beats, and how well a record splits into a regular
rhythm with exceptions. Of the beats: likeness to their median, size and width and their spread. Of
the time before beats: a P wave in the median beat, how alike single beats are there, and the share
of power between 4 and 10 Hz away from QRS complexes, where fibrillating atria are. Of the signal:
noise, wander, flat and clipped stretches, kurtosis.

They are hand-made inputs for models. Sources of the measures are named; the set is ours.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfiltfilt, welch
from scipy.spatial import KDTree
from scipy.stats import kurtosis, skew

from tsfm.errors import InputError
from tsfm.signals.beats import find_r_peaks, measured_throughout
from tsfm.signals.row_correlation import row_correlation

Signal = npt.NDArray[np.float64]

_BEFORE_S, _AFTER_S = 0.30, 0.40
_SHORTEST_S = 2.0
_LOWEST_HZ = 50.0
_MOVES = 1e-9  # of the largest value: a smaller span is rounding, in which beats would be found


def rhythm_features(ecg: npt.ArrayLike, *, fs_hz: float) -> dict[str, float]:
    """Features of one record.

    Args:
        ecg: (n_samples,) one lead in any unit; its gaps are bridged by straight lines here, and an
            interval over a gap in which a beat could be is none.
        fs_hz: Sampling rate, 50 Hz or more.

    Returns:
        Name to value; always the same names, NaN where it can't be told. A lead that does not move
        has no beats.

    Raises:
        InputError: Not one lead, shorter than two seconds, or a rate too low.
    """
    lead = np.asarray(ecg, np.float64)
    if not _LOWEST_HZ <= fs_hz < np.inf:
        raise InputError(
            f"{fs_hz:g} samples a second are too few for a rhythm", code="bad_sampling_rate",
            place="fs_hz", remedy=f"Give the rate of the record, {_LOWEST_HZ:g} Hz or more.",
        )  # fmt: skip
    if lead.ndim != 1 or len(lead) < _SHORTEST_S * fs_hz or not np.isfinite(lead).any():
        raise InputError(
            f"a signal of shape {lead.shape} is no record of one lead", code="bad_signal_shape",
            place="ecg", remedy=f"Give one lead of at least {_SHORTEST_S:g} seconds.",
        )  # fmt: skip
    there = np.isfinite(lead)
    lead = np.interp(np.arange(len(lead)), np.flatnonzero(there), lead[there])
    band = butter(2, [0.5, min(40.0, 0.45 * fs_hz)], "band", fs=fs_hz, output="sos")
    clean = sosfiltfilt(band, lead)
    moves = np.ptp(lead) > _MOVES * np.abs(lead).max()
    peaks = find_r_peaks(clean, fs_hz=fs_hz) if moves else np.zeros(0, np.int64)
    whole = measured_throughout(peaks, there, fs_hz=fs_hz)
    found = {"duration_s": len(lead) / fs_hz, "n_beats": float(len(peaks))}
    found |= interval_features(np.diff(peaks)[whole] / fs_hz)
    found |= _beat_features(clean, peaks, there, fs_hz)
    found |= _signal_features(lead, clean, peaks, fs_hz)
    return found


def interval_features(rr_s: npt.ArrayLike) -> dict[str, float]:
    """Features of the intervals between beats alone.

    Args:
        rr_s: (n,) seconds, in order.

    Raises:
        InputError: `bad_intervals`.
    """
    rr = np.asarray(rr_s, np.float64)
    if rr.ndim != 1 or not (np.isfinite(rr) & (rr > 0)).all():
        raise InputError(
            "intervals that are no lengths of time", code="bad_intervals", place="rr_s",
            remedy="Give (n,) seconds above 0, without those that are not known.",
        )  # fmt: skip
    names = [
        "rr_median", "rr_mean", "rr_min", "rr_max", "rr_cv", "rr_iqr", "rr_mad", "rmssd",
        "rmssd_relative", "pnn50", "pnn20", "pnn10_relative", "sd1", "sd2", "sd1_sd2", "entropy",
        "cosen", "turning_points", "diff_skew", "rr_skew", "rr_kurtosis", "early", "late",
        "early_then_late", "regular_run", "share_near_median", "autocorrelation", "drr_median",
        "drr_90", "drr_entropy", "rate_max_8", "rate_min_8", "cv_8_min", "cv_8_median",
        "cv_8_max", "two_clusters",
    ]  # fmt: skip
    found = dict.fromkeys(names, math.nan)
    if len(rr) < 3:
        return found
    median, difference = float(np.median(rr)), np.diff(rr)
    relative = difference / median
    sd1 = float(np.std(difference) / math.sqrt(2))
    sd2 = float(math.sqrt(max(2 * np.var(rr) - sd1**2, 0.0)))
    local = np.array([np.median(rr[max(0, i - 4) : i + 5]) for i in range(len(rr))])
    early, late = rr < 0.85 * local, rr > 1.15 * local
    near = np.abs(rr - local) < 0.06 * local
    windows = np.lib.stride_tricks.sliding_window_view(rr, min(8, len(rr)))
    cv = windows.std(1) / windows.mean(1)
    matches = _matches(rr, 0.03, 1), _matches(rr, 0.03, 2)
    middle = rr[1:-1]
    turning = ((middle > rr[:-2]) & (middle > rr[2:])) | ((middle < rr[:-2]) & (middle < rr[2:]))
    histogram = np.histogram(np.clip(relative, -0.6, 0.6), bins=13, range=(-0.6, 0.6))[0]
    share = histogram[histogram > 0] / max(histogram.sum(), 1)
    entropy = math.log((matches[0] + 0.5) / (matches[1] + 0.5))
    values = [
        median, rr.mean(), rr.min() / median, rr.max() / median, rr.std() / rr.mean(),
        np.subtract(*np.percentile(rr, [75, 25])) / median,
        np.median(np.abs(rr - median)) / median, np.sqrt(np.mean(difference**2)),
        np.sqrt(np.mean(relative**2)), np.mean(np.abs(difference) > 0.05),
        np.mean(np.abs(difference) > 0.02), np.mean(np.abs(relative) > 0.10), sd1, sd2,
        sd1 / max(sd2, 1e-3), entropy, entropy + math.log(0.06) - math.log(rr.mean()),
        turning.mean(), skew(difference) if difference.std() > 1e-9 else 0.0,
        skew(rr) if rr.std() > 1e-9 else 0.0, kurtosis(rr) if rr.std() > 1e-9 else 0.0,
        early.mean(), late.mean(), np.mean(early[:-1] & late[1:]), _longest_run(near) / len(rr),
        near.mean(), _autocorrelation(rr), np.median(np.abs(relative)),
        np.percentile(np.abs(relative), 90), -np.sum(share * np.log(share)),
        60 / windows.mean(1).min(), 60 / windows.mean(1).max(), cv.min(), np.median(cv), cv.max(),
        _two_clusters(rr / median),
    ]  # fmt: skip
    return dict(zip(names, map(float, values), strict=True))


def _matches(rr: Signal, tolerance_s: float, length: int) -> int:
    """Pairs of stretches of `length` intervals that agree within a tolerance."""
    if len(rr) <= length:
        return 0
    rows = np.lib.stride_tricks.sliding_window_view(rr, length)[: len(rr) - 1]
    tree = KDTree(rows)  # a day has five thousand million pairs
    below = np.nextafter(tolerance_s, 0)
    each_twice = int(np.sum(tree.count_neighbors(tree, below, p=np.inf))) - len(rows)
    return each_twice // 2


def _longest_run(flags: npt.NDArray[np.bool_]) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def _autocorrelation(rr: Signal) -> float:
    centred = rr - rr.mean()
    power = float((centred**2).sum())
    return float((centred[1:] * centred[:-1]).sum() / power) if power > 1e-12 else 0.0


def _two_clusters(relative: Signal) -> float:
    """How much less the intervals spread around two centres than around one."""
    low, high = np.percentile(relative, [10, 90])
    if high - low < 1e-6:
        return 0.0
    near_low = relative <= relative.mean()
    for _ in range(10):
        near_low = np.abs(relative - low) <= np.abs(relative - high)
        if near_low.all() or not near_low.any():
            return 0.0
        low, high = relative[near_low].mean(), relative[~near_low].mean()
    within = ((relative[near_low] - low) ** 2).sum() + ((relative[~near_low] - high) ** 2).sum()
    return float(1 - within / max(((relative - relative.mean()) ** 2).sum(), 1e-12))


def _beat_features(
    clean: Signal, peaks: npt.NDArray, there: npt.NDArray[np.bool_], fs_hz: float
) -> dict[str, float]:
    names = [
        "likeness_mean", "likeness_sd", "likeness_min", "share_unlike", "size_cv", "qrs_width",
        "qrs_width_sd", "area_up", "p_height", "p_likeness", "p_power", "p_area", "t_height",
        "st_level", "tq_4_10", "tq_power", "early_unlike", "polarity", "p_peak_at",
        "p_each_height",
    ]  # fmt: skip
    found = dict.fromkeys(names, math.nan)
    before, after = round(_BEFORE_S * fs_hz), round(_AFTER_S * fs_hz)
    inside = (peaks >= before) & (peaks + after < len(clean))
    peaks = peaks[inside]
    if len(peaks) < 3:
        return found
    cut = clean[peaks[:, None] + np.arange(-before, after)]
    cut = cut - np.median(cut[:, round(0.2 * fs_hz) : round(0.25 * fs_hz)], 1, keepdims=True)
    median = np.median(cut, 0)
    polarity = 1.0 if abs(median.max()) >= abs(median.min()) else -1.0
    size = max(float(np.abs(median).max()), 1e-9)
    like = row_correlation(cut, median)
    qrs = slice(before - round(0.06 * fs_hz), before + round(0.08 * fs_hz))
    part = slice(before - round(0.26 * fs_hz), before - round(0.07 * fs_hz))
    p = cut[:, part] - cut[:, part].mean(1, keepdims=True)
    p_median = np.median(p, 0)
    width = (np.abs(cut[:, qrs]) > 0.3 * np.abs(cut[:, qrs]).max(1, keepdims=True)).mean(1)
    t_part = median[before + round(0.12 * fs_hz) :]
    whole = measured_throughout(peaks, there, fs_hz=fs_hz)
    tq, tq_all = _quiet_power(clean, peaks, whole, fs_hz)
    rr = np.diff(peaks)
    early = np.concatenate([[False], rr < 0.85 * np.median(rr)])
    values = [
        like.mean(), like.std(), like.min(), (like < 0.8).mean(),
        np.ptp(cut[:, qrs], axis=1).std() / max(np.ptp(cut[:, qrs], axis=1).mean(), 1e-9),
        width.mean(), width.std(), median[qrs].clip(0).sum() / max(np.abs(median[qrs]).sum(), 1e-9),
        p_median.max() / size, row_correlation(p, p_median).mean(), p.std() / size,
        p_median.clip(0).mean() / size, np.abs(t_part).max(initial=0.0) / size,
        median[before + round(0.10 * fs_hz)] / size, tq, tq_all / size,
        1 - like[early].mean() if early.any() else 0.0, polarity,
        float(np.argmax(p_median)) / max(len(p_median), 1), np.median(p.max(1)) / size,
    ]  # fmt: skip
    return dict(zip(names, map(float, values), strict=True))


def _quiet_power(
    clean: Signal, peaks: npt.NDArray, whole: npt.NDArray[np.bool_], fs_hz: float
) -> tuple[float, float]:
    """Share of power at 4-10 Hz, and deviation, of what lies between T and Q waves."""
    parts = []
    for (a, b), measured in zip(pairwise(peaks), whole, strict=True):
        if not measured:
            continue
        start = a + round(min(0.42 * fs_hz, 0.6 * (b - a)))
        stop = b - round(0.07 * fs_hz)
        if stop - start > 0.15 * fs_hz:
            part = clean[start:stop]
            parts.append(part - np.linspace(part[0], part[-1], len(part)))
    if not parts:
        return math.nan, math.nan
    joined = np.concatenate(parts)
    n = min(len(joined), round(1.28 * fs_hz))
    hz, power = welch(joined, fs=fs_hz, nperseg=n)
    inside = power[(hz >= 4) & (hz <= 10)].sum()
    return float(inside / max(power[(hz > 0.5) & (hz < 40)].sum(), 1e-12)), float(joined.std())


def _signal_features(
    lead: Signal, clean: Signal, peaks: npt.NDArray, fs_hz: float
) -> dict[str, float]:
    hz, power = welch(lead - lead.mean(), fs=fs_hz, nperseg=min(len(lead), round(4 * fs_hz)))
    total = max(float(power[hz > 0.05].sum()), 1e-12)

    def share(low: float, high: float) -> float:
        return float(power[(hz >= low) & (hz < high)].sum() / total)

    second = round(fs_hz)
    windows = clean[: len(clean) // second * second].reshape(-1, second)
    spans, fine = np.ptp(windows, axis=1), np.abs(np.diff(windows, axis=1)).mean(1)
    typical = max(float(np.median(spans)), 1e-9)
    return {
        "power_wander": share(0.05, 1.0),
        "power_1_5": share(1.0, 5.0),
        "power_5_15": share(5.0, 15.0),
        "power_15_40": share(15.0, 40.0),
        "power_fast": share(40.0, fs_hz / 2),
        "flat": float(np.mean(np.diff(lead) == 0)),
        "clipped": float(np.mean((lead >= lead.max()) | (lead <= lead.min()))),
        "kurtosis": float(kurtosis(clean)),
        "skew": float(skew(clean)),
        "span_max": float(spans.max() / typical),
        "span_min": float(spans.min() / typical),
        "span_cv": float(spans.std() / max(spans.mean(), 1e-9)),
        "roughness": float(np.median(fine) / typical),
        "roughness_max": float(fine.max() / typical),
        "beats_a_second_sd": float(np.histogram(peaks / fs_hz, bins=max(2, len(windows)))[0].std()),
    }
