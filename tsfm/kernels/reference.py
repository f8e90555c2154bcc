"""The selective scan as a plain loop: the oracle that every backend is compared with.

    h_t = exp(A s_t) h_{t-1} + x_t        y_t = sum_n C_{t,n} h_t

with s the elapsed time that each channel feels and x the input term, both prepared by
`tsfm.kernels.selective_scan`. Works in any floating type, float64 included, and leaves gradients to
autograd. It is slow on purpose: nothing here is clever enough to be wrong.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def input_weight(
    A: Float[Tensor, "channel state"], s: Float[Tensor, "token channel"], kind: str
) -> Float[Tensor, "token channel state"]:
    """Weight of a held input over an interval: (exp(A s) - 1) / A, written with expm1.

    `(exp(x) - 1) / A` in float32 loses a fifth of its value at x = -1e-7; expm1 does not.

    Args:
        A: Decay rates, negative.
        s: Elapsed time a channel.
        kind: `zoh` for the weight above, `foh` for the weight of the rising part,
            (exp(x) - 1 - x) / (A x).
    """
    x = A * s.unsqueeze(-1)
    held = torch.expm1(x) / A
    if kind == "zoh":
        return held
    # Below |x| = 1e-2 the difference cancels: s (1/2 + x/6 + x^2/24 + x^3/120) is exact to 1e-12.
    small = x.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(x), x)
    rising = (torch.expm1(safe) - safe) / (A * safe)
    series = s.unsqueeze(-1) * (0.5 + x / 6 + x * x / 24 + x * x * x / 120)
    return torch.where(small, series, rising)


def scan(
    decay: Float[Tensor, "token channel state"],
    x: Float[Tensor, "token channel state"],
    C: Float[Tensor, "token state"],
    starts: Int[Tensor, " sequence"],
    ends: Int[Tensor, " sequence"],
    initial_state: Float[Tensor, "sequence channel state"] | None,
) -> tuple[Float[Tensor, "token channel"], Float[Tensor, "sequence channel state"]]:
    """Run the recurrence one token after the other.

    Args:
        decay: exp(A s) a token, channel and state component.
        x: Input term of the same shape.
        C: Read-out.
        starts: First token of each packed sequence.
        ends: One past the last token of each.
        initial_state: State before each sequence; zero if None.

    Returns:
        y of every token and the state after each sequence's last token.
    """
    outputs: list[Tensor] = []
    finals: list[Tensor] = []
    for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        state = torch.zeros_like(decay[0]) if initial_state is None else initial_state[index]
        for t in range(start, end):
            state = decay[t] * state + x[t]
            outputs.append(state @ C[t])
        finals.append(state)
    return torch.stack(outputs), torch.stack(finals)
