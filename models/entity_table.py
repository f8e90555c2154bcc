"""The latest numbers of all of an entity's variables, read side by side like the row of a table.

What one draw of blood tells of the next is a sum over many variables; attention over series passes
it on through a narrow state, one variable at a time. Trees on a row of last values were ahead of
the forecaster exactly there (`docs/benchmarks/p12_forecast.md`), so it reads such a row as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tsfm.models.forecast_data import ForecastContext
from tsfm.models.series_summary import SeriesSummary

N_FEATURES = 5
_MIDDLE = 1  # of the summary's half-lives


class EntityTable(nn.Module):
    """What an entity's row says to each of its series.

    A variable has `N_FEATURES` places in the row: whether it was measured, its last value, its
    mean, how far the last value is from the forgetting mean, and its age. One layer reads the row;
    each series gets the reading, weighed by its variable. Nothing is added at the start.

    Args:
        n_variables: Known variables.
        width: Of the layer.
        d_model: Width of the series' tokens.
        dropout: In training, on the reading.
    """

    def __init__(self, n_variables: int, width: int, d_model: int, dropout: float) -> None:
        """Build the layer, silent."""
        super().__init__()
        self.n_variables = n_variables
        self.read = nn.Linear(n_variables * N_FEATURES, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, d_model, bias=False)
        self.gain = nn.Embedding(n_variables, width)
        nn.init.zeros_(self.out.weight)
        nn.init.normal_(self.gain.weight, std=0.5)

    def forward(
        self, context: ForecastContext, summary: SeriesSummary
    ) -> Float[Tensor, "series model"]:
        """What the row adds to each series' token.

        Args:
            context: Standardised, with a clock. Series of one variable in one entity share their
                places: the mean stands there.
            summary: Of its series.
        """
        there = (summary.count > 0).to(summary.last)
        mean = summary.total / summary.count.clamp(min=1)
        level = summary.level[:, _MIDDLE] / summary.weight[:, _MIDDLE].clamp(min=1e-9)
        told = torch.stack(
            [there, summary.last.asinh(), mean.asinh(), (summary.last - level).asinh(),
             there * torch.log1p(context.age()) / 3.0], -1,
        )  # fmt: skip
        entity = context.entity_of_series()
        n_entities = len(context.now_seconds)
        place = entity * self.n_variables + context.variable
        shared = there.new_zeros(n_entities * self.n_variables).index_add_(
            0, place, torch.ones_like(there)
        )
        rows = told.new_zeros(len(shared), N_FEATURES).index_add_(0, place, told)
        rows = (rows / shared.clamp(min=1).unsqueeze(-1)).view(n_entities, -1)
        read = self.dropout(F.silu(self.read(rows)))[entity]
        return self.out(read * (1 + self.gain(context.variable)))
