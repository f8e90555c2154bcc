"""A forecaster of irregular, asynchronous series: read once, then answer any (variable, time).

A series is one variable of one entity (a patient, a region, a sensor): points at any times. An
entity's series lie side by side. Each series is read by a real-time Mamba, by causal attention in
continuous time, or by both; then variables look at all points of their entity and at each other;
then every query (series, time) is answered by itself, all in parallel: nothing is fed back, and a
query's answer does not depend on which other queries are asked (unless `sees_queries` says so).

Three things make it learn from few patients. A summary of simple statistics goes in beside what
the scan remembers (`series_summary`); the answer is a correction of simple rules
(`quantile_head`); and between its last point and the asked time a state flows in closed form or by
an ODE towards where it rests, at rates of the variable's own.

Times are counted on a clock: hours for known variables, the series' own typical step for anonymous
ones (`clock="context"`), told to the network beside them, so that 250 Hz and weekly values differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.models.attention import SelfAttention
from tsfm.models.entity_table import EntityTable
from tsfm.models.experts import FrequencyAwareExperts, SwiGLU
from tsfm.models.forecast_blocks import (
    N_LOG_TIME_FEATURES,
    QueryBlock,
    StateFlow,
    VariableBlock,
    log_time_features,
)
from tsfm.models.forecast_data import Forecast, ForecastContext, ForecastQueries
from tsfm.models.forecaster_config import ForecasterConfig
from tsfm.models.mamba import Mamba, MambaConfig, RMSNorm
from tsfm.models.quantile_head import QuantileHead
from tsfm.models.seasonal_lags import (
    N_LAG_BASES,
    N_LAG_FEATURES,
    SEASONS_SECONDS,
    SeasonalLags,
    calendar_features,
)
from tsfm.models.series_summary import N_BASES, N_SUMMARY_FEATURES, SeriesSummary, summarise

_HOUR = 3600.0
CLIPPED = 8.0


@dataclass(frozen=True)
class EncodedContext:
    """What a forecaster keeps of a context: all that answering needs.

    Attributes:
        context: The context, standardised.
        points: Hidden state of every point.
        tokens: One state a series.
        summary: Simple statistics of each series.
    """

    context: ForecastContext
    points: Float[Tensor, "point model"]
    tokens: Float[Tensor, "series model"]
    summary: SeriesSummary


class PointReader(nn.Module):
    """Causal reading of packed series: each point's state depends on the points up to it."""

    def __init__(self, config: ForecasterConfig) -> None:
        """Build the layers that the configuration names."""
        super().__init__()
        self.config = config
        d = config.d_model
        n_features = 5 + (2 * len(SEASONS_SECONDS) if config.calendar else 0)
        self.embed = nn.Linear(n_features, d)
        self.mamba = self.attention = None
        if config.reader in ("mamba", "both"):
            self.mamba = Mamba(
                MambaConfig(
                    d_model=d, n_layers=config.n_reader_layers, d_state=config.d_state,
                    dropout=config.dropout, fastest_hours=config.fastest,
                    slowest_hours=config.slowest,
                )
            )  # fmt: skip
        if config.reader in ("attention", "both"):
            form = replace(config.attention, causal=True)
            self.attention = nn.ModuleList(
                nn.ModuleDict({
                    "norm": RMSNorm(d), "attend": SelfAttention(form),
                    "forward_norm": RMSNorm(d), "feed_forward": SwiGLU(d, 2 * d),
                })
                for _ in range(config.n_reader_layers)
            )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)

    def features(self, context: ForecastContext) -> Float[Tensor, "point feature"]:
        """What is told of each point beside its variable: value, step, gap, clock, calendar."""
        z, gap = context.values, context.gaps()
        step = torch.zeros_like(z)
        step[1:] = z[1:] - z[:-1]
        step = torch.where(context.is_first(), 0.0, step)
        log_clock = (context.clock_seconds / _HOUR).log().to(z)[context.series_of_point()] / 5.0
        parts = [torch.stack(
            [z.asinh(), z.clamp(-CLIPPED, CLIPPED), step.asinh(), torch.log1p(gap), log_clock],
            -1,
        )]  # fmt: skip
        if self.config.calendar:
            parts.append(calendar_features(context.seconds).to(z))
        return torch.cat(parts, -1)

    def forward(
        self, context: ForecastContext, variable: Float[Tensor, "series model"]
    ) -> Float[Tensor, "point model"]:
        """Hidden states of all points.

        Args:
            context: Standardised, with at least one point.
            variable: Embedding of each series' variable.
        """
        x = self.embed(self.features(context)) + variable[context.series_of_point()]
        borders = context.cu_points.unique_consecutive()  # empty series have nothing to read
        if self.mamba is not None:
            x = self.mamba(x, context.gaps(), borders)
        seconds = _rotary_times(context, context.seconds, context.series_of_point(), self.config)
        for layer in self.attention or ():
            assert isinstance(layer, nn.ModuleDict)
            seen = layer["attend"](layer["norm"](x), seconds, borders)
            x = x + self.dropout(seen)
            x = x + self.dropout(layer["feed_forward"](layer["forward_norm"](x)))
        return x


class ForecasterModel(nn.Module):
    """See the module's text. `forward` is `answer(encode(context), queries)`."""

    variable_location: Tensor
    variable_scale: Tensor

    def __init__(self, config: ForecasterConfig) -> None:
        """Build the parts that the configuration names."""
        super().__init__()
        self.config = config
        d = config.d_model
        self.variable = nn.Embedding(config.n_variables, d)
        self.gain = nn.Embedding(config.n_variables, d)
        nn.init.normal_(self.variable.weight, std=0.5)
        nn.init.zeros_(self.gain.weight)
        self.reader = PointReader(config)
        n_told = N_SUMMARY_FEATURES + N_LOG_TIME_FEATURES + 1
        n_told += N_LAG_FEATURES if config.calendar else 0
        n_told += 2 * N_LOG_TIME_FEATURES if config.clock == "hours" else 0
        self.told_gain = None
        if config.n_variables > 1:
            self.told_gain = nn.Embedding(config.n_variables, n_told)
            nn.init.zeros_(self.told_gain.weight)
        self.summary = nn.Linear(n_told, d)
        self.remembered = nn.Linear(d, d, bias=False)
        self.table = None
        if config.table:
            self.table = EntityTable(config.n_variables, config.table, d, config.dropout)
        self.token_norm, self.token_mlp = RMSNorm(d), SwiGLU(d, 2 * d)
        self.variable_layers = nn.ModuleList(
            VariableBlock(config.attention, config.experts, config.dropout)
            for _ in range(config.n_variable_layers)
        )
        n_times = 2 * N_LOG_TIME_FEATURES + 2 * config.n_known
        n_times += 2 * len(SEASONS_SECONDS) + 2 * N_LAG_BASES if config.calendar else 0
        self.asked = nn.Linear(n_times, d)
        self.asked_gain = nn.Linear(n_times, d)
        self.state = nn.Linear(d, d)
        self.flow = StateFlow(config.flow, d, config.n_variables, config.slowest)
        self.query_layers = nn.ModuleList(
            QueryBlock(
                config.attention, config.query_experts, config.dropout,
                reads_points=config.query_reads_points, sees_queries=config.sees_queries,
            )
            for _ in range(config.n_query_layers)
        )  # fmt: skip
        self.final_norm = RMSNorm(d)
        n_bases = N_BASES + (N_LAG_BASES if config.calendar else 0)
        self.head = QuantileHead(d, config.n_variables, n_bases)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("variable_location", torch.zeros(config.n_variables))
        self.register_buffer("variable_scale", torch.ones(config.n_variables))

    def set_variable_scale(
        self, location: Float[Tensor, " variable"], scale: Float[Tensor, " variable"]
    ) -> None:
        """Say how the values of each variable are standardised; stored with the weights.

        Raises:
            InputError: A scale is not positive and finite.
        """
        if not bool(((scale > 0) & scale.isfinite() & location.isfinite()).all()):
            raise InputError(
                "a variable's scale is not positive and finite", code="bad_scale",
                place="scale", remedy="Leave out constant variables, or give them a scale of 1.",
            )  # fmt: skip
        self.variable_location.copy_(location)
        self.variable_scale.copy_(scale)

    def encode(self, context: ForecastContext) -> EncodedContext:
        """Read a context once.

        Args:
            context: Points in their own units.
        """
        context = self.standardised(context)
        summary = summarise(context.values, context.clock_times(), context.cu_points)
        variable = self.variable(context.variable)
        points = context.values.new_zeros(0, self.config.d_model)
        if len(context.values):
            points = self.reader(context, variable)
        return self.encoded(context, points, summary)

    def standardised(self, context: ForecastContext) -> ForecastContext:
        """The context with values in units of its series' scales and a clock."""
        if self.config.scale == "variable":
            context = context.scaled_by(
                self.variable_location[context.variable].double(),
                self.variable_scale[context.variable].double(),
            )
        else:
            context = context.scaled_by_itself()
        return context.with_clock(None if self.config.clock == "context" else _HOUR)

    def encoded(
        self, context: ForecastContext, points: Tensor, summary: SeriesSummary
    ) -> EncodedContext:
        """From the states of points to one state a series, in view of all others."""
        series = torch.arange(len(context.variable), device=points.device)
        there = context.cu_points.diff() > 0
        last = (context.cu_points[1:] - 1).clamp(min=0)
        remembered = points.new_zeros(len(series), self.config.d_model)
        if len(points):
            remembered = torch.where(there.unsqueeze(-1), points[last], 0.0)
        age = context.age()
        log_clock = (context.clock_seconds / _HOUR).log().to(age).unsqueeze(-1) / 5.0
        told = [summary.features(), log_time_features(age), log_clock]
        if self.config.calendar:
            told.append(SeasonalLags(context).features())
        if self.config.clock == "hours":  # how long the entity and the series have been watched
            told += [log_time_features(context.watched()), log_time_features(summary.last_clock)]
        told = torch.cat(told, -1)
        if self.told_gain is not None:
            told = told * (1 + self.told_gain(context.variable))
        told = self.summary(told) * (1 + self.gain(context.variable))
        x = told + self.remembered(remembered) + self.variable(context.variable)
        if self.table is not None:
            x = x + self.table(context, summary)
        x = x + self.dropout(self.token_mlp(self.token_norm(x)))
        if self.variable_layers:
            rate = context.rates()
            times = self._times(context, context.seconds, context.series_of_point())
            now = self._times(context, context.now_of_series(), series)
            last = self._times(context, context.last_seconds(), series)
            for layer in self.variable_layers:
                x = layer(x, points, context, times, (now, last), rate)
        return EncodedContext(context, points, x, summary)

    def answer(self, encoded: EncodedContext, queries: ForecastQueries) -> Forecast:
        """Forecasts of all queries.

        Args:
            encoded: From `encode`.
            queries: What is asked, in the order of the context's series.
        """
        context, series = encoded.context, queries.series()
        variable = context.variable[series]
        clock = context.clock_seconds[series]
        ahead = ((queries.seconds - context.now_of_series()[series]) / clock).float()
        since = ahead + context.age()[series]
        told = [log_time_features(ahead), log_time_features(since)]
        bases, known = encoded.summary.base_forecasts(series, since), None
        if self.config.calendar:
            last = encoded.summary.last
            lags, there = SeasonalLags(context).base_forecasts(series, queries.seconds, last)
            told += [calendar_features(queries.seconds).to(ahead), there.to(ahead)]
            told.append(torch.where(there, lags - last[series].unsqueeze(-1), 0.0).asinh())
            known = torch.cat([torch.ones_like(bases, dtype=torch.bool), there], -1)
            bases = torch.cat([bases, lags], -1)
        if self.config.n_known:
            told.append(queries.known_features(self.config.n_known).to(ahead))
        told = torch.cat(told, -1)
        state = self.state(encoded.tokens)[series]
        x = state * (1 + self.asked_gain(told)) + self.asked(told)
        x = x + self.flow(encoded.tokens, series, variable, ahead)
        times = (
            self._times(context, context.seconds, context.series_of_point()),
            self._times(context, queries.seconds, series),
        )
        rate = context.rates()[series] if self.config.query_experts else None
        for layer in self.query_layers:
            x = layer(x, encoded.points, context, queries, times, rate)
        step = encoded.summary.step_size()[series]
        head = self.head(self.final_norm(x), variable, bases, step, known)
        assert context.location is not None
        assert context.spread is not None
        return Forecast(head.mean, head.quantiles, context.location[series], context.spread[series])

    def forward(self, context: ForecastContext, queries: ForecastQueries) -> Forecast:
        """Encode and answer."""
        return self.answer(self.encode(context), queries)

    def update_balance(self) -> None:
        """Balance the experts' load; call it after each step of training."""
        for module in self.modules():
            if isinstance(module, FrequencyAwareExperts):
                module.update_balance()

    def _times(self, context: ForecastContext, seconds: Tensor, series: Tensor) -> Tensor:
        return _rotary_times(context, seconds, series, self.config)


def _rotary_times(
    context: ForecastContext, seconds: Tensor, series: Tensor, config: ForecasterConfig
) -> Tensor:
    """Times for the rotary bank: seconds, or clock units where the clock is the series' own."""
    return seconds / context.clock_seconds[series] if config.clock == "context" else seconds
