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

from tsfm.errors import InputError
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
    if y.dim() != 2 or not y.shape[1]:
        raise wrong_shape("y", y, "(T, D), with a channel or more")
    channels = y.shape[1:]
    # Of a step of decoding this is a good part: all at once, and who is wrong only if one is.
    if not (y.shape == u.shape == z.shape and channels == D.shape == weight.shape):
        raise _misfit(y.shape, u=u, z=z, D=D, weight=weight)
    compiled = y.is_cpu and (
        y.dtype is u.dtype is z.dtype is D.dtype is weight.dtype is torch.float32
    )
    if compiled and not torch.compiler.is_compiling():
        from tsfm.kernels import numba_norm

        return numba_norm.gated_norm(y, u, z, D, weight, eps)
    return gated_rms_norm_torch(y, u, z, D, weight, eps)


def _misfit(shape: torch.Size, **tensors: Tensor) -> InputError:
    expected = {"u": shape, "z": shape, "D": shape[1:], "weight": shape[1:]}
    name = next(name for name, tensor in tensors.items() if tensor.shape != expected[name])
    return wrong_shape(name, tensors[name], str(tuple(expected[name])))


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
