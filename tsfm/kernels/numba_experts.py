"""Many experts of few tokens each, compiled; see `tsfm.models.experts.grouped_experts`.

An expert is two small products and a gate. Where there are hundreds, of which each gets a token or
two, their calls in torch take far longer than the arithmetic. float32 on the CPU, one thread, no
gradients; the same input gives the same bits.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

_JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLAGS = {"contract", "arcp", "nsz", "reassoc"}
_ONE = np.float32(1.0)


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _forward(x, experts, weights, gate_up, out):
    n_tokens, n_choices = experts.shape
    n_experts, n_inner = len(out), out.shape[1]
    starts = np.zeros(n_experts + 1, np.int64)
    for t in range(n_tokens):
        for k in range(n_choices):
            starts[experts[t, k] + 1] += 1
    starts = np.cumsum(starts)
    place = starts[:-1].copy()
    token = np.empty(n_tokens * n_choices, np.int64)
    share = np.empty(n_tokens * n_choices, np.float32)
    for t in range(n_tokens):
        for k in range(n_choices):
            at = place[experts[t, k]]
            token[at], share[at] = t, weights[t, k]
            place[experts[t, k]] += 1
    y = np.zeros_like(x)
    for e in range(n_experts):
        first, end = starts[e], starts[e + 1]
        if first == end:
            continue
        rows = np.empty((end - first, x.shape[1]), np.float32)
        for i in range(first, end):
            rows[i - first] = x[token[i]]
        both = np.dot(rows, gate_up[e])
        inner = np.empty((end - first, n_inner), np.float32)
        for i in range(end - first):
            for d in range(n_inner):
                gate = both[i, d]
                inner[i, d] = (
                    gate / (_ONE + np.exp(-gate)) * both[i, n_inner + d] * share[first + i]
                )
        mapped = np.dot(inner, out[e])
        for i in range(first, end):
            y[token[i]] += mapped[i - first]
    return y


def many_experts(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, out: Tensor
) -> Tensor:
    """See `tsfm.models.experts.grouped_experts`."""
    x, experts, weights, gate_up, out = (
        t.detach().contiguous() for t in (x, experts, weights.float(), gate_up, out)
    )
    return torch.from_numpy(
        _forward(x.numpy(), experts.numpy(), weights.numpy(), gate_up.numpy(), out.numpy())
    )
