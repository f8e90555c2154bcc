"""One token of many futures: is there another, when, which code, and what value.

Each is an inverse distribution function at one uniform number, so that the same numbers give the
same token. A future that is kept from an outcome draws from the law given that the token is not the
outcome: with q the chance of a code of the set and r that of a token within the horizon,

    P(a token within the horizon | not the outcome) = r (1 - q) / (1 - q r)

and, if there is one, a code outside the set and the wait as before. To mask the codes alone would
leave this chance at r, and the product of 1 - q r would no longer be the weight of the future.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm.models.timeline_stepper import NextToken
from tsfm.rollouts.waits import Waits

_LARGEST_VALUE = 6.0  # what the value head is trained on
_BLOCK = 64


@dataclass(frozen=True)
class Draws:
    """The next token of some futures, its value left out.

    Attributes:
        in_set: (R, O) chance that its code belongs to each outcome's set.
        code: (R,) its code.
        wait_hours: (R,) hours since the last token; beyond the horizon there is no such token.
    """

    in_set: NDArray[np.float64]
    code: NDArray[np.int64]
    wait_hours: NDArray[np.float64]


def draw_tokens(
    law: NextToken,
    waits: Waits,
    member: Tensor,
    u_code: Tensor,
    u_wait: Tensor,
    left_hours: Tensor,
    *,
    keep_out: bool,
) -> Draws:
    """Draw waits and codes.

    Args:
        law: Laws of the next tokens.
        waits: Their waits.
        member: (V, O) 1 where a code belongs to an outcome's set, on the device of the law.
        u_code: (R,) uniform numbers for the codes, float64.
        u_wait: (R,) and for the waits.
        left_hours: (R,) hours from the last token to the horizon.
        keep_out: Draw given that the token is not the outcome, of which there must be one alone.
    """
    logits = law.code_logits
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    inside = (weights @ member).double()
    if keep_out:
        weights = weights.masked_fill_(member[:, 0] > 0, 0.0)
        outside = weights.sum(-1, keepdim=True).double()
        in_set = (inside / (inside + outside)).cpu()
        escape = 1.0 - in_set[:, 0] * waits.within(left_hours)
        others = (outside / (inside + outside)).cpu()[:, 0]
        u_wait = torch.where(others > 0, u_wait * escape / others, 1.0).clamp(max=1.0)
    else:
        in_set = (inside / weights.sum(-1, keepdim=True).double()).cpu().clamp(max=1.0)
    return Draws(
        in_set=in_set.numpy(),
        code=_choose(weights, u_code.to(weights.device)).cpu().numpy(),
        wait_hours=waits.quantile(u_wait).numpy(),
    )


def draw_values(mean: Tensor, std: Tensor, u: Tensor) -> NDArray[np.float32]:
    """Standardised values of a normal law, within what the value head is trained on."""
    z = mean.double().cpu() + std.double().cpu() * torch.special.ndtri(u)
    return z.clamp(-_LARGEST_VALUE, _LARGEST_VALUE).float().numpy()


def _choose(weights: Tensor, u: Tensor) -> Tensor:
    """Codes at which the running sum of each row's weights passes a share u of its total.

    First among the sums of blocks, then within one block: float64 running sums of all weights,
    which rare codes need, would cost more than the weights themselves.
    """
    n_codes = weights.shape[1]
    n_whole = n_codes // _BLOCK
    sums = weights[:, : n_whole * _BLOCK].unflatten(1, (n_whole, _BLOCK)).sum(-1)
    if n_codes % _BLOCK:
        rest = weights[:, n_whole * _BLOCK :].sum(-1, keepdim=True)
        sums = torch.cat([sums, rest], -1)
    running = torch.cumsum(sums, -1, dtype=torch.float64)
    target = (u * running[:, -1]).unsqueeze(-1)
    block = torch.searchsorted(running, target, right=True).clamp(max=running.shape[1] - 1)
    before = torch.where(block > 0, running.gather(1, (block - 1).clamp(min=0)), 0.0)
    columns = block * _BLOCK + torch.arange(_BLOCK, device=u.device)
    own = weights.gather(1, columns.clamp(max=n_codes - 1)).double()
    within = torch.cumsum(own.masked_fill(columns >= n_codes, 0.0), -1)
    # The sum of a block is float32: what it is off by is spread over the block's codes alike.
    share = (target - before) / (running.gather(1, block) - before)
    inside = share.clamp(0.0, 1.0 - 1e-12) * within[:, -1:]
    place = torch.searchsorted(within, inside, right=True).clamp(max=_BLOCK - 1)
    return (block * _BLOCK + place).squeeze(-1).clamp(max=n_codes - 1)
