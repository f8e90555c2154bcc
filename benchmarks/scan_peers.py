"""What the scan is compared with: mambapy, transformers' slow path, a plain loop, a plain step.

Each takes the arguments of `tsfm.kernels.selective_scan` that Mamba-1 has. mambapy and transformers
are imported when called: they are needed for their own rows only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    from mambapy.pscan import pscan

    decay = torch.exp(delta.unsqueeze(-1) * A)
    arrived = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    return (pscan(decay, arrived) @ C.unsqueeze(-1)).squeeze(3)


def transformers_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """transformers' slow path, in its own layout (B, D, L)."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    return mamba_selective_scan(u, delta, A, B, C)


def plain_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * u[:, t]).unsqueeze(-1) * B[:, t, None]
        outputs.append((state @ C[:, t, :, None]).squeeze(-1))
    return torch.stack(outputs, 1)


def plain_step(
    state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> Tensor:
    """One step in torch, term by term as mamba-ssm's and transformers' own forms have it."""
    decay = torch.exp(delta.unsqueeze(-1) * A)
    arrived = delta.unsqueeze(-1) * B.unsqueeze(1) * u.unsqueeze(-1)
    state.copy_(state * decay + arrived)
    y = torch.matmul(state, C.unsqueeze(-1)).squeeze(-1) + u * D
    return y * F.silu(z)
