"""Short depthwise causal convolution over packed tokens.

    y_t = bias + sum_k weight_k x_{t-k},   k = 0 .. K-1

in the layout (T, D) that projections produce, so that nothing is transposed. Taps that would reach
into another sequence read zero: a patient never sees the end of the one before.
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
