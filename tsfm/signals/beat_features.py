"""Features of every beat of a record, for classes of beats (AAMI): rhythm, shape, and both together.

A beat is ventricular by its shape and supraventricular by its time, and both are relative to the
patient: what is usual is the median beat of the record, and the intervals around and overall. Where
the unusual is the rule (a record of mostly atrial beats) that fails, so the same intervals stand
beside it in seconds. P waves are looked for where the patient's own are. Neighbours' features are
part of a beat's own, since an early beat is followed by a pause.

Two leads may be given; of the second only shapes are used. Amplitudes are in multiples of the
record's usual beat, so gains do not matter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.signals.filters import band_pass, resample

Signal = npt.NDArray[np.float64]

HZ = 125.0
_BEFORE_S, _AFTER_S = 0.28, 0.40
_QRS_S, _P_S, _T_S = (-0.09, 0.11), (-0.25, -0.09), (0.14, 0.38)
_SHAPE_STEP = 3
_EARLY, _NEW_RHYTHM_S = 0.87, 40.0
_BAND_HZ = (0.5, 35.0)


def beat_features(
    ecg: npt.ArrayLike, r_peaks: npt.ArrayLike, *, fs_hz: float
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Features of every beat.

    Args:
        ecg: (n_leads, n_samples) one or two leads, the one that the R peaks are of first.
        r_peaks: (n_beats,) samples, in order.
        fs_hz: Sampling rate.

    Returns:
        (n_beats, n_features) and the features' names; always the same ones, NaN for a second lead
        that is not there.

    Raises:
        InputError: No lead, or unordered peaks.
    """
    leads, peaks = np.atleast_2d(np.asarray(ecg, np.float64)), np.asarray(r_peaks, np.int64)
    if leads.ndim != 2 or not len(leads) or (np.diff(peaks) < 0).any():
        raise InputError(
            "no lead, or peaks that are not in order", code="bad_beats", place="beat_features",
            remedy="Give (leads, samples) and the R peaks in order.",
        )  # fmt: skip
    low, high = _BAND_HZ
    clean = band_pass(leads[:2], fs_hz=fs_hz, low_hz=low, high_hz=min(high, 0.45 * fs_hz))
    points = np.nan_to_num(np.asarray(resample(clean, fs_hz=fs_hz, to_hz=HZ), np.float64))
    at = np.clip(np.rint(peaks * HZ / fs_hz).astype(np.int64), 0, points.shape[1] - 1)
    columns = _rhythm(peaks / fs_hz)
    columns |= _shapes(points[0], at, "")
    second = _shapes(points[1] if len(points) > 1 else np.zeros_like(points[0]), at, "second_")
    if len(points) < 2:
        second = {name: np.full(len(at), np.nan) for name in second}
    columns |= {name: v for name, v in second.items() if "shape" not in name}
    for name in ("before_base", "qrs_like", "qrs_width", "size", "p_like"):
        for step, word in ((-1, "previous"), (1, "next")):
            columns[f"{word}_{name}"] = _shift(columns[name], step)
    found = np.stack(list(columns.values()), 1).astype(np.float32)
    return found, list(columns)


def _rhythm(beat_s: Signal) -> dict[str, Signal]:
    n = len(beat_s)
    rr = np.diff(beat_s)
    usual = float(np.median(rr)) if len(rr) else np.nan
    before = np.concatenate([[usual], rr])[:n]
    after = np.concatenate([rr, [usual]])[:n]
    padded = np.pad(before, 10, mode="edge") if n else before
    around = np.lib.stride_tricks.sliding_window_view(padded, 21)[:n]
    local, spread = np.median(around, 1), around.std(1)
    wide = _running_median(before, 120)
    two = _shift(before, -1)
    base, run = _baseline(before)
    steps = np.abs(np.diff(before, prepend=before[:1]))
    return {
        "irregular": _running_median(steps, 25) / _running_median(before, 25),
        "before_base": before / base, "after_base": after / base, "run": np.minimum(run, 30.0),
        "base_s": base, "unlike_base": np.abs(before - base) / base,
        "early_around": _around(before < 0.85 * base), "late_around": _around(before > 1.15 * base),
        "before_s": before, "after_s": after, "before_local": before / local,
        "after_local": after / local, "before_usual": before / usual,
        "after_usual": after / usual, "before_wide": before / wide,
        "before_after": before / np.maximum(after, 1e-3),
        "before_two": before / np.maximum(two, 1e-3), "sum_local": (before + after) / local,
        "local_s": local, "local_spread": spread / local, "usual_s": np.full(n, usual),
        "share_early": np.mean(around < 0.88 * np.quantile(around, 0.75, axis=1)[:, None], 1),
        "rr_low": np.quantile(around, 0.1, axis=1), "rr_high": np.quantile(around, 0.9, axis=1),
        "before_high": before / np.quantile(around, 0.8, axis=1),
    }  # fmt: skip


def _baseline(before: Signal) -> tuple[Signal, Signal]:
    """The interval of the rhythm that early beats interrupt, and how long each run of them is by now.

    An early interval changes it only when a run of them has lasted: a tachycardia that starts at
    once stays a deviation for half a minute, and one that comes slowly is followed.
    """
    base, run = np.empty(len(before)), np.zeros(len(before))
    recent = list(before[before > 0.8 * np.median(before)][:8]) if len(before) else []
    early, since_s = 0, 0.0
    for i, rr in enumerate(before):
        usual = float(np.median(recent[-15:])) if recent else float(rr)
        base[i] = usual
        if rr < _EARLY * usual:
            early, since_s = early + 1, since_s + rr
        else:
            early, since_s = 0, 0.0
        run[i] = early
        if early == 0 and rr < 1.5 * usual:
            recent.append(float(rr))
        elif since_s > _NEW_RHYTHM_S:
            recent = [*recent[-7:], *before[max(0, i - 8) : i + 1].tolist()]
            early, since_s = 0, 0.0
    return base, run


def _running_median(x: Signal, half: int) -> Signal:
    """Median of up to `half` beats on either side."""
    if not len(x):
        return x
    padded = np.pad(x, half, mode="constant", constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)


def _shift(x: Signal, step: int) -> Signal:
    if not len(x):
        return x
    moved = np.roll(x, -step)
    if step > 0:
        moved[-step:] = x[-1]
    else:
        moved[:-step] = x[0]
    return moved


def _shapes(lead: Signal, at: npt.NDArray[np.int64], prefix: str) -> dict[str, Signal]:
    before, after = round(_BEFORE_S * HZ), round(_AFTER_S * HZ)
    padded = np.pad(lead, (before + 4, after + 4), mode="edge")
    offsets = np.arange(-before, after)
    cut = padded[at[:, None] + before + 4 + offsets]
    seconds = offsets / HZ

    def part(bounds: tuple[float, float]) -> npt.NDArray[np.bool_]:
        return (seconds >= bounds[0]) & (seconds <= bounds[1])

    qrs, p, t = part(_QRS_S), part(_P_S), part(_T_S)
    cut = cut - np.median(cut[:, part((-0.28, -0.10))], 1, keepdims=True)
    if not len(cut):
        cut = np.zeros((0, len(offsets)))
        median = np.zeros(len(offsets))
    else:
        median = np.median(cut, 0)
        like = _likeness(cut[:, qrs], median[qrs])
        usual = cut[like >= np.quantile(like, 0.4)]
        median = np.median(usual, 0)
    size = max(float(np.abs(median[qrs]).max()), 1e-6)
    cut, median = cut / size, median / size
    fast = np.abs(np.diff(cut, axis=1, prepend=cut[:, :1]))
    top = np.maximum(fast[:, qrs].max(1, initial=0.0), 1e-6)
    wide = part((-0.14, 0.20))
    moving = fast[:, wide] > 0.2 * top[:, None]
    first = np.argmax(moving, 1)
    last = moving.shape[1] - 1 - np.argmax(moving[:, ::-1], 1)
    shifted = [_likeness(_moved(cut, k)[:, qrs], median[qrs]) for k in (-3, -2, -1, 0, 1, 2, 3)]
    best = np.max(shifted, axis=0) if len(cut) else np.zeros(0)
    p_usual, p_own = median[p] - median[p].mean(), cut[:, p] - cut[:, p].mean(1, keepdims=True)
    previous = np.concatenate([cut[:1], cut[:-1]])
    columns = {
        "qrs_like": best,
        "whole_like": _likeness(cut, median),
        "previous_like": _likeness_rows(cut[:, qrs], previous[:, qrs]),
        "qrs_distance": np.sqrt(np.mean((cut[:, qrs] - median[qrs]) ** 2, 1)),
        "t_like": _likeness(cut[:, t], median[t]),
        "t_distance": np.sqrt(np.mean((cut[:, t] - median[t]) ** 2, 1)),
        "size": np.ptp(cut[:, qrs], axis=1) / max(float(np.ptp(median[qrs])), 1e-6),
        "up": cut[:, qrs].max(1, initial=0.0),
        "down": cut[:, qrs].min(1, initial=0.0),
        "area": np.abs(cut[:, wide]).mean(1),
        "signed_area": cut[:, wide].mean(1),
        "area_size": np.abs(cut[:, wide]).mean(1) / np.maximum(np.ptp(cut[:, qrs], axis=1), 1e-6),
        "qrs_width": (last - first) / HZ,
        "width_ratio": (last - first)
        / max(float(np.median(last - first)) if len(cut) else 1.0, 1.0),
        "fastest": top,
        "share_fast": moving.mean(1),
        "t_height": cut[:, t].max(1, initial=0.0),
        "t_depth": cut[:, t].min(1, initial=0.0),
        "p_like": _likeness(cut[:, p], median[p]),
        "p_distance": np.sqrt(np.mean((p_own - p_usual) ** 2, 1)),
        "p_size": np.ptp(p_own, axis=1),
        "p_projection": p_own @ p_usual / max(float(p_usual @ p_usual), 1e-6),
        "p_usual_size": np.full(len(cut), float(np.ptp(p_usual))),
        "unusual_around": _around(best < 0.8),
    }
    for i in range(0, len(offsets), _SHAPE_STEP):
        columns[f"shape_{round(seconds[i] * 1000)}"] = cut[:, i]
    return {f"{prefix}{name}": np.asarray(v, np.float64) for name, v in columns.items()}


def _moved(rows: Signal, step: int) -> Signal:
    return np.roll(rows, step, axis=1)


def _around(flags: npt.NDArray[np.bool_], half: int = 15) -> Signal:
    kernel = np.ones(2 * half + 1)
    if not len(flags):
        return np.zeros(0)
    hits = np.convolve(flags.astype(np.float64), kernel, mode="full")[half : half + len(flags)]
    seen = np.convolve(np.ones(len(flags)), kernel, mode="full")[half : half + len(flags)]
    return hits / seen


def _likeness(rows: Signal, to: Signal) -> Signal:
    rows = rows - rows.mean(1, keepdims=True)
    to = to - to.mean()
    return rows @ to / np.maximum(np.sqrt((rows**2).sum(1) * (to**2).sum()), 1e-9)


def _likeness_rows(a: Signal, b: Signal) -> Signal:
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / np.maximum(np.sqrt((a**2).sum(1) * (b**2).sum(1)), 1e-9)
