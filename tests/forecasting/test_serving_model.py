"""The served twin of a model shares its weights and gives what its layers give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tsfm.forecasting.serving_model import serving_model
from tsfm.models.attention import AttentionConfig
from tsfm.models.ct_rope import RotaryConfig
from tsfm.models.forecast_blocks import VariableBlock
from tsfm.models.forecast_data import ForecastContext
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel

ORIGIN = 1.7e9


def moved(module: torch.nn.Module) -> None:
    """Let every weight have a say."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in module.named_buffers():
            if name.endswith("balance_bias"):
                buffer += 0.5 * torch.randn_like(buffer)


def one_entity(n_series: int, seconds: torch.Tensor, now: float) -> ForecastContext:
    """One point a series."""
    return ForecastContext(
        seconds, torch.zeros(n_series), torch.arange(n_series + 1), torch.arange(n_series),
        torch.tensor([0, n_series]), torch.tensor([now], dtype=torch.float64),
    )  # fmt: skip


@pytest.mark.parametrize("n_experts", [0, 2, 5])
@pytest.mark.parametrize("learnable", [True, False])
@torch.inference_mode()
def test_a_compiled_layer_gives_what_the_layer_gives(n_experts: int, learnable: bool) -> None:
    torch.manual_seed(n_experts)
    model = ForecasterModel(
        ForecasterConfig(n_variables=7, d_model=24, n_heads=3, experts=n_experts, dropout=0.0)
    ).eval()
    bank = RotaryConfig(0.5, 2e6, learnable=learnable)
    layer = VariableBlock(AttentionConfig(24, 3, causal=False, rotary=bank), n_experts, 0.0).eval()
    moved(layer)
    model.variable_layers[0] = layer
    twin, kept = serving_model(model)
    assert type(twin.variable_layers[0]) is not VariableBlock
    x, points = torch.randn(7, 24), torch.randn(7, 24)
    at = ORIGIN + 1e5 * torch.rand(7, dtype=torch.float64)
    context = one_entity(7, at, ORIGIN + 2e5)
    times, rate = (context.now_of_series(), at), torch.randn(7, 15)
    kept[0].take(points, at, torch.arange(7))
    given = twin.variable_layers[0](x, points, context, at, times, rate)
    wanted = layer(x, points, context, at, times, rate)
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_layer_over_no_points_lets_the_series_see_each_other() -> None:
    model = ForecasterModel(ForecasterConfig(n_variables=4, d_model=16, n_heads=2)).eval()
    moved(model)
    twin, _ = serving_model(model)
    now = torch.full((4,), ORIGIN, dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.float64)
    context = ForecastContext(
        none, none.float(), torch.zeros(5, dtype=torch.int64), torch.arange(4),
        torch.tensor([0, 4]), now[:1],
    )  # fmt: skip
    arguments: tuple[Any, ...] = (torch.zeros(0, 16), context, none, (now, now), torch.zeros(4, 15))
    x = torch.randn(4, 16)
    given, wanted = (m.variable_layers[0](x, *arguments) for m in (twin, model))
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_twin_has_no_weights_of_its_own_and_the_model_stays(dtype: torch.dtype) -> None:
    model = ForecasterModel(ForecasterConfig(n_variables=4, d_model=16, n_heads=2)).eval().to(dtype)
    layers = [type(module) for module in model.modules()]
    twin, _ = serving_model(model)
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in twin.parameters()} <= own
    assert [type(module) for module in model.modules()] == layers
    compiled = [type(block) is not VariableBlock for block in twin.variable_layers]
    assert compiled == [dtype == torch.float32] * 2
