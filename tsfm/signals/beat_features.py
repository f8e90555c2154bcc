"""Features of every beat of a record, for classes of beats: its time, its shape, and its P wave.

A beat is ventricular by its shape and supraventricular by its time, and both are relative to the
patient: the usual shape is the median beat of the record, the usual interval that of the rhythm
which early beats interrupt. Where the unusual is the rule (a record of mostly atrial beats) that
fails, so the same intervals stand beside in seconds and against the long ones around. How
irregular a stretch is, and whether its beats have P waves, tells early beats from fibrillation.
Neighbours' features are part of a beat's own, since an early beat is followed by a pause.

One lead or two; amplitudes are multiples of the record's usual QRS complex, so gains don't matter.
Features are of whole records: each beat's know what comes after it. This is not for streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.signals.filters import as_samples, band_pass, resample
from tsfm.signals.row_correlation import row_correlation

Signal = npt.NDArray[np.float64]

WINDOW_HZ = 125.0
BEFORE_S, AFTER_S = 0.28, 0.40
_BAND_HZ = (0.5, 35.0)
_QRS_S, _WIDE_S, _T_S = (-0.09, 0.11), (-0.14, 0.20), (0.14, 0.38)
_SHAPE_S = (-0.10, 0.16)
_P_S, _LEVEL_S = (-0.25, -0.07), (-0.28, -0.10)
_EARLY, _NEW_RHYTHM_S = 0.87, 40.0
_MOST_ALIKE = 4096  # beats of a record that each is held against; half an hour has fewer
_OF_NEIGHBOURS = ("before_base", "qrs_like", "width_ratio", "size", "p_like", "area_size")
_OF_ALIKE, _ALIKE = ("before_base", "after_base", "before_after", "before_high"), 0.8
_OF_SECOND = (
    "qrs_like", "whole_like", "previous_like", "qrs_distance", "t_like", "size", "area_size",
    "qrs_width", "width_ratio", "share_fast", "p_like", "p_distance", "p_bump", "unusual_around",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class BeatFeatures:
    """What is known of every beat of a record.

    Attributes:
        values: (beat, feature), NaN where a second lead is not there.
        names: Of the features, always the same ones.
        windows: (beat, 2, point) the beats cut out at 125 Hz, in multiples of the record's usual
            QRS complex; zeros for a second lead that is not there.
    """

    values: npt.NDArray[np.float32]
    names: tuple[str, ...]
    windows: npt.NDArray[np.float32]

    def with_waveform(self) -> tuple[npt.NDArray[np.float32], list[str]]:
        """Every third point of the first lead's window beside the values, and the names of all."""
        seconds = np.arange(self.windows.shape[2])[::3] / WINDOW_HZ - BEFORE_S
        names = [*self.names, *(f"shape_{round(1000 * s)}" for s in seconds)]
        return np.concatenate([self.values, self.windows[:, 0, ::3]], 1), names


def read_beats(ecg: npt.ArrayLike, r_peaks: npt.ArrayLike, *, fs_hz: float) -> BeatFeatures:
    """Features and windows of every beat.

    Args:
        ecg: (n_leads, n_samples) or (n_samples,), any unit; leads after the second are not read.
        r_peaks: (n_beats,) samples, in order.
        fs_hz: Sampling rate, above 70.

    Raises:
        InputError: `bad_beats`: no lead, peaks out of order, outside or no samples, or a record of
            less than 8 ms; `bad_filter`: a rate that can't hold a QRS complex.
    """
    leads, peaks = np.atleast_2d(np.asarray(ecg, np.float64)), as_samples(r_peaks)
    outside = len(peaks) and not (0 <= peaks.min() <= peaks.max() < leads.shape[-1])
    if leads.ndim != 2 or not len(leads) or outside or (np.diff(peaks) < 0).any():
        raise InputError(
            "no lead, or peaks that are out of order or outside", code="bad_beats",
            place="read_beats", remedy="Give (leads, samples) and the samples of its R peaks.",
        )  # fmt: skip
    low, high = _BAND_HZ
    clean = band_pass(leads[:2], fs_hz=fs_hz, low_hz=low, high_hz=high)
    points = np.nan_to_num(np.asarray(resample(clean, fs_hz=fs_hz, to_hz=WINDOW_HZ), np.float64))
    if not points.shape[1]:
        raise InputError(
            "a record of less than 8 ms has no beats", code="bad_beats", place="read_beats",
            remedy="Give the whole record, (leads, samples).",
        )  # fmt: skip
    at = np.clip(np.rint(peaks * (WINDOW_HZ / fs_hz)).astype(np.int64), 0, points.shape[1] - 1)
    columns = _rhythm(peaks / fs_hz)
    windows = np.zeros((len(at), 2, round(BEFORE_S * WINDOW_HZ) + round(AFTER_S * WINDOW_HZ)))
    for i in range(2):
        if i < len(points):
            windows[:, i], found = _shapes(points[i], at)
        else:
            found = dict.fromkeys(columns, np.full(len(at), np.nan))
            found |= dict.fromkeys(_OF_SECOND, np.full(len(at), np.nan))
        columns |= found if i == 0 else {f"second_{name}": found[name] for name in _OF_SECOND}
    columns |= _alike(windows, columns)
    for name in _OF_NEIGHBOURS:
        columns |= {f"previous_{name}": _shift(columns[name], -1)}
        columns |= {f"next_{name}": _shift(columns[name], 1)}
    values = np.stack(list(columns.values()), 1).astype(np.float32)
    return BeatFeatures(values, tuple(columns), windows.astype(np.float32))


def mean_over_alike(
    windows: npt.NDArray[np.float32], told: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Means over the beats of one record whose QRS complex is of the same shape and size.

    Args:
        windows: (n_beats, 2, n_points) of a whole record, as `read_beats` gives them.
        told: (n_beats, n) what is averaged.

    Returns:
        (n_beats, n); a beat of a shape of its own keeps what it has.
    """
    offsets = np.arange(windows.shape[2]) - round(BEFORE_S * WINDOW_HZ)
    shapes = windows[:, :, _part(offsets, _SHAPE_S)]
    shapes = shapes.reshape(len(windows), shapes.shape[1] * shapes.shape[2])
    return _over_alike(np.ascontiguousarray(shapes, np.float32), told.astype(np.float32))[0]


def _rhythm(beat_s: Signal) -> dict[str, Signal]:
    n = len(beat_s)
    rr = np.diff(beat_s)
    usual = float(np.median(rr)) if len(rr) else 1.0
    before = np.maximum(np.concatenate([[usual], rr])[:n], 0.1)
    after = np.maximum(np.concatenate([rr, [usual]])[:n], 0.1)
    near, far = _stretches(before, 10), _stretches(before, 25)
    local, wide, high = np.median(near, 1), _running_median(before, 120), np.quantile(near, 0.8, 1)
    two, three = _shift(before, -1), _shift(before, -2)
    base, run = _baseline(before, usual)
    step = np.abs(before - two)
    nearest = np.minimum(step, np.abs(before - three))
    middle = np.median(far, 1)
    return {
        "before_base": before / base, "after_base": after / base, "run": np.minimum(run, 30.0),
        "base_s": base, "base_usual": base / usual,
        "early_around": _around(before < 0.85 * base), "late_around": _around(before > 1.15 * base),
        "before_s": before, "after_s": after, "before_local": before / local,
        "after_local": after / local, "before_usual": before / usual,
        "after_usual": after / usual, "before_wide": before / wide,
        "before_after": before / after, "before_two": before / two,
        "sum_local": (before + after) / local, "local_s": local,
        "local_spread": near.std(1) / local, "usual_s": np.full(n, usual),
        "share_early": np.mean(near < 0.88 * high[:, None], 1), "before_high": before / high,
        "after_high": after / high, "low_high": np.quantile(near, 0.1, 1) / high,
        "irregular": np.median(_stretches(step, 25), 1) / middle,
        "unpredictable": np.median(_stretches(nearest, 25), 1) / middle,
        "irregular_near": np.median(_stretches(nearest, 6), 1) / local,
    }  # fmt: skip


def _baseline(before: Signal, usual: float) -> tuple[Signal, Signal]:
    """The interval of the rhythm that early beats interrupt, and how long each run of them is.

    An early interval changes it only when a run of them has lasted: a tachycardia that starts at
    once stays a deviation for most of a minute, and one that comes slowly is followed.
    """
    start = before[before > 0.8 * usual][:8]
    return _follow(before, start if len(start) else np.array([usual]))


@numba.njit(cache=True)
def _follow(before: Signal, start: Signal) -> tuple[Signal, Signal]:
    base, run = np.empty(len(before)), np.zeros(len(before))
    recent = np.empty(15)
    recent[:] = np.median(start)
    early, since_s = 0, 0.0
    for i, rr in enumerate(before):
        usual = np.median(recent)
        base[i] = usual
        if rr < _EARLY * usual:
            early, since_s = early + 1, since_s + rr
        else:
            early, since_s = 0, 0.0
        run[i] = early
        if early == 0 and rr < 1.5 * usual:
            recent[:-1] = recent[1:].copy()
            recent[-1] = rr
        elif since_s > _NEW_RHYTHM_S:
            recent[:] = np.median(before[max(0, i - 8) : i + 1])
            early, since_s = 0, 0.0
    return base, run


def _shapes(lead: Signal, at: npt.NDArray[np.int64]) -> tuple[Signal, dict[str, Signal]]:
    """Windows of one lead in multiples of its usual QRS complex, and what they look like."""
    before, after = round(BEFORE_S * WINDOW_HZ), round(AFTER_S * WINDOW_HZ)
    offsets = np.arange(-before, after)
    cut = np.pad(lead, (before, after), mode="edge")[at[:, None] + before + offsets]
    qrs, wide, p, t, level = (_part(offsets, s) for s in (_QRS_S, _WIDE_S, _P_S, _T_S, _LEVEL_S))
    if len(cut):
        cut = cut - np.median(cut[:, level], 1, keepdims=True)
        like = row_correlation(cut[:, qrs], np.median(cut, 0)[qrs])
        usual = np.median(cut[like >= np.quantile(like, 0.4)], 0)
    else:
        usual = np.zeros(len(offsets))
    size = max(float(np.abs(usual[qrs]).max()), 1e-6)
    cut, usual = np.clip(cut / size, -20, 20), usual / size
    tall = np.ptp(cut[:, qrs], axis=1)
    fast = np.abs(np.diff(cut, axis=1, prepend=cut[:, :1]))
    top = np.maximum(fast[:, qrs].max(1, initial=0.0), 1e-6)
    moving = fast[:, wide] > 0.2 * top[:, None]
    width = moving.shape[1] - 1 - np.argmax(moving[:, ::-1], 1) - np.argmax(moving, 1)
    usual_width = float(np.median(width)) if len(width) else 1.0
    shifted = [row_correlation(np.roll(cut, k, 1)[:, qrs], usual[qrs]) for k in range(-3, 4)]
    best = np.max(shifted, axis=0)
    previous = np.concatenate([cut[:1], cut[:-1]])
    columns = {
        "qrs_like": best,
        "whole_like": row_correlation(cut, usual),
        "previous_like": row_correlation(cut[:, qrs], previous[:, qrs]),
        "qrs_distance": np.sqrt(np.mean((cut[:, qrs] - usual[qrs]) ** 2, 1)),
        "t_like": row_correlation(cut[:, t], usual[t]),
        "t_distance": np.sqrt(np.mean((cut[:, t] - usual[t]) ** 2, 1)),
        "size": tall / max(float(np.ptp(usual[qrs])), 1e-6),
        "up": cut[:, qrs].max(1, initial=-20.0),
        "down": cut[:, qrs].min(1, initial=20.0),
        "area": np.abs(cut[:, wide]).mean(1),
        "signed_area": cut[:, wide].mean(1),
        "area_size": np.abs(cut[:, wide]).mean(1) / np.maximum(tall, 1e-6),
        "qrs_width": width / WINDOW_HZ,
        "width_ratio": width / max(usual_width, 1.0),
        "fastest": top,
        "share_fast": moving.mean(1),
        "t_height": cut[:, t].max(1, initial=-20.0),
        "t_depth": cut[:, t].min(1, initial=20.0),
        "unusual_around": _around(best < 0.8),
    }
    return cut, columns | _p_wave(cut[:, p], usual[p])


def _p_wave(own: Signal, usual: Signal) -> dict[str, Signal]:
    """What precedes the QRS complex, its slope taken away, against the patient's P wave."""
    n, points = own.shape
    line = np.linspace(0, 1, points)
    own = own - own[:, :1] * (1 - line) - own[:, -1:] * line
    usual = usual - usual[0] * (1 - line) - usual[-1] * line
    around = np.median(_stretches(own, 12), axis=-1) if n else own
    bump = np.convolve(usual * 0 + 1, np.ones(5) / 5, "same")  # of a moving mean at the ends
    smooth = _smooth(own) / bump
    middle = usual - usual.mean()
    return {
        "p_like": row_correlation(own, usual),
        "p_distance": np.sqrt(np.mean((own - usual) ** 2, 1)),
        "p_like_around": row_correlation(own, around),
        "p_distance_around": np.sqrt(np.mean((own - around) ** 2, 1)),
        "p_size": np.ptp(own, axis=1),
        "p_bump": smooth.max(1, initial=0.0),
        "p_dip": smooth.min(1, initial=0.0),
        "p_place": np.argmax(smooth, 1) / points if n else np.zeros(0),
        "p_projection": own @ middle / max(float(middle @ middle), 1e-4),
        "p_usual_size": np.full(n, float(np.ptp(usual))),
        "p_around_size": np.ptp(around, axis=1),
        "p_alike_around": _mean_around(row_correlation(own, around)),
    }


def _alike(windows: Signal, columns: dict[str, Signal]) -> dict[str, Signal]:
    """What the beats of the same shape usually do, over the whole record.

    A shape that is early as a rule and followed by pauses is ventricular; another shape that comes
    in time is a bundle branch block. The same for the P wave of the first lead.
    """
    offsets = np.arange(windows.shape[2]) - round(BEFORE_S * WINDOW_HZ)
    qrs, p = _part(offsets, _QRS_S), _part(offsets, _P_S)
    line = np.linspace(0, 1, int(p.sum()))
    wave = windows[:, 0, p]
    wave = wave - wave[:, :1] * (1 - line) - wave[:, -1:] * line
    told = np.stack([np.minimum(columns[name], 3.0) for name in _OF_ALIKE], 1).astype(np.float32)
    told = np.concatenate([told, (told[:, :1] < 0.88).astype(np.float32)], 1)
    found = {}
    for kind, shape in (
        ("qrs", windows[:, :, qrs].reshape(len(windows), 2 * int(qrs.sum()))),
        ("p", wave),
    ):
        mean, share = _over_alike(shape.astype(np.float32), told)
        found[f"{kind}_alike"] = share
        for i, name in enumerate((*_OF_ALIKE, "early")):
            found[f"{kind}_alike_{name}"] = mean[:, i]
    return found


def _over_alike(
    shapes: npt.NDArray[np.float32], told: npt.NDArray[np.float32]
) -> tuple[Signal, Signal]:
    """Means of `told` over beats of the same shape, and their share of all beats.

    Of a long record some thousands of its beats, evenly spread, stand for all, and each beat for
    itself: the cost grows with the length of the record, not with its square.
    """
    n = len(shapes)
    asked = np.unique(np.rint(np.linspace(0, max(n - 1, 0), min(n, _MOST_ALIKE))).astype(np.int64))
    apart = np.ones(n, np.float32)
    apart[asked] = 0
    others, told_of = shapes[asked], told[asked]
    power, power_of = (shapes**2).sum(1), (others**2).sum(1)
    means, share = np.empty_like(told), np.empty(n, np.float32)
    for start in range(0, n, 512):
        rows = slice(start, start + 512)
        both = power[rows, None] + power_of[None] + np.float32(1e-6)
        like = 2 * shapes[rows] @ others.T / both  # 1 for equal ones, amplitude counted
        weight = np.clip((like - _ALIKE) / (1 - _ALIKE), 0, 1) ** 2 + np.float32(1e-6)
        own = apart[rows, None]
        total = weight.sum(1, keepdims=True) + own
        means[rows] = (weight @ told_of + own * told[rows]) / total
        alike = (like > 0.5 * (1 + _ALIKE)).sum(1)
        share[rows] = (alike + own[:, 0]) / (len(asked) + own[:, 0])
    return means.astype(np.float64), share.astype(np.float64)


def _part(offsets: npt.NDArray[np.int64], bounds_s: tuple[float, float]) -> npt.NDArray[np.bool_]:
    return (offsets >= bounds_s[0] * WINDOW_HZ) & (offsets <= bounds_s[1] * WINDOW_HZ)


def _smooth(rows: Signal, taps: int = 5) -> Signal:
    padded = np.pad(rows, ((0, 0), (taps // 2, taps // 2)))
    return np.lib.stride_tricks.sliding_window_view(padded, taps, axis=1).mean(-1)


def _stretches(x: Signal, half: int) -> Signal:
    """(n, ..., 2 half + 1): each beat with those around it, the ends repeated."""
    if not len(x):
        return np.zeros((*x.shape, 2 * half + 1))
    padded = np.pad(x, ((half, half), *(((0, 0),) * (x.ndim - 1))), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=0)


def _running_median(x: Signal, half: int) -> Signal:
    found = np.empty(len(x))
    for start in range(0, len(x), 20):
        found[start : start + 20] = np.median(x[max(0, start - half) : start + half])
    return found


def _shift(x: Signal, step: int) -> Signal:
    return x[np.clip(np.arange(len(x)) + step, 0, max(len(x) - 1, 0))]


def _around(flags: npt.NDArray[np.bool_]) -> Signal:
    return _mean_around(flags.astype(np.float64))


def _mean_around(x: Signal, half: int = 15) -> Signal:
    return _stretches(x, half).mean(-1)
