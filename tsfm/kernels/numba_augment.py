"""One pass over a batch of segments that augments it; see `tsfm.training.signal_augmentations`.

What torch does in a pass over memory for each augmentation happens here while a segment lies in the
cache. All that is drawn comes from the caller but the noise, whose bits are a hash of a counter
(splitmix64: Steele, Lea and Flood, OOPSLA 2014) and whose values are the normal quantiles of 16 of
them: 65,536 different ones, the largest 4.3 deviations. float32 on the CPU, one thread, no
gradients; the same input gives the same bits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

_JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLAGS = {"contract", "arcp", "nsz", "reassoc"}
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(0xFFFF)


@numba.njit(inline="always")
@no_type_check
def _hash(z):
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _add_noise(out, seed, deviation, quantiles):
    n = len(out)
    n_words = n // 4
    for j in range(n_words):
        z = _hash(seed + np.uint64(j) * _STEP)
        out[4 * j] += deviation * quantiles[z & _HALF]
        out[4 * j + 1] += deviation * quantiles[(z >> np.uint64(16)) & _HALF]
        out[4 * j + 2] += deviation * quantiles[(z >> np.uint64(32)) & _HALF]
        out[4 * j + 3] += deviation * quantiles[z >> np.uint64(48)]
    z = _hash(seed + np.uint64(n_words) * _STEP)
    for i in range(4 * n_words, n):
        out[i] += deviation * quantiles[z & _HALF]
        z = z >> np.uint64(16)


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _find_places(times, before, weight):
    """For each sample the last warped time that is not behind it, and how far on to the next.

    Counted, so that nothing is compared and no branch is guessed; and in loops of their own, of
    which the one that divides becomes vectors.
    """
    last = len(times) - 1
    before[:] = 0
    for k in range(1, last):
        before[np.int32(np.ceil(times[k]))] += 1
    k = np.int32(0)
    for t in range(last + 1):
        k += before[t]
        before[t] = k
    for t in range(last + 1):
        k = before[t]
        share = (np.float32(t) - times[k]) / (times[k + 1] - times[k])
        weight[t] = min(max(share, np.float32(0.0)), np.float32(1.0))


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _read(x, before, weight, out):
    for t in range(len(out)):
        k = before[t]
        out[t] = x[k] + weight[t] * (x[k + 1] - x[k])


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _scale(x, gain, out):
    for t in range(len(x)):
        out[t] = x[t] * gain[t]


@numba.njit(**_JIT)
@no_type_check
def _augment(x, order, cut, scaled, gains, warped, times, noisy, deviations, seeds, quantiles, out):
    n, n_channels, n_samples = x.shape
    n_curves = times.shape[1]
    moved = np.empty(n_samples, np.float32)
    weight = np.empty(n_samples, np.float32)
    before = np.empty(n_samples, np.int32)
    for i in range(n):
        gain, warp, noise = scaled[i], warped[i], noisy[i]
        start, stop = cut[i, 0], cut[i, 1]
        for c in range(n_channels):
            into = moved if warp >= 0 else out[i, c]
            if gain >= 0:
                _scale(x[i, order[i, c]], gains[gain], into)
            else:
                into[:] = x[i, order[i, c]]
            into[start:stop] = np.float32(0.0)
            if warp >= 0:
                if c < n_curves:
                    _find_places(times[warp, c], before, weight)
                _read(into, before, weight, out[i, c])
        if noise >= 0:
            _add_noise(out[i].reshape(-1), seeds[noise], deviations[noise], quantiles)


def augment_rows(
    segments: Tensor, order: Tensor, cut: Tensor, scaled: Tensor, gains: Tensor, warped: Tensor,
    times: Tensor, noisy: Tensor, deviations: Tensor, seeds: Tensor,
) -> Tensor:  # fmt: skip
    """Augmented copy of (segment, channel, time) samples.

    Args:
        segments: float32 samples on the CPU.
        order: (segment, channel) which channel comes there.
        cut: (segment, 2) first sample of the block of zeros and the first behind it.
        scaled: Segments that are multiplied, ascending.
        gains: (len(scaled), time) by what.
        warped: Segments whose time is warped, ascending.
        times: (len(warped), 1 or channel, time) strictly increasing warped times.
        noisy: Segments with noise, ascending.
        deviations: (len(noisy),) of the noise.
        seeds: (len(noisy),) int64, of the noise.
    """
    x = segments.detach().contiguous()
    n = len(x)
    out = torch.empty_like(x)
    _augment(
        x.numpy(), order.numpy(), cut.numpy(), _places(scaled, n), gains.numpy(),
        _places(warped, n), times.contiguous().numpy(), _places(noisy, n), deviations.numpy(),
        seeds.numpy().view(np.uint64), _quantiles(), out.numpy(),
    )  # fmt: skip
    return out


def _places(rows: Tensor, n: int) -> Any:
    """(n,) number of each row among `rows`, -1 for the others."""
    found = np.full(n, -1, np.int64)
    found[rows.numpy()] = np.arange(len(rows))
    return found


@lru_cache(maxsize=1)
def _quantiles() -> Any:
    values = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
    return (values / values.std()).astype(np.float32)
