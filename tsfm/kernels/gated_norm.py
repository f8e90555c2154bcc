"""What follows the scan in a block: skip, gate and norm, in one pass over memory.

    q = (y + D u) silu(z)        out = q / rms(q) * weight

In plain torch this is some twenty passes forward and backward over the widest tensors of the
model; the numba form makes one each. float32 on the CPU takes that, everything else the torch form,
which is also the oracle.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gated_rms_norm(
    y: Float[Tensor, "token channel"],
    u: Float[Tensor, "token channel"],
    z: Float[Tensor, "token channel"],
    D: Float[Tensor, " channel"],
    weight: Float[Tensor, " channel"],
    eps: float,
) -> Float[Tensor, "token channel"]:
    """Skip, gate and normalise.

    Args:
        y: Output of the scan.
        u: Its input.
        z: Gate before silu.
        D: Skip weight a channel.
        weight: Scale a channel after the norm.
        eps: Added to the mean square.
    """
    compiled = y.device.type == "cpu" and y.dtype == torch.float32
    if compiled and not torch.compiler.is_compiling():
        from tsfm.kernels import numba_norm

        return numba_norm.gated_norm(y, u, z, D, weight, eps)
    return gated_rms_norm_torch(y, u, z, D, weight, eps)


def gated_rms_norm_torch(
    y: Float[Tensor, "token channel"],
    u: Float[Tensor, "token channel"],
    z: Float[Tensor, "token channel"],
    D: Float[Tensor, " channel"],
    weight: Float[Tensor, " channel"],
    eps: float,
) -> Float[Tensor, "token channel"]:
    """The same in plain torch; see `gated_rms_norm`."""
    return F.rms_norm((y + D * u) * F.silu(z), (y.shape[-1],), weight, eps)
