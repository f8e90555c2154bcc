"""Signals of any sampling rate on one grid of time, so that one set of weights reads all of them.

Grid point k stands for the moment k / `grid_hz` seconds after the first sample, whatever the rate:

    y_k = sum_j x_j h(t_k - t_j) / sum_j h(t_k - t_j)        h = sinc(2 f t) * Kaiser window

The kernel is defined in seconds. Its cut f lies below half the grid's rate and half the signal's,
so nothing folds, and a record at 100 Hz and its copy at 500 Hz give the same points but for what
lies above the cut. For a rational ratio of rates the weights repeat with a period of few points,
and the whole is one strided convolution. A missing sample carries no weight: what is known around
it answers, and a point with little around it is told as missing by `known`.

A stream gives the points whose kernel has been heard in full; `finish` gives the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tsfm.errors import InputError

HALF_WIDTH_S = 0.06
_CUT = 0.4  # of the lower rate: 40 Hz on a grid of 100 points a second
_KAISER = 5.0
_LEAST_KNOWN = 0.6  # share of a point's kernel, near its middle, that must have been measured
MIN_HZ, MAX_HZ = 50.0, 4000.0


@dataclass(frozen=True, eq=False)
class _Plan:
    """Weights of one rate: `n_phases` points use `stride` samples, then the pattern repeats."""

    stride: int
    n_phases: int
    reach: int
    weights: Tensor  # (n_phases, 1, taps): from `reach` samples before the first point on
    near: Tensor  # the same for how much of the kernel's middle was measured


def grid_length(n_samples: int, fs_hz: float | int, grid_hz: float | int) -> int:
    """Points of a record: those not after its last sample."""
    ratio = rate_ratio(fs_hz, grid_hz)
    return 0 if n_samples == 0 else math.floor((n_samples - 1) / ratio) + 1


def rate_ratio(fs_hz: float | int, grid_hz: float | int) -> Fraction:
    """Samples a grid point, as a fraction of small numbers.

    Raises:
        InputError: `bad_sampling_rate`.
    """
    if not MIN_HZ <= fs_hz <= MAX_HZ:
        raise InputError(
            f"a sampling rate of {fs_hz:g} Hz", code="bad_sampling_rate", place="fs_hz",
            remedy=f"Signals of {MIN_HZ:g} to {MAX_HZ:g} Hz can be read.",
        )  # fmt: skip
    return (Fraction(fs_hz) / Fraction(grid_hz)).limit_denominator(512)


def to_grid(
    signal: Float[Tensor, "batch lead sample"], *, fs_hz: float | int, grid_hz: float | int
) -> tuple[Float[Tensor, "batch lead point"], Bool[Tensor, "batch lead point"]]:
    """Bring whole records onto the grid.

    Args:
        signal: Values, NaN where nothing was measured.
        fs_hz: Sampling rate.
        grid_hz: Points a second.

    Returns:
        Values, 0 where unknown, and which points are known.

    Raises:
        InputError: `bad_sampling_rate`.
    """
    grid = GridStream(fs_hz=fs_hz, grid_hz=grid_hz)
    parts = [grid.push(signal), grid.finish()]
    return torch.cat([p[0] for p in parts], -1), torch.cat([p[1] for p in parts], -1)


class GridStream:
    """Brings chunks of records onto the grid; the points are those of the whole.

    Args:
        fs_hz: Sampling rate.
        grid_hz: Points a second.
    """

    def __init__(self, *, fs_hz: float | int, grid_hz: float | int) -> None:
        """Work out the weights of this rate."""
        ratio = rate_ratio(fs_hz, grid_hz)
        self._ratio = ratio
        self._plan = _plan(ratio, float(fs_hz), float(grid_hz))
        self._held: Tensor | None = None  # samples from `reach` before the next period's first
        self._n_samples = 0
        self._n_points = 0

    def push(
        self, chunk: Float[Tensor, "batch lead sample"]
    ) -> tuple[Float[Tensor, "batch lead point"], Bool[Tensor, "batch lead point"]]:
        """Take samples; give the points that they complete."""
        if self._held is None:
            if chunk.shape[-1] == 0:
                return chunk, chunk.bool()
            # A record does not begin with a jump from zero: its first sample stood before it.
            self._held = chunk[..., :1].expand(-1, -1, self._plan.reach)
        self._n_samples += chunk.shape[-1]
        self._held = torch.cat([self._held, chunk], -1)
        return self._periods()

    def finish(
        self,
    ) -> tuple[Float[Tensor, "batch lead point"], Bool[Tensor, "batch lead point"]]:
        """Give the points that were still waiting for samples after them."""
        if self._held is None:
            raise InputError(
                "a record without samples", code="empty_signal", place="GridStream",
                remedy="Push samples first.",
            )  # fmt: skip
        left = math.floor(Fraction(self._n_samples - 1) / self._ratio) + 1 - self._n_points
        taps = self._plan.weights.shape[-1]
        room = taps + self._plan.stride * (max(left, 0) // self._plan.n_phases + 1)
        self._held = torch.cat([self._held, self._held[..., -1:].expand(-1, -1, room)], -1)
        values, known = self._periods()
        return values[..., :left], known[..., :left]

    def _periods(self) -> tuple[Tensor, Tensor]:
        assert self._held is not None
        plan, held = self._plan, self._held
        taps = plan.weights.shape[-1]
        n = max(0, (held.shape[-1] - taps) // plan.stride + 1)
        if n == 0:
            empty = held[..., :0]
            return empty, empty.bool()
        used = held[..., : (n - 1) * plan.stride + taps]
        self._held = held[..., n * plan.stride :]
        self._n_points += n * plan.n_phases
        return _apply(plan, used)


def _apply(plan: _Plan, samples: Tensor) -> tuple[Tensor, Tensor]:
    batch, leads, _ = samples.shape
    rows = samples.reshape(batch * leads, 1, -1)
    weights = plan.weights.to(samples)
    there = torch.isfinite(rows)
    if bool(there.all()):
        y = F.conv1d(rows, weights, stride=plan.stride)
        known = torch.ones_like(y, dtype=torch.bool)
    else:
        near = F.conv1d(there.to(rows.dtype), plan.near.to(samples), stride=plan.stride)
        known = near >= _LEAST_KNOWN
        mass = F.conv1d(there.to(rows.dtype), weights, stride=plan.stride)
        y = F.conv1d(torch.where(there, rows, 0.0), weights, stride=plan.stride)
        y = torch.where(known, y / torch.where(known, mass, 1.0), 0.0)
    y, known = (x.transpose(1, 2).reshape(batch, leads, -1) for x in (y, known))
    return y, known


@lru_cache(maxsize=32)
def _plan(ratio: Fraction, fs_hz: float, grid_hz: float) -> _Plan:
    stride, n_phases = ratio.numerator, ratio.denominator
    reach = math.ceil(HALF_WIDTH_S * fs_hz)
    last = math.floor(Fraction(n_phases - 1) * ratio)
    samples = torch.arange(-reach, last + reach + 2, dtype=torch.float64)
    points = torch.tensor([float(k * ratio) for k in range(n_phases)], dtype=torch.float64)
    seconds = (points.unsqueeze(1) - samples) / fs_hz
    cut_hz = _CUT * min(fs_hz, grid_hz)
    inside = (1 - (seconds / HALF_WIDTH_S) ** 2).clamp(min=0)
    window = torch.where(inside > 0, torch.special.i0(_KAISER * inside.sqrt()), 0.0)
    weights = torch.sinc(2 * cut_hz * seconds) * window
    near = (seconds.abs() <= 0.5 / cut_hz).double()
    weights, near = (w / w.sum(-1, keepdim=True) for w in (weights, near))
    return _Plan(stride, n_phases, reach, weights.float().unsqueeze(1), near.float().unsqueeze(1))
