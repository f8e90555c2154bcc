"""Filters for biosignals: zero-phase on whole runs, or causal and streaming.

Every filter works along the last axis, on each run between gaps (NaN) by itself: a gap stays a
gap, nothing leaks across it, and two runs filtered apart equal the record that holds both. A run
of any length is filtered, one sample included. Integers become float64, never the other way
round; float32 stays float32 and is computed in float64.

The filters are Butterworth sections and a second-order notch from scipy. Zero-phase means
forwards and backwards: no delay, but every output knows the future, so a forecast or a stream
needs `zero_phase=False` or `CausalFilter`. A run is mirrored at its ends, over and over, after its
straight line was taken away: point reflection, scipy's choice, lets a QRS complex at an end tilt
the baseline for seconds. Filtering such a signal both ways for ever is one product with the
squared gain in its cosine transform, which is exact for runs of any length and needs no padding.

`clean_ecg` keeps what cardiologists read: an ST segment keeps its level (Kligfield et al.,
Circulation 2007, ask for 0.05 Hz, or more where the phase is zero, and 150 Hz). `subtract_wander`
takes away the baseline through the PR segments and needs the R peaks. Nothing here guesses the
mains frequency, and nothing judges quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, signal
from scipy.interpolate import CubicSpline

from tsfm.errors import InputError
from tsfm.signals.resampling import resample
from tsfm.signals.shards import find_runs

__all__ = [
    "CausalFilter",
    "as_samples",
    "band_pass",
    "clean_ecg",
    "design",
    "high_pass",
    "low_pass",
    "notch",
    "resample",
    "subtract_wander",
]

Signal = npt.NDArray[np.floating[Any]]
Sections = npt.NDArray[np.float64]

_ECG_HZ = (0.05, 150.0)
_NYQUIST_SHARE = 0.95  # of the Nyquist frequency: a cut above it is no filter
_LONG = 1 << 20  # samples: longer runs are filtered in time, to save memory
_DECAY = 1e-3  # their padding lasts until an impulse's echo has fallen to this
_PR_S = (-0.10, -0.06)  # of the R peak: the isoelectric stretch between P wave and QRS


def high_pass(
    x: npt.ArrayLike, *, fs_hz: float, cut_hz: float, order: int = 2, zero_phase: bool = True
) -> Signal:
    """Take away what is slower than `cut_hz`.

    Args:
        x: (..., n_samples) values, NaN in gaps.
        fs_hz: Sampling rate.
        cut_hz: Frequency halved in power by one pass.
        order: Of one pass.
        zero_phase: Forwards and backwards (no delay), or forwards only (causal).

    Returns:
        Filtered values of the same shape, NaN in gaps.

    Raises:
        InputError: `bad_filter`: a cut that is not between 0 and half the sampling rate.
    """
    return _filter(x, design("high_pass", fs_hz=fs_hz, cut_hz=cut_hz, order=order), zero_phase)


def low_pass(
    x: npt.ArrayLike, *, fs_hz: float, cut_hz: float, order: int = 2, zero_phase: bool = True
) -> Signal:
    """Take away what is faster than `cut_hz`; see `high_pass`."""
    return _filter(x, design("low_pass", fs_hz=fs_hz, cut_hz=cut_hz, order=order), zero_phase)


def band_pass(
    x: npt.ArrayLike, *, fs_hz: float, low_hz: float, high_hz: float, order: int = 2,
    zero_phase: bool = True,
) -> Signal:  # fmt: skip
    """Keep what lies between `low_hz` and `high_hz`; see `high_pass`."""
    sos = design("band_pass", fs_hz=fs_hz, cut_hz=(low_hz, high_hz), order=order)
    return _filter(x, sos, zero_phase)


def notch(
    x: npt.ArrayLike, *, fs_hz: float, mains_hz: float, quality: float = 30,
    zero_phase: bool = True,
) -> Signal:  # fmt: skip
    """Take away the hum of the mains, `mains_hz` / `quality` wide; see `high_pass`."""
    return _filter(x, design("notch", fs_hz=fs_hz, cut_hz=mains_hz, quality=quality), zero_phase)


def clean_ecg(x: npt.ArrayLike, *, fs_hz: float, mains_hz: float | None = None) -> Signal:
    """Clean an electrocardiogram without bending its ST segments.

    High-pass at 0.05 Hz and low-pass at 150 Hz, both of zero phase; no low-pass where the rate is
    too low for one. An ST plateau of 0.2 mV and 0.2 s keeps its level within 5 %. Wander faster
    than 0.05 Hz stays: `subtract_wander` takes it away without touching the ST level.

    Args:
        x: (..., n_samples) values, NaN in gaps.
        fs_hz: Sampling rate.
        mains_hz: 50 or 60 where hum shall be taken away; a rate that can't hold it needs no notch.

    Returns:
        Values of the same shape and unit.
    """
    low_hz, high_hz = _ECG_HZ
    limit_hz = _NYQUIST_SHARE * fs_hz / 2
    cleaned = high_pass(x, fs_hz=fs_hz, cut_hz=low_hz)
    if high_hz < limit_hz:
        cleaned = low_pass(cleaned, fs_hz=fs_hz, cut_hz=high_hz)
    if mains_hz is not None and mains_hz < limit_hz:
        cleaned = notch(cleaned, fs_hz=fs_hz, mains_hz=mains_hz)
    return cleaned


def subtract_wander(
    x: npt.ArrayLike, *, fs_hz: float, r_peaks: npt.NDArray[np.int64]
) -> npt.NDArray[np.floating[Any]]:
    """Take away the baseline, a cubic spline through the PR segments.

    The level of a PR segment is its median, so the ST level against it is kept. Outside the first
    and last beat of a run the baseline is held; a run without beats loses its median.

    Args:
        x: (..., n_samples) values, NaN in gaps.
        fs_hz: Sampling rate.
        r_peaks: Samples of the R peaks.

    Returns:
        Values of the same shape and unit.

    Raises:
        InputError: `bad_beats`: R peaks that are no samples.
    """
    reach = np.arange(math.floor(_PR_S[0] * fs_hz), math.ceil(_PR_S[1] * fs_hz) + 1)
    peaks = np.unique(as_samples(r_peaks))

    def straighten(run: Signal, start: int) -> Signal:
        local = peaks - start
        local = local[(local + reach[0] >= 0) & (local < run.shape[-1])]
        if len(local) == 0:
            return run - np.median(run, axis=-1, keepdims=True)
        knots = local + (reach[0] + reach[-1]) / 2
        levels = np.median(run[..., local[:, None] + reach], axis=-1)
        at = np.clip(np.arange(run.shape[-1]), knots[0], knots[-1])
        if len(local) == 1:
            return run - levels
        return run - CubicSpline(knots, levels, axis=-1, bc_type="natural")(at)

    return _each_run(x, straighten)


def as_samples(r_peaks: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """R peaks as whole numbers; seconds are refused and not cut off to samples.

    Raises:
        InputError: `bad_beats`.
    """
    given = np.asarray(r_peaks)
    whole = given.dtype.kind in "iu" or not given.size
    if given.dtype.kind == "f":
        whole = bool((np.isfinite(given) & (given == np.rint(given))).all())
    if not whole:
        raise InputError(
            "R peaks that are no numbers of samples", code="bad_beats", place="r_peaks",
            remedy="Give whole samples from the record's start; round(seconds * fs_hz).",
        )  # fmt: skip
    return given.astype(np.int64)


def design(
    kind: str, *, fs_hz: float, cut_hz: float | tuple[float, float], order: int = 2,
    quality: float = 30,
) -> Sections:  # fmt: skip
    """Second-order sections of a filter, for `CausalFilter`.

    Args:
        kind: `high_pass`, `low_pass`, `band_pass` (two cuts) or `notch`.
        fs_hz: Sampling rate.
        cut_hz: Cut, cuts, or the frequency of the notch.
        order: Of a Butterworth filter.
        quality: Of a notch: its frequency over its width.

    Returns:
        (n_sections, 6) coefficients as scipy has them.

    Raises:
        InputError: `bad_filter`.
    """
    cuts = np.atleast_1d(np.asarray(cut_hz, dtype=np.float64))
    n_cuts = 2 if kind == "band_pass" else 1
    fits = (
        kind in ("high_pass", "low_pass", "band_pass", "notch")
        and len(cuts) == n_cuts
        and 0 < fs_hz < math.inf
        and 0 < cuts[0] <= cuts[-1] < fs_hz / 2
        and (n_cuts == 1 or cuts[0] < cuts[1])
        and order >= 1
        and quality > 0
    )
    if not fits:
        raise InputError(
            f"no {kind} filter of {cut_hz} Hz at {fs_hz:g} samples a second",
            code="bad_filter",
            place="cut_hz",
            remedy="Cuts rise, above 0 and below half the sampling rate.",
        )
    if kind == "notch":
        return signal.tf2sos(*signal.iirnotch(cuts[0], quality, fs=fs_hz))
    wanted = cuts if n_cuts == 2 else cuts[0]
    return np.asarray(signal.butter(order, wanted, kind.replace("_", ""), fs=fs_hz, output="sos"))


class CausalFilter:
    """A causal filter that is fed piece by piece; pieces of any size give what the whole gives.

    Each run starts as if its first sample had stood there for ever, and a gap starts a new run in
    the leads that have it. The state is two numbers a section and lead, so a stream needs no more
    memory after a week than after a second.

    Args:
        sos: (n_sections, 6) coefficients, such as those of `design`.
        n_leads: Leads of every piece.
    """

    def __init__(self, sos: npt.ArrayLike, n_leads: int = 1) -> None:
        """Start before the first sample."""
        self.sos: Sections = np.ascontiguousarray(sos, dtype=np.float64)
        self.n_leads = n_leads
        self._rest = signal.sosfilt_zi(self.sos)
        self.reset()

    def reset(self) -> None:
        """Forget everything, as at a gap in all leads."""
        self.state = np.zeros((len(self.sos), self.n_leads, 2))
        self.running = np.zeros(self.n_leads, dtype=np.bool_)

    def push(self, chunk: npt.ArrayLike) -> Signal:
        """Filter the next piece.

        Args:
            chunk: (n_leads, n_samples) values, NaN in gaps; (n_samples,) where there is one lead.

        Returns:
            Filtered values of the same shape, NaN in gaps.

        Raises:
            InputError: `bad_signal_shape`: a piece with other leads.
        """
        values, dtype = _as_float64(chunk)
        rows = values[None] if values.ndim == 1 else values
        if rows.ndim != 2 or len(rows) != self.n_leads:
            raise InputError(
                f"a piece of shape {values.shape} does not have {self.n_leads} leads",
                code="bad_signal_shape",
                place="chunk",
                remedy="Give (n_leads, n_samples) values, the same leads every time.",
            )
        there = np.isfinite(rows)
        filtered = np.full(rows.shape, np.nan)
        if there.all() and rows.shape[1]:
            self._start(rows[:, 0], np.flatnonzero(~self.running))
            filtered, self.state = signal.sosfilt(self.sos, rows, axis=-1, zi=self.state)
            self.running[:] = True
        elif rows.shape[1]:
            for lead in range(self.n_leads):
                self._push_lead(lead, rows[lead], there[lead], filtered[lead])
        return filtered.reshape(values.shape).astype(dtype, copy=False)

    def _push_lead(
        self, lead: int, row: Signal, there: npt.NDArray[np.bool_], filtered: Signal
    ) -> None:
        for start, length in zip(*find_runs(there), strict=True):
            if start > 0 or not self.running[lead]:
                self.running[lead] = False
                self._start(row[start : start + 1], np.array([lead]))
            part = slice(start, start + length)
            zi = self.state[:, lead]
            filtered[part], self.state[:, lead] = signal.sosfilt(self.sos, row[part], zi=zi)
            self.running[lead] = True
        self.running[lead] = bool(there[-1])

    def _start(self, first: Signal, leads: npt.NDArray[np.intp]) -> None:
        values = first if len(first) == len(leads) else first[leads]
        self.state[:, leads] = self._rest[:, None, :] * values[None, :, None]


def _filter(x: npt.ArrayLike, sos: Sections, zero_phase: bool) -> Signal:
    rest = signal.sosfilt_zi(sos)

    def run_causal(run: Signal, _: int) -> Signal:
        zi = rest.reshape(len(sos), *(1,) * (run.ndim - 1), 2) * run[None, ..., :1]
        return signal.sosfilt(sos, run, axis=-1, zi=zi)[0]

    def run_both_ways(run: Signal, _: int) -> Signal:
        n = run.shape[-1]
        line = _straight_line(run)
        kept = _power_gain(sos.tobytes(), 1)[0] * line
        if n <= _LONG:
            spectrum = np.asarray(fft.dct(run - line, axis=-1))
            return kept + np.asarray(fft.idct(_power_gain(sos.tobytes(), n) * spectrum, axis=-1))
        n_pad = min(_echo(sos), n)
        around = [(0, 0)] * (run.ndim - 1) + [(n_pad, n_pad)]
        padded = np.pad(run - line, around, mode="symmetric")
        filtered = signal.sosfiltfilt(sos, padded, axis=-1, padtype="even", padlen=0)
        return kept + filtered[..., n_pad:-n_pad]

    return _each_run(x, run_both_ways if zero_phase else run_causal)


@lru_cache(maxsize=16)
def _power_gain(sos_bytes: bytes, n: int) -> npt.NDArray[np.float64]:
    """(n,) squared gain at the frequencies of a cosine transform of n samples."""
    sos = np.frombuffer(sos_bytes).reshape(-1, 6)
    _, response = signal.sosfreqz(sos, worN=np.pi * np.arange(n) / n)
    return np.abs(response) ** 2


def _echo(sos: Sections) -> int:
    """Samples after which an impulse has all but died away."""
    slowest = max(float(np.abs(np.roots(section[3:])).max(initial=0.1)) for section in sos)
    return math.ceil(math.log(_DECAY) / math.log(min(max(slowest, 0.1), 1 - 1e-9)))


def _straight_line(run: Signal) -> Signal:
    """Least-squares line along the last axis."""
    n = run.shape[-1]
    mean = run.mean(axis=-1, keepdims=True)
    if n < 3:
        return np.broadcast_to(mean, run.shape)
    time = np.arange(n) - (n - 1) / 2
    slope = (run @ time)[..., None] / (time @ time)
    return mean + slope * time


def _each_run(x: npt.ArrayLike, change: Callable[[Signal, int], Signal]) -> Signal:
    """Apply `change(run, start)` to every run between gaps; leads with the same gaps together."""
    values, dtype = _as_float64(x)
    there = np.isfinite(values)
    if not values.size:
        return values.astype(dtype, copy=False)
    if there.all():
        return change(values, 0).astype(dtype, copy=False)
    changed = np.full(values.shape, np.nan)
    rows = values.reshape(-1, values.shape[-1])
    masks, target = there.reshape(rows.shape), changed.reshape(rows.shape)
    if len(rows) > 1 and (masks == masks[0]).all():
        groups: list[Any] = [slice(None)]
    else:
        groups = list(range(len(rows)))
    for group in groups:
        mask = masks[0] if isinstance(group, slice) else masks[group]
        for start, length in zip(*find_runs(mask), strict=True):
            part = slice(start, start + length)
            target[group, part] = change(rows[group, part], int(start))
    return changed.astype(dtype, copy=False)


def _as_float64(x: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], Any]:
    """Values in float64, and the type in which to hand back."""
    values = np.asarray(x)
    dtype = np.float32 if values.dtype in (np.float32, np.float16) else np.float64
    if values.ndim == 0:
        raise InputError(
            "a single number is no signal",
            code="bad_signal_shape",
            place="x",
            remedy="Give (..., n_samples) values.",
        )
    return values.astype(np.float64), dtype
