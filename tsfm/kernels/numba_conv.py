"""The short causal convolution compiled for the CPU by numba: where there are no C++ kernels.

In plain torch four taps are some thirty passes over memory, forward and backward; here they are one
and three. Tokens are cut into stretches that run in parallel, channels are the innermost loop. A
stretch's share of the weights' gradient is written apart and added in a fixed order, so the same
input gives the same bits. See `causal_conv.py` for the equation.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from tsfm.kernels.numba_norm import _sigmoid

_MOST_THREADS = numba.get_num_threads()
STRETCH = 128
# The tests' shape checks wrap every function but those marked; numba can't compile a wrapper.
_JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLAGS = {"contract", "arcp", "nsz"}
_ONE = np.float32(1.0)


@numba.njit(inline="always", fastmath=_FLAGS)
@no_type_check
def _convolve_token(t, x, taps, bias, history, begin, sequence, pre):
    n_taps, n_channels = taps.shape
    for d in range(n_channels):
        pre[d] = bias[d]
    for back in range(n_taps):
        k = n_taps - 1 - back
        if t - back >= begin[t]:
            for d in range(n_channels):
                pre[d] += taps[k, d] * x[t - back, d]
        else:
            place = k + t - begin[t]
            for d in range(n_channels):
                pre[d] += taps[k, d] * history[sequence[t], place, d]


@numba.njit(parallel=True, fastmath=_FLAGS, **_JIT)
@no_type_check
def _forward(x, taps, bias, history, begin, sequence, silu, y):
    n_tokens, n_channels = x.shape
    for stretch in numba.prange((n_tokens + STRETCH - 1) // STRETCH):
        for t in range(stretch * STRETCH, min((stretch + 1) * STRETCH, n_tokens)):
            _convolve_token(t, x, taps, bias, history, begin, sequence, y[t])
            if silu:
                for d in range(n_channels):
                    y[t, d] *= _sigmoid(y[t, d])


@numba.njit(parallel=True, fastmath=_FLAGS, **_JIT)
@no_type_check
def _backward(
    x, taps, bias, history, begin, end, sequence, silu, dy, dpre, dx, dtaps, dbias, dhistory
):
    n_tokens, n_channels = x.shape
    n_taps = len(taps)
    n_stretches = (n_tokens + STRETCH - 1) // STRETCH
    for stretch in numba.prange(n_stretches):
        for t in range(stretch * STRETCH, min((stretch + 1) * STRETCH, n_tokens)):
            if silu:
                _convolve_token(t, x, taps, bias, history, begin, sequence, dpre[t])
                for d in range(n_channels):
                    gate = _sigmoid(dpre[t, d])
                    dpre[t, d] = dy[t, d] * gate * (_ONE + dpre[t, d] * (_ONE - gate))
            else:
                dpre[t] = dy[t]
            for d in range(n_channels):
                dbias[stretch, d] += dpre[t, d]
            for back in range(n_taps):
                k = n_taps - 1 - back
                if t - back >= begin[t]:
                    for d in range(n_channels):
                        dtaps[stretch, k, d] += dpre[t, d] * x[t - back, d]
                else:
                    place = k + t - begin[t]
                    for d in range(n_channels):
                        dtaps[stretch, k, d] += dpre[t, d] * history[sequence[t], place, d]
    for stretch in numba.prange(n_stretches):
        for t in range(stretch * STRETCH, min((stretch + 1) * STRETCH, n_tokens)):
            for d in range(n_channels):
                dx[t, d] = np.float32(0.0)
            for ahead in range(min(n_taps, end[t] - t)):
                for d in range(n_channels):
                    dx[t, d] += taps[n_taps - 1 - ahead, d] * dpre[t + ahead, d]
            # A sequence's first tokens alone see what was before it.
            if t == begin[t]:
                for place in range(n_taps - 1):
                    for after in range(min(place + 1, end[t] - t)):
                        for d in range(n_channels):
                            dhistory[sequence[t], place, d] += (
                                taps[place - after, d] * dpre[t + after, d]
                            )


class _Arrays(NamedTuple):
    """Inputs as the loops want them: in the order of the walk, channels last."""

    x: Any
    taps: Any
    bias: Any
    history: Any
    begin: Any
    end: Any
    sequence: Any


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    *,
    activation: str | None,
    reverse: bool,
    final: bool,
) -> tuple[Tensor, Tensor | None]:
    """Convolve packed float32 tensors on the CPU; shapes as in `causal_conv.ConvInputs`.

    Returns:
        y (T, D), and the final states (S, D, K - 1) if `final`.
    """
    a = _arrays(x, weight, bias, cu_seqlens, initial_state, reverse)
    y = np.empty_like(a.x)
    _forward(a.x, a.taps, a.bias, a.history, a.begin, a.sequence, activation == "silu", y)
    states = None
    if final:
        kept = np.concatenate([a.x, a.history.reshape(-1, x.shape[1])])[_last_rows(a)]
        states = torch.from_numpy(_walked(kept, reverse)).transpose(1, 2).contiguous()
    return torch.from_numpy(_walked(y, reverse)), states


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    dy: Tensor,
    dfinal: Tensor | None,
    *,
    activation: str | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and initial state, given those of y and of the final states."""
    a = _arrays(x, weight, bias, cu_seqlens, initial_state, reverse)
    n_stretches = -(-len(a.x) // STRETCH)
    # One array, so that the final states' gradients find tokens and what was before by one index.
    drows = np.zeros((len(a.x) + a.history.shape[0] * a.history.shape[1], x.shape[1]), np.float32)
    dx, dhistory = drows[: len(a.x)], drows[len(a.x) :].reshape(a.history.shape)
    dtaps = np.zeros((n_stretches, *a.taps.shape), np.float32)
    dbias = np.zeros((n_stretches, x.shape[1]), np.float32)
    _backward(
        *a, activation == "silu", _walked(dy.numpy(), reverse), np.empty_like(a.x),
        dx, dtaps, dbias, dhistory,
    )  # fmt: skip
    if dfinal is not None:
        drows[_last_rows(a)] += _walked(dfinal.transpose(1, 2).numpy(), reverse)
    dinitial = torch.from_numpy(_walked(dhistory, reverse)).transpose(1, 2).contiguous()
    return (
        torch.from_numpy(_walked(dx, reverse)),
        torch.from_numpy(dtaps.sum(0)).T.contiguous(),
        None if bias is None else torch.from_numpy(dbias.sum(0)),
        None if initial_state is None else dinitial,
    )


def _arrays(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    reverse: bool,
) -> _Arrays:
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS))
    (n_tokens, n_channels), n_taps = x.shape, weight.shape[1]
    borders = cu_seqlens.numpy().astype(np.int64)
    if reverse:
        borders = n_tokens - borders[::-1]
    lengths = np.diff(borders)
    if initial_state is None:
        history = np.zeros((len(lengths), n_taps - 1, n_channels), np.float32)
    else:
        history = _walked(initial_state.detach().transpose(1, 2).numpy(), reverse)
    return _Arrays(
        _walked(x.detach().numpy(), reverse),
        np.ascontiguousarray(weight.detach().numpy().T),
        np.zeros(n_channels, np.float32) if bias is None else bias.detach().contiguous().numpy(),
        history,
        np.repeat(borders[:-1], lengths),
        np.repeat(borders[1:], lengths),
        np.repeat(np.arange(len(lengths)), lengths),
    )


def _last_rows(a: _Arrays) -> Any:
    """Rows, (S, K - 1), of each sequence's last inputs in the tokens and the history after them."""
    n_sequences, n_before = a.history.shape[:2]
    starts = np.unique(a.begin)
    places = np.unique(a.end)[:, None] - starts[:, None] + np.arange(-n_before, 0)
    before = len(a.x) + (np.arange(n_sequences)[:, None] + 1) * n_before + places
    return np.where(places >= 0, starts[:, None] + places, before)


def _walked(array: Any, reverse: bool) -> Any:
    return array[::-1].copy() if reverse else np.ascontiguousarray(array)
