"""The time-invariant scan on a CPU: the recurrence and its adjoint, compiled.

Complex numbers are kept as two planes, states as (state, channel), so that the innermost loop runs
along channels. The backward pass of a sequence first walks it again and keeps its states, which
lie in the cache, then walks back.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
_FAST = {"contract", "reassoc", "nsz", "arcp"}


@numba.njit(cache=True, fastmath=_FAST, nogil=True)
@no_type_check
def recur(
    u: Plane, kept_re: Plane, kept_im: Plane, read_re: Plane, read_im: Plane, state_re: Plane,
    state_im: Plane, y: Plane, reverse: bool,
) -> None:  # fmt: skip
    """y = Re(read h), h = kept h + u, over (batch, token, channel); states are changed in place."""
    n_batch, n_tokens, n_channels = u.shape
    n_state = kept_re.shape[0]
    for b in range(n_batch):
        for i in range(n_tokens):
            t = n_tokens - 1 - i if reverse else i
            for d in range(n_channels):
                y[b, t, d] = 0.0
            for n in range(n_state):
                for d in range(n_channels):
                    re = state_re[b, n, d]
                    im = state_im[b, n, d]
                    new_re = kept_re[n, d] * re - kept_im[n, d] * im + u[b, t, d]
                    new_im = kept_re[n, d] * im + kept_im[n, d] * re
                    state_re[b, n, d] = new_re
                    state_im[b, n, d] = new_im
                    y[b, t, d] += read_re[n, d] * new_re - read_im[n, d] * new_im


@numba.njit(cache=True, fastmath=_FAST, nogil=True)
@no_type_check
def recur_back(
    u: Plane, dy: Plane, kept_re: Plane, kept_im: Plane, read_re: Plane, read_im: Plane, du: Plane,
    gradients: Plane, reverse: bool,
) -> None:  # fmt: skip
    """Gradients of `recur` from empty states: `du`, and those of the four planes, added up."""
    n_batch, n_tokens, n_channels = u.shape
    n_state = kept_re.shape[0]
    held_re = np.empty((n_tokens + 1, n_state, n_channels), np.float32)
    held_im = np.empty((n_tokens + 1, n_state, n_channels), np.float32)
    g_re = np.empty((n_state, n_channels), np.float32)
    g_im = np.empty((n_state, n_channels), np.float32)
    for b in range(n_batch):
        held_re[0] = 0.0
        held_im[0] = 0.0
        for i in range(n_tokens):
            t = n_tokens - 1 - i if reverse else i
            for n in range(n_state):
                for d in range(n_channels):
                    re = held_re[i, n, d]
                    im = held_im[i, n, d]
                    held_re[i + 1, n, d] = kept_re[n, d] * re - kept_im[n, d] * im + u[b, t, d]
                    held_im[i + 1, n, d] = kept_re[n, d] * im + kept_im[n, d] * re
        g_re[:] = 0.0
        g_im[:] = 0.0
        for back in range(n_tokens):
            i = n_tokens - 1 - back
            t = n_tokens - 1 - i if reverse else i
            for d in range(n_channels):
                du[b, t, d] = 0.0
            for n in range(n_state):
                for d in range(n_channels):
                    slope = dy[b, t, d]
                    a_re = kept_re[n, d]
                    a_im = kept_im[n, d]
                    re = read_re[n, d] * slope + a_re * g_re[n, d] + a_im * g_im[n, d]
                    im = -read_im[n, d] * slope - a_im * g_re[n, d] + a_re * g_im[n, d]
                    g_re[n, d] = re
                    g_im[n, d] = im
                    du[b, t, d] += re
                    before_re = held_re[i, n, d]
                    before_im = held_im[i, n, d]
                    gradients[0, n, d] += re * before_re + im * before_im
                    gradients[1, n, d] += im * before_re - re * before_im
                    gradients[2, n, d] += slope * held_re[i + 1, n, d]
                    gradients[3, n, d] -= slope * held_im[i + 1, n, d]
