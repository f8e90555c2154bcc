"""A forecaster arranged for one entity and few rows, with the weights and the code of the model.

A forecast at the bedside is thousands of operations on a handful of numbers each: what it costs is
how many they are. The twin made here shares every parameter with the model and runs its code, but
for parts that are put in others' places and give the same, to rounding:

* attention over points looks at keys and values that are kept (`kept_points`),
* the banks of all attentions turn the same few times: once for all (`_TurnTable`),
* series of one entity need no borders (`_OneEntity`),
* a few tokens go through all experts: sorting them by expert costs more (`_EveryExpert`).

Weights must not change while a twin is in use: it keeps what follows from the banks' alone.
"""

from __future__ import annotations

import copy
import math
from collections import deque

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsfm.forecasting.kept_points import KeptPoints, attend_rows
from tsfm.models.attention import CrossAttention, SelfAttention
from tsfm.models.ct_rope import ContinuousTimeRotary, rotate
from tsfm.models.experts import FrequencyAwareExperts, Routing
from tsfm.models.forecast_blocks import FeedForward, QueryBlock, VariableBlock
from tsfm.models.forecaster import ForecasterModel
from tsfm.models.mamba import RMSNorm

_FEW = 256  # rows up to which all experts and all banks are worked out together
_TIMES_KEPT = 3  # now, the last points and the new points of one forecast
_HIGH_BITS = -(1 << 27)


def serving_model(model: ForecasterModel) -> tuple[ForecasterModel, list[KeptPoints]]:
    """The twin, and those of its layers that keep points.

    Args:
        model: In evaluation mode; it stays as it is.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin, kept = copy.deepcopy(model, shared), []
    attentions = [m for m in twin.modules() if isinstance(m, SelfAttention | CrossAttention)]
    table = _TurnTable([attention.rotary for attention in attentions])
    for place, attention in enumerate(attentions):
        attention.add_module("rotary", _Turns(attention.rotary, table, place))
    for block in [*twin.variable_layers, *twin.query_layers]:
        if isinstance(block, VariableBlock):
            kept.append(KeptPoints(block.points, block.point_norm, own_series=False))
            block.add_module("points", kept[-1])
            block.add_module("point_norm", nn.Identity())  # points come to it as they were kept
            block.add_module("series", _OneEntity(block.series))
        elif isinstance(block, QueryBlock) and block.points is not None:
            assert block.point_norms is not None
            norm = block.point_norms[1]
            assert isinstance(norm, RMSNorm)
            kept.append(KeptPoints(block.points, norm, own_series=True))
            block.add_module("points", kept[-1])
            block.point_norms[1] = nn.Identity()
        feed_forward = block.get_submodule("feed_forward")
        assert isinstance(feed_forward, FeedForward)
        if feed_forward.experts is not None:
            feed_forward.add_module("experts", _EveryExpert(feed_forward.experts))
    return twin, kept


class _TurnTable:
    """Cosines and sines of all banks at once; those of the times asked last are kept."""

    def __init__(self, banks: list[ContinuousTimeRotary]) -> None:
        self.sizes = [bank.n_frequencies for bank in banks]
        self._recent: deque[tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]] = deque(
            maxlen=_TIMES_KEPT
        )
        if banks:
            frequency = torch.cat([bank.log_frequency().detach() for bank in banks]).exp()
            self._frequency = torch.stack(_halves(frequency)).unsqueeze(1)  # half, row, pair

    def turns(
        self, seconds: Float64[Tensor, " row"]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Cosines and sines of each bank, (row, pair) in float32."""
        for known, cosines, sines in self._recent:
            if known is seconds:
                return cosines, sines
        # Exact products of halves, less whole numbers before they are added, as in `ct_rope`.
        upper, lower = _halves(seconds.unsqueeze(-1))
        parts = torch.cat([upper * self._frequency, lower * self._frequency])
        cycles = (parts - parts.round()).sum(0)
        angle = (2 * math.pi * (cycles - cycles.round())).float()
        found = angle.cos().split(self.sizes, 1), angle.sin().split(self.sizes, 1)
        self._recent.append((seconds, *found))
        return found


class _Turns(nn.Module):
    """One bank of a table; called as `ContinuousTimeRotary`."""

    def __init__(self, bank: ContinuousTimeRotary, table: _TurnTable, place: int) -> None:
        super().__init__()
        self.bank, self._table, self._place = bank, table, place

    def forward(
        self, seconds: Float64[Tensor, " row"], reference_s: Tensor | None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Float[Tensor, "row pair"], Float[Tensor, "row pair"]]:  # fmt: skip
        if len(seconds) > _FEW or dtype != torch.float32:
            return self.bank(seconds, None, dtype)
        cosines, sines = self._table.turns(seconds)
        return cosines[self._place], sines[self._place]


class _OneEntity(nn.Module):
    """Self-attention over the series of the only entity; called as `SelfAttention`."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, x: Float[Tensor, "series model"], seconds: Float64[Tensor, " series"],
        cu_seqlens: Tensor,
    ) -> Float[Tensor, "series model"]:  # fmt: skip
        attention = self.attention
        turn = attention.rotary(seconds, None, x.dtype)
        q, keys, values = (
            F.linear(x, p.weight, p.bias).unflatten(-1, (-1, attention.head_dim))
            for p in (attention.query, attention.key, attention.value)
        )
        y = attend_rows(rotate(q, *turn), rotate(keys, *turn), values)
        return attention.out(y)


class _EveryExpert(nn.Module):
    """Experts of a few tokens without sorting: all are worked out; called as the layer itself."""

    def __init__(self, experts: FrequencyAwareExperts) -> None:
        super().__init__()
        self.experts = experts

    def forward(
        self, x: Float[Tensor, "token model"], rate: Float[Tensor, "token feature"] | None = None
    ) -> tuple[Float[Tensor, "token model"], Routing]:
        experts = self.experts
        if len(x) * experts.config.n_experts > _FEW:
            return experts(x, rate)
        routing = experts.route(x, rate)
        weights = torch.zeros_like(routing.probabilities)
        weights.scatter_(1, routing.experts, routing.weights)
        gate, up = (x @ experts.gate_up).chunk(2, -1)  # (expert, token, inner)
        inner = F.silu(gate) * up * weights.T.unsqueeze(-1)
        routed = inner.transpose(0, 1).flatten(1) @ experts.out.flatten(0, 1)
        return routed + torch.sigmoid(experts.shared_gate(x)) * experts.shared(x), routing


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts that add up to float64 x, the first with the upper half of its digits."""
    upper = (x.contiguous().view(torch.int64) & _HIGH_BITS).view(torch.float64)
    return upper, x - upper
