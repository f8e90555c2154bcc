"""Skip, gate and norm compiled for the CPU by numba; see `tsfm.kernels.gated_norm`.

Tokens are cut into stretches that run in parallel. The gradients of the skip and of the scale are
summed a stretch and added in a fixed order, so the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from tsfm.kernels.gated_norm import gated_rms_norm_torch

STRETCH = 256
FEW = 16  # tokens up to which one thread is quicker
_LOG2E = np.float32(1.4426950408889634)
# The tests' shape checks wrap every function but those marked; numba can't compile a wrapper.
_JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLAGS = {"contract", "arcp", "nsz", "reassoc"}


@numba.njit(inline="always", fastmath={"contract", "arcp", "nsz"})
@no_type_check
def _sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) from a power of two of -|x|, so that the loop around it vectorises."""
    bounded = max(-abs(x) * _LOG2E, np.float32(-126.0))
    whole = np.floor(bounded + np.float32(0.5))
    r = bounded - whole
    p = np.float32(1.5353362e-4)
    p = p * r + np.float32(1.3398874e-3)
    p = p * r + np.float32(9.6184373e-3)
    p = p * r + np.float32(5.5503324e-2)
    p = p * r + np.float32(2.4022648e-1)
    p = p * r + np.float32(6.9314720e-1)
    p = p * r + np.float32(1.0)
    power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    e = p * power
    share = np.float32(1.0) / (np.float32(1.0) + e)
    return share if x >= np.float32(0.0) else e * share


@numba.njit(parallel=True, fastmath=_FLAGS, **_JIT)
@no_type_check
def _forward(y, u, z, skip, weight, eps, out, scale):
    n_tokens, n_channels = y.shape
    for stretch in numba.prange((n_tokens + STRETCH - 1) // STRETCH):
        for t in range(stretch * STRETCH, min((stretch + 1) * STRETCH, n_tokens)):
            total = np.float32(0.0)
            for d in range(n_channels):
                q = (y[t, d] + skip[d] * u[t, d]) * z[t, d] * _sigmoid(z[t, d])
                out[t, d] = q
                total += q * q
            r = np.float32(1.0) / np.sqrt(total / np.float32(n_channels) + eps)
            scale[t] = r
            for d in range(n_channels):
                out[t, d] *= r * weight[d]


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _few_forward(y, u, z, skip, weight, eps, out):
    n_tokens, n_channels = y.shape
    for t in range(n_tokens):
        total = np.float32(0.0)
        for d in range(n_channels):
            q = (y[t, d] + skip[d] * u[t, d]) * z[t, d] * _sigmoid(z[t, d])
            out[t, d] = q
            total += q * q
        r = np.float32(1.0) / np.sqrt(total / np.float32(n_channels) + eps)
        for d in range(n_channels):
            out[t, d] *= r * weight[d]


@numba.njit(parallel=True, fastmath=_FLAGS, **_JIT)
@no_type_check
def _backward(y, u, z, skip, weight, scale, dout, dy, du, dz, dskip, dweight):
    n_tokens, n_channels = y.shape
    for stretch in numba.prange((n_tokens + STRETCH - 1) // STRETCH):
        for t in range(stretch * STRETCH, min((stretch + 1) * STRETCH, n_tokens)):
            r = scale[t]
            along = np.float32(0.0)
            for d in range(n_channels):
                gate = _sigmoid(z[t, d])
                dz[t, d] = gate
                q = (y[t, d] + skip[d] * u[t, d]) * z[t, d] * gate
                dy[t, d] = q
                along += dout[t, d] * weight[d] * q
            along *= r * r / np.float32(n_channels)
            for d in range(n_channels):
                gate, q = dz[t, d], dy[t, d]
                dweight[stretch, d] += dout[t, d] * q * r
                dq = r * (dout[t, d] * weight[d] - q * along)
                held = y[t, d] + skip[d] * u[t, d]
                da = dq * z[t, d] * gate
                dz[t, d] = dq * held * gate * (np.float32(1.0) + z[t, d] * (np.float32(1.0) - gate))
                dy[t, d] = da
                du[t, d] = da * skip[d]
                dskip[stretch, d] += da * u[t, d]


class NumbaGatedNorm(torch.autograd.Function):
    """Autograd wrapper; float32, contiguous, CPU."""

    @staticmethod
    def forward(ctx: Any, y, u, z, skip, weight, eps):
        """Skip, gate and normalise; see `gated_norm`."""
        tensors = (y, u, z, skip, weight)
        y, u, z, skip, weight = _arrays(tensors)
        out = np.empty_like(y)
        scale = np.empty(len(out), np.float32)
        _forward(y, u, z, skip, weight, np.float32(eps), out, scale)
        # Saved as tensors, so that torch notices where one was changed before the backward pass.
        ctx.save_for_backward(*tensors)
        ctx.scale, ctx.eps = scale, eps
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of all five tensors."""
        if torch.is_grad_enabled():
            return (*_in_torch(ctx.saved_tensors, ctx.eps, gradients[0]), None)
        y, u, z, skip, weight = _arrays(ctx.saved_tensors)
        dy, du, dz = np.empty_like(y), np.empty_like(y), np.empty_like(y)
        n_stretches = -(-len(y) // STRETCH)
        dskip = np.zeros((n_stretches, y.shape[1]), np.float32)
        dweight = np.zeros_like(dskip)
        dout = gradients[0].contiguous().numpy()
        _backward(y, u, z, skip, weight, ctx.scale, dout, dy, du, dz, dskip, dweight)
        found = (dy, du, dz, dskip.sum(0), dweight.sum(0))
        return (*(torch.from_numpy(x) for x in found), None)


def _arrays(tensors: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def _in_torch(tensors: Sequence[Tensor], eps: float, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by the plain form, with a graph of their own, for who differentiates again."""
    # Views: where one of the tensors comes from another, that way is not this function's.
    own = [tensor.view_as(tensor) for tensor in tensors]
    wanted = [tensor for tensor in own if tensor.requires_grad]
    out = gated_rms_norm_torch(*own, eps)  # pyright: ignore[reportCallIssue]
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in own)


def gated_norm(y: Tensor, u: Tensor, z: Tensor, D: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `tsfm.kernels.gated_norm.gated_rms_norm`; all tensors float32 on the CPU."""
    if len(y) <= FEW and not torch.is_grad_enabled():
        # A step of decoding: to start threads, or autograd, costs more than the arithmetic.
        y, u, z, D, weight = (x.detach().contiguous() for x in (y, u, z, D, weight))
        out = torch.empty_like(y, memory_format=torch.contiguous_format)
        _few_forward(
            y.numpy(), u.numpy(), z.numpy(), D.numpy(), weight.numpy(), np.float32(eps), out.numpy()
        )
        return out
    return NumbaGatedNorm.apply(y, u, z, D, weight, eps)
