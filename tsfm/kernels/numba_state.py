"""The state update compiled for the CPU by numba: where there are no C++ kernels.

Rows and blocks of channels run in parallel; the innermost loop runs over the components of one
channel's state, which lie side by side. See `scan_inputs.py` for the equations.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from tsfm.kernels.numba_norm import _sigmoid
from tsfm.kernels.numba_scan import _exp2, _held
from tsfm.kernels.scan_inputs import INPUTS

_MOST_THREADS = numba.get_num_threads()
BLOCK = 64
_LOG2E = np.float32(1.4426950408889634)
_LONGEST = np.float32(1e30)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_EULER, _ZOH, _FOH = INPUTS.index("euler"), INPUTS.index("zoh"), INPUTS.index("foh")
# The tests' shape checks wrap every function but those marked; numba can't compile a wrapper.
_JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLAGS = {"contract", "arcp", "nsz", "reassoc"}


@numba.njit(inline="always", fastmath={"contract", "nsz"})
@no_type_check
def _rising(x: Any, a: Any, s: Any) -> Any:
    """(exp(x) - 1 - x) / (A x) with x = A s, without cancellation near zero."""
    p = x * np.float32(1 / 362880) + np.float32(1 / 40320)
    p = p * x + np.float32(1 / 5040)
    p = p * x + np.float32(1 / 720)
    p = p * x + np.float32(1 / 120)
    p = p * x + np.float32(1 / 24)
    p = p * x + np.float32(1 / 6)
    p = p * x + np.float32(0.5)
    return s * (p if abs(x) < _ONE else (a - _ONE - x) / (x * x))


@numba.njit(parallel=True, fastmath=_FLAGS, **_JIT)
@no_type_check
def _update(source, state, u, step, A, B, C, gap, gap_rate, kind, sources, targets, y):
    n_rows, n_channels = u.shape
    n_state = A.shape[1]
    n_blocks = (n_channels + BLOCK - 1) // BLOCK
    for task in numba.prange(n_rows * n_blocks):
        r, low = task // n_blocks, task % n_blocks * BLOCK
        given, kept = source[sources[r]], state[targets[r]]
        # A table may be read and written at one place: what is new is made apart, so that the loops
        # over states can be vector instructions.
        h = np.empty(n_state, np.float32)
        for d in range(low, min(low + BLOCK, n_channels)):
            s = min(step[r, d] + gap_rate[d] * gap[r], _LONGEST)
            v = u[r, d] * step[r, d] if kind == _EULER else u[r, d]
            total = _ZERO
            if kind in (_ZOH, _FOH):
                for n in range(n_state):
                    x = A[d, n] * s
                    a = _exp2(x * _LOG2E)
                    held = _held(x, a, A[d, n], s)
                    if kind == _FOH:
                        rising = _rising(x, a, s)
                        before = given[d, n_state + n]
                        taken = (held - rising) * before + rising * v * B[r, n]
                    else:
                        taken = held * v * B[r, n]
                    h[n] = a * given[d, n] + taken
            else:
                for n in range(n_state):
                    h[n] = _exp2(A[d, n] * s * _LOG2E) * given[d, n] + v * B[r, n]
            for n in range(n_state):
                kept[d, n] = h[n]
                total += h[n] * C[r, n]
            if kind == _FOH:
                for n in range(n_state):
                    kept[d, n_state + n] = v * B[r, n]
            y[r, d] = total


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _gate(y, u, D, z, gated):
    n_rows, n_channels = y.shape
    for r in range(n_rows):
        for d in range(n_channels):
            y[r, d] += D[d] * u[r, d]
            if gated:
                y[r, d] *= z[r, d] * _sigmoid(z[r, d])


def update(
    source: Tensor,
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    gap: Tensor | None,
    gap_rate: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    kind: str,
    source_slots: Tensor | None,
    target_slots: Tensor | None,
) -> Tensor:
    """Advance the rows of `source` into `state`; arguments as in `native_state.update`."""
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS))
    n_rows, n_channels = u.shape
    step = delta if delta_bias is None else delta + delta_bias
    if softplus:
        step = torch.nn.functional.softplus(step)
    if gap is None or gap_rate is None:
        gap, gap_rate = u.new_zeros(n_rows), u.new_zeros(n_channels)
    sources, targets = (
        np.arange(n_rows) if slots is None else slots.numpy()
        for slots in (source_slots, target_slots)
    )
    y = np.empty((n_rows, n_channels), np.float32)
    given: list[Any] = [source.detach(), state.detach()]
    given += [t.detach().contiguous() for t in (u, step, A, B, C, gap, gap_rate)]
    arrays = [t.numpy() for t in given]
    _update(*[*arrays, INPUTS.index(kind), sources, targets, y])
    if D is not None or z is not None:
        skip = np.zeros(n_channels, np.float32) if D is None else D.detach().contiguous().numpy()
        gate = y if z is None else z.detach().contiguous().numpy()
        _gate(y, arrays[2], skip, gate, z is not None)
    return torch.from_numpy(y)
