"""Weights of an input over an interval, exact to rounding, with their gradients, in plain torch.

A state that decays with rate A takes up an input over an interval of length s with, for x = A s,

    held     (exp(x) - 1) / A              a value held over the interval
    rising   (exp(x) - 1 - x) / (A x)      a value that rises from zero to its new level
    falling  held - rising                 a value that falls from its old level to zero

As written these cancel where x is small, and so do their derivatives. Here each is s times a
function of x that is a Taylor series above x = -1, and so are the derivatives, which torch can
differentiate again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_TERMS = 20  # exact in float64 for |x| < 1


def weigh(
    A: Float[Tensor, "channel state"], s: Float[Tensor, "token channel"], kind: str
) -> Float[Tensor, "token channel state"]:
    """Weight of an input over an interval of length s.

    Args:
        A: Decay rates, negative.
        s: Elapsed time a channel.
        kind: `held`, `rising` or `falling`.
    """
    return _Weight.apply(A, s, kind)


class _Weight(torch.autograd.Function):
    """The weights, with derivatives that do not cancel; these are torch's to differentiate."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, s: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(A, s)
        ctx.kind = kind
        elapsed = s.unsqueeze(-1)
        x = A * elapsed
        forms = {"held": _held, "rising": _rising, "falling": _falling}
        return elapsed * forms[kind](x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        A, s = ctx.saved_tensors
        elapsed = s.unsqueeze(-1)
        x = A * elapsed
        if ctx.kind == "held":
            by_s, by_x = torch.exp(x), _falling(x)
        elif ctx.kind == "rising":
            by_s, by_x = _falling(x), _rising_slope(x)
        else:
            by_s, by_x = torch.exp(x) - _falling(x), _falling_slope(x)
        flow = gradients[0]
        return (flow * elapsed * elapsed * by_x).sum(0), (flow * by_s).sum(-1), None


# (exp(x) - 1) / x needs no series: expm1 does not cancel.
def _held(x: Tensor) -> Tensor:
    near = x.abs() < 1e-30
    safe = torch.where(near, torch.ones_like(x), x)
    return torch.where(near, torch.ones_like(x), torch.expm1(safe) / safe)


def _rising(x: Tensor) -> Tensor:
    return _by_series(x, lambda k: 1 / math.factorial(k + 2), lambda y: (torch.expm1(y) - y) / y**2)


def _falling(x: Tensor) -> Tensor:
    return _by_series(
        x,
        lambda k: (k + 1) / math.factorial(k + 2),
        lambda y: (y * torch.exp(y) - torch.expm1(y)) / y**2,
    )


def _rising_slope(x: Tensor) -> Tensor:
    return _by_series(
        x,
        lambda k: (k + 1) / math.factorial(k + 3),
        lambda y: ((y - 2) * torch.exp(y) + y + 2) / y**3,
    )


def _falling_slope(x: Tensor) -> Tensor:
    return _by_series(
        x,
        lambda k: (k + 1) * (k + 2) / math.factorial(k + 3),
        lambda y: (((y - 2) * y + 2) * torch.exp(y) - 2) / y**3,
    )


def _by_series(
    x: Tensor, coefficient: Callable[[int], float], closed: Callable[[Tensor], Tensor]
) -> Tensor:
    near = x.abs() < 1
    small = torch.where(near, x, torch.zeros_like(x))
    series = torch.full_like(x, coefficient(_TERMS - 1))
    for k in range(_TERMS - 2, -1, -1):
        series = series * small + coefficient(k)
    return torch.where(near, series, closed(torch.where(near, torch.ones_like(x), x)))
