"""A layer over one entity's series compiled for few rows; see `tsfm.models.forecast_blocks`.

`VariableBlock` is some two hundred operations of torch. On forty rows of 64 channels each is done
in a few microseconds and takes longer to call. Here a layer is three calls with plain arrays: keys
and values of new points, queries to the points, and, once those have been answered, all the rest.
float32 on one thread, no gradients. Equal to the layer to rounding.

Phases are as exact as those of `tsfm.models.ct_rope`: products of halves of float64 numbers, whole
cycles taken off each before they are added.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import numba
import numpy as np
from numpy.typing import NDArray

_JIT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_FLAGS = {"contract", "arcp", "nsz", "reassoc"}
_HIGH_BITS = np.int64(-(1 << 27))
_ONE = np.float32(1.0)
Array = NDArray[Any]


class Attention(NamedTuple):
    """Weights of an attention without biases, as many heads of keys as of queries.

    Attributes:
        norm: Scale of the norm before the queries.
        query: (model, model), and so on, as `torch.nn.Linear` has them.
        key: Likewise.
        value: Likewise.
        out: Likewise.
        frequency: In Hz, (pair,) float64.
        n_heads: Heads.
        eps: Of the norm.
    """

    norm: Array
    query: Array
    key: Array
    value: Array
    out: Array
    frequency: Array
    n_heads: int
    eps: np.float32


class Experts(NamedTuple):
    """Weights of a gated feed-forward layer, beside which some experts stand.

    Attributes:
        norm: Scale of the norm before it.
        gate_up: Of the layer that all rows pass, (2 inner, model).
        out: Likewise, (model, inner).
        shared_gate: What it is weighed by, (1, model); empty if it stands alone.
        router: (expert, model); no rows if there are no experts.
        rate_router: (expert, feature).
        bias: Of the logits, (expert,).
        balance: What is added to the logits for the choice alone, (expert,).
        experts_gate_up: (expert, model, 2 inner).
        experts_out: (expert, inner, model).
        top_k: Experts a row.
        eps: Of the norm.
    """

    norm: Array
    gate_up: Array
    out: Array
    shared_gate: Array
    router: Array
    rate_router: Array
    bias: Array
    balance: Array
    experts_gate_up: Array
    experts_out: Array
    top_k: int
    eps: np.float32


@numba.njit(**_JIT)
@no_type_check
def _turn(x, seconds, frequency, n_heads):
    """Turn pairs of channels of each head by the times of the rows, in place."""
    n_pairs = len(frequency)
    for row in range(len(x)):
        t = seconds[row]
        t_upper = np.int64(np.float64(t).view(np.int64) & _HIGH_BITS).view(np.float64)
        t_lower = t - t_upper
        for i in range(n_pairs):
            f = frequency[i]
            f_upper = np.int64(np.float64(f).view(np.int64) & _HIGH_BITS).view(np.float64)
            f_lower = f - f_upper
            cycles = 0.0
            for part in (
                t_upper * f_upper,
                t_lower * f_upper,
                t_upper * f_lower,
                t_lower * f_lower,
            ):
                cycles += part - np.rint(part)
            angle = np.float32(2.0 * np.pi * (cycles - np.rint(cycles)))
            cosine, sine = np.cos(angle), np.sin(angle)
            for head in range(n_heads):
                first = head * 2 * n_pairs + i
                a, b = x[row, first], x[row, first + n_pairs]
                x[row, first] = a * cosine - b * sine
                x[row, first + n_pairs] = b * cosine + a * sine


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _normalised(x, scale, eps):
    out = np.empty_like(x)
    for row in range(len(x)):
        total = np.float32(0.0)
        for d in range(x.shape[1]):
            total += x[row, d] * x[row, d]
        r = _ONE / np.sqrt(total / np.float32(x.shape[1]) + eps)
        for d in range(x.shape[1]):
            out[row, d] = x[row, d] * r * scale[d]
    return out


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _gated(both):
    n = both.shape[1] // 2
    out = np.empty((len(both), n), np.float32)
    for row in range(len(both)):
        for d in range(n):
            gate = both[row, d]
            out[row, d] = gate / (_ONE + np.exp(-gate)) * both[row, n + d]
    return out


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _attend(q, k, v, n_heads):
    """Softmax attention of all rows over all rows."""
    n, width = q.shape
    dim = width // n_heads
    scale = np.float32(dim**-0.5)
    y = np.zeros_like(q)
    score = np.empty(n, np.float32)
    for head in range(n_heads):
        at = head * dim
        for i in range(n):
            top = np.float32(-np.inf)
            for j in range(n):
                s = np.float32(0.0)
                for d in range(at, at + dim):
                    s += q[i, d] * k[j, d]
                score[j] = s * scale
                top = max(top, score[j])
            total = np.float32(0.0)
            for j in range(n):
                score[j] = np.exp(score[j] - top)
                total += score[j]
            for j in range(n):
                share = score[j] / total
                for d in range(at, at + dim):
                    y[i, d] += share * v[j, d]
    return y


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _expert_weights(h, rate, form):
    """Weight of each expert for each row; nought but for the chosen."""
    logits = np.dot(h, form.router.T) + np.dot(rate, form.rate_router.T) + form.bias
    n = logits.shape[1]
    weights = np.zeros_like(logits)
    for row in range(len(h)):
        top = logits[row].max()
        total = np.float32(0.0)
        for _ in range(form.top_k):
            best = -1
            for e in range(n):
                if weights[row, e] == 0 and (
                    best < 0
                    or logits[row, e] + form.balance[e] > logits[row, best] + form.balance[best]
                ):
                    best = e
            # At least the least number: a chosen one must not look like one that is not.
            weights[row, best] = max(np.exp(logits[row, best] - top), np.float32(1e-38))
            total += weights[row, best]
        for e in range(n):
            weights[row, e] /= total
    return weights


@numba.njit(fastmath=_FLAGS, **_JIT)
@no_type_check
def _feed_forward(h, rate, form):
    shared = np.dot(_gated(np.dot(h, form.gate_up.T)), form.out.T)
    if not len(form.router):
        return shared
    weights = _expert_weights(h, rate, form)
    gate = np.dot(h, form.shared_gate.T)
    for row in range(len(h)):
        share = _ONE / (_ONE + np.exp(-gate[row, 0]))
        for d in range(shared.shape[1]):
            shared[row, d] *= share
    for e in range(len(form.router)):
        inner = _gated(np.dot(h, form.experts_gate_up[e]))
        for row in range(len(h)):
            for d in range(inner.shape[1]):
                inner[row, d] *= weights[row, e]
        shared += np.dot(inner, form.experts_out[e])
    return shared


@numba.njit(**_JIT)
@no_type_check
def keys_and_values(points, seconds, norm, eps, form):
    """Turned keys and values of points, (point, model) each.

    Args:
        points: Hidden states.
        seconds: Their times, float64.
        norm: Scale of the points' norm.
        eps: Of that norm.
        form: The attention that will look at them.
    """
    x = _normalised(points, norm, eps)
    keys = np.dot(x, form.key.T)
    _turn(keys, seconds, form.frequency, form.n_heads)
    return keys, np.dot(x, form.value.T)


@numba.njit(**_JIT)
@no_type_check
def point_queries(x, seconds, form):
    """Turned queries of rows to points, (row, model).

    Args:
        x: Tokens.
        seconds: When they ask, float64.
        form: The attention to points.
    """
    q = np.dot(_normalised(x, form.norm, form.eps), form.query.T)
    _turn(q, seconds, form.frequency, form.n_heads)
    return q


@numba.njit(**_JIT)
@no_type_check
def rest_of_block(x, seen, seconds, rate, to_points, among, experts):
    """What a layer gives once its queries to points have been answered, (row, model).

    Args:
        x: Tokens.
        seen: What attention to points has seen, heads side by side; no rows if nothing.
        seconds: Times of the rows for the attention among them, float64.
        rate: What the router of experts is told.
        to_points: The attention to points.
        among: The attention among the rows.
        experts: The feed-forward layer.
    """
    if len(seen):
        x = x + np.dot(seen, to_points.out.T)
    h = _normalised(x, among.norm, among.eps)
    q, k, v = np.dot(h, among.query.T), np.dot(h, among.key.T), np.dot(h, among.value.T)
    _turn(q, seconds, among.frequency, among.n_heads)
    _turn(k, seconds, among.frequency, among.n_heads)
    x = x + np.dot(_attend(q, k, v, among.n_heads), among.out.T)
    return x + _feed_forward(_normalised(x, experts.norm, experts.eps), rate, experts)
