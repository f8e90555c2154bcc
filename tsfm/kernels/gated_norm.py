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

from tsfm.kernels.argument_checks import wrong_shape


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

    Raises:
        InputError: Shapes that do not fit.
    """
    channels = y.shape[-1:]
    if y.dim() != 2 or not channels[0]:
        raise wrong_shape("y", y, "(T, D), with a channel or more")
    for name, tensor, shape in (
        ("u", u, y.shape), ("z", z, y.shape), ("D", D, channels), ("weight", weight, channels),
    ):  # fmt: skip
        if tensor.shape != shape:
            raise wrong_shape(name, tensor, str(tuple(shape)))
    compiled = y.device.type == "cpu" and all(
        tensor.dtype == torch.float32 for tensor in (y, u, z, D, weight)
    )
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
