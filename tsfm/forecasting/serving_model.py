"""A forecaster arranged for one entity and few rows, with the weights and the code of the model.

A forecast at the bedside is thousands of operations on a handful of numbers each: what it costs is
how many they are. The twin made here shares every parameter with the model and runs its code, but
for layers over points: what they look at is kept (`kept_points`), and on a CPU a layer over series
is compiled whole (`tsfm.kernels.numba_entity_block`).

Weights must not change while a twin is in use.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsfm.forecasting.kept_points import KeptPoints, attend_rows
from tsfm.kernels.numba_entity_block import (
    Attention,
    Experts,
    keys_and_values,
    point_queries,
    rest_of_block,
)
from tsfm.models.attention import CrossAttention, SelfAttention
from tsfm.models.experts import SwiGLU
from tsfm.models.forecast_blocks import FeedForward, QueryBlock, VariableBlock
from tsfm.models.forecast_data import ForecastContext
from tsfm.models.forecaster import ForecasterModel
from tsfm.models.mamba import RMSNorm


def serving_model(model: ForecasterModel) -> tuple[ForecasterModel, list[KeptPoints]]:
    """The twin, and those of its layers that keep points.

    Args:
        model: In evaluation mode; it stays as it is.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin, kept = copy.deepcopy(model, shared), []
    for module in list(twin.modules()):
        if isinstance(getattr(module, "dropout", None), nn.Dropout):
            module.add_module("dropout", nn.Identity())
    for i, block in enumerate(twin.variable_layers):
        assert isinstance(block, VariableBlock)
        if _compiles(block):
            whole = _CompiledBlock(block)
            twin.variable_layers[i] = whole
            kept.append(whole.points)
        else:
            kept.append(KeptPoints(block.points, block.point_norm, own_series=False))
            block.add_module("points", kept[-1])
    for block in twin.query_layers:
        assert isinstance(block, QueryBlock)
        if block.points is not None:
            assert block.point_norms is not None
            norm = block.point_norms[1]
            assert isinstance(norm, RMSNorm)
            kept.append(KeptPoints(block.points, norm, own_series=True))
            block.add_module("points", kept[-1])
    return twin, kept


class _CompiledPoints(KeptPoints):
    """Points whose keys and values are made by compiled code."""

    def __init__(self, attention: CrossAttention, norm: RMSNorm, form: Attention) -> None:
        super().__init__(attention, norm, own_series=False)
        self._form, self._scale, self._eps = form, _array(norm.weight), np.float32(norm.eps)

    def take(
        self, points: Float[Tensor, "point model"], seconds: Float64[Tensor, " point"],
        series: Tensor,
    ) -> None:  # fmt: skip
        """See `KeptPoints.take`."""
        keys, values = (
            torch.from_numpy(x).unflatten(-1, (self._form.n_heads, -1))
            for x in keys_and_values(
                points.contiguous().numpy(), seconds.numpy(), self._scale, self._eps, self._form
            )
        )
        self._append(keys, values, series)


class _CompiledBlock(nn.Module):
    """A `VariableBlock` of one entity; called as that."""

    def __init__(self, block: VariableBlock) -> None:
        super().__init__()
        first, second = block.norms
        assert isinstance(first, RMSNorm)
        assert isinstance(second, RMSNorm)
        self._to_points = _attention(block.points, first)
        self._among = _attention(block.series, second)
        self._experts = _experts(block.feed_forward)
        self.points = _CompiledPoints(block.points, block.point_norm, self._to_points)

    def forward(
        self, x: Float[Tensor, "series model"], points: Tensor, context: ForecastContext,
        seconds: Tensor, series_seconds: tuple[Float64[Tensor, " series"], ...],
        rate: Float[Tensor, "series feature"],
    ) -> Float[Tensor, "series model"]:  # fmt: skip
        tokens = x.numpy()
        now, last = (times.numpy() for times in series_seconds)
        seen = x[:0]
        if self.points.n_points:
            q = torch.from_numpy(point_queries(tokens, now, self._to_points))
            seen = attend_rows(q.unflatten(-1, (self._to_points.n_heads, -1)), *self.points.held)
        given = (last, rate.numpy(), self._to_points, self._among, self._experts)
        return torch.from_numpy(rest_of_block(tokens, seen.contiguous().numpy(), *given))


def _compiles(block: VariableBlock) -> bool:
    """Whether a layer is of the form and the kind of numbers that compiled code knows."""
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in block.parameters())
    attentions = all(
        layer.n_kv_heads == layer.config.n_heads and not layer.config.bias
        for layer in (block.points, block.series)
    )
    experts = block.feed_forward.experts
    known = {"renormalise": True, "sees_rate": True, "balance": "bias"}
    routed = experts is None or all(
        getattr(experts.config, name) == form for name, form in known.items()
    )
    return plain and attentions and routed


def _array(tensor: Tensor) -> Any:
    return np.ascontiguousarray(tensor.detach().numpy())


def _attention(layer: CrossAttention | SelfAttention, norm: RMSNorm) -> Attention:
    return Attention(
        norm=_array(norm.weight), query=_array(layer.query.weight), key=_array(layer.key.weight),
        value=_array(layer.value.weight), out=_array(layer.out.weight),
        frequency=_array(layer.rotary.log_frequency().exp()), n_heads=layer.config.n_heads,
        eps=np.float32(norm.eps),
    )  # fmt: skip


def _experts(layer: FeedForward) -> Experts:
    experts = layer.experts
    shared = layer.plain if experts is None else experts.shared
    assert isinstance(shared, SwiGLU)
    line, table, tables = (np.zeros((0,) * n, np.float32) for n in (1, 2, 3))
    alone = Experts(
        norm=_array(layer.norm.weight), gate_up=_array(shared.gate_up.weight),
        out=_array(shared.out.weight), shared_gate=table, router=table, rate_router=table,
        bias=line, balance=line, experts_gate_up=tables, experts_out=tables, top_k=0,
        eps=np.float32(layer.norm.eps),
    )  # fmt: skip
    if experts is None:
        return alone
    assert experts.rate_router is not None
    return alone._replace(
        shared_gate=_array(experts.shared_gate.weight), router=_array(experts.router.weight),
        rate_router=_array(experts.rate_router.weight), bias=_array(experts.rate_router.bias),
        balance=_array(experts.balance_bias), experts_gate_up=_array(experts.gate_up),
        experts_out=_array(experts.out), top_k=experts.config.top_k,
    )  # fmt: skip
