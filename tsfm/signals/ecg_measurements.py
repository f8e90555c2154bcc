"""Measurements of a standard electrocardiogram, as a cardiograph prints them.

The beats of a record are laid over each other at their R peaks, those that look like most others
and have no gap in a lead make its median beat, and on it are measured: onset and end of the QRS
complex from the speed of all leads together, the waves P, Q, R, S and T of each lead against the
level just before the QRS, the ST segment at the J point and 20 to 80 ms after it, and from these
the axes, the voltage criteria of hypertrophy (Sokolow and Lyon 1949; Cornell, Casale 1987) and the
intervals PR, QRS, QT and QTc (Bazett). Beside them stand the rhythm's figures and how unlike the
beats are. Of a long record, such as a day's, rhythm is of all beats and shape of some hundred of
them, evenly chosen.

They are hand-made features for models and reports; a wave that cannot be found is NaN. They are no
diagnosis, and no substitute for a cardiograph's certified analysis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from tsfm.errors import InputError
from tsfm.signals.beats import find_r_peaks, measured_throughout
from tsfm.signals.row_correlation import row_correlation
from tsfm.signals.store import STANDARD_LEADS, canonical_lead

Signal = npt.NDArray[np.float64]

_BEFORE_S, _AFTER_S = 0.30, 0.56
_SLACK_S = 0.05  # how far a beat may be moved to lie on the others
_FINE_HZ = 500.0
_LIKE = 0.75  # correlation of a beat with the median of all, to be one of the usual ones
_QUIET = 0.08  # share of the largest speed, below which a QRS complex has not begun or is over
_LONGEST_QRS_S = 0.22
_LOWEST_HZ = 50.0
_MOST_BEATS = 512  # whose shape is asked; half a megabyte each while they are aligned
_OF_A_LEAD = (
    "r", "s", "q", "q_width", "area", "peak_time", "turns", "p", "p_low", "t", "t_high", "t_low",
    "st0", "st20", "st40", "st60", "st80", "st_slope", "range",
)  # fmt: skip


def measure_ecg(
    signal_mv: npt.ArrayLike, *, fs_hz: float, leads: Sequence[str] = STANDARD_LEADS
) -> dict[str, float]:
    """Measure one record.

    Args:
        signal_mv: (lead, sample) millivolts; NaN in gaps and along missing leads.
        fs_hz: Sampling rate, 50 Hz or more.
        leads: Name of each lead, in any case; others than the twelve are not read. Features of a
            lead that is not there, or has no beat without a gap, are NaN.

    Returns:
        Name to value; always the same names. Seconds, millivolts and degrees.

    Raises:
        InputError: `bad_signal_shape`, `bad_sampling_rate` or `repeated_lead`.
    """
    signal = np.asarray(signal_mv, np.float64)
    if signal.ndim != 2 or len(signal) != len(leads) or not signal.size:
        raise InputError(
            f"a signal of shape {signal.shape} for {len(leads)} leads", code="bad_signal_shape",
            place="signal_mv", remedy="Give (leads, samples) and a name for each lead.",
        )  # fmt: skip
    if not _LOWEST_HZ <= fs_hz < np.inf:
        raise InputError(
            f"{fs_hz:g} samples a second are too few to measure by", code="bad_sampling_rate",
            place="fs_hz", remedy=f"Give the rate of the record, {_LOWEST_HZ:g} Hz or more.",
        )  # fmt: skip
    row_of = {canonical_lead(name): i for i, name in enumerate(leads)}
    if sum(canonical_lead(name) in STANDARD_LEADS for name in leads) > len(
        row_of.keys() & set(STANDARD_LEADS)
    ):
        raise InputError(
            "two leads have the same name", code="repeated_lead", place="leads",
            remedy="Give each lead once, under its own name.",
        )  # fmt: skip
    whole = np.full((len(STANDARD_LEADS), signal.shape[1]), np.nan)
    for i, name in enumerate(STANDARD_LEADS):
        if name in row_of:
            whole[i] = signal[row_of[name]]
    found = _empty()
    filled = np.stack([_bridged(lead) for lead in whole])
    there = np.any(np.isfinite(whole), axis=0)
    peaks = find_r_peaks(_main_lead(filled, there, fs_hz), fs_hz=fs_hz)
    rr = np.diff(peaks / fs_hz)[measured_throughout(peaks, there, fs_hz=fs_hz)]
    found |= _rhythm(len(peaks), rr, int(there.sum()) / fs_hz)
    cut = _beats(whole, filled, peaks, fs_hz)
    if cut is None:
        return found
    found["share_unusual"], found["beat_likeness"], median = cut
    return found | _measure_beat(median, found["rr_median_s"])


def _bridged(lead: Signal) -> Signal:
    """A straight line over each gap, which looks like no wave; zeros where nothing is there."""
    known = np.flatnonzero(np.isfinite(lead))
    if len(known) == len(lead):
        return lead
    if not len(known):
        return np.zeros(len(lead))
    return np.interp(np.arange(len(lead)), known, lead[known])


def _main_lead(filled: Signal, there: npt.NDArray[np.bool_], fs_hz: float) -> Signal:
    """Where the heart's vector moves most from 5 to 30 Hz: QRS complexes stand out in it."""
    fast = gaussian_filter1d(filled, 0.006 * fs_hz, axis=1)
    fast -= gaussian_filter1d(filled, 0.05 * fs_hz, axis=1)
    size = np.abs(fast).max(0)
    strong = fast[:, size >= np.quantile(size, 0.9)]
    _, directions = np.linalg.eigh(strong @ strong.T)
    return np.where(there, directions[:, -1] @ filled, np.nan)


def _rhythm(n_beats: int, rr: Signal, measured_s: float) -> dict[str, float]:
    found = {"n_beats_a_minute": 60.0 * n_beats / measured_s if measured_s else math.nan}
    if len(rr) >= 2:
        median = float(np.median(rr))
        found |= {
            "rr_median_s": median,
            "rate_bpm": 60.0 / median,
            "rr_sd": float(rr.std() / median),
            "rr_rmssd": float(np.sqrt(np.mean(np.diff(rr) ** 2)) / median),
            "rr_shortest": float(rr.min() / median),
            "rr_longest": float(rr.max() / median),
        }
    return found


def _beats(
    signal: Signal, filled: Signal, peaks: npt.NDArray, fs_hz: float
) -> tuple[float, float, Signal] | None:
    """Share of unusual beats, mean likeness, and the median beat at `_FINE_HZ`.

    A lead's beat with a gap in it is left out of both the likeness and the median; the median is
    NaN in a lead that has no other.
    """
    before, after = round(_BEFORE_S * fs_hz), round(_AFTER_S * fs_hz)
    slack = round(_SLACK_S * fs_hz)
    inside = (peaks >= before + slack) & (peaks + after + slack < signal.shape[1])
    peaks = peaks[inside]
    if len(peaks) > _MOST_BEATS:
        peaks = peaks[np.linspace(0, len(peaks) - 1, _MOST_BEATS).round().astype(int)]
    if len(peaks) < 2:
        return None
    peaks = _align(filled, peaks, round(0.06 * fs_hz), slack)
    peaks = peaks[(peaks >= before) & (peaks + after < signal.shape[1])]
    if len(peaks) < 2:
        return None
    cut = signal[:, peaks[:, None] + np.arange(-before, after)]  # (lead, beat, sample)
    cut = cut - np.median(cut[..., : before // 2], axis=-1, keepdims=True)
    whole = np.logical_and.reduce(np.isfinite(cut), axis=-1)  # (lead, beat)
    judged = np.flatnonzero(whole.any(0))
    if len(judged) < 2:
        return None
    cut, whole = cut[:, judged], whole[:, judged]
    template = _median_beat(cut, whole)
    like = np.array([
        row_correlation(cut[own, i].reshape(1, -1), template[own].reshape(-1))[0]
        for i, own in enumerate(whole.T)
    ])  # fmt: skip
    usual = like >= min(_LIKE, float(np.median(like)))
    median = _median_beat(cut, whole & usual)
    fine = np.arange(round((_BEFORE_S + _AFTER_S) * _FINE_HZ)) / _FINE_HZ
    coarse = np.arange(median.shape[1]) / fs_hz
    smooth = np.array([_cubic(coarse, lead, fine) for lead in median])
    return 1.0 - float(usual.mean()), float(like.mean()), smooth


def _median_beat(cut: Signal, among: npt.NDArray[np.bool_]) -> Signal:
    """(lead, sample) median of a lead's beats that are `among`; NaN where there are none."""
    rows = [
        np.median(beats[own], axis=0) if own.any() else np.full(beats.shape[1], np.nan)
        for beats, own in zip(cut, among, strict=True)
    ]
    return np.stack(rows)


def _align(signal: Signal, peaks: npt.NDArray, reach: int, slack: int) -> npt.NDArray:
    """Put the fastest moment of all leads in the middle, then all beats over their median."""
    speed = np.sum(np.diff(signal, axis=1, prepend=signal[:, :1]) ** 2, axis=0)
    speed = gaussian_filter1d(speed, max(reach / 3, 0.5))
    around = np.arange(-slack, slack + 1)
    peaks = peaks + around[speed[peaks[:, None] + around].argmax(1)]
    peaks = np.clip(peaks, reach + slack, signal.shape[1] - reach - slack - 1)
    offsets = np.arange(-reach, reach + 1)
    for _ in range(2):
        qrs = np.median(signal[:, peaks[:, None] + offsets], axis=1)
        qrs = qrs - qrs.mean(1, keepdims=True)
        places = peaks[:, None, None] + around[:, None] + offsets  # (beat, shift, sample)
        fit = np.einsum("lbso,lo->bs", signal[:, places], qrs)
        peaks = peaks + around[fit.argmax(1)]
        peaks = np.clip(peaks, reach + slack, signal.shape[1] - reach - slack - 1)
    return peaks


def _cubic(x: Signal, y: Signal, at: Signal) -> Signal:
    from scipy.interpolate import make_interp_spline

    if not np.isfinite(y).all():
        return np.full(len(at), np.nan)
    return np.asarray(make_interp_spline(x, y, k=3)(np.minimum(at, x[-1])))


def _bounds(beat: Signal) -> tuple[int, int]:
    """Onset and end of the QRS complex, samples of the median beat."""
    speed = np.sqrt(np.nansum(np.diff(beat, axis=1, prepend=beat[:, :1]) ** 2, axis=0))
    speed = uniform_filter1d(speed, 5)
    middle = round(_BEFORE_S * _FINE_HZ)
    reach = round(_LONGEST_QRS_S / 2 * _FINE_HZ)
    top = middle - reach // 2 + int(np.argmax(speed[middle - reach // 2 : middle + reach]))
    floor = np.median(speed[: middle - 2 * reach // 2]) if middle > reach else 0.0
    quiet = floor + _QUIET * max(speed[top] - floor, 0.0)
    calm = round(0.012 * _FINE_HZ)
    onset, end = top, top
    while onset > calm and (speed[onset - calm : onset] > quiet).any() and top - onset < reach:
        onset -= 1
    while (
        end + calm < len(speed)
        and (speed[end : end + calm] > quiet).any()
        and end - top < round(0.16 * _FINE_HZ)
    ):
        end += 1
    return onset, end


def _measure_beat(beat: Signal, rr_s: float) -> dict[str, float]:
    onset, end = _bounds(beat)

    def to(seconds: float) -> int:
        return round(seconds * _FINE_HZ)

    level = np.median(beat[:, max(0, onset - to(0.03)) : max(1, onset - to(0.005))], axis=1)
    beat = beat - level[:, None]
    found: dict[str, float] = {"qrs_s": (end - onset) / _FINE_HZ}
    qrs = beat[:, onset : end + 1]
    p_part = beat[:, max(0, onset - to(0.24)) : max(1, onset - to(0.03))]
    last = min(beat.shape[1], end + to(min(0.42, 0.6 * (rr_s if rr_s == rr_s else 0.8))))
    t_part = beat[:, min(end + to(0.08), beat.shape[1] - 2) : last]
    r, s = np.maximum(qrs.max(1), 0.0), np.minimum(qrs.min(1), 0.0)
    top = qrs.argmax(1)
    total = np.sqrt(np.nansum(t_part**2, axis=0))
    t_at = int(np.argmax(total)) if total.size else 0
    p_total = np.sqrt(np.nansum(p_part**2, axis=0))
    p_at = int(np.argmax(p_total)) if p_total.size else 0
    found["p_to_qrs_s"] = (p_part.shape[1] - p_at) / _FINE_HZ + 0.03
    found["qrs_to_t_s"] = (min(end + to(0.08), beat.shape[1] - 2) - onset + t_at) / _FINE_HZ
    found["qt_corrected"] = found["qrs_to_t_s"] / math.sqrt(rr_s) if rr_s == rr_s else math.nan
    found["p_size_mv"] = float(p_total.max(initial=0.0))
    for i, name in enumerate(STANDARD_LEADS):
        if not np.isfinite(beat[i]).all():
            found |= {f"{kind}_{name}": math.nan for kind in _OF_A_LEAD}
            continue
        before_r = qrs[i, : top[i] + 1]
        q = min(float(before_r.min(initial=0.0)), 0.0)
        after_r = qrs[i, top[i] :]
        found |= {
            f"r_{name}": float(r[i]),
            f"s_{name}": float(min(after_r.min(initial=0.0), 0.0)),
            f"q_{name}": q,
            f"q_width_{name}": float((before_r < 0.25 * q).sum() / _FINE_HZ) if q < 0 else 0.0,
            f"area_{name}": float(qrs[i].sum() / _FINE_HZ),
            f"peak_time_{name}": float(top[i] / _FINE_HZ),
            f"turns_{name}": _turns(qrs[i]),
            f"p_{name}": float(p_part[i, p_at]) if p_part.shape[1] else math.nan,
            f"p_low_{name}": float(p_part[i].min(initial=0.0)),
            f"t_{name}": float(t_part[i, t_at]) if t_part.shape[1] else math.nan,
            f"t_high_{name}": float(t_part[i].max(initial=-np.inf)) if t_part.shape[1] else 0.0,
            f"t_low_{name}": float(t_part[i].min(initial=np.inf)) if t_part.shape[1] else 0.0,
        }
        for ms in (0, 20, 40, 60, 80):
            at = min(end + to(ms / 1000), beat.shape[1] - 1)
            found[f"st{ms}_{name}"] = float(beat[i, at])
        found[f"st_slope_{name}"] = found[f"st80_{name}"] - found[f"st20_{name}"]
        found[f"range_{name}"] = float(r[i] - s[i])
    return found | _combined(found)


def _turns(qrs: Signal) -> float:
    """Changes of direction within the QRS complex, larger than a tenth of its range."""
    if not np.isfinite(qrs).all() or len(qrs) < 3:
        return math.nan
    least, turns, direction = 0.1 * np.ptp(qrs), 0, 0
    extreme = qrs[0]
    for value in qrs[1:]:
        if (direction >= 0 and value > extreme) or (direction <= 0 and value < extreme):
            if direction == 0 and abs(value - extreme) < least:
                continue
            direction = direction or (1 if value > extreme else -1)
            extreme = value
        elif direction != 0 and abs(value - extreme) > least:
            turns, direction, extreme = turns + 1, -direction, value
    return float(turns)


def _combined(found: dict[str, float]) -> dict[str, float]:
    def angle(kind: str) -> float:
        return math.degrees(math.atan2(found[f"{kind}_aVF"], found[f"{kind}_I"]))

    qrs, t = angle("area"), angle("t")
    turn = abs((qrs - t + 180) % 360 - 180) if qrs == qrs and t == t else math.nan
    largest = float(np.fmax(found["r_V5"], found["r_V6"]))  # of the two that are there
    deepest = float(np.fmin(found["s_V5"], found["s_V6"]))
    limb = [found[f"range_{name}"] for name in STANDARD_LEADS[:6]]
    chest = [found[f"range_{name}"] for name in STANDARD_LEADS[6:]]
    grows = [found[f"r_{name}"] for name in ("V1", "V2", "V3", "V4")]
    return {
        "axis_qrs": qrs,
        "axis_t": t,
        "axis_p": angle("p"),
        "qrs_t_angle": turn,
        "sokolow_lyon_mv": -found["s_V1"] + largest,
        "cornell_mv": found["r_aVL"] - found["s_V3"],
        "lewis_mv": found["r_I"] - found["s_I"] - found["r_III"] + found["s_III"],
        "right_mv": found["r_V1"] - deepest,
        "limb_mv": float(np.mean(limb)),
        "chest_mv": float(np.mean(chest)),
        "limb_largest_mv": float(np.max(limb)),
        "r_growth": float(np.polyfit(range(4), grows, 1)[0]) if np.isfinite(grows).all()
        else math.nan,
    }  # fmt: skip


def _empty() -> dict[str, float]:
    names = [
        "n_beats_a_minute", "rr_median_s", "rate_bpm", "rr_sd", "rr_rmssd", "rr_shortest",
        "rr_longest", "share_unusual", "beat_likeness", "qrs_s", "p_to_qrs_s", "qrs_to_t_s",
        "qt_corrected", "p_size_mv", "axis_qrs", "axis_t", "axis_p", "qrs_t_angle",
        "sokolow_lyon_mv", "cornell_mv", "lewis_mv", "right_mv", "limb_mv", "chest_mv",
        "limb_largest_mv", "r_growth",
    ]  # fmt: skip
    names += [f"{kind}_{lead}" for lead in STANDARD_LEADS for kind in _OF_A_LEAD]
    return dict.fromkeys(names, math.nan)
