"""MIRA as its paper describes it, in real time: one value is one token, one series one sequence.

A decoder of points (arXiv 2506.07584): gated embedding of the value, causal attention with rotary
phases of time, a mixture of experts in each layer, and behind the last norm an ODE that carries a
point's state to the time that is asked for, where a linear head reads the next value.

Where the released code departs from the paper or from what the words promise (`mira_released`
keeps all that and loads its weights), this follows the words:

* Phases are those of absolute time. Nothing is rescaled, so a burst of minutes stays one, 250 Hz is
  not weekly, further points change nothing before them, and decoding has a cache.
* Every point has an interval of its own and every position is supervised; there, one interval
  served a batch and one target a window.
* The field of the ODE has a bounded Lipschitz constant. It is `ode_flow`'s, relaxing to a target,
  and does not depend on the time since the point, which a relaxing state tells anyway.
* Sequences of any lengths are packed end to end.

Missing values are left out, not marked. Values come normalised, see `series_scale`. It is a model
of single series: no covariates, no other variables, and point forecasts only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import check_borders, wrong_shape
from tsfm.models.attention import AttentionConfig, KeyValueCache, SelfAttention
from tsfm.models.ct_rope import RotaryConfig
from tsfm.models.experts import (
    BAND_LOOKBACK,
    ExpertsConfig,
    FrequencyAwareExperts,
    Routing,
    rate_features,
    switch_loss,
)
from tsfm.models.ode_flow import FlowConfig, OdeFlow, Solver

_SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True)
class MiraConfig:
    """Sizes and form; the presets take changes to any field.

    Attributes:
        n_layers: Decoder layers.
        d_model: Width of a token.
        n_heads: Attention heads.
        d_ff: Inner width of the shared expert; that of the others is `d_ff // top_k`.
        n_experts: Experts to choose from.
        top_k: Experts a token.
        sees_rate: Tell the router gap and band energy too. The paper's sees the token only, which
            knows of time by attention.
        ode_hidden: Widths of the hidden layers of the ODE's field.
        rest_hours: Time constant of the ODE. About the gaps over which a value is forecast.
        coupling: Lipschitz constant of what a state relaxes to.
        solver: How the ODE is solved.
        rotary: The bank of frequencies. The paper's are fixed.
        huber_delta: Where the loss of an error turns from square to linear.
        balance_weight: Weight of the load-balance loss.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    n_experts: int = 8
    top_k: int = 2
    sees_rate: bool = False
    ode_hidden: tuple[int, ...] = (128, 128)
    rest_hours: float = 24.0
    coupling: float = 0.5
    solver: Solver = field(default_factory=lambda: Solver(n_steps=4))
    rotary: RotaryConfig = field(default_factory=lambda: RotaryConfig(learnable=False))
    huber_delta: float = 2.0
    balance_weight: float = 0.02

    @classmethod
    def tiny(cls, **changes: Any) -> MiraConfig:
        """Below a million parameters; no size of the paper's."""
        return _preset(cls, changes, n_layers=3, d_model=64, n_heads=2, d_ff=256, ode_hidden=(64,))

    @classmethod
    def small(cls, **changes: Any) -> MiraConfig:
        """The paper's small model, 43 M parameters of which a token uses 19 M."""
        return _preset(cls, changes, n_layers=8, d_model=288, n_heads=8, d_ff=1152)

    @classmethod
    def base(cls, **changes: Any) -> MiraConfig:
        """The paper's base model, 113 M parameters of which a token uses 50 M."""
        return _preset(cls, changes, n_layers=12, d_model=384, n_heads=12, d_ff=1536)

    @classmethod
    def large(cls, **changes: Any) -> MiraConfig:
        """The paper's large model, 453 M parameters of which a token uses 198 M."""
        return _preset(cls, changes, n_layers=12, d_model=768, n_heads=12, d_ff=3072)


class MiraModel(nn.Module):
    """The decoder, the ODE and the head.

    Args:
        config: Sizes and form.

    Raises:
        InputError: The sizes do not fit each other.
    """

    def __init__(self, config: MiraConfig) -> None:
        """Start as torch starts linear layers."""
        super().__init__()
        self.config = config
        self.embedding = GatedEmbedding(config.d_model)
        self.layers = nn.ModuleList(MiraLayer(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        flow = FlowConfig(
            config.d_model, config.rest_hours, config.coupling,
            hidden=config.ode_hidden, solver=config.solver,
        )  # fmt: skip
        self.flow = OdeFlow(flow)
        self.head = nn.Linear(config.d_model, 1, bias=False)

    def forward(
        self,
        values: Float[Tensor, " token"],
        seconds: Float64[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
        target_seconds: Float64[Tensor, " token"],
    ) -> Float[Tensor, " token"]:
        """What each point, knowing itself and those before it, expects at its target time.

        Args:
            values: Normalised values of all series, packed.
            seconds: Their absolute times.
            cu_seqlens: Borders of the series, from 0 to the number of points.
            target_seconds: The time asked of each point, not before its own.

        Raises:
            InputError: A value is not finite, a target is before its point, or shapes, types or
                borders are not as said.
        """
        states, _ = self._encode(values, seconds, cu_seqlens)
        return self._predict(states, seconds, target_seconds)

    def loss(
        self,
        values: Float[Tensor, " token"],
        seconds: Float64[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
    ) -> Float[Tensor, ""]:
        """Mean Huber loss of every point's successor, and the weighted load-balance loss.

        The loss of the paper: 1/2 e^2 up to `huber_delta` and linear beyond, over all points but
        the last of each series, plus `balance_weight` times `experts.switch_loss`.

        Raises:
            InputError: As `forward`; or the times of a series go back, or no point has a successor.
        """
        states, routings = self._encode(values, seconds, cu_seqlens)
        followed = torch.ones_like(values, dtype=torch.bool)
        followed[cu_seqlens[1:].long() - 1] = False
        at = followed.nonzero().flatten()
        if not len(at):
            raise InputError(
                "no series has a second point to learn from", code="no_targets",
                place="cu_seqlens", remedy="Leave out batches of single points.",
            )  # fmt: skip
        expected = self._predict(states[at], seconds[at], seconds[at + 1])
        error = F.huber_loss(expected, values[at + 1], delta=self.config.huber_delta)
        return error + self.config.balance_weight * switch_loss(routings)

    @torch.no_grad()
    def forecast(
        self,
        values: Float[Tensor, " token"],
        seconds: Float64[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
        query_seconds: Float64[Tensor, " query"],
        cu_queries: Int[Tensor, " borders"],
        *,
        feed_back: bool = True,
    ) -> Float[Tensor, " query"]:
        """Forecast the times asked for one after the other, each from the last and its forecast.

        The ODE carries the last state to the next time; the value read there is taken for seen and
        appended to the cache. So a forecast depends on which times were asked before it. Without
        `feed_back` each time is answered from the context alone.

        Args:
            values: Normalised values of the contexts, packed.
            seconds: Their absolute times.
            cu_seqlens: Borders of the contexts; none is empty.
            query_seconds: Times asked of each series, in order, none before its context's end.
            cu_queries: Borders of each series' queries; a series may have none.
            feed_back: Take a forecast for seen before the next time is answered.

        Returns:
            Normalised values.

        Raises:
            InputError: As `forward`, or queries are out of order.
        """
        asked = _check_queries(query_seconds, cu_queries, len(cu_seqlens) - 1).diff()
        caches = [layer.attention.new_cache(len(asked)) for layer in self._decoder()]
        states, _ = self._encode(values, seconds, cu_seqlens, caches)
        last = cu_seqlens[1:].long() - 1
        states, now = states[last], seconds[last]
        if not feed_back:
            row = torch.repeat_interleave(torch.arange(len(asked), device=asked.device), asked)
            return self._predict(states[row], now[row], query_seconds)
        recent = _Recent(values, seconds, cu_seqlens.long()) if self.config.sees_rate else None
        answers = values.new_empty(len(query_seconds))
        for turn in range(int(asked.max())):
            rows = (asked > turn).nonzero().flatten()
            at = cu_queries[rows].long() + turn
            told = self._predict(states[rows], now[rows], query_seconds[at])
            answers[at] = told
            goes_on = asked[rows] > turn + 1
            rows, at, told = rows[goes_on], at[goes_on], told[goes_on]
            if not len(rows):
                break
            borders = F.pad((asked > turn + 1).long().cumsum(0), (1, 0))
            now[rows] = query_seconds[at]
            rate = recent.append(rows, told, now[rows]) if recent is not None else None
            states[rows], _ = self._decode(told, now[rows], borders, rate, caches)
        return answers

    def _decoder(self) -> list[MiraLayer]:
        return [layer for layer in self.layers if isinstance(layer, MiraLayer)]

    def _encode(
        self, values: Tensor, seconds: Tensor, cu_seqlens: Tensor,
        caches: list[KeyValueCache] | None = None,
    ) -> tuple[Tensor, list[Routing]]:  # fmt: skip
        """States behind the last norm; new caches are filled."""
        _check_points(values, seconds)
        rate = None
        if self.config.sees_rate:
            gap_hours = seconds.diff(prepend=seconds[:1]) / _SECONDS_AN_HOUR
            rate = rate_features(values, gap_hours, cu_seqlens)
        return self._decode(values, seconds, cu_seqlens, rate, caches)

    def _decode(
        self, values: Tensor, seconds: Tensor, borders: Tensor, rate: Tensor | None,
        caches: list[KeyValueCache] | None,
    ) -> tuple[Tensor, list[Routing]]:  # fmt: skip
        x = self.embedding(values)
        routings: list[Routing] = []
        for i, layer in enumerate(self._decoder()):
            x, routing = layer(x, seconds, borders, rate, caches[i] if caches else None)
            routings.append(routing)
        return self.norm(x), routings

    def _predict(self, states: Tensor, seconds: Tensor, target_seconds: Tensor) -> Tensor:
        if target_seconds.shape != seconds.shape:
            raise wrong_shape("target_seconds", target_seconds, f"({len(seconds)},)")
        _check_wide("target_seconds", target_seconds)
        dt_hours = (target_seconds - seconds) / _SECONDS_AN_HOUR
        return self.head(self.flow(states, dt_hours)).squeeze(-1)


class GatedEmbedding(nn.Module):
    """silu(w x) * (v x): a value by itself, nought for nought."""

    def __init__(self, d_model: int) -> None:
        """Start as torch starts linear layers."""
        super().__init__()
        self.gate = nn.Linear(1, d_model, bias=False)
        self.value = nn.Linear(1, d_model, bias=False)

    def forward(self, values: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch model"]:
        """Embed each value."""
        x = values.unsqueeze(-1)
        return F.silu(self.gate(x)) * self.value(x)


class MiraLayer(nn.Module):
    """Attention and experts, each behind a norm and beside a residual."""

    def __init__(self, config: MiraConfig) -> None:
        """Build both."""
        super().__init__()
        d = config.d_model
        self.attention_norm = nn.RMSNorm(d, eps=1e-6)
        self.attention = SelfAttention(
            AttentionConfig(d, config.n_heads, bias=True, rotary=config.rotary)
        )
        self.experts_norm = nn.RMSNorm(d, eps=1e-6)
        plain = ExpertsConfig.mira(d, config.d_ff, n_experts=config.n_experts, top_k=config.top_k)
        self.experts = FrequencyAwareExperts(replace(plain, sees_rate=config.sees_rate))

    def forward(
        self,
        x: Float[Tensor, "token model"],
        seconds: Float64[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
        rate: Float[Tensor, "token feature"] | None,
        cache: KeyValueCache | None,
    ) -> tuple[Float[Tensor, "token model"], Routing]:
        """Map packed tokens; with a cache they go on from what it holds, without gradients."""
        normed = self.attention_norm(x)
        if cache is None:
            x = x + self.attention(normed, seconds, cu_seqlens)
        else:
            x = x + self.attention.extend(normed, seconds, cache, cu_seqlens)
        mapped, routing = self.experts(self.experts_norm(x), rate)
        return x + mapped, routing


class _Recent:
    """The last points of each row, as far as a new point's rate features look back."""

    def __init__(self, values: Tensor, seconds: Tensor, borders: Tensor) -> None:
        place = borders[1:, None] - torch.arange(BAND_LOOKBACK + 1, 0, -1, device=values.device)
        starts = borders[:-1, None]
        index = place.maximum(starts)
        # What would lie before a row's first point is no number, which the features leave out.
        self.values = torch.where(place >= starts, values[index], torch.nan)
        self.seconds = seconds[index]

    def append(self, rows: Tensor, values: Tensor, seconds: Tensor) -> Tensor:
        """Take a point to each of the rows and give the points' features."""
        for held, new in ((self.values, values), (self.seconds, seconds)):
            held[rows] = torch.cat([held[rows, 1:], new.unsqueeze(1)], dim=1)
        n_rows, n_points = len(rows), self.values.shape[1]
        times = self.seconds[rows]
        gap_hours = times.diff(dim=1, prepend=times[:, :1]) / _SECONDS_AN_HOUR
        borders = torch.arange(n_rows + 1, device=values.device) * n_points
        features = rate_features(self.values[rows].flatten(), gap_hours.flatten(), borders)
        return features.unflatten(0, (n_rows, n_points))[:, -1]


def _preset(cls: type[MiraConfig], changes: dict[str, Any], **sizes: Any) -> MiraConfig:
    return cls(**{**sizes, **changes})


def _check_points(values: Tensor, seconds: Tensor) -> None:
    if values.shape != seconds.shape:
        raise wrong_shape("seconds", seconds, f"({len(values)},)")
    if not bool((values.isfinite() & seconds.isfinite()).all()):
        raise InputError(
            "a value or a time is not finite", code="not_finite", place="values",
            remedy="Leave points without a value out: what is missing is no token here.",
        )  # fmt: skip


def _check_wide(name: str, seconds: Tensor) -> None:
    if seconds.dtype != torch.float64:
        raise InputError(
            f"times are {seconds.dtype}, in which seconds since 1970 are minutes apart",
            code="wrong_dtype", place=name, remedy="Keep times in float64.",
        )  # fmt: skip


def _check_queries(query_seconds: Tensor, cu_queries: Tensor, n_rows: int) -> Tensor:
    """Borders of the queries, int64, of which some may be equal."""
    if cu_queries.shape != (n_rows + 1,):
        raise wrong_shape("cu_queries", cu_queries, f"({n_rows + 1},)")
    _check_wide("query_seconds", query_seconds)
    if len(query_seconds) or bool(cu_queries.any()):
        check_borders(cu_queries.unique_consecutive(), len(query_seconds), query_seconds.device)
    borders = cu_queries.long()
    falls = query_seconds.diff(prepend=query_seconds[:1]) < 0
    falls[borders[:-1][borders.diff() > 0]] = False
    if bool(falls.any()):
        raise InputError(
            "queries of a series are out of order", code="unsorted_queries",
            place="query_seconds", remedy="Sort them by time.",
        )  # fmt: skip
    return borders
