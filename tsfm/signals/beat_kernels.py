"""Loops of the beat detector, compiled; see `tsfm.signals.beats` for what they are for."""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.float64]
Samples = npt.NDArray[np.int64]


def band_pass_thinned(lead: Signal, sos: Signal, step: int) -> Signal:
    """Means of every `step` samples, filtered forwards and backwards.

    Args:
        lead: (n,) values without gaps.
        sos: Second-order sections, all of zero gain at rest, as of a band-pass.
        step: Samples a point; what is left at the end is left out.

    Returns:
        (n // step,) points.
    """
    n = len(lead) // step
    points = np.empty(n)
    _thin(lead, step, points)
    _filter_both_ways(points, np.ascontiguousarray(sos))
    return points


@numba.njit(cache=True, nogil=True)
@no_type_check
def _thin(lead, step, points):
    level = lead[0]
    for i in range(len(points)):
        total = 0.0
        for j in range(i * step, (i + 1) * step):
            total += lead[j] - level
        points[i] = total / step


@numba.njit(cache=True, nogil=True)
@no_type_check
def _filter_both_ways(x, sos):
    """Direct form II transposed; at rest on the first value, which a band-pass answers with 0."""
    n = len(x)
    for way in range(2):
        first = x[0] if way == 0 else x[n - 1]
        for s in range(sos.shape[0]):
            b0, b1, b2 = sos[s, 0], sos[s, 1], sos[s, 2]
            a1, a2 = sos[s, 4], sos[s, 5]
            gain = (b0 + b1 + b2) / (1.0 + a1 + a2)
            out = gain * first
            w2 = b2 * first - a2 * out
            w1 = b1 * first - a1 * out + w2
            first = out
            for k in range(n):
                i = k if way == 0 else n - 1 - k
                value = x[i]
                y = b0 * value + w1
                w1 = b1 * value - a1 * y + w2
                w2 = b2 * value - a2 * y
                x[i] = y


@numba.njit(cache=True, nogil=True)
@no_type_check
def drop_weak_neighbours(at, envelope, close, share):
    """Points without those that have a neighbour closer than `close`, much stronger than they."""
    keep = np.ones(len(at), np.bool_)
    for i in range(len(at)):
        own = envelope[at[i]]
        if i > 0 and at[i] - at[i - 1] < close and own < share * envelope[at[i - 1]]:
            keep[i] = False
        if i + 1 < len(at) and at[i + 1] - at[i] < close and own < share * envelope[at[i + 1]]:
            keep[i] = False
    return at[keep]


def search_back(
    beats: Samples, candidates: Samples, envelope: Signal, close: int, left_out: float
) -> Samples:
    """Beats, and the strongest candidates where an interval is `left_out` times the usual one.

    Args:
        beats: Points of beats so far, in order.
        candidates: Points that may be beats.
        envelope: Strength of every point.
        close: Least distance of an added beat from any other.
        left_out: In multiples of the median of the intervals around.
    """
    if len(beats) < 4:
        return beats
    rr = np.diff(beats)
    padded = np.pad(rr.astype(np.float64), 8, mode="constant", constant_values=np.nan)
    usual = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 17), axis=1)
    added: list[int] = []
    for i in np.flatnonzero(rr > left_out * usual):
        least = max(close, 0.36 * usual[i])
        low, high = np.searchsorted(candidates, [beats[i] + least, beats[i + 1] - least])
        inside = candidates[low:high]
        taken: list[int] = []
        for point in inside[np.argsort(-envelope[inside], kind="stable")]:
            if all(abs(point - other) > least for other in taken):
                taken.append(int(point))
        added += taken
    return np.sort(np.concatenate([beats, np.array(added, np.int64)]))


@numba.njit(cache=True, nogil=True)
@no_type_check
def drop_t_waves(beats, speed, close, share):
    """Beats without those soon after another and much slower; `speed` is that of each beat."""
    keep = np.ones(len(beats), np.bool_)
    last = 0
    for i in range(1, len(beats)):
        if beats[i] - beats[last] < close and speed[i] < share * speed[last]:
            keep[i] = False
        else:
            last = i
    return beats[keep]


def place(
    lead: Signal, peaks: Samples, *, reach: int, baseline: int, smooth: int, against: float
) -> Samples:
    """Put each beat on the largest deflection near it.

    Args:
        lead: (n,) values, NaN in gaps.
        peaks: Rough samples of the beats.
        reach: How far the R peak may be.
        baseline: Half of the stretch whose mean is the baseline.
        smooth: Samples that are averaged.
        against: How much larger a deflection must be than the one in the usual direction, which is
            that of most beats around, to be taken in its place.

    Returns:
        Samples of the R peaks, each once, in order.
    """
    up_at, up, down_at, down = _deflections(lead, peaks, reach, baseline, smooth)
    if not len(peaks):
        return peaks
    half = 10
    sides = np.pad(np.log(np.maximum(up, 1e-12) / np.maximum(down, 1e-12)), half, mode="edge")
    usual_up = np.median(np.lib.stride_tricks.sliding_window_view(sides, 2 * half + 1), 1) >= 0
    take_up = np.where(usual_up, down <= against * up, up > against * down)
    return np.unique(np.where(take_up, up_at, down_at))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _deflections(lead, peaks, reach, baseline, smooth):
    n = len(lead)
    m = len(peaks)
    up_at = np.empty(m, np.int64)
    down_at = np.empty(m, np.int64)
    up = np.empty(m)
    down = np.empty(m)
    for k in range(m):
        middle = peaks[k]
        total = 0.0
        count = 0
        for i in range(max(0, middle - baseline), min(n, middle + baseline + 1)):
            if np.isfinite(lead[i]):
                total += lead[i]
                count += 1
        level = total / max(count, 1)
        up[k] = -np.inf
        down[k] = -np.inf
        up_at[k] = middle
        down_at[k] = middle
        for i in range(max(0, middle - reach), min(n, middle + reach + 1)):
            if not np.isfinite(lead[i]):
                continue
            # Triangular weights: two boxes of `smooth` samples in one.
            mean = 0.0
            weight = 0.0
            for j in range(max(0, i - smooth + 1), min(n, i + smooth)):
                if np.isfinite(lead[j]):
                    w = smooth - abs(j - i)
                    mean += w * lead[j]
                    weight += w
            value = mean / weight - level
            if value > up[k]:
                up[k] = value
                up_at[k] = i
            if -value > down[k]:
                down[k] = -value
                down_at[k] = i
    return up_at, up, down_at, down
