"""Parts of the forecaster: layers over variables, layers over queries, and the flow in between."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from tsfm.models.attention import AttentionConfig, CrossAttention, SelfAttention
from tsfm.models.experts import ExpertsConfig, FrequencyAwareExperts, SwiGLU
from tsfm.models.forecast_data import ForecastContext, ForecastQueries
from tsfm.models.mamba import RMSNorm
from tsfm.models.ode_flow import FlowConfig, OdeFlow, Solver

FLOWS = ("closed", "ode", "none")
_CENTRES = (0.0, 1.0, 2.0, 3.0, 4.5, 6.0)  # of log1p clock units: nought to four hundred
_WIDTH = 0.8


def log_time_features(clock_units: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows feature"]:
    """A duration as bumps over its logarithm and the logarithm itself."""
    log = torch.log1p(clock_units.clamp(min=0)).unsqueeze(-1)
    centres = torch.tensor(_CENTRES, device=log.device, dtype=log.dtype)
    bumps = torch.exp(-0.5 * ((log - centres) / _WIDTH).square())
    return torch.cat([bumps, log / 3.0, log.square() / 9.0], -1)


N_LOG_TIME_FEATURES = len(_CENTRES) + 2


class FeedForward(nn.Module):
    """A pre-norm feed-forward layer, plain or of routed experts."""

    def __init__(self, d_model: int, n_experts: int, dropout: float) -> None:
        """Half of the plain layer's width goes to the shared expert, a quarter to each other."""
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.experts = self.plain = None
        if n_experts:
            sizes = ExpertsConfig(d_model, d_model // 2, d_model, n_experts, top_k=2)
            self.experts = FrequencyAwareExperts(sizes)
        else:
            self.plain = SwiGLU(d_model, 2 * d_model)

    def forward(self, x: Tensor, rate: Tensor | None) -> Tensor:
        """What the layer adds to each row."""
        if self.experts is not None:
            return self.dropout(self.experts(self.norm(x), rate)[0])
        assert self.plain is not None
        return self.dropout(self.plain(self.norm(x)))


class VariableBlock(nn.Module):
    """Each series of an entity looks at all points of the entity, then at its other series."""

    def __init__(self, attention: AttentionConfig, n_experts: int, dropout: float) -> None:
        """Build the three layers."""
        super().__init__()
        d = attention.d_model
        self.point_norm, self.norms = RMSNorm(d), nn.ModuleList([RMSNorm(d), RMSNorm(d)])
        self.points = CrossAttention(attention)
        self.series = SelfAttention(attention)
        self.feed_forward = FeedForward(d, n_experts, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "series model"],
        points: Float[Tensor, "point model"],
        context: ForecastContext,
        seconds: Float64[Tensor, " point"],
        series_seconds: tuple[Float64[Tensor, " series"], Float64[Tensor, " series"]],
        rate: Float[Tensor, "series feature"],
    ) -> Float[Tensor, "series model"]:
        """One layer.

        Args:
            x: Series tokens.
            points: States of all points.
            context: Where they belong.
            seconds: Times of the points for the rotary embedding.
            series_seconds: Likewise of each series' now and of its last point.
            rate: What the experts' router is told.
        """
        first, second = self.norms
        now, last = series_seconds
        seen = _attend_present(
            self.points, first(x), now, self.point_norm(points), seconds, context.cu_series,
            context.points_of_entity(),
        )  # fmt: skip
        x = x + self.dropout(seen)
        x = x + self.dropout(self.series(second(x), last, context.cu_series))
        return x + self.feed_forward(x, rate)


class QueryBlock(nn.Module):
    """A layer of the queries: by themselves, with their series' points, or with each other."""

    def __init__(
        self, attention: AttentionConfig, n_experts: int, dropout: float, *, reads_points: bool,
        sees_queries: bool,
    ) -> None:  # fmt: skip
        """Build what is asked for."""
        super().__init__()
        d = attention.d_model
        self.points = CrossAttention(attention) if reads_points else None
        self.queries = SelfAttention(attention) if sees_queries else None
        self.point_norms = nn.ModuleList([RMSNorm(d), RMSNorm(d)]) if reads_points else None
        self.query_norm = RMSNorm(d) if sees_queries else None
        self.feed_forward = FeedForward(d, n_experts, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "query model"],
        points: Float[Tensor, "point model"],
        context: ForecastContext,
        queries: ForecastQueries,
        seconds: tuple[Float64[Tensor, " point"], Float64[Tensor, " query"]],
        rate: Float[Tensor, "query feature"] | None = None,
    ) -> Float[Tensor, "query model"]:
        """One layer.

        Args:
            x: States of the queries.
            points: States of all points.
            context: Where points belong.
            queries: Where queries belong.
            seconds: Times of points and queries for the rotary embedding.
            rate: What the experts' router is told, if there are any.
        """
        if self.points is not None:
            assert self.point_norms is not None
            first, second = self.point_norms
            seen = _attend_present(
                self.points, first(x), seconds[1], second(points), seconds[0],
                queries.cu_queries, context.cu_points,
            )  # fmt: skip
            x = x + self.dropout(seen)
        if self.queries is not None and len(x):
            assert self.query_norm is not None
            borders = queries.cu_queries[context.cu_series].unique_consecutive()
            x = x + self.dropout(self.queries(self.query_norm(x), seconds[1], borders))
        return x + self.feed_forward(x, rate)


class StateFlow(nn.Module):
    """How a series' state goes on after now: h(t) = rest + (h(0) - rest) exp(-rate t), or an ODE.

    In closed form start, rest and rates come from the state and the variable; the ODE is
    `ode_flow.OdeFlow`, whose rest moves with the state.
    """

    def __init__(self, kind: str, d_model: int, n_variables: int, slowest: float) -> None:
        """Rates start log-spaced from one a clock unit to one in `slowest`."""
        super().__init__()
        self.kind = kind
        self.out = nn.Linear(d_model, d_model, bias=False)
        if kind == "none":
            return
        if kind == "ode":
            self.start = nn.Linear(d_model, d_model)
            self.ode = OdeFlow(
                FlowConfig(
                    d_model, rest_hours=8.0, coupling=0.9, hidden=(d_model,),
                    solver=Solver("rk4", n_steps=3),
                )
            )  # fmt: skip
            return
        self.start_and_rest = nn.Linear(d_model, 2 * d_model)
        rates = -torch.linspace(0.0, math.log(slowest), d_model)
        self.log_rate = nn.Parameter(rates[torch.randperm(d_model)])
        self.log_rate_by_variable = nn.Embedding(n_variables, d_model)
        nn.init.zeros_(self.log_rate_by_variable.weight)

    def forward(
        self,
        state: Float[Tensor, "series model"],
        series: Int[Tensor, " query"],
        variable: Int[Tensor, " query"],
        ahead: Float[Tensor, " query"],
    ) -> Float[Tensor, "query model"] | float:
        """What the state at each query's time says.

        Args:
            state: Of each series now.
            series: Series of each query.
            variable: Variable of each query.
            ahead: Clock units after now.
        """
        if self.kind == "none":
            return 0.0
        if self.kind == "ode":
            return self.out(self.ode(self.start(state)[series], ahead.clamp(max=1e4)))
        start, rest = self.start_and_rest(state)[series].chunk(2, -1)
        rate = torch.exp(self.log_rate + self.log_rate_by_variable(variable))
        return self.out(rest + (start - rest) * torch.exp(-rate * ahead.unsqueeze(-1)))


def _attend_present(
    attention: nn.Module, x: Tensor, x_seconds: Tensor, points: Tensor, seconds: Tensor,
    cu_x: Tensor, cu_points: Tensor,
) -> Tensor:  # fmt: skip
    """Cross-attention, or what a stream puts in its place; a group without points sees nothing."""
    there = cu_points.diff() > 0
    if not len(x):
        return torch.zeros_like(x)
    if bool(there.all()):
        return attention(x, x_seconds, points, seconds, cu_x, cu_points)
    seen = torch.zeros_like(x)
    asked = torch.repeat_interleave(there, cu_x.diff())
    if not bool(asked.any()):
        return seen
    borders = torch.cat([cu_x[:1], cu_x.diff()[there].cumsum(0)])
    seen[asked] = attention(
        x[asked], x_seconds[asked], points, seconds, borders, cu_points.unique_consecutive()
    )
    return seen
