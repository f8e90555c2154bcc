"""The selective scan compiled for the CPU by numba: no compiler, no (T, D, N) temporaries.

Channels are cut into blocks that run in parallel; within a block the tokens are walked once, the
states of the block stay in the first-level cache and the innermost loop runs over channels, so that
it becomes vector instructions. The forward pass keeps the state every `CHECKPOINT` tokens; the
backward pass replays one stretch at a time from there and walks it backwards. Sums over channels
(the gradients of B and C) are written a block and added in a fixed order, so the same input gives
the same bits.

`exp` is an own power of two: pip's numba has no vector math library, and a call to the scalar `exp`
keeps the loop from being vectorised.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from tsfm.kernels.argument_checks import first_derivative_only

_MOST_THREADS = numba.get_num_threads()
CHECKPOINT = 32
# Channels walked together: few enough forward that a state stays in registers; more backward, where
# each sum over channels costs the same whatever their number.
BLOCK = 16
BLOCK_BACK = 64
_LOG2E = np.float32(1.4426950408889634)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
# No 'reassoc' on the exponential: it would fold the rounding away. Sums over channels may be
# reordered, always in the same way.
_FLAGS = {"contract", "arcp", "nsz", "reassoc"}
_EXACT = {"contract", "arcp", "nsz"}
# The tests' shape checks wrap every function but those marked; numba can't compile a wrapper.
_JIT: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": _FLAGS, "error_model": "numpy"}


@numba.njit(inline="always", fastmath=_EXACT)
@no_type_check
def _exp2(x: Any) -> Any:
    """2**x, to 1e-7 of itself: at least 2**-126, and infinite from 2**127.5 on."""
    bounded = max(x, np.float32(-126.0))
    whole = np.floor(bounded + np.float32(0.5))
    whole = np.float32(128.0) if whole > np.float32(128.0) else whole
    r = bounded - whole
    p = np.float32(1.5353361959569156e-4)
    p = p * r + np.float32(1.3398875016719103e-3)
    p = p * r + np.float32(9.61843691766262e-3)
    p = p * r + np.float32(5.5503323674201965e-2)
    p = p * r + np.float32(2.4022647738456726e-1)
    p = p * r + np.float32(6.931471824645996e-1)
    p = p * r + _ONE
    power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power


@numba.njit(inline="always", fastmath={"contract", "nsz"})
@no_type_check
def _held(x: Any, a: Any, rate: Any, s: Any) -> Any:
    """(exp(x) - 1) / A without cancellation near zero."""
    p = x * np.float32(1 / 5040) + np.float32(1 / 720)
    p = p * x + np.float32(1 / 120)
    p = p * x + np.float32(1 / 24)
    p = p * x + np.float32(1 / 6)
    p = p * x + np.float32(0.5)
    return s * (p * x + _ONE) if abs(x) < np.float32(0.3) else (a - _ONE) / rate


@numba.njit(inline="always", fastmath={"contract", "nsz"})
@no_type_check
def _held_by_rate(x: Any, a: Any, rate: Any, s: Any) -> Any:
    """Derivative of (exp(A s) - 1) / A with respect to A."""
    p = x * np.float32(1 / 45360) + np.float32(1 / 5760)
    p = p * x + np.float32(1 / 840)
    p = p * x + np.float32(1 / 144)
    p = p * x + np.float32(1 / 30)
    p = p * x + np.float32(1 / 8)
    p = p * x + np.float32(1 / 3)
    p = p * x + np.float32(0.5)
    return s * s * p if abs(x) < np.float32(0.5) else (s * a - (a - _ONE) / rate) / rate


# Loops over channels run over whole blocks, which become whole vectors; the last block's missing
# channels are zeros in scratch.
@numba.njit(inline="always", fastmath=_EXACT)
@no_type_check
def _read(row, low, width, to):
    for d in range(width):
        to[d] = row[low + d]


@numba.njit(parallel=True, **_JIT)
@no_type_check
def _forward(v, step, gap, rate, A, B, C, first, sequence, h0, zoh, y, checkpoints, finals, last):
    n_tokens, n_channels = v.shape
    n_state = A.shape[0]
    for block in numba.prange((n_channels + BLOCK - 1) // BLOCK):
        low = block * BLOCK
        width = min(BLOCK, n_channels - low)
        h = np.zeros((n_state, BLOCK), np.float32)
        pace = np.full((n_state, BLOCK), np.float32(-1.0), np.float32)
        rates = np.zeros(BLOCK, np.float32)
        out = np.zeros(BLOCK, np.float32)
        s = np.zeros(BLOCK, np.float32)
        value = np.zeros(BLOCK, np.float32)
        for n in range(n_state):
            _read(A[n], low, width, pace[n])
        _read(rate, low, width, rates)
        for t in range(n_tokens):
            if first[t]:
                for n in range(n_state):
                    _read(h0[sequence[t], n], low, width, h[n])
            if t % CHECKPOINT == 0:
                for n in range(n_state):
                    for d in range(width):
                        checkpoints[t // CHECKPOINT, n, low + d] = h[n, d]
            _read(step[t], low, width, s)
            _read(v[t], low, width, value)
            for d in range(BLOCK):
                s[d] += gap[t] * rates[d]
                out[d] = _ZERO
            for n in range(n_state):
                b, c = B[t, n], C[t, n]
                if zoh:
                    for d in range(BLOCK):
                        x = pace[n, d] * s[d]
                        a = _exp2(x * _LOG2E)
                        w = _held(x, a, pace[n, d], s[d])
                        state = a * h[n, d] + w * b * value[d]
                        h[n, d] = state
                        out[d] += c * state
                else:
                    for d in range(BLOCK):
                        state = _exp2(pace[n, d] * s[d] * _LOG2E) * h[n, d] + b * value[d]
                        h[n, d] = state
                        out[d] += c * state
            for d in range(width):
                y[t, low + d] = out[d]
            if last[t]:
                for n in range(n_state):
                    for d in range(width):
                        finals[sequence[t], n, low + d] = h[n, d]


@numba.njit(parallel=True, **_JIT)
@no_type_check
def _backward(
    v, step, gap, rate, A, B, C, first, sequence, h0, zoh, checkpoints, last,
    dy, dfinal, dv, dstep, drate, dA, dB, dC, dh0,
):  # fmt: skip
    n_tokens, n_channels = v.shape
    n_state = A.shape[0]
    n_stretches = (n_tokens + CHECKPOINT - 1) // CHECKPOINT
    for block in numba.prange((n_channels + BLOCK_BACK - 1) // BLOCK_BACK):
        low = block * BLOCK_BACK
        width = min(BLOCK_BACK, n_channels - low)
        g = np.zeros((n_state, BLOCK_BACK), np.float32)
        pace = np.full((n_state, BLOCK_BACK), np.float32(-1.0), np.float32)
        rates = np.zeros(BLOCK_BACK, np.float32)
        sum_A = np.zeros((n_state, BLOCK_BACK), np.float32)
        sum_rate = np.zeros(BLOCK_BACK, np.float32)
        decays = np.zeros((CHECKPOINT, n_state, BLOCK_BACK), np.float32)
        states = np.zeros((CHECKPOINT, n_state, BLOCK_BACK), np.float32)  # before each token
        h = np.zeros((n_state, BLOCK_BACK), np.float32)
        s = np.zeros((CHECKPOINT, BLOCK_BACK), np.float32)
        value = np.zeros((CHECKPOINT, BLOCK_BACK), np.float32)
        grad = np.zeros(BLOCK_BACK, np.float32)
        sum_v = np.zeros(BLOCK_BACK, np.float32)
        sum_s = np.zeros(BLOCK_BACK, np.float32)
        for n in range(n_state):
            _read(A[n], low, width, pace[n])
        _read(rate, low, width, rates)
        for stretch in range(n_stretches - 1, -1, -1):
            start = stretch * CHECKPOINT
            stop = min(start + CHECKPOINT, n_tokens)
            for n in range(n_state):
                _read(checkpoints[stretch, n], low, width, h[n])
            for t in range(start, stop):
                k = t - start
                _read(step[t], low, width, s[k])
                _read(v[t], low, width, value[k])
                for d in range(BLOCK_BACK):
                    s[k, d] += gap[t] * rates[d]
                if first[t]:
                    for n in range(n_state):
                        _read(h0[sequence[t], n], low, width, h[n])
                for n in range(n_state):
                    b = B[t, n]
                    if zoh:
                        for d in range(BLOCK_BACK):
                            x = pace[n, d] * s[k, d]
                            a = _exp2(x * _LOG2E)
                            w = _held(x, a, pace[n, d], s[k, d])
                            before = h[n, d]
                            decays[k, n, d] = a
                            states[k, n, d] = before
                            h[n, d] = a * before + w * b * value[k, d]
                    else:
                        for d in range(BLOCK_BACK):
                            a = _exp2(pace[n, d] * s[k, d] * _LOG2E)
                            before = h[n, d]
                            decays[k, n, d] = a
                            states[k, n, d] = before
                            h[n, d] = a * before + b * value[k, d]
            for t in range(stop - 1, start - 1, -1):
                k = t - start
                if last[t]:
                    for n in range(n_state):
                        _read(dfinal[sequence[t], n], low, width, g[n])
                _read(dy[t], low, width, grad)
                for d in range(BLOCK_BACK):
                    sum_v[d] = _ZERO
                    sum_s[d] = _ZERO
                for n in range(n_state):
                    b, c = B[t, n], C[t, n]
                    to_b = _ZERO
                    to_c = _ZERO
                    if zoh:
                        for d in range(BLOCK_BACK):
                            x = pace[n, d] * s[k, d]
                            a = decays[k, n, d]
                            w = _held(x, a, pace[n, d], s[k, d])
                            gn = g[n, d] + grad[d] * c
                            kept = a * states[k, n, d]
                            arrived = b * value[k, d]
                            to_c += grad[d] * (kept + w * arrived)
                            to_b += gn * w * value[k, d]
                            sum_v[d] += gn * w * b
                            flow = gn * kept
                            sum_s[d] += flow * pace[n, d] + gn * arrived * a
                            sum_A[n, d] += flow * s[k, d] + gn * arrived * _held_by_rate(
                                x, a, pace[n, d], s[k, d]
                            )
                            g[n, d] = gn * a
                    else:
                        for d in range(BLOCK_BACK):
                            a = decays[k, n, d]
                            gn = g[n, d] + grad[d] * c
                            kept = a * states[k, n, d]
                            to_c += grad[d] * (kept + b * value[k, d])
                            to_b += gn * value[k, d]
                            sum_v[d] += gn * b
                            flow = gn * kept
                            sum_s[d] += flow * pace[n, d]
                            sum_A[n, d] += flow * s[k, d]
                            g[n, d] = gn * a
                    dB[block, t, n] = to_b
                    dC[block, t, n] = to_c
                for d in range(BLOCK_BACK):
                    sum_rate[d] += sum_s[d] * gap[t]
                for d in range(width):
                    dv[t, low + d] = sum_v[d]
                    dstep[t, low + d] = sum_s[d]
                if first[t]:
                    for n in range(n_state):
                        for d in range(width):
                            dh0[sequence[t], n, low + d] = g[n, d]
        for d in range(width):
            drate[low + d] = sum_rate[d]
            for n in range(n_state):
                dA[n, low + d] = sum_A[n, d]


def _arrays(*tensors: Tensor) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
    """v, step, gap, rate, A, B and C for the loops: contiguous, the rates as (N, D)."""
    v, step, gap, rate, A, B, C = (tensor.detach().contiguous().numpy() for tensor in tensors)
    return v, step, gap, rate, np.ascontiguousarray(A.T), B, C


def _states(initial: Tensor | None, n_sequences: int, A: Tensor) -> np.ndarray:
    """(S, N, D) in memory, so that channels are contiguous like everything else."""
    if initial is None:
        return np.zeros((n_sequences, A.shape[1], A.shape[0]), np.float32)
    return np.ascontiguousarray(initial.detach().numpy().transpose(0, 2, 1))


class NumbaScan(torch.autograd.Function):
    """Autograd wrapper of the two compiled loops; float32, contiguous, CPU."""

    @staticmethod
    def forward(ctx: Any, v, step, gap, rate, A, B, C, starts, ends, initial_state, zoh):
        """Run the scan; see `scan` for the shapes."""
        n_tokens, n_channels = v.shape
        n_state = A.shape[1]
        first = np.zeros(n_tokens, np.bool_)
        last = np.zeros(n_tokens, np.bool_)
        first[starts.numpy()] = True
        last[ends.numpy() - 1] = True
        sequence = (np.cumsum(first) - 1).astype(np.int32)
        arrays, h0 = _arrays(v, step, gap, rate, A, B, C), _states(initial_state, len(starts), A)
        y = np.empty((n_tokens, n_channels), np.float32)
        n_stretches = -(-n_tokens // CHECKPOINT)
        checkpoints = np.empty((n_stretches, n_state, n_channels), np.float32)
        finals = np.empty((len(starts), n_state, n_channels), np.float32)
        _forward(*arrays, first, sequence, h0, zoh, y, checkpoints, finals, last)
        # Saved as tensors, so that torch notices where one was changed before the backward pass.
        ctx.save_for_backward(v, step, gap, rate, A, B, C, initial_state)
        ctx.walked = (first, sequence, zoh, checkpoints, last)
        final = torch.from_numpy(np.ascontiguousarray(finals.transpose(0, 2, 1)))
        return torch.from_numpy(y), final

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of all floating inputs and the initial state."""
        dy, dfinal = gradients
        first, sequence, zoh, checkpoints, last = ctx.walked
        *given, initial_state = ctx.saved_tensors
        v, step, gap, rate, A, B, C = _arrays(*given)
        h0 = _states(initial_state, int(first.sum()), given[4])
        n_tokens, n_channels = v.shape
        n_state = A.shape[0]
        n_blocks = -(-n_channels // BLOCK_BACK)
        final = (
            np.zeros_like(h0)
            if dfinal is None
            else np.ascontiguousarray(dfinal.numpy().transpose(0, 2, 1))
        )
        grad_y = np.zeros_like(v) if dy is None else dy.contiguous().numpy()
        dv, dstep, drate = np.empty_like(v), np.empty_like(v), np.zeros_like(rate)
        dA = np.zeros_like(A)
        dB = np.empty((n_blocks, n_tokens, n_state), np.float32)
        dC = np.empty_like(dB)
        dh0 = np.zeros_like(h0)
        _backward(
            v, step, gap, rate, A, B, C, first, sequence, h0, zoh, checkpoints, last,
            grad_y, final, dv, dstep, drate, dA, dB, dC, dh0,
        )  # fmt: skip
        return (
            torch.from_numpy(dv),
            torch.from_numpy(dstep),
            torch.from_numpy((dstep * rate).sum(1)) if ctx.needs_input_grad[2] else None,
            torch.from_numpy(drate),
            torch.from_numpy(np.ascontiguousarray(dA.T)),
            torch.from_numpy(dB.sum(0)),
            torch.from_numpy(dC.sum(0)),
            None,
            None,
            torch.from_numpy(np.ascontiguousarray(dh0.transpose(0, 2, 1)))
            if initial_state is not None
            else None,
            None,
        )


def scan(
    v: Tensor,
    step: Tensor,
    gap: Tensor,
    rate: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    starts: Tensor,
    ends: Tensor,
    initial_state: Tensor | None,
    *,
    zoh: bool,
) -> tuple[Tensor, Tensor]:
    """Selective scan of float32 tensors on the CPU.

    Args:
        v: Input a channel, (T, D); for `zoh` it is weighted by (exp(A s) - 1) / A inside.
        step: What the content asks to forget, (T, D), not negative.
        gap: Hours since the token before, (T,); the channel feels step + gap * rate.
        rate: (D,), 1/hours.
        A: Rates, (D, N), negative.
        B: Input gate, (T, N).
        C: Read-out, (T, N).
        starts: First token of each packed sequence, (S,).
        ends: One past the last token of each, (S,).
        initial_state: (S, D, N) or None for zero.
        zoh: Weight the input as held over the interval.

    Returns:
        y (T, D) and the final states (S, D, N).
    """
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS))
    return NumbaScan.apply(v, step, gap, rate, A, B, C, starts, ends, initial_state, zoh)
