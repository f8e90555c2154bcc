"""The selective scan in plain torch without a step a token.

The packed tokens are cut into about sqrt(T) chunks. All chunks advance together, each from a zero
state (one step a position within the chunk); the states at the chunks' ends are then carried from
chunk to chunk, and what the carried state adds is read out in one product. So T tokens take about
2 sqrt(T) steps of torch instead of T, in any floating type, on any device, with autograd's own
gradients. Nothing is ever divided by a product of decays, which underflows over years of gap.

A new sequence is an infinite gap: its first decay is zero, so chunks need not respect the borders
of patients.
"""

from __future__ import annotations

import math

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
    """Same contract as `tsfm.kernels.reference.scan`."""
    n_tokens, n_channels, n_state = decay.shape
    if initial_state is not None:
        x = x.index_add(0, starts, decay[starts] * initial_state)
    decay = decay.index_fill(0, starts, 0.0)
    length = max(1, math.isqrt(n_tokens))
    n_chunks = -(-n_tokens // length)
    padding = n_chunks * length - n_tokens
    if padding:
        decay = torch.cat([decay, decay.new_ones(padding, n_channels, n_state)])
        x = torch.cat([x, x.new_zeros(padding, n_channels, n_state)])
    decay = decay.view(n_chunks, length, n_channels, n_state)
    x = x.view(n_chunks, length, n_channels, n_state)

    state = x[:, 0]
    survival = decay[:, 0]
    local, survivals = [state], [survival]
    for position in range(1, length):
        state = decay[:, position] * state + x[:, position]
        survival = decay[:, position] * survival
        local.append(state)
        survivals.append(survival)

    carry = torch.zeros_like(state[0])
    carries = [carry]
    for chunk in range(n_chunks - 1):
        carry = survival[chunk] * carry + state[chunk]
        carries.append(carry)
    states = torch.stack(local, 1) + torch.stack(survivals, 1) * torch.stack(carries).unsqueeze(1)
    states = states.view(n_chunks * length, n_channels, n_state)[:n_tokens]
    return torch.einsum("tdn,tn->td", states, C), states[ends - 1]
