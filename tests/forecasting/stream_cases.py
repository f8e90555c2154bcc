"""Models, points and contexts on which a stream is compared with its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tsfm.forecasting.stream import ForecastStream
from tsfm.models.experts import BAND_LOOKBACK
from tsfm.models.forecast_data import Forecast, ForecastContext, ForecastQueries
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.models.series_summary import summarise

NAMES = ["HR", "MAP", "Temp", "Lactate", "pH", "GCS"]
LENGTHS = [BAND_LOOKBACK + 20, 9, 1, 0, 30, 8]  # one fills the rates' window, one stays empty
EMPTY, CONSTANT = NAMES.index("Lactate"), NAMES.index("GCS")
ORIGIN = 1.7e9
AHEAD = [0.0, 600.0, 5400.0, 90_000.0]
SMALL = {"d_model": 16, "n_heads": 2, "d_state": 4, "rotary_periods_s": (600.0, 2_592_000.0)}
KNOWN_SCALE = [
    {},
    {"experts": 0},
    {"n_variable_layers": 0},
    {"n_query_layers": 0, "n_variable_layers": 1},
    {"flow": "ode"},
    {"flow": "none", "rotary": False},
    {"query_reads_points": True},
    {"sees_queries": True, "calendar": True},
    {"n_known": 2},
    {"table": 8},
    {"reader": "attention"},
    {"reader": "both", "query_reads_points": True, "calendar": True},
]
OF_CONTEXT = [
    {"scale": "context"},
    {"clock": "context", "rotary_periods_s": (3.0, 3000.0)},
    {"scale": "context", "clock": "context", "rotary_periods_s": (3.0, 3000.0),
     "calendar": True, "query_reads_points": True, "n_variables": 1},
    {"scale": "context", "clock": "context", "rotary_periods_s": (3.0, 3000.0),
     "reader": "both", "query_reads_points": True, "n_variables": 1},
]  # fmt: skip
FORECAST_FIELDS = ("mean", "quantiles", "location", "spread")
Point = tuple[int, float, float]


def make_model(**options: Any) -> ForecasterModel:
    """A model whose every part has a say: at the start of training many weights are nought."""
    torch.manual_seed(0)
    config = ForecasterConfig(**{"n_variables": len(NAMES), **SMALL, **options})
    model = ForecasterModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for layer in model.variable_layers:
            for name, buffer in layer.named_buffers():
                if name.endswith("balance_bias"):
                    buffer += 0.3 * torch.randn_like(buffer)
    if config.scale == "variable" and config.n_variables == len(NAMES):
        n = torch.arange(len(NAMES))
        model.set_variable_scale(80.0 - 10.0 * n, 20.0 / (1.0 + n))
    return model


def make_points(seed: int = 1) -> list[Point]:
    """Points in an order of arrival that keeps to time within a variable only; some share one."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[list[Point]] = []
    for row, n in enumerate(LENGTHS):
        gaps = 3600 * torch.rand(n, generator=generator, dtype=torch.float64) ** 2
        gaps[3::7] = 0.0
        values = 80.0 - 10.0 * row + 15 * torch.randn(n, generator=generator, dtype=torch.float64)
        if row == CONSTANT:
            values[:] = 14.0
        seconds = ORIGIN + gaps.cumsum(0)
        waiting.append([(row, *p) for p in zip(seconds.tolist(), values.tolist(), strict=True)])
    points = []
    while any(waiting):
        weights = torch.tensor([float(len(points)) for points in waiting])
        row = int(torch.multinomial(weights, 1, generator=generator))
        points.append(waiting[row].pop(0))
    return points


def as_context(points: list[Point], now: float | None = None) -> ForecastContext:
    """The same points as the model takes them."""
    series = [[p for p in points if p[0] == row] for row in range(len(NAMES))]
    flat = [p for part in series for p in part]
    borders = torch.tensor([0, *(len(part) for part in series)]).cumsum(0)
    return ForecastContext(
        torch.tensor([p[1] for p in flat], dtype=torch.float64),
        torch.tensor([p[2] for p in flat], dtype=torch.float64), borders,
        torch.arange(len(NAMES)), torch.tensor([0, len(NAMES)]),
        torch.tensor([max([p[1] for p in flat]) if now is None else now], dtype=torch.float64),
    )  # fmt: skip


def everywhere(now: float, known: Tensor | None = None) -> ForecastQueries:
    """All variables at all times."""
    k = len(AHEAD)
    seconds = torch.tensor([now + ahead for ahead in AHEAD], dtype=torch.float64)
    borders = k * torch.arange(len(NAMES) + 1)
    return ForecastQueries(seconds.repeat(len(NAMES)), borders, known)


def frozen(
    model: ForecasterModel, context: ForecastContext, stream: ForecastStream
) -> Callable[[ForecastQueries], Forecast]:
    """The model over all points, on a scale and a clock that it is told."""
    scaled = replace(context.scaled_by(stream.location, stream.spread), clock=stream.clock)
    summary = summarise(scaled.values, scaled.clock_times(), scaled.cu_points)
    points = model.reader(scaled, model.variable(scaled.variable))
    encoded = model.encoded(scaled, points, summary)
    return lambda queries: model.answer(encoded, queries)


def of_model(context: ForecastContext, model: ForecasterModel) -> ForecastContext:
    """With the variables that the model knows."""
    if model.config.n_variables == 1:
        return replace(context, variable=torch.zeros_like(context.variable))
    return context


def assert_same(given: Forecast, expected: Forecast, tolerance: float = 1e-5) -> None:
    for name in ("mean", "quantiles"):
        actual, wanted = getattr(given, name), getattr(expected, name)
        assert bool(wanted.isfinite().all())
        torch.testing.assert_close(actual, wanted, atol=tolerance, rtol=tolerance)
    for name in ("location", "spread"):
        torch.testing.assert_close(getattr(given, name), getattr(expected, name), equal_nan=True)


def feed(stream: ForecastStream, points: list[Point]) -> None:
    for row, seconds, value in points:
        stream.update(NAMES[row], seconds, value)
