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
