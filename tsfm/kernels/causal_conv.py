"""Short depthwise causal convolution over packed tokens.

    y_t = bias + sum_k weight_k x_{t-k},   k = 0 .. K-1

in the layout (T, D) that projections produce, so that nothing is transposed. Taps that would reach
into another sequence read zero: a patient never sees the end of the one before. float32 on the CPU
is served by numba, everything else by the plain torch form below, which is also the oracle.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def causal_conv1d(
    x: Float[Tensor, "token channel"],
    weight: Float[Tensor, "channel tap"],
    bias: Float[Tensor, " channel"] | None,
    position: Int[Tensor, " token"],
) -> Float[Tensor, "token channel"]:
    """Convolve each packed sequence on its own.

    Args:
        x: Input.
        weight: Taps, the last one for the token itself (torch's conv1d order).
        bias: Added to every token.
        position: Position of each token within its sequence, from 0.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and bias is not None:
        from tsfm.kernels import numba_conv

        return numba_conv.conv(x, weight, bias, position)
    return causal_conv1d_torch(x, weight, bias, position)


def causal_conv1d_torch(
    x: Float[Tensor, "token channel"],
    weight: Float[Tensor, "channel tap"],
    bias: Float[Tensor, " channel"] | None,
    position: Int[Tensor, " token"],
) -> Float[Tensor, "token channel"]:
    """The same in plain torch, with autograd's own gradients; see `causal_conv1d`."""
    n_taps = weight.shape[1]
    y = x * weight[:, -1]
    if bias is not None:
        y = y + bias
    for k in range(1, n_taps):
        if k >= x.shape[0]:
            break
        shifted = x[:-k] * weight[:, n_taps - 1 - k]
        inside = (position[k:] >= k).unsqueeze(-1)
        y = y + torch.cat([y.new_zeros(k, x.shape[1]), torch.where(inside, shifted, 0.0)])
    return y
