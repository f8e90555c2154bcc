"""From hidden states to a mean and to quantiles that never cross, as a correction of simple rules.

    mean = sum_b p_b base_b + unit * c         median = sum_b q_b base_b + unit * m
    quantile above the median = the one below it + unit * softplus(s), and likewise downwards

The weights p and q are softmaxes: at the start, and wherever nothing better is learnt, a forecast
is a convex mix of the series' own simple forecasts (`series_summary.base_forecasts`). The unit is a
learned geometric mean between the spread of the series and the size of its recent steps, so that a
smooth curve can be corrected finely and a noisy one coarsely.

The mean answers squared error, the quantiles absolute error and CRPS: no one number wins both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tsfm.models.series_summary import N_BASES

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)
_MEDIAN = LEVELS.index(0.5)
_FIRST_SPREAD = -2.0  # softplus of it is 0.13: six steps out are about one and a half units


class HeadOutput(NamedTuple):
    """Forecasts in the units of the standardised values.

    Attributes:
        mean: Mean, (query,).
        quantiles: Of `LEVELS`, ascending, (query, level).
    """

    mean: Tensor
    quantiles: Tensor


class QuantileHead(nn.Module):
    """Mean and quantiles of each query.

    Args:
        d_model: Width of the queries' hidden states.
        n_variables: Variables that have a say of their own in the mix.
        n_bases: Simple forecasts a query.
    """

    def __init__(self, d_model: int, n_variables: int, n_bases: int = N_BASES) -> None:
        """Start as the mean of the simple forecasts."""
        super().__init__()
        self.sizes = (n_bases, n_bases, 1, 1, len(LEVELS))
        self.out = nn.Linear(d_model, sum(self.sizes))
        self.by_variable = nn.Embedding(n_variables, sum(self.sizes))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        nn.init.zeros_(self.by_variable.weight)
        self.corrections = None
        if n_variables > 1:
            self.corrections = nn.Embedding(n_variables, 2 * d_model)
            nn.init.zeros_(self.corrections.weight)

    def forward(
        self,
        x: Float[Tensor, "query model"],
        variable: Int[Tensor, " query"],
        bases: Float[Tensor, "query base"],
        step: Float[Tensor, " query"],
        known: Bool[Tensor, "query base"] | None = None,
    ) -> HeadOutput:
        """Mix the simple forecasts and correct them.

        Args:
            x: Hidden states.
            variable: Variable of each query.
            bases: Its simple forecasts.
            step: Size of its series' recent steps, positive.
            known: Which of them there are; None is all.
        """
        logits = self.out(x) + self.by_variable(variable)
        for_mean, for_median, correction, finer, spreads = logits.split(self.sizes, -1)
        if known is not None:
            for_mean = for_mean.masked_fill(~known, -torch.inf)
            for_median = for_median.masked_fill(~known, -torch.inf)
        middle = spreads[:, _MEDIAN]
        correction = correction.squeeze(-1)
        if self.corrections is not None:
            own = self.corrections(variable).unflatten(-1, (2, -1)) * x.unsqueeze(1)
            correction, middle = correction + own[:, 0].sum(-1), middle + own[:, 1].sum(-1)
        unit = torch.exp(torch.sigmoid(finer.squeeze(-1) - 1.0) * step.log().clamp(-9.0, 3.0))
        mean = (for_mean.softmax(-1) * bases).sum(-1) + unit * correction
        middle = (for_median.softmax(-1) * bases).sum(-1) + unit * middle
        steps = unit.unsqueeze(-1) * F.softplus(spreads + _FIRST_SPREAD)
        below = steps[:, :_MEDIAN].flip(-1).cumsum(-1).flip(-1)
        above = steps[:, _MEDIAN + 1 :].cumsum(-1)
        middle = middle.unsqueeze(-1)
        return HeadOutput(mean, torch.cat([middle - below, middle, middle + above], -1))


def pinball(
    quantiles: Float[Tensor, "query level"], truth: Float[Tensor, " query"]
) -> Float[Tensor, " query"]:
    """Twice the mean pinball loss over `LEVELS`: the CRPS as far as these levels tell it."""
    levels = torch.tensor(LEVELS, dtype=quantiles.dtype, device=quantiles.device)
    error = truth.unsqueeze(-1) - quantiles
    return 2 * torch.maximum(levels * error, (levels - 1) * error).mean(-1)


def bounded_square(error: Float[Tensor, " query"], bound: float) -> Float[Tensor, " query"]:
    """Squared error, linear beyond the bound: a slip of the pen must not rule a step."""
    size = error.abs()
    inside = size.clamp(max=bound)
    return inside * (2 * size - inside)
