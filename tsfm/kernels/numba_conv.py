"""The short causal convolution compiled for the CPU by numba.

In plain torch four taps are some thirty passes over memory, forward and backward;
here they are one each. Tokens are cut into stretches that run in parallel, channels are the
innermost loop. A stretch's share of the weights' gradient is written apart and added in a fixed
order, so the same input gives the same bits.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

STRETCH = 512
# The tests' shape checks wrap every function but those marked; numba can't compile a wrapper.
_JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLAGS = {"contract", "arcp", "nsz"}


@numba.njit(parallel=True, fastmath=_FLAGS, **_JIT)
@no_type_check
def _forward(x, weight, bias, position, pre):
    n_tokens, n_channels = x.shape
    n_taps = weight.shape[0]
    for stretch in numba.prange((n_tokens + STRETCH - 1) // STRETCH):
        for t in range(stretch * STRETCH, min((stretch + 1) * STRETCH, n_tokens)):
            for d in range(n_channels):
                pre[t, d] = bias[d]
            for k in range(min(n_taps, position[t] + 1)):
                for d in range(n_channels):
                    pre[t, d] += weight[n_taps - 1 - k, d] * x[t - k, d]


@numba.njit(parallel=True, fastmath=_FLAGS, **_JIT)
@no_type_check
def _backward(x, weight, position, dpre, dx, dweight):
    n_tokens, n_channels = x.shape
    n_taps = weight.shape[0]
    for stretch in numba.prange((n_tokens + STRETCH - 1) // STRETCH):
        for t in range(stretch * STRETCH, min((stretch + 1) * STRETCH, n_tokens)):
            for d in range(n_channels):
                dx[t, d] = np.float32(0.0)
            for k in range(n_taps):
                # Token t reaches token t + k only within its own subject.
                if t + k < n_tokens and position[t + k] >= k:
                    for d in range(n_channels):
                        dx[t, d] += weight[n_taps - 1 - k, d] * dpre[t + k, d]
            for k in range(min(n_taps, position[t] + 1)):
                for d in range(n_channels):
                    dweight[stretch, n_taps - 1 - k, d] += dpre[t, d] * x[t - k, d]


class NumbaConv(torch.autograd.Function):
    """Autograd wrapper; float32, contiguous, CPU."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, position):
        """Convolve; see `conv` for the shapes."""
        inputs = x.detach().contiguous().numpy()
        taps = np.ascontiguousarray(weight.detach().numpy().T)
        places = position.contiguous().numpy()
        y = np.empty_like(inputs)
        _forward(inputs, taps, bias.detach().numpy(), places, y)
        ctx.saved = (inputs, taps, places)
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of input, taps and bias."""
        inputs, taps, places = ctx.saved
        dy = gradients[0].contiguous()
        dx = np.empty_like(inputs)
        n_stretches = -(-len(inputs) // STRETCH)
        dtaps = np.zeros((n_stretches, *taps.shape), np.float32)
        _backward(inputs, taps, places, dy.numpy(), dx, dtaps)
        return torch.from_numpy(dx), torch.from_numpy(dtaps.sum(0).T.copy()), dy.sum(0), None


def conv(x: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    """Causal depthwise convolution of float32 tensors on the CPU.

    Args:
        x: Input, (T, D).
        weight: Taps, (D, K), the last one for the token itself.
        bias: (D,).
        position: Position of each token within its subject, (T,), int64.
    """
    return NumbaConv.apply(x, weight, bias, position)
