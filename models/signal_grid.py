"""Signals of any sampling rate on one grid of time, so that one set of weights reads all of them.

Grid point k stands for the moment k / `grid_hz` seconds after the first sample, whatever the rate:

    y_k = sum_j x_j h(t_k - t_j) / sum_j h(t_k - t_j)        h = sinc(2 f t) * Kaiser window

The kernel is defined in seconds. Its cut f lies below half the grid's rate and half the signal's,
so nothing folds, and a record at 100 Hz and its copy at 500 Hz give the same points but for what
lies above the cut. Where the ratio of rates is one of small numbers the weights repeat with a
period of few points, and the whole is one strided convolution; at other rates each point has its
own. A missing sample carries no weight: what is known around
it answers, and a point with little around it is told as missing by `known`.

A stream gives the points whose kernel has been heard in full; `finish` gives the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, SupportsFloat

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from tsfm.errors import InputError

HALF_WIDTH_S = 0.06
_CUT = 0.4  # of the lower rate: 40 Hz on a grid of 100 points a second
_KAISER = 5.0
_LEAST_KNOWN = 0.6  # share of a point's kernel, near its middle, that must have been measured
_FINEST = 100_000  # denominator of a ratio of rates: a day drifts by less than a sample
_LONGEST_PERIOD = 128  # points; beyond it a table of weights is larger than what it saves
_BLOCK = 4096  # points whose own weights are worked out together, at most
_MOST_COPIED = 2**24  # samples that are copied for them
_ROWS_AT_ONCE = 1024
MIN_HZ, MAX_HZ = 50.0, 4000.0


@dataclass(frozen=True, eq=False)
class _Plan:
    """Weights of one rate: `n_phases` points use `stride` samples, then the pattern repeats."""

    stride: int
    n_phases: int
    weights: Tensor  # (n_phases, 1, taps): from the kernel's reach before the first point on
    near: Tensor  # the same for how much of the kernel's middle was measured


def to_tensor(signal: NDArray[Any] | Tensor) -> Tensor:
    """Samples as float32, from an array of any byte order and layout or from a tensor.

    What a masked array masks was not measured: NaN.

    Raises:
        InputError: `bad_signal`: they are no numbers.
    """
    if isinstance(signal, Tensor):
        return signal.to(torch.float32)
    try:
        if np.ma.isMaskedArray(signal):
            signal = np.ma.filled(signal.astype(np.float32), np.nan)
        return torch.from_numpy(np.ascontiguousarray(signal, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise InputError(
            "samples that are no numbers", code="bad_signal", place="signal",
            remedy="Give an array or a tensor of numbers, NaN where nothing was measured.",
        ) from error  # fmt: skip


def refuse_infinite(signal: Tensor, place: str) -> None:
    """Refuse infinite samples, which no electrode measures and no sum survives.

    Raises:
        InputError: `infinite_signal`.
    """
    # Some records at a time: the copy of a whole data set would be a large one.
    if any(bool(torch.isinf(part).any()) for part in signal.split(_ROWS_AT_ONCE)):
        raise InputError(
            "infinite values in a signal", code="infinite_signal", place=place,
            remedy="Give NaN where nothing was measured.",
        )  # fmt: skip


def grid_length(n_samples: int, fs_hz: SupportsFloat, grid_hz: float | int) -> int:
    """Points of a record: those not after its last sample."""
    ratio = rate_ratio(fs_hz, grid_hz)
    return 0 if n_samples == 0 else math.floor((n_samples - 1) / ratio) + 1


def read_rate(fs_hz: Any) -> float:
    """A sampling rate as a plain number, from any scalar of Python, NumPy or torch.

    Raises:
        InputError: `bad_sampling_rate`: it is no number.
    """
    try:
        if isinstance(fs_hz, str | bytes):  # it may say a number, but nobody has parsed it yet
            raise TypeError("text")
        return float(fs_hz)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "a sampling rate that is no number", code="bad_sampling_rate", place="fs_hz",
            remedy="Give samples a second as a number.",
        ) from error  # fmt: skip


def rate_ratio(fs_hz: SupportsFloat, grid_hz: float | int) -> Fraction:
    """Samples a grid point, as a fraction.

    Raises:
        InputError: `bad_sampling_rate`.
    """
    fs_hz = read_rate(fs_hz)
    if not MIN_HZ <= fs_hz <= MAX_HZ:
        raise InputError(
            f"a sampling rate of {fs_hz:g} Hz", code="bad_sampling_rate", place="fs_hz",
            remedy=f"Signals of {MIN_HZ:g} to {MAX_HZ:g} Hz can be read.",
        )  # fmt: skip
    return (Fraction(fs_hz) / Fraction(grid_hz)).limit_denominator(_FINEST)


def to_grid(
    signal: Shaped[Tensor, "batch lead sample"], *, fs_hz: SupportsFloat, grid_hz: float | int
) -> tuple[Float[Tensor, "batch lead point"], Bool[Tensor, "batch lead point"]]:
    """Bring whole records onto the grid.

    Args:
        signal: Values, NaN where nothing was measured; whole numbers are read as float32.
        fs_hz: Sampling rate.
        grid_hz: Points a second.

    Returns:
        Values, 0 where unknown, and which points are known.

    Raises:
        InputError: `bad_sampling_rate`.
    """
    grid = GridStream(fs_hz=fs_hz, grid_hz=grid_hz)
    if signal.shape[-1] == 0:
        return grid.finish()
    return _joined([grid.take(signal), grid.finish()])


class GridStream:
    """Brings chunks of records onto the grid; the points are those of the whole.

    Args:
        fs_hz: Sampling rate.
        grid_hz: Points a second.
    """

    def __init__(self, *, fs_hz: SupportsFloat, grid_hz: float | int) -> None:
        """Work out the weights of this rate."""
        self._ratio = rate_ratio(fs_hz, grid_hz)
        fs_hz = read_rate(fs_hz)
        self._rates = fs_hz, float(grid_hz)
        self._reach = math.ceil(HALF_WIDTH_S * fs_hz)
        short = self._ratio.denominator <= _LONGEST_PERIOD
        self._plan = _plan(self._ratio, *self._rates) if short else None
        self._held: Tensor | None = None  # samples that points to come need
        self._first = -self._reach  # number of the first of them
        self._n_samples = 0
        self._n_points = 0
        self._n_of_period = 0  # points given of the period that has not been heard in full

    def push(
        self, chunk: Shaped[Tensor, "batch lead sample"]
    ) -> tuple[Float[Tensor, "batch lead point"], Bool[Tensor, "batch lead point"]]:
        """Take samples; give the points that they complete."""
        if self._held is None and chunk.shape[-1] == 0:
            return chunk, chunk.bool()
        return _joined([self.take(chunk), self._heard()])

    def take(
        self, chunk: Shaped[Tensor, "batch lead sample"]
    ) -> tuple[Float[Tensor, "batch lead point"], Bool[Tensor, "batch lead point"]]:
        """Take samples; give the points of whole periods, in one pass, and keep others waiting."""
        if not chunk.is_floating_point():
            chunk = chunk.to(torch.float32)  # weights as whole numbers would all be 0
        if self._held is None:
            # A record does not begin with a jump from zero: its first sample stood before it.
            self._held = chunk[..., :1].expand(-1, -1, self._reach)
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
        due = math.floor(Fraction(self._n_samples - 1) / self._ratio) + 1
        left = max(due - self._n_points, 0)  # none, where this is called twice
        room = self._reach + 1
        if self._plan is not None:
            n_periods = (self._n_of_period + left) // self._plan.n_phases + 1
            room = self._plan.weights.shape[-1] + self._plan.stride * n_periods
        self._held = torch.cat([self._held, self._held[..., -1:].expand(-1, -1, room)], -1)
        values, known = self._points(due) if self._plan is None else self._periods()
        return values[..., :left], known[..., :left]

    def _periods(self) -> tuple[Tensor, Tensor]:
        assert self._held is not None
        plan, held = self._plan, self._held
        if plan is None:
            return _nothing(held)
        taps = plan.weights.shape[-1]
        n = max(0, (held.shape[-1] - taps) // plan.stride + 1)
        if n == 0:
            return _nothing(held)
        used = held[..., : (n - 1) * plan.stride + taps]
        self._held = held[..., n * plan.stride :]
        self._first += n * plan.stride
        given, self._n_of_period = self._n_of_period, 0
        self._n_points += n * plan.n_phases - given
        values, known = _apply(used, plan.weights, plan.near, partial(_convolve, plan.stride))
        return values[..., given:], known[..., given:]

    def _heard(self) -> tuple[Tensor, Tensor]:
        """Points whose kernels have been heard in full, though not those of their period."""
        assert self._held is not None
        n_heard = self._first + self._held.shape[-1] - self._reach
        stop = max(0, math.ceil(Fraction(n_heard) / self._ratio))
        plan, given = self._plan, self._n_of_period
        if plan is None:
            return self._points(stop)
        n = stop - self._n_points
        if n <= 0:
            return _nothing(self._held)
        start, end = (math.floor(p * self._ratio) for p in (given, given + n - 1))
        inside = slice(start, end + 2 * self._reach + 1)
        phases = slice(given, given + n)
        self._n_of_period += n
        self._n_points += n
        return _apply(
            self._held[..., inside], plan.weights[phases, :, inside],
            plan.near[phases, :, inside], partial(_convolve, 1),
        )  # fmt: skip

    def _points(self, stop: int) -> tuple[Tensor, Tensor]:
        """Points up to one, each with weights of its own."""
        assert self._held is not None
        parts = [_nothing(self._held)]
        fs_hz, grid_hz = self._rates
        up, down = self._ratio.numerator, self._ratio.denominator
        offsets = torch.arange(-self._reach, self._reach + 1, dtype=torch.float64)
        n_rows = self._held.shape[0] * self._held.shape[1]
        block = max(1, min(_BLOCK, _MOST_COPIED // max(1, n_rows * len(offsets))))
        while self._n_points < stop:
            last = min(stop, self._n_points + block)
            moment = torch.arange(self._n_points, last) * up  # of each point, in samples / `down`
            at, since = moment // down, (moment % down).double() / down
            weights, near = _weigh((since.unsqueeze(1) - offsets) / fs_hz, fs_hz, grid_hz)
            start = int(at[0]) - self._reach - self._first
            held = self._held[..., start : int(at[-1]) + self._reach + 1 - self._first]
            places = (at - at[0]).to(held.device)
            parts.append(_apply(held, weights, near, partial(_gather, places)))
            self._n_points = last
        start = max(0, self._n_points * up // down - self._reach - self._first)
        start = min(start, self._held.shape[-1])
        self._held = self._held[..., start:]
        self._first += start
        return _joined(parts)


def _nothing(held: Tensor) -> tuple[Tensor, Tensor]:
    empty = held[..., :0]
    return empty, empty.bool()


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([p[0] for p in parts], -1), torch.cat([p[1] for p in parts], -1)


def _convolve(stride: int, rows: Tensor, weights: Tensor) -> Tensor:
    return F.conv1d(rows, weights, stride=stride)


def _gather(at: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sums of (row, 1, sample) from each of `at` on, with (point, tap) weights, as `_convolve`."""
    windows = rows[:, 0].unfold(-1, weights.shape[-1], 1)[:, at]
    return torch.einsum("rpt,pt->rp", windows, weights).unsqueeze(-1)


def _apply(
    samples: Tensor, weights: Tensor, near: Tensor, add_up: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    batch, leads, _ = samples.shape
    rows = samples.reshape(batch * leads, 1, -1)
    weights = weights.to(samples)
    there = torch.isfinite(rows)
    if bool(there.all()):
        y = add_up(rows, weights)
        known = torch.ones_like(y, dtype=torch.bool)
    else:
        known = add_up(there.to(rows.dtype), near.to(samples)) >= _LEAST_KNOWN
        mass = add_up(there.to(rows.dtype), weights)
        y = add_up(torch.where(there, rows, 0.0), weights)
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
    weights, near = _weigh((points.unsqueeze(1) - samples) / fs_hz, fs_hz, grid_hz)
    return _Plan(stride, n_phases, weights.unsqueeze(1), near.unsqueeze(1))


def _weigh(
    seconds: Float[Tensor, "point tap"], fs_hz: float, grid_hz: float
) -> tuple[Float[Tensor, "point tap"], Float[Tensor, "point tap"]]:
    """Weights of samples so far before a point, and of those near it; both add up to one."""
    cut_hz = _CUT * min(fs_hz, grid_hz)
    inside = (1 - (seconds / HALF_WIDTH_S) ** 2).clamp(min=0)
    window = torch.where(inside > 0, torch.special.i0(_KAISER * inside.sqrt()), 0.0)
    weights = torch.sinc(2 * cut_hz * seconds) * window
    near = (seconds.abs() <= 0.5 / cut_hz).double()
    weights, near = (w / w.sum(-1, keepdim=True) for w in (weights, near))
    return weights.float(), near.float()
